"""What an auditor works on: network, session, probes and the map between them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors import input_spec, linear_head, probes
from onnx_auditors.errors import InvalidModel, ModelFailed, ProbesDoNotFit
from onnx_auditors.input_map import InputMap
from onnx_auditors.network import Limits, Network, Session, load
from onnx_auditors.network.parity import parity
from onnx_auditors.network.session import check_opset

_THREADS = 2
_LEAST_CLASSES = 2
_PARITY_PROBES = 64


@dataclass(frozen=True)
class Searched:
    """What all shards of `distortion` have found.

    Attributes:
        config: The resolved configuration.
        partials: Files with their partials.
    """

    config: v1.DistortionConfig
    partials: Sequence[Path]


@dataclass(frozen=True)
class Context:
    """A model and a probe set, opened together.

    Attributes:
        network: The differentiable network.
        session: ONNX Runtime on the file as uploaded.
        input_map: From probe space to the model's input.
        probes: The probe set.
        summary: What the probe set holds.
        spec: The input spec with everything filled in.
        notes: What was worked out about the spec, a sentence each.
        seed: The audit's seed.
        device: Where the network computes.
        head: The linear head, where one was asked for; network and session have it.
        peers: Files of the other models that the configuration names, by `models/{sha256}`.
        arrays: Files of the arrays that it names, by `blobs/{sha256}`.
        searched: What `distortion` has found on the same model, where the same audit has it.
        kept: What an auditor keeps for its later shards in this process; no figure depends on it.
    """

    network: Network
    session: Session
    input_map: InputMap
    probes: probes.Probes
    summary: v1.ProbeSummary
    spec: v1.InputSpec
    notes: list[str]
    seed: int
    device: torch.device
    head: v1.LinearHead | None = None
    peers: Mapping[str, Path] = field(default_factory=dict)
    arrays: Mapping[str, Path] = field(default_factory=dict)
    searched: Searched | None = None
    kept: dict[str, Any] = field(default_factory=dict)

    def inputs(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Returns probes in probe space, float32 [n, *probe shape], by index."""
        return self.input_map.to_probe_space(self.probes.inputs[rows])

    def scores(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Returns ONNX Runtime's class scores [n, classes] for a batch in probe space.

        Raises:
            ModelFailed: ONNX Runtime reports an error, or a score is not a number.
        """
        with torch.no_grad():
            fed = self.input_map(torch.from_numpy(x).to(self.device)).cpu().numpy()
        scores = self.session.run(fed)
        if np.isnan(scores).any():
            raise ModelFailed(
                "ONNX Runtime gives NaN class scores for an input inside the box; the model "
                "overflows or divides by zero there"
            )
        return scores

    def logits(self, x: Tensor) -> Tensor:
        """Returns the network's logits [n, classes] for a batch in probe space; differentiable."""
        scores: Tensor = self.network(self.input_map(x))
        return scores

    def labels(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        """Returns labels by index; None where the probe set has none."""
        if self.probes.labels is None:
            return None
        return np.asarray(self.probes.labels[rows]).astype(np.int64)

    def parity(self) -> v1.Parity:
        """Compares the network with ONNX Runtime on the first probes."""
        return parity(self.network, self.session, self._first_fed())

    def output_range(self) -> tuple[float, float]:
        """Returns the ends of what ONNX Runtime's output takes on the first probes."""
        table = self.session.table(self._first_fed())
        return float(table.min()), float(table.max())

    def _first_fed(self) -> npt.NDArray[np.float32]:
        rows = np.arange(min(_PARITY_PROBES, self.summary.count))
        with torch.no_grad():
            x = self.input_map(torch.from_numpy(self.inputs(rows)).to(self.device))
        return x.cpu().numpy()


def open_context(
    model_path: str | Path,
    probes_path: str | Path,
    spec: v1.InputSpec | None = None,
    seed: int = 0,
    device: str = "cpu",
    *,
    limits: Limits | None = None,
    threads: int = _THREADS,
    head: v1.LinearHeadConfig | None = None,
    classes: bool = True,
    peers: Mapping[str, str | Path] | None = None,
    arrays: Mapping[str, str | Path] | None = None,
) -> Context:
    """Opens a model and a probe set for audits.

    Sets torch's precision and determinism for the whole process, so that the same job on the same
    kind of machine gives the same bytes.

    Args:
        model_path: The ONNX file, external data beside it.
        probes_path: The safetensors file.
        spec: What the user says about the input.
        seed: The audit's seed.
        device: "cpu" or a CUDA device.
        limits: What the model may cost.
        threads: Threads on the CPU.
        head: The linear head to fit on the labelled probes; None for a model that has classes.
        classes: Whether the model has to have classes.
        peers: Files of the other models that the configuration names, by `models/{sha256}`.
        arrays: Files of the arrays that it names, by `blobs/{sha256}`.

    Raises:
        AuditError: The model or the probes cannot be used, or not together.
    """
    fix_numerics(threads)
    summary = probes.summarize(probes_path, _digest(Path(probes_path)))
    filled, notes = v1.InputSpec(), list[str]()

    def shape(model: v1.ModelSummary) -> Sequence[int]:
        found, notes[:] = input_spec.resolve(spec or v1.InputSpec(), model, summary)
        filled.CopyFrom(found)
        return input_spec.sample_shape(filled, model, summary)

    network = open_network(model_path, device, limits, shape)
    input_map = InputMap(filled, network.summary, summary, device)
    opened = probes.open_probes(probes_path)
    record = None
    if head is None:
        session = open_session(model_path, network, device, threads)
    else:
        network, session, record = linear_head.attach(
            network, head, input_map, opened, seed, device=device, threads=threads
        )
    context = Context(
        network=network,
        session=session,
        input_map=input_map,
        probes=opened,
        summary=summary,
        spec=filled,
        notes=notes,
        seed=seed,
        device=torch.device(device),
        head=record,
        peers={name: Path(path) for name, path in (peers or {}).items()},
        arrays={name: Path(path) for name, path in (arrays or {}).items()},
    )
    if classes:
        check_scores(network)
        _check_labels(context)
    return context


def open_network(
    path: str | Path,
    device: str | torch.device,
    limits: Limits | None,
    shape: Callable[[v1.ModelSummary], Sequence[int]],
) -> Network:
    """Loads a model's network; an input whose shape the model leaves open gets one.

    Args:
        path: The ONNX file, external data beside it.
        device: Where it computes.
        limits: What the model may cost.
        shape: Says the shape of one sample; called once, with what the file says of itself.

    Raises:
        AuditError: The model cannot be used.
    """
    network = load(path, device, limits)
    check_opset(network.summary.opset)
    wanted = shape(network.summary)
    if min(network.input.shape[1:]) < 1:
        network = load(path, device, limits, sample_shape=wanted)
    return network


def open_session(
    path: str | Path, network: Network, device: str | torch.device, threads: int
) -> Session:
    """Opens ONNX Runtime on the file of a network, to give its class scores."""
    return Session(
        path, str(device), threads,
        output=network.output, classes=network.classes, column=network.column,
    )  # fmt: skip


def fix_numerics(threads: int) -> None:
    """Makes torch in this process repeatable: no TF32, deterministic algorithms, fixed threads."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
    # It writes all memory twice; nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # set by name
    torch.set_num_threads(threads)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_scores(network: Network) -> None:
    """Checks that a model gives one row of scores of at least two classes.

    Raises:
        InvalidModel: It does not.
    """
    if not network.scores_in_a_row:
        raise InvalidModel(
            f"output '{network.output}' is a map or a sequence and not one row of class "
            "scores for each input; a model without classes, such as an autoencoder, is audited "
            "with a linear head on one of its values, fitted on labelled probes (--head)",
            field="linear_head",
        )
    if network.classes < _LEAST_CLASSES:
        raise InvalidModel(
            f"output '{network.output}' is a choice from a single class, so no input can "
            f"change it; expected at least {_LEAST_CLASSES} classes, or one score per sample that "
            "no softmax makes 1"
        )


def _check_labels(context: Context) -> None:
    classes = context.network.classes
    if context.summary.has_labels and context.summary.max_label >= classes:
        raise ProbesDoNotFit(
            f"labels reach {context.summary.max_label}, but the model has {classes} classes; "
            "labels count from 0"
        )
