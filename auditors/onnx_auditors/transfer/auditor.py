"""The auditor `transfer`: do the examples of one model fool others, beyond what noise does?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnx_audit import v1
from onnx_auditors import configs
from onnx_auditors.auditor import Plan, Progress, SaveArtefact
from onnx_auditors.context import Context
from onnx_auditors.distortion import drawing
from onnx_auditors.errors import InvalidConfig, ParityFailed
from onnx_auditors.network import require
from onnx_auditors.transfer.config import DIVERSE, ENSEMBLE, filled
from onnx_auditors.transfer.fixed_size import images_of
from onnx_auditors.transfer.models import Models
from onnx_auditors.transfer.section import Merging
from onnx_auditors.transfer.shard import Shard

_LARGEST_BLOCK, _SMALLEST_BLOCK = 256, 8
_BLOCK_ENTRIES = 2**22
"""Entries of the probes of a block: a shard keeps some tens of arrays of that size."""


class TransferAuditor:
    """Makes adversarial examples of each model and has every other one answer them."""

    kind = v1.AUDITOR_TRANSFER
    partial_type = v1.TransferPartial

    def resolve(self, config: v1.TransferConfig, context: Context) -> v1.TransferConfig:
        """Returns a copy with every default filled in.

        Raises:
            InvalidConfig: A field is out of range.
        """
        configs.check(config)
        width = float((context.input_map.upper - context.input_map.lower).mean())
        return filled(config, width)

    def plan(self, config: v1.TransferConfig, context: Context) -> Plan:
        """Checks every peer, and cuts the work into sources and blocks of at most 256 probes.

        Raises:
            AuditError: A peer cannot be used, or not compared with the audited model.
        """
        if DIVERSE & set(config.attacks) and images_of(context) is None:
            raise InvalidConfig(
                f"input diversity resizes images, and probes {list(context.summary.shape)} are not "
                "known to be any; give probe_layout as CHW or HWC, or leave the attack out",
                field="attacks",
            )
        models = Models.of(context, config)
        for index in range(1, len(models)):
            try:
                require(models.open(index).parity())
            except ParityFailed as error:
                raise ParityFailed(f"{models.names[index]}: {error}", **error.metadata) from None
        count = drawing.probe_count(context, config.max_probes)
        sources = len(_sources(config, len(models)))
        return Plan(
            shards=sources * _blocks(context, count), items=sources * count, unit="examples"
        )

    def run(
        self, config: v1.TransferConfig, context: Context, shard: int, progress: Progress
    ) -> v1.TransferPartial:
        """Makes the examples of one source for a block of probes, and has all targets answer.

        Raises:
            ModelFailed: ONNX Runtime could not run a model.
        """
        models = Models.of(context, config)
        rows = drawing.probes(context, config.max_probes)
        blocks = _blocks(context, len(rows))
        model, ensemble = _sources(config, len(models))[shard // blocks]
        size = -(-len(rows) // blocks)
        begin = shard % blocks * size
        end = min(begin + size, len(rows))
        columns = [model] if ensemble else list(range(len(models)))
        work = Shard(models, config, model, columns, rows[begin:end], context.searched)
        count = end - begin

        def tell(share: float) -> None:
            progress(min(share * count, math.nextafter(count, 0)), count)

        attacks = [a for a in config.attacks if (a in ENSEMBLE) == ensemble]
        partial = work.run(attacks, tell)
        partial.begin, partial.end, partial.ensemble = begin, end, ensemble
        if not ensemble:
            partial.fixed_noise.extend(work.fixed_noise())
        progress(count, count)
        return partial

    def merge(
        self,
        config: v1.TransferConfig,
        context: Context,
        partials: Sequence[v1.TransferPartial],
        save: SaveArtefact,
    ) -> v1.TransferSection:
        """Joins the partials of all shards, in their order, into the section."""
        return Merging(Models.of(context, config), config, partials).section(save)

    def warnings(self, section: v1.TransferSection, context: Context) -> list[v1.ReportWarning]:
        """Says what a reader must know: models at chance, heads, and cells without probes."""
        found = []
        if context.probes.labels is None:
            message = (
                "the probes have no labels: the audited model's answers count as right, and the "
                "figures of the others are about agreement with it"
            )
            found.append(v1.ReportWarning(code="TRANSFER_WITHOUT_LABELS", message=message))
        for model in section.details:
            accuracy = model.clean_accuracy
            limit = min(2 / model.classes, (1 + 1 / model.classes) / 2)
            if accuracy.HasField("interval") and accuracy.interval.upper < limit:
                message = (
                    f"{model.name} answers {accuracy.value:.1%} of the probes rightly, which is "
                    f"close to chance ({1 / model.classes:.1%}): its mean, std, channel order, "
                    "layout or label map may be wrong, and then its row and its column say nothing"
                )
                found.append(v1.ReportWarning(code="MODEL_AT_CHANCE", message=message))
            if model.HasField("linear_head"):
                message = f"{model.name}: {model.notes[-1]}"
                found.append(v1.ReportWarning(code="LINEAR_HEAD", message=message))
        empty = [cell for cell in section.cells if not cell.error_rate.count]
        if empty:
            message = (
                f"{len(empty)} of {len(section.cells)} cells have no probe with an example of the "
                "source that the target answers rightly without change"
            )
            found.append(v1.ReportWarning(code="CELLS_WITHOUT_PROBES", message=message))
        return found


def _sources(config: v1.TransferConfig, models: int) -> list[tuple[int, bool]]:
    """Returns the rows of the matrix: models by themselves, then ensembles by who is left out."""
    found = []
    if any(attack not in ENSEMBLE for attack in config.attacks):
        found += [(model, False) for model in range(models)]
    if any(attack in ENSEMBLE for attack in config.attacks):
        found += [(model, True) for model in range(models)]
    return found


def _blocks(context: Context, count: int) -> int:
    """Returns the number of blocks of probes, by what one probe takes."""
    entries = int(np.prod(context.input_map.probe_shape))
    size = max(_SMALLEST_BLOCK, min(_LARGEST_BLOCK, _BLOCK_ENTRIES // entries))
    return -(-count // size)
