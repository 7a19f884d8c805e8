"""Runs a graph from any of its values to any others, at any batch size.

Every set of input shapes and dtypes has its own plan, and every pair of sources and targets its own
torch.fx graph; both are kept. A graph with a fixed batch is rewritten for other batches where that
is provably the same, else mapped over its own batch. A graph whose shapes or branches depend on the
content of its input is computed node by node.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, fx

from onnx_auditors.errors import AuditError, InvalidModel, LimitExceeded, UnsupportedOperator
from onnx_auditors.network.batch_rules import NotBatchwise
from onnx_auditors.network.batching import rewrite
from onnx_auditors.network.limits import check_bytes, check_rank
from onnx_auditors.network.lowering import lower
from onnx_auditors.network.node import Value
from onnx_auditors.network.plan import Binder, Plan

Signature = tuple[tuple[str, tuple[int, ...], torch.dtype], ...]
"""Name, shape and dtype of every input."""
Program = Callable[..., tuple[Tensor, ...]]

_PLANS = 32
_PROGRAMS = 256
_T = TypeVar("_T")


class Engine:
    """A graph with its weights, and all that was prepared to run it.

    Args:
        binder: Binds the graph.
        weights: Initializers by name.
        device: Where it computes.

    Attributes:
        binder: As given.
        batch: The batch that the graph is fixed to; None where it takes any.
        static: Whether it can be planned without the content of its inputs.
        unsampled: Why `sample` could not compute a random batch; None where it could, or was not
            asked.
    """

    def __init__(self, binder: Binder, weights: Mapping[str, Tensor], device: torch.device) -> None:
        self.binder = binder
        self.batch: int | None = None
        self.static = True
        self.unsampled: AuditError | None = None
        self._weights = dict(weights)
        self._device = device
        self._plans: OrderedDict[Hashable, Plan] = OrderedDict()
        self._programs: OrderedDict[Hashable, fx.GraphModule] = OrderedDict()
        self._mapped: set[Hashable] = set()

    def plan(self, signature: Signature) -> Plan:
        """Returns the plan for inputs of the given shapes and dtypes.

        Raises:
            UnsupportedOperator: Nodes that cannot be planned.
            InvalidModel: The shapes do not go together.
            LimitExceeded: A value is too large, or a loop too long.
        """
        return _keep(self._plans, signature, _PLANS, lambda: self._bind(signature))

    def batched_plan(self, signature: Signature, rows: int) -> Plan | None:
        """Returns a plan for n rows of a graph with a fixed batch; None where rows may mix.

        Args:
            signature: The signature at the fixed batch.
            rows: The batch asked for.
        """
        if self.batch is None or self.batch == rows:
            return self.plan(signature)
        key = (signature, rows)
        if (signature, "mapped") in self._mapped:
            return None
        try:
            return _keep(self._plans, key, _PLANS, lambda: self._rewrite(signature, rows))
        except (NotBatchwise, InvalidModel):
            self._mapped.add((signature, "mapped"))
            return None

    def graph(
        self, signature: Signature, rows: int, sources: tuple[str, ...], targets: tuple[str, ...]
    ) -> fx.GraphModule | None:
        """Returns the graph that computes n rows at once; None where it has to be mapped.

        Raises:
            InvalidModel: A target does not follow from the sources alone.
        """
        plan = self.batched_plan(signature, rows)
        if plan is None or plan.moved.intersection((*sources, *targets)):
            return None
        return self._lowered((signature, rows, sources, targets), plan, sources, targets)

    def run(
        self, signature: Signature, rows: int, given: Mapping[str, Tensor], targets: Sequence[str]
    ) -> Sequence[Tensor]:
        """Computes values from others, for a batch of any size.

        Args:
            signature: Shapes and dtypes of the inputs, at the fixed batch if there is one.
            rows: The batch of the given values.
            given: Values by name, [rows, ...].
            targets: Names of the values to return.

        Raises:
            InvalidModel: A target does not follow from the given values alone.
        """
        run = self.runner(signature, rows, tuple(given), tuple(targets))
        return run(*given.values())

    def runner(
        self, signature: Signature, rows: int, sources: tuple[str, ...], targets: tuple[str, ...]
    ) -> Program:
        """Returns the function from some values of a batch to others; as `run`."""
        if not self.static:
            return lambda *given: self._eager(signature, rows, sources, given, targets)
        ready = self.graph(signature, rows, sources, targets)
        plan = self.plan(signature)
        dtypes = [plan.values[name].meta.dtype for name in sources if name in plan.values]
        if ready is not None:
            return _converting(ready.forward, dtypes)
        batch = self.batch or 1
        single = self._lowered((signature, batch, sources, targets), plan, sources, targets)
        before = [plan.shape(name) for name in sources]
        after = [plan.shape(name) for name in targets]
        return _converting(_mapped(single.forward, before, after, batch, rows), dtypes)

    def direct(
        self, signature: Signature, inputs: Mapping[str, Tensor], targets: Sequence[str]
    ) -> Sequence[Tensor]:
        """Computes values from inputs of exactly the shapes that the graph computes with."""
        plan = self.plan(signature)
        sources, wanted = tuple(inputs), tuple(targets)
        program = self._lowered((signature, sources, wanted), plan, sources, wanted)
        dtypes = [plan.values[name].meta.dtype for name in sources]
        return _converting(program.forward, dtypes)(*inputs.values())

    def sample(self, signature: Signature) -> dict[str, Value]:
        """Returns what one random batch shows of all values; nothing where it cannot be computed.

        For graphs that cannot be planned without the content of their inputs.

        Raises:
            LimitExceeded: The batch itself is too large.
        """
        self._check_inputs(signature)
        generator = torch.Generator().manual_seed(0)
        inputs = {
            name: torch.rand(shape, generator=generator).to(self._device, dtype)
            for name, shape, dtype in signature
        }
        try:
            with torch.no_grad():
                return self.binder.bind(self._weights, inputs, self._device).values
        except (InvalidModel, LimitExceeded, UnsupportedOperator) as error:
            # Random content need not make sense to the graph; what it takes shows when it runs.
            self.unsampled = error
            return {}

    def compute(self, inputs: Mapping[str, Tensor], targets: Sequence[str]) -> list[Tensor]:
        """Computes values node by node, with the content of the inputs in hand.

        Raises:
            UnsupportedOperator: Nodes that no operator covers.
            InvalidModel: A value cannot be evaluated, or there is none of that name.
        """
        plan = self.binder.bind(self._weights, inputs, self._device)
        results = []
        for name in targets:
            constant = plan.values[name].constant if name in plan.values else None
            if constant is None:
                raise InvalidModel(f"the graph has no value '{name}'")
            results.append(constant)
        return results

    def _check_inputs(self, signature: Signature) -> None:
        """Checks the sizes of inputs before there is anything of them."""
        limits = self.binder.limits
        for name, shape, dtype in signature:
            check_rank(name, len(shape), limits)
            check_bytes(name, shape, math.prod(shape) * dtype.itemsize, limits)

    def _bind(self, signature: Signature) -> Plan:
        self._check_inputs(signature)
        inputs = {
            name: torch.empty(shape, dtype=dtype, device="meta") for name, shape, dtype in signature
        }
        with torch.no_grad():
            return self.binder.bind(self._weights, inputs, self._device)

    def _rewrite(self, signature: Signature, rows: int) -> Plan:
        with torch.no_grad():
            plan = self.plan(signature)
            return rewrite(self.binder, plan, self.batch or 1, rows, self._device)

    def _lowered(
        self, key: Hashable, plan: Plan, sources: tuple[str, ...], targets: tuple[str, ...]
    ) -> fx.GraphModule:
        try:
            return _keep(self._programs, key, _PROGRAMS, lambda: lower(plan, sources, targets))
        except KeyError as error:
            raise InvalidModel(
                f"value {error} does not follow from {', '.join(sources)} alone"
            ) from error

    def _eager(
        self,
        signature: Signature,
        rows: int,
        sources: tuple[str, ...],
        given: Sequence[Tensor],
        targets: tuple[str, ...],
    ) -> tuple[Tensor, ...]:
        dtypes = {name: dtype for name, _, dtype in signature}
        if not dtypes.keys() >= set(sources):
            raise UnsupportedOperator(
                "this model's graph depends on the content of its input: it can be run from its "
                "input alone, not from a value inside"
            )
        batch = self.batch or rows
        blocks = []
        for start in range(0, rows, batch):
            block = {
                name: _filled(x[start : start + batch], batch).to(dtypes[name])
                for name, x in zip(sources, given, strict=True)
            }
            blocks.append(self.compute(block, targets))
        if len(blocks) == 1 and batch == rows:
            return tuple(blocks[0])
        return tuple(torch.cat(list(parts))[:rows] for parts in zip(*blocks, strict=True))


def _converting(run: Program, dtypes: Sequence[torch.dtype]) -> Program:
    """Lets a function convert its arguments to the dtypes that it computes with."""
    if len(dtypes) == 1:
        only = dtypes[0]
        return lambda x: run(x if x.dtype == only else x.to(only))
    return lambda *given: run(*[x.to(dtype) for x, dtype in zip(given, dtypes, strict=True)])


def _mapped(
    run: Program,
    before: Sequence[tuple[int, ...]],
    after: Sequence[tuple[int, ...]],
    batch: int,
    rows: int,
) -> Program:
    """Maps a function of a fixed batch over batches of any size."""

    def function(*given: Tensor) -> tuple[Tensor, ...]:
        chunks = [_chunk(x, shape, batch) for x, shape in zip(given, before, strict=True)]
        results = torch.func.vmap(run)(*chunks)
        return tuple(_join(x, shape, batch, rows) for x, shape in zip(results, after, strict=True))

    return function


def _keep(
    store: OrderedDict[Hashable, _T], key: Hashable, capacity: int, make: Callable[[], _T]
) -> _T:
    """Returns what is stored under a key, made first if need be; drops what is used least."""
    if key in store:
        store.move_to_end(key)
    else:
        store[key] = make()
        if len(store) > capacity:
            store.popitem(last=False)
    return store[key]


def _filled(x: Tensor, batch: int) -> Tensor:
    """Repeats the last row of [n, ...] up to the batch."""
    missing = batch - len(x)
    return torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x


def _chunk(x: Tensor, shape: tuple[int, ...], batch: int) -> Tensor:
    """Cuts [n, ...] into [m, *shape] for a graph with a fixed batch, repeating the last row."""
    x = _filled(x, len(x) + -len(x) % batch)
    return x.reshape(len(x) // batch, *shape)


def _join(x: Tensor, shape: tuple[int, ...], batch: int, rows: int) -> Tensor:
    """Puts the rows [m, *shape] of a graph with a fixed batch back together to [n, ...]."""
    if shape[:1] == (batch,):
        return x.reshape(-1, *shape[1:])[:rows]
    return x[:rows]
