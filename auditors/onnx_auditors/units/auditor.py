"""The auditor `units`: are single units more meaningful than random directions?"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors import configs, unit_arrays
from onnx_auditors.auditor import Plan, Progress, SaveArtefact
from onnx_auditors.context import Context
from onnx_auditors.units import passes, reference, section, words
from onnx_auditors.units.embedding import GIVEN
from onnx_auditors.units.setup import Setup, set_up
from onnx_auditors.units.source import Embedding, Indices, Single, Source


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
            found.append(_blind(section))
        if section.left_out:
            message = (
                f"{len(section.left_out)} of {len(section.left_out) + len(section.layers)} layers "
                "were left out: at most as many as max_layers are looked at; name values, or raise "
                f"max_layers. Left out: {', '.join(section.left_out[:_NAMED])}"
            )
            found.append(v1.ReportWarning(code="LAYERS_LEFT_OUT", message=message))
        if context.probes.labels is None:
            found.append(_unlabelled(section))
        return found


_NAMED = 8


def _blind(section: v1.UnitsSection) -> v1.ReportWarning:
    return v1.ReportWarning(
        code="EMBEDDING_BLIND_TO_LABELS",
        message=(
            f"the reference embedding ({section.embedding.source}) does not tell the probes' "
            "labels apart: that units and random directions are equally coherent in it says little "
            "about this model"
        ),
    )


def _unlabelled(section: v1.UnitsSection) -> v1.ReportWarning:
    kinds = {score.kind for layer in section.layers for score in layer.scores}
    names = " and ".join(words.NAMES[kind] for kind in sorted(kinds))
    return v1.ReportWarning(
        code="UNLABELLED_PROBES",
        message=(
            f"the probes have no labels: units were judged by {names} alone; the reference "
            f"embedding is {section.embedding.source}"
        ),
    )


_last: list[tuple[Context, v1.UnitsConfig, Setup]] = []
"""What was set up last, and for which configuration: a process does many shards of one audit."""


def _setup(config: v1.UnitsConfig, context: Context) -> Setup:
    for before, asked, setup in _last:
        # A configuration with its defaults filled in sets up the same as before.
        if before is context and config in (asked, setup.config):
            return setup
    configs.check(config)
    setup = set_up(config, _source(config, context))
    _last[:] = [(context, copy.deepcopy(config), setup)]
    return setup


def _source(config: v1.UnitsConfig, context: Context) -> Source:
    """Returns network and probes as units see them, with the arrays that the user gives.

    Raises:
        AuditError: An array, or the model of the reference embedding, cannot be used.
    """
    count = context.summary.count

    def array(field: str) -> Any:  # noqa: ANN401 - what each field holds
        return unit_arrays.read(field, context.arrays, config, count)

    def feed(rows: Indices) -> Tensor:
        with torch.no_grad():
            return context.input_map(torch.from_numpy(context.inputs(rows)).to(context.device))

    spec = context.spec
    return Source(
        network=context.network,
        feed=feed,
        images=context.inputs,
        channels_last=spec.probe_layout == v1.LAYOUT_HWC,
        limits=(min(spec.lower), max(spec.upper)),
        count=count,
        seed=context.seed,
        labels=context.labels(np.arange(count)),
        concepts=array(unit_arrays.CONCEPTS),
        masks=array(unit_arrays.MASKS),
        embedding=_embedding(config, context, array(unit_arrays.FEATURES)),
        given=array(unit_arrays.DIRECTIONS) or {},
    )


def _embedding(
    config: v1.UnitsConfig, context: Context, features: Single | None
) -> Embedding | None:
    if features is not None:
        return Embedding(GIVEN, lambda rows: features[rows])
    if config.embedding.model:
        return reference.of_model(config.embedding, context)
    return None


def _ranks(setup: Setup, blocks: range) -> range:
    return range(
        blocks.start * setup.block, min(blocks.stop * setup.block, len(setup.order.probes))
    )
