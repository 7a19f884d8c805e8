"""Examples of a fixed size, made on one model or on several at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch

from onnx_audit import v1
from onnx_auditors.context import Context
from onnx_auditors.distortion.gradients import differentiable
from onnx_auditors.distortion.inside import choose
from onnx_auditors.distortion.memory import batch_rows
from onnx_auditors.errors import InvalidConfig
from onnx_auditors.transfer.ascent import Images, Task
from onnx_auditors.transfer.attacks import (
    Surrogate,
    diverse,
    intermediate,
    momentum,
    scale_invariant,
)
from onnx_auditors.transfer.config import ENSEMBLE
from onnx_auditors.transfer.examples import Examples, Indices, box_of
from onnx_auditors.transfer.models import Labels, Models
from onnx_auditors.transfer.sizes import lengths, scaled

_SEED, _MEMBER_SEED = 21, 22
_MOST_MEMBERS = 8
"""Models of an ensemble; of more than that so many are drawn."""
_ALL = 1_000_000
"""Hidden values to choose from."""
_ON_ONE: Mapping[v1.TransferAttack.ValueType, Callable[[Surrogate, Task], torch.Tensor]] = {
    v1.TRANSFER_ATTACK_DIVERSE: diverse,
    v1.TRANSFER_ATTACK_DIVERSE_TARGETED: diverse,
    v1.TRANSFER_ATTACK_SCALE_INVARIANT: scale_invariant,
    v1.TRANSFER_ATTACK_SCALE_INVARIANT_TARGETED: scale_invariant,
    v1.TRANSFER_ATTACK_INTERMEDIATE: intermediate,
    v1.TRANSFER_ATTACK_INTERMEDIATE_TARGETED: intermediate,
}
"""Attacks on a single model; all others are `momentum`."""


class FixedSize:
    """Makes changes of a fixed size that aim at transfer.

    Args:
        models: All models.
        config: The resolved configuration.
        model: Index of the source; of the one left out for ensembles.
    """

    def __init__(self, models: Models, config: v1.TransferConfig, model: int) -> None:
        self._models, self._config, self._model = models, config, model
        self._base = models.open(0)
        self._hidden: dict[int, str] = {}

    def make(
        self,
        attack: v1.TransferAttack.ValueType,
        rows: Indices,
        aimed: Indices | None,
        progress: Callable[[float], object],
    ) -> Examples:
        """Makes the examples of an attack.

        Args:
            attack: The attack.
            rows: Indices of the probes.
            aimed: Classes to reach in the audited model's numbers, -1 for none; None if untargeted.
            progress: Told which share is done.
        """
        base, models = self._base, self._models
        members = self._members() if attack in ENSEMBLE else [self._model]
        inputs, labels = base.inputs(rows), models.labels[rows]
        exists = np.any([models.translated(m, labels) >= 0 for m in members], axis=0)
        if aimed is not None:
            exists &= aimed >= 0
        radius = self._config.attack_rms * math.sqrt(math.prod(inputs.shape[1:]))
        step = min(batch_rows(models.open(m)) for m in members)
        found = inputs.copy()
        places = np.flatnonzero(exists)
        total = len(places)
        for begin in range(0, total, step):
            part = places[begin : begin + step]
            goals = None if aimed is None else aimed[part]

            def tell(share: float, begin: int = begin) -> None:
                progress((begin + share * min(step, total - begin)) / total)

            surrogates = [self._surrogate(m, labels[part], goals) for m in members]
            task = self._task(attack, inputs[part], rows[part], radius, tell)
            single = _ON_ONE.get(attack)
            x = momentum(surrogates, task) if single is None else single(surrogates[0](), task)
            found[part] = x.cpu().numpy()
        wanted = np.where(exists, radius, 0.0)
        examples = scaled(inputs, found.astype(np.float64) - inputs, wanted, box_of(base))
        nothing = np.zeros(len(rows), dtype=bool)
        return Examples(exists, nothing, examples, lengths(inputs, examples), aimed)

    def _task(
        self,
        attack: v1.TransferAttack.ValueType,
        inputs: np.ndarray,
        rows: Indices,
        radius: float,
        progress: Callable[[float], object],
    ) -> Task:
        base = self._base
        seed = [base.seed, _SEED, attack, self._model]
        offset = np.random.SeedSequence(seed).generate_state(1, np.uint64)
        seeds = torch.from_numpy((offset + rows.astype(np.uint64)).view(np.int64))
        return Task(
            inputs=torch.from_numpy(inputs).to(base.device),
            lower=base.input_map.lower,
            upper=base.input_map.upper,
            radius=radius,
            steps=self._config.attack_steps,
            seeds=seeds.to(base.device),
            seed=[*seed, int(rows[0])],
            images=images_of(base),
            progress=progress,
        )

    def _surrogate(
        self, member: int, labels: Labels, aimed: Labels | None
    ) -> Callable[[], Surrogate]:
        models, device = self._models, self._base.device

        def to(classes: Labels) -> torch.Tensor:
            return torch.from_numpy(models.translated(member, classes)).to(device)

        def opened() -> Surrogate:
            context = models.open(member)
            return Surrogate(
                differentiable(context.logits),
                differentiable(lambda x: self._features(context, member, x)),
                to(labels),
                None if aimed is None else to(aimed),
            )

        return opened

    def _features(self, context: Context, member: int, x: torch.Tensor) -> torch.Tensor:
        """Returns the hidden value in the middle of a model, [n, k]; its logits if it has none."""
        if member not in self._hidden:
            self._hidden[member] = _middle(context)
        name = self._hidden[member]
        if not name:
            return context.logits(x)
        return context.network.values(context.input_map(x), [name])[name].flatten(1)

    def _members(self) -> list[int]:
        others = [m for m in range(len(self._models)) if m != self._model]
        if len(others) <= _MOST_MEMBERS:
            return others
        rng = np.random.default_rng([self._base.seed, _MEMBER_SEED, self._model])
        return sorted(rng.choice(others, size=_MOST_MEMBERS, replace=False).tolist())


def _middle(context: Context) -> str:
    """Returns the name of the hidden value that is pushed; empty where the logits are."""
    try:
        names = choose(context, v1.DistortionConfig(hidden_count=_ALL))
    except InvalidConfig:  # shapes depend on the input's content
        return ""
    return names[len(names) // 2] if names else ""


def images_of(context: Context) -> Images | None:
    """Returns how probes are images; None where they are not."""
    return Images.of(context.spec.probe_layout, context.input_map.probe_shape)
