"""The models of the matrix: the audited one and its peers, all on the same probe space."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnx_audit import v1
from onnx_auditors import linear_head
from onnx_auditors.context import Context, check_scores, open_network, open_session
from onnx_auditors.errors import AuditError, InvalidConfig, InvalidModel
from onnx_auditors.input_spec import sample_shape
from onnx_auditors.network import Network, Session
from onnx_auditors.probes import Probes
from onnx_auditors.transfer import peer_spec
from onnx_auditors.transfer.resizing import PeerMap

_KEPT_BYTES = 256 * 2**20
"""Model files that are open at once, the last ones used; at least one is."""
_KEY = "transfer"
_BLOCK = 1024

Labels = npt.NDArray[np.int64]


class Models:
    """All models, opened when they are asked for; memory does not grow with their number.

    Attributes:
        names: What people call them, the audited one first; all different.
        tags: In what they differ.
        labels: Classes that count as right in the audited model's numbers, int64 [probes].
    """

    def __init__(self, context: Context, config: v1.TransferConfig) -> None:
        self._context, self._peers = context, list(config.peers)
        self._open: OrderedDict[int, tuple[Context, peer_spec.PeerSpec, int]] = OrderedDict()
        self.names = _different(
            [config.display_name or "audited"]
            + [peer.display_name or f"peer {i + 1}" for i, peer in enumerate(self._peers)]
        )
        self.tags = [dict(config.tags), *(dict(peer.tags) for peer in self._peers)]
        self.labels = _reference(context)

    @classmethod
    def of(cls, context: Context, config: v1.TransferConfig) -> Models:
        """Returns the models of a configuration; those of the last call stay open."""
        key = config.SerializeToString(deterministic=True)
        kept = context.kept.get(_KEY)
        if kept is None or kept[0] != key:
            kept = context.kept[_KEY] = (key, cls(context, config))
        models: Models = kept[1]
        return models

    def __len__(self) -> int:
        """Number of models."""
        return len(self._peers) + 1

    def open(self, index: int) -> Context:
        """Returns a model; its labels are in its own classes, -1 where it has none.

        Raises:
            AuditError: It cannot be used, or not compared with the audited one.
        """
        return self._opened(index)[0] if index else self._context

    def spec(self, index: int) -> tuple[v1.InputSpec, list[str], tuple[int, int]]:
        """Returns a model's filled-in spec, what was worked out, and the size of its images.

        The size is (0, 0) where probes are not resized.
        """
        if not index:
            return self._context.spec, self._context.notes, (0, 0)
        resolved = self._opened(index)[1]
        return resolved.spec, resolved.notes, resolved.size or (0, 0)

    def translated(self, index: int, labels: Labels) -> Labels:
        """Returns classes of the audited model in a model's own numbers; -1 where it has none."""
        mapping = list(self._peers[index - 1].label_map) if index else []
        if not mapping:
            return labels
        return np.where(labels >= 0, np.array(mapping, dtype=np.int64)[labels], -1)

    def _opened(self, index: int) -> tuple[Context, peer_spec.PeerSpec, int]:
        if index in self._open:
            self._open.move_to_end(index)
            return self._open[index]
        opened = self._load(index)
        self._open[index] = opened
        while len(self._open) > 1 and sum(o[2] for o in self._open.values()) > _KEPT_BYTES:
            self._open.popitem(last=False)
        return opened

    def _load(self, index: int) -> tuple[Context, peer_spec.PeerSpec, int]:
        base, peer, prefix = self._context, self._peers[index - 1], f"peers[{index - 1}]."
        path = base.peers.get(peer.model)
        if path is None:
            raise InvalidConfig(f"the file of {peer.model!r} is missing", field=f"{prefix}model")
        found: list[peer_spec.PeerSpec] = []

        def shape(model: v1.ModelSummary) -> Sequence[int]:
            found.append(peer_spec.resolve(peer, model, base.summary, base.spec, prefix))
            return sample_shape(found[0].spec, model, found[0].probes)

        try:
            network = open_network(path, base.device, base.network.limits, shape)
            input_map = PeerMap(found[0], network.summary, base.input_map, base.device)
            network, session, head = self._classifier(index, path, network, input_map)
        except AuditError as error:
            error.args = (f"{self.names[index]}: {error}",)
            _blame(error, prefix)
            raise
        if head is None:
            self._check_classes(index, network.classes)
        else:
            found[0].notes.append(_said(head))
        context = Context(
            network=network,
            session=session,
            input_map=input_map,
            probes=Probes(base.probes.inputs, self.translated(index, self.labels)),
            summary=base.summary,
            spec=found[0].spec,
            notes=found[0].notes,
            seed=base.seed,
            device=base.device,
            head=head,
        )
        return context, found[0], _size(path)

    def _classifier(
        self, index: int, path: Path, network: Network, input_map: PeerMap
    ) -> tuple[Network, Session, v1.LinearHead | None]:
        """Returns a peer with class scores: as it is, or with a linear head of its own."""
        base = self._context
        asked = self._head(index, network)
        threads = base.session.threads
        if asked is None:
            check_scores(network)
            return network, open_session(path, network, base.device, threads), None
        return linear_head.attach(
            network,
            asked,
            input_map,
            base.probes,
            base.seed,
            device=str(base.device),
            threads=threads,
            classes=base.network.classes,
        )

    def _head(self, index: int, network: Network) -> v1.LinearHeadConfig | None:
        """Returns the head that a peer gets; None where it has classes of its own."""
        peer, own = self._peers[index - 1], self._context.head
        if peer.HasField("linear_head"):
            return peer.linear_head
        if own is None or peer.label_map:
            return None
        try:
            check_scores(network)
            if network.classes == self._context.network.classes:
                return None
        except InvalidModel:
            pass
        return v1.LinearHeadConfig(method=own.config.method, l2=own.config.l2)

    def _check_classes(self, index: int, classes: int) -> None:
        field = f"peers[{index - 1}].label_map"
        own, name = self._context.network.classes, self.names[index]
        mapping = self._peers[index - 1].label_map
        if not mapping:
            if classes != own:
                raise InvalidConfig(
                    f"{name} has {classes} classes and the audited model {own}, so their answers "
                    "cannot be compared; give the peer's class for each of the audited model's",
                    field=field,
                )
            return
        if len(mapping) != own:
            raise InvalidConfig(
                f"{len(mapping)} entries; expected one for each of the audited model's {own} "
                "classes",
                field=field,
            )
        if max(mapping) >= classes:
            raise InvalidConfig(
                f"class {max(mapping)}; {name} has {classes} classes, which count from 0",
                field=field,
            )
        if len(set(mapping) - {-1}) < 2:  # noqa: PLR2004 - one class has no other to go to
            raise InvalidConfig(
                f"{name} has fewer than two of the audited model's classes, so their answers "
                "cannot be compared",
                field=field,
            )


def _reference(context: Context) -> Labels:
    """Returns the given labels, or ONNX Runtime's answers of the audited model without any."""
    rows = np.arange(context.summary.count)
    given = context.labels(rows)
    if given is not None:
        return given
    blocks = [rows[i : i + _BLOCK] for i in range(0, len(rows), _BLOCK)]
    answers = [context.scores(context.inputs(block)).argmax(axis=1) for block in blocks]
    return np.concatenate(answers).astype(np.int64)


def _blame(error: AuditError, prefix: str) -> None:
    """Names the field of a peer that is at fault; the model where none is known."""
    field = error.metadata.get("field", "")
    if field.startswith("linear_head"):
        error.metadata["field"] = f"{prefix}{field}"
    elif not field.startswith("peers["):
        error.metadata["field"] = f"{prefix}model"


def _said(head: v1.LinearHead) -> str:
    return (
        f"Its answers are those of a linear head on value '{head.config.value}', fitted on the "
        f"labels of {head.probe_count} probes of this set: right for "
        f"{head.training_accuracy.value:.1%} of them, and for {head.held_out_accuracy.value:.1%} "
        "when fitted without them."
    )


def _different(names: list[str]) -> list[str]:
    """Returns the names with numbers behind those that came before."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        new = name if seen[name] == 1 else f"{name} ({seen[name]})"
        while new in result or (new != name and new in names):
            seen[name] += 1
            new = f"{name} ({seen[name]})"
        result.append(new)
    return result


def _size(path: Path) -> int:
    """Returns the bytes of a model with all that lies beside it, its external data."""
    return sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
