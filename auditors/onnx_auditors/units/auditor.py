"""The auditor `units`: are single units more meaningful than random directions?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors import configs
from onnx_auditors.auditor import Plan, Progress, SaveArtefact
from onnx_auditors.context import Context
from onnx_auditors.units import passes, section
from onnx_auditors.units.setup import Setup, set_up
from onnx_auditors.units.source import Indices, Source


class UnitsAuditor:
    """Compares the top inputs of single units with those of random directions."""

    kind = v1.AUDITOR_UNITS
    partial_type = v1.UnitsPartial

    def resolve(self, config: v1.UnitsConfig, context: Context) -> v1.UnitsConfig:
        """Returns a copy with every default filled in but the values.

        Raises:
            InvalidConfig: A number out of range, or a value that cannot be measured.
            ProbesDoNotFit: Too few probes, or labels of one class.
        """
        return _setup(config, context).config

    def plan(self, config: v1.UnitsConfig, context: Context) -> Plan:
        """Cuts probes and layers into at most 8 shards."""
        setup = _setup(config, context)
        shards = setup.cut()
        items = sum(len(_ranks(setup, blocks)) * len(numbers) for numbers, blocks in shards)
        return Plan(shards=len(shards), items=items, unit="probes and layers")

    def run(
        self, config: v1.UnitsConfig, context: Context, shard: int, progress: Progress
    ) -> v1.UnitsPartial:
        """Sends the probes of one shard through.

        Raises:
            InvalidConfig: A value is constant, or has fewer than two live units.
            ModelFailed: A value is not finite.
        """
        setup = _setup(config, context)
        numbers, blocks = setup.cut()[shard]
        total = len(_ranks(setup, blocks)) * len(numbers)
        return passes.run(setup, numbers, blocks, lambda share: progress(share * total, total))

    def merge(
        self,
        config: v1.UnitsConfig,
        context: Context,
        partials: Sequence[v1.UnitsPartial],
        save: SaveArtefact,
    ) -> v1.UnitsSection:
        """Joins the partials of all shards into the section."""
        return section.merge(_setup(config, context), partials, save)

    def warnings(self, section: v1.UnitsSection, context: Context) -> list[v1.ReportWarning]:
        """Says what a reader must know: a blind embedding, layers left out, no labels."""
        found = []
        if section.embedding.HasField("sees_labels") and not section.embedding.sees_labels:
            found.append(_BLIND)
        if section.left_out:
            message = (
                f"{len(section.left_out)} of {len(section.left_out) + len(section.layers)} layers "
                "were left out: at most as many as max_layers are looked at; name values, or raise "
                f"max_layers. Left out: {', '.join(section.left_out[:_NAMED])}"
            )
            found.append(v1.ReportWarning(code="LAYERS_LEFT_OUT", message=message))
        if context.probes.labels is None:
            found.append(_UNLABELLED)
        return found


_NAMED = 8
_BLIND = v1.ReportWarning(
    code="EMBEDDING_BLIND_TO_LABELS",
    message=(
        "the built-in reference embedding does not tell the probes' labels apart: that units and "
        "random directions are equally coherent in it says little about this model"
    ),
)
_UNLABELLED = v1.ReportWarning(
    code="UNLABELLED_PROBES",
    message=(
        "the probes have no labels: units were judged by coherence alone, in the built-in "
        "reference embedding"
    ),
)

_last: list[tuple[Context, Setup]] = []
"""What was set up last: a process does many shards of one audit."""


def _setup(config: v1.UnitsConfig, context: Context) -> Setup:
    # A configuration with its defaults filled in sets up the same as before.
    if _last and _last[0][0] is context and _last[0][1].config == config:
        return _last[0][1]
    configs.check(config)
    setup = set_up(config, _source(context))
    _last[:] = [(context, setup)]
    return setup


def _source(context: Context) -> Source:
    """Returns network and probes as units see them."""

    def feed(rows: Indices) -> Tensor:
        with torch.no_grad():
            return context.input_map(torch.from_numpy(context.inputs(rows)).to(context.device))

    spec, count = context.spec, context.summary.count
    return Source(
        network=context.network,
        feed=feed,
        images=context.inputs,
        channels_last=spec.probe_layout == v1.LAYOUT_HWC,
        limits=(min(spec.lower), max(spec.upper)),
        count=count,
        seed=context.seed,
        labels=context.labels(np.arange(count)),
    )


def _ranks(setup: Setup, blocks: range) -> range:
    return range(
        blocks.start * setup.block, min(blocks.stop * setup.block, len(setup.order.probes))
    )
