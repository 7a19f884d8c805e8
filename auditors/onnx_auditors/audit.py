"""An audit's three kinds of work over whichever auditors were asked for: plan, shard, merge."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from onnx_audit import v1
from onnx_auditors.auditor import Progress
from onnx_auditors.context import Context, Searched
from onnx_auditors.network import require
from onnx_auditors.network.outputs import Column
from onnx_auditors.network.saturation import can_saturate
from onnx_auditors.provenance import code_digest, provenance
from onnx_auditors.registry import AUDITORS, NAMES


def plan(configs: v1.AuditorConfigs, context: Context) -> v1.AuditPlan:
    """Checks that the network is faithful, fills in defaults and divides the work.

    Raises:
        AuditError: The audit cannot be done, for one because the parity does not hold.
    """
    parity = context.parity()
    require(parity)
    result = v1.AuditPlan(
        provenance=provenance(context),
        parity=parity,
        warnings=plan_warnings(context),
        linear_head=context.head,
        code_sha256=code_digest(),
    )
    for kind, name in NAMES.items():
        if configs.HasField(name):  # type: ignore[arg-type] # NAMES holds the field's names
            config = AUDITORS[kind].resolve(getattr(configs, name), context)
            getattr(result.auditors, name).CopyFrom(config)
            part = AUDITORS[kind].plan(config, context)
            result.plans.add(auditor=kind, shards=part.shards, items=part.items, unit=part.unit)
    return result


def plan_warnings(context: Context) -> list[v1.ReportWarning]:
    """Says what a reader must know of the network, whichever auditors run."""
    found = []
    if context.network.surrogate:
        found.append(_SURROGATE)
    if can_saturate(context.network.original):
        found.append(_SATURATION)
    if context.network.column is Column.LOGIT:
        found.append(_single_score(context))
    if context.head is not None:
        found.append(_linear_head(context.head))
    return found


_SURROGATE = v1.ReportWarning(
    code="SURROGATE_GRADIENTS",
    message=(
        "the model rounds inside (quantised, or with Round, Sign, Floor or the like), "
        "where true gradients are zero; the search used surrogate gradients that pass "
        "straight through the rounding. Every counted example is confirmed on the model "
        "itself, but smaller ones may have been missed"
    ),
)

_SATURATION = v1.ReportWarning(
    code="SATURATING_PRODUCTS",
    message=(
        "the model multiplies 8-bit values by signed 8-bit weights beyond 64: on x86 processors "
        "without VNNI ONNX Runtime saturates such sums unless told otherwise, and answers "
        "differently. The figures are for exact products. Where the model is to run on such "
        "processors, set ONNX Runtime's session option session.x64quantprecision to 1, or quantise "
        "with reduce_range=True"
    ),
)


def _single_score(context: Context) -> v1.ReportWarning:
    """Says that one score per sample was taken for a logit, and what speaks for and against it."""
    low, high = context.output_range()
    message = (
        f"output '{context.network.output}' is one score per sample and no sigmoid's: it was read "
        "as a logit of two classes, class 1 where it is above 0. On the first probes it is between "
        f"{low:.3g} and {high:.3g}"
    )
    if low >= 0 and high <= 1:
        message += (
            "; that looks like a probability, whose boundary is at 0.5: then the figures say "
            "nothing about the model, and it has to be exported with its sigmoid as the last node"
        )
    else:
        message += "; of a regression or of a score with another threshold the figures say nothing"
    return v1.ReportWarning(code="SINGLE_SCORE_READ_AS_LOGIT", message=message)


def _linear_head(head: v1.LinearHead) -> v1.ReportWarning:
    """Says that answers are not the model's alone."""
    return v1.ReportWarning(
        code="LINEAR_HEAD",
        message=(
            f"every answer is that of a linear head on value '{head.config.value}', fitted on the "
            f"labels of {head.probe_count} probes of this set: right for "
            f"{head.training_accuracy.value:.1%} of them, and for "
            f"{head.held_out_accuracy.value:.1%} when fitted without them. The figures are of the "
            "model with this head; accuracy on the same probes is higher than on others"
        ),
    )


def run_shard(
    configs: v1.AuditorConfigs,
    context: Context,
    kind: v1.Auditor.ValueType,
    shard: int,
    progress: Progress,
    searched: Sequence[Path] = (),
) -> bytes:
    """Does one shard; returns the serialised partial.

    Args:
        configs: The resolved configurations.
        context: What the audit works on.
        kind: The auditor.
        shard: Number of the shard.
        progress: Takes what is done so far.
        searched: Files with the partials of all shards of the auditor that this one builds on; see
            `registry.BUILDS_ON`.
    """
    if searched:
        found = AUDITORS[v1.AUDITOR_DISTORTION].resolve(configs.distortion, context)
        context = dataclasses.replace(context, searched=Searched(found, searched))
    config = AUDITORS[kind].resolve(getattr(configs, NAMES[kind]), context)
    partial: Message = AUDITORS[kind].run(config, context, shard, progress)
    return partial.SerializeToString(deterministic=True)


def merge(
    configs: v1.AuditorConfigs,
    context: Context,
    kind: v1.Auditor.ValueType,
    partials: Sequence[Path],
    folder: Path,
) -> v1.SectionResult:
    """Joins an auditor's partials; artefacts go into files of `folder`, named by their digest.

    Args:
        configs: The resolved configurations.
        context: What the audit works on.
        kind: The auditor.
        partials: Files with the partials of its shards, in their order.
        folder: Where artefacts go.
    """

    def save(content: Iterable[bytes], media_type: str) -> v1.BlobRef:
        digest, size = hashlib.sha256(), 0
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            for piece in content:
                digest.update(piece)
                size += file.write(piece)
        Path(file.name).rename(folder / digest.hexdigest())
        return v1.BlobRef(sha256=digest.hexdigest(), size_bytes=size, media_type=media_type)

    auditor = AUDITORS[kind]
    config = auditor.resolve(getattr(configs, NAMES[kind]), context)
    section: Any = auditor.merge(config, context, _Partials(auditor.partial_type, partials), save)
    result = v1.SectionResult(warnings=auditor.warnings(section, context))
    getattr(result, NAMES[kind]).CopyFrom(section)
    return result


class _Partials(Sequence[Any]):
    """Partials in files: each is read when it is asked for, so that one is in memory at a time."""

    def __init__(self, partial_type: Any, paths: Sequence[Path]) -> None:  # noqa: ANN401 - a message class
        self._type, self._paths = partial_type, paths

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 - a message
        return self._type.FromString(self._paths[index].read_bytes())

    def __len__(self) -> int:
        return len(self._paths)
