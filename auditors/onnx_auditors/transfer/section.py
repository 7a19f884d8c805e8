"""From the counts of all shards to the section of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnx_audit import v1
from onnx_auditors.auditor import SaveArtefact
from onnx_auditors.distortion import drawing
from onnx_auditors.estimates import mean, proportion
from onnx_auditors.tensor_files import MEDIA_TYPE
from onnx_auditors.transfer import statistics
from onnx_auditors.transfer.artefacts import Files
from onnx_auditors.transfer.config import ENSEMBLE, TARGETED
from onnx_auditors.transfer.fooling import Fooling
from onnx_auditors.transfer.kinds import pairs_by_tag
from onnx_auditors.transfer.models import Models
from onnx_auditors.transfer.similarity import grouped
from onnx_auditors.transfer.tally import Block, Cell, Row, Tally

_ROW_SEED, _KIND_SEED = 27, 28


class Merging:
    """Joins partials, one after the other, into the section.

    Args:
        models: All models.
        config: The resolved configuration.
        partials: Results of the shards, in their order.
    """

    def __init__(
        self, models: Models, config: v1.TransferConfig, partials: Sequence[v1.TransferPartial]
    ) -> None:
        self._models, self._config, self._partials = models, config, partials
        self._base = models.open(0)
        self._rows = drawing.probes(self._base, config.max_probes)
        self._dimension = math.prod(self._base.input_map.probe_shape)
        groups = pairs_by_tag(models.tags)
        self._tallies = {a: Tally(config, len(self._rows), groups) for a in config.attacks}
        self._fooling = Fooling()
        self._clean = np.zeros((len(models), 2), dtype=np.int64)
        self._noise = np.zeros((len(models), len(config.noise_levels)), dtype=np.int64)
        for i in range(len(partials)):
            self._add(partials[i])

    def section(self, save: SaveArtefact) -> v1.TransferSection:
        """Returns the section; `save` keeps the artefacts."""
        section = v1.TransferSection(
            config=self._config,
            models=self._models.names,
            cells=self._cells(),
            probe_count=len(self._rows),
            dimension=self._dimension,
            details=[self._detail(m) for m in range(len(self._models))],
            rows=self._row_messages(),
            kinds=self._kinds(),
            fooling=self._fooling.summary(len(self._models)),
        )
        self._group(section)
        for attack in self._config.attacks:
            files = Files(self._models, self._partials, self._rows, attack)
            training = files.training_set()
            section.artefacts.add(
                attack=attack,
                examples=save(files.examples(), MEDIA_TYPE),
                training_set=None if training is None else save(training, MEDIA_TYPE),
            )
        return section

    def _add(self, partial: v1.TransferPartial) -> None:
        for part in partial.attacks:
            block = Block.of(partial, part, len(self._models))
            self._tallies[part.attack].add(partial, block)
            if not partial.ensemble:
                probes = self._rows[partial.begin : partial.end]
                self._fooling.add(part.attack, partial.model, block, probes)
        if not partial.ensemble:
            own = np.frombuffer(partial.right, dtype=np.uint8)
            own = own.reshape(partial.end - partial.begin, -1)[:, partial.model]
            self._clean[partial.model] += (np.count_nonzero(own == 1), np.count_nonzero(own <= 1))
            for i, content in enumerate(partial.fixed_noise):
                wrong = np.frombuffer(content, dtype=np.uint8)[own == 1]
                self._noise[partial.model, i] += int(wrong.sum(dtype=np.int64))

    def _cells(self) -> list[v1.TransferCell]:
        cells = [
            self._cell(attack, source, target, tally.cells[source, target])
            for attack, tally in self._tallies.items()
            for source, target in sorted(tally.cells)
        ]
        tested = [cell for cell in cells if cell.HasField("p_value")]
        corrected = statistics.holm([cell.p_value for cell in tested])
        for cell, value in zip(tested, corrected, strict=True):
            cell.corrected_p_value = value
        return cells

    def _cell(
        self, attack: v1.TransferAttack.ValueType, source: int, target: int, cell: Cell
    ) -> v1.TransferCell:
        table, draws = cell.table, self._config.noise_draws
        count = int(table.sum())
        noise = int(table.sum(axis=0) @ np.arange(draws + 1))
        message = v1.TransferCell(
            attack=attack,
            source=source,
            target=target,
            error_rate=proportion(int(table[1].sum()), count),
            noise_error_rate=statistics.noise_rate(noise, count, draws),
            excess=statistics.excess(table),
            shuffled_error_rate=proportion(int(cell.shuffled[0]), int(cell.shuffled[1])),
        )
        if source != target and count:
            message.p_value = statistics.p_value(table)
        if attack in TARGETED:
            message.match_rate.CopyFrom(proportion(int(cell.matches[0]), count))
            message.noise_match_rate.CopyFrom(
                statistics.noise_rate(int(cell.matches[1]), count, draws)
            )
        for i, rms in enumerate(self._config.rms_levels):
            message.curve.add(
                rms=rms,
                mean_rms=cell.rms[i] / count if count else math.nan,
                error_rate=proportion(int(cell.levels[i, 0]), count),
                noise_error_rate=proportion(int(cell.levels[i, 1]), count),
            )
        return message

    def _detail(self, model: int) -> v1.TransferModel:
        context = self._models.open(model)
        spec, notes, size = self._models.spec(model)
        parity = context.parity()
        right, count = (int(n) for n in self._clean[model])
        labelled = self._base.probes.labels is not None
        accuracy = proportion(right, count)
        if not labelled and not model:
            accuracy.ClearField("interval")
        return v1.TransferModel(
            name=self._models.names[model],
            model=self._config.peers[model - 1].model if model else "",
            tags=self._models.tags[model],
            input_spec=spec,
            notes=notes,
            classes=context.network.classes,
            resized_height=size[0],
            resized_width=size[1],
            parity_difference=parity.max_relative_difference,
            parity_tolerance=parity.tolerance,
            linear_head=context.head if model else None,
            clean_accuracy=accuracy,
            noise=[
                v1.FixedNoise(sigma=sigma, error_rate=proportion(int(errors), right))
                for sigma, errors in zip(self._config.noise_levels, self._noise[model], strict=True)
            ],
        )

    def _row_messages(self) -> list[v1.TransferRow]:
        return [
            self._row(attack, source, target, tally.rows[source, target])
            for attack, tally in self._tallies.items()
            for source, target in sorted(tally.rows)
        ]

    def _row(
        self, attack: v1.TransferAttack.ValueType, source: int, target: int, row: Row
    ) -> v1.TransferRow:
        l2 = np.concatenate(row.l2)
        seed = [self._base.seed, _ROW_SEED, attack, source + 1, target + 1]
        state = int(np.random.SeedSequence(seed).generate_state(1)[0])
        return v1.TransferRow(
            attack=attack,
            source=source,
            target=target,
            examples=len(l2),
            not_found=row.lacking,
            mean_rms=mean(l2 / math.sqrt(self._dimension), "rms", state),
            mean_l2=mean(l2, "L2", state),
        )

    def _kinds(self) -> list[v1.TransferKind]:
        found = []
        for attack, tally in self._tallies.items():
            if attack in ENSEMBLE:
                continue
            for i, (kind, group) in enumerate(tally.groups.items()):
                seed = [self._base.seed, _KIND_SEED, attack, i]
                state = int(np.random.SeedSequence(seed).generate_state(1)[0])
                errors, cells, noise = group.sums
                rate, under_noise, excess = statistics.clustered(errors, cells, noise, state)
                found.append(
                    v1.TransferKind(
                        attack=attack,
                        tag=kind.tag,
                        alone=kind.alone,
                        source_value=kind.source,
                        target_value=kind.target,
                        pairs=len(group.pairs),
                        error_rate=rate,
                        noise_error_rate=under_noise,
                        excess=excess,
                    )
                )
        return found

    def _group(self, section: v1.TransferSection) -> None:
        """Fills in how models group together by the first attack on single sources."""
        count = len(self._models)
        chosen = next((a for a in self._config.attacks if a not in ENSEMBLE), None)
        if chosen is None:
            section.order.extend(range(count))
            return
        rates = np.full((count, count), math.nan)
        for (source, target), cell in self._tallies[chosen].cells.items():
            if cell.table.sum():
                rates[source, target] = cell.table[1].sum() / cell.table.sum()
        order, merges = grouped(rates)
        section.order.extend(order)
        section.merges.extend(merges)
        section.grouped_by = chosen
