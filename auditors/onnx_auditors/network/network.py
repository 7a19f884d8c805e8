"""The differentiable network of an ONNX model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import onnx
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from onnx_audit import v1
from onnx_auditors.errors import AuditError, InvalidModel, UnsupportedOperator
from onnx_auditors.network.engine import Engine, Signature
from onnx_auditors.network.layers import Layer, layers_of
from onnx_auditors.network.limits import Limits
from onnx_auditors.network.node import Refused, Value, output_dtype, to_torch
from onnx_auditors.network.outputs import Answer, Column, find_answer
from onnx_auditors.network.plan import Binder, Plan, UnknownShape
from onnx_auditors.network.preparing import Prepared
from onnx_auditors.network.reading import ModelFile, standard_opset, walk
from onnx_auditors.network.registry import find
from onnx_auditors.network.signatures import Inputs

_HALF = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})
_TRIAL_BATCH = 2


class Network(nn.Module):
    """A model's graph as a differentiable function; its weights are buffers.

    `network(x)` gives logits: a softmax, log-softmax or sigmoid at the end of the graph is left
    out, so that gradients do not vanish where the model is sure; from labels it goes back to the
    scores that they were picked from. One score z per sample is read as two classes with the logits
    (0, z); see `column`. A model with a fixed batch takes any batch. A model with
    integer inputs takes floats of the same range, as leaves of gradients, or integers.

    Attributes:
        summary: What the file says of itself.
        original: The model as uploaded, with external data filled in.
        half_precision: Whether the model stores weights in half precision.
    """

    summary: v1.ModelSummary
    original: onnx.ModelProto
    half_precision: bool

    def __init__(
        self,
        file: ModelFile,
        prepared: Prepared,
        device: torch.device,
        limits: Limits,
        *,
        floating: torch.dtype,
        sample_shape: Sequence[int] | None,
        output: str | None,
    ) -> None:
        super().__init__()
        summary = file.summary
        self.summary = summary
        self.original = file.proto
        self.half_precision = any(t.data_type in _HALF for t in file.proto.graph.initializer)
        self._graph = prepared.proto.graph
        self._inputs = Inputs(summary.inputs, floating, sample_shape)
        self._binder = Binder(self._graph, standard_opset(prepared.proto), floating, limits)
        self._names: dict[str, str] = {}
        for i, (name, tensor) in enumerate(prepared.weights.items()):
            self._names[name] = f"weight_{i}"
            self.register_buffer(f"weight_{i}", _stored(tensor, floating).to(device))
        self._engine = self._new_engine(device)
        self._engine.batch = self._inputs.declared_batch()
        self._runs: dict[Any, Callable[..., tuple[Tensor, ...]]] = {}
        self._unfit: AuditError | None = None
        self._answer = self._look(self._trial() if self._inputs.known else {}, output)

    @property
    def input(self) -> v1.TensorInfo:
        """The model's only input.

        Raises:
            InvalidModel: It has none or several.
        """
        if len(self.summary.inputs) != 1:
            names = ", ".join(i.name for i in self.summary.inputs) or "none"
            raise InvalidModel(f"audits take models with one input; this one's inputs: {names}")
        return self.summary.inputs[0]

    @property
    def output(self) -> str:
        """Name of the output that the model's answer is read from; empty if there is none."""
        return self._answer.output

    @property
    def logits(self) -> str:
        """Name of the value that `network(x)` is made of."""
        return self._answer.logits

    @property
    def column(self) -> Column | None:
        """What the output means where it is one score per sample; None where it is a row."""
        return self._answer.column

    @property
    def scores_in_a_row(self) -> bool:
        """Whether the output is labels or one row of scores per sample, and not a map or sequence.

        True where shapes are not known.
        """
        return self._answer.in_a_row

    @property
    def classes(self) -> int:
        """Number of classes.

        Raises:
            InvalidModel: The model leaves its input's shape open, and no sample shape was given;
                or it has no output with class scores, or several.
        """
        if self._unfit is not None:
            raise self._unfit
        if not self._answer.classes and self._engine.unsampled is not None:
            raise InvalidModel(
                "the graph depends on what comes in, and does not run on random numbers, which "
                f"would have shown its classes: {self._engine.unsampled}"
            )
        if not self._answer.classes:
            raise InvalidModel(
                f"input '{self.input.name}' has the open shape {list(self.input.shape)}: load the "
                "model with a sample shape to know its classes"
            )
        return self._answer.classes

    @property
    def limits(self) -> Limits:
        """What the model may cost."""
        return self._binder.limits

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next((b.device for b in self.buffers()), torch.device("cpu"))

    @property
    def batch(self) -> int | None:
        """The batch that the graph itself is fixed to; None where it takes any."""
        return self._engine.batch

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """The nodes that are run, in topological order."""
        return self._graph.node

    @cached_property
    def surrogate(self) -> bool:
        """Whether gradients pass a rounding straight through, where the true ones are 0."""
        entries = (find(node.domain, node.op_type) for node in walk(self._graph.node))
        return any(entry is not None and entry.surrogate for entry in entries)

    @property
    def layers(self) -> list[Layer]:
        """The nodes that depend on the input, in order, with weights and static shapes.

        Shapes are those at the fixed batch, or at batch 1.

        Raises:
            InvalidModel: The model leaves its input's shape open.
            UnsupportedOperator: Its shapes depend on the content of its input.
        """
        return layers_of(self._plan_at(self._engine.batch or 1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits.

        Args:
            x: Batch in model-input space, [n, *sample shape].

        Returns:
            Float tensor [n, classes].
        """
        run = self._runs.get((tuple(x.shape), x.dtype))
        if run is None:
            run = self._prepare(x)
        return self._class_scores(run(x)[0], x.shape[0])

    def graph(self, x: Tensor) -> fx.GraphModule:
        """Returns the torch.fx graph of the value `logits` for batches like x: (x) -> (logits,).

        For `torch.export`, CUDA graphs and those who look into graphs. Its nodes carry the model's
        nodes as `meta["onnx"]`, except where the model has to be mapped over its own fixed batch:
        that graph is one of torch's own operators.

        Raises:
            UnsupportedOperator: The graph depends on the content of the input.
        """
        if not self._engine.static:
            raise UnsupportedOperator(
                "shapes or branches of this model depend on the content of its input: it is "
                "computed node by node, and has no graph"
            )
        name = self.input.name
        signature, targets = self._signature({name: x}), (self.logits,)
        found = self._engine.graph(signature, len(x), (name,), targets)
        if found is None:
            run = self._engine.runner(signature, len(x), (name,), targets)
            found = make_fx(run)(x.detach())
        return found

    def plan(self, x: Tensor) -> Plan:
        """Returns the plan for batches like x, at the fixed batch if there is one.

        Raises:
            UnsupportedOperator: Its shapes depend on the content of the input.
        """
        return self._engine.plan(self._signature({self.input.name: x}))

    def evaluate(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns every output of the graph, by name, as the file defines it.

        Args:
            inputs: Every input of the graph, by name. Element types of 2 and 4 bits come as int8,
                uint8 or float32. A batch may be of any size, even if the file fixes one.

        Raises:
            InvalidModel: A node that cannot be evaluated on these inputs.
        """
        names = [output.name for output in self._graph.output]
        types = {o.name: o.type.tensor_type.elem_type for o in self._graph.output}
        if self._inputs.are_as_declared(inputs, self._engine.batch):
            results = self._evaluate(inputs, names)
        else:
            rows = len(next(iter(inputs.values())))
            results = self._engine.run(self._signature(inputs), rows, inputs, names)
        return {n: r.to(output_dtype(types[n], r)) for n, r in zip(names, results, strict=True)}

    def values(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Returns values of the graph by name, each [n, ...].

        Args:
            x: Batch in model-input space, [n, *sample shape].
            names: Names of values.

        Raises:
            InvalidModel: The graph has no such value.
        """
        given = {self.input.name: x}
        results = self._engine.run(self._signature(given), len(x), given, names)
        return dict(zip(names, results, strict=True))

    def from_value(self, name: str, h: Tensor) -> Tensor:
        """Returns the logits as a function of one value of the graph.

        Args:
            name: Name of the value; every path from the input to the logits must go through it.
            h: The value, [n, ...] as `values` returns it.

        Raises:
            InvalidModel: A path leads around the value.
        """
        signature = self._inputs.signature_at(self._engine.batch or len(h))
        (scores,) = self._engine.run(signature, len(h), {name: h}, (self.logits,))
        return self._class_scores(scores, len(h))

    def value_names(self) -> list[str]:
        """Returns the names of all values that are read or put out, in topological order."""
        made = (name for node in self._graph.node for name in node.output)
        return [name for name in made if name in self._binder.read - {""}]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call] # torch leaves it untyped
        fresh = self._new_engine(self.device)
        fresh.batch, fresh.static = self._engine.batch, self._engine.static
        self._engine = fresh
        self._runs = {}
        return self

    def _new_engine(self, device: torch.device) -> Engine:
        weights = {name: self.get_buffer(buffer) for name, buffer in self._names.items()}
        return Engine(self._binder, weights, device)

    def _class_scores(self, found: Tensor, rows: int) -> Tensor:
        """Returns the logits [n, classes] of the value that they are made of."""
        scores = found.reshape(rows, -1)
        if self._answer.column is None:
            return scores
        return torch.cat([torch.zeros_like(scores), scores - self._answer.boundary], 1)

    def _trial(self) -> dict[str, Value]:
        """Binds once, so that all that is not covered is refused now; returns what is known.

        A graph that says its batch is open and then writes a batch of one into a reshape is run
        like one with a fixed batch of one.
        """
        engine = self._engine
        batch = engine.batch or _TRIAL_BATCH
        try:
            plan = engine.plan(self._inputs.signature_at(batch))
        except UnknownShape:
            engine.static = False
            return engine.sample(self._inputs.signature_at(batch))
        except InvalidModel:
            if engine.batch is not None:
                raise
            engine.batch = 1
            return engine.plan(self._inputs.signature_at(1)).values
        outputs = [plan.shape(output.name) for output in self._graph.output]
        if engine.batch is None and not any(shape[:1] == (batch,) for shape in outputs):
            engine.batch = 1
            plan = engine.plan(self._inputs.signature_at(1))
        return plan.values

    def _look(self, values: Mapping[str, Value], wanted: str | None) -> Answer:
        """Finds output, logits and classes; keeps why it cannot."""
        batch = self._engine.batch or _TRIAL_BATCH
        try:
            return find_answer(self._graph, self.summary.outputs, values, batch, wanted)
        except InvalidModel as error:
            if wanted is not None:
                raise
            self._unfit = error
            return Answer()

    def _prepare(self, x: Tensor) -> Callable[..., tuple[Tensor, ...]]:
        """Returns the function from inputs like x to the logits, and keeps it."""
        if self._unfit is not None:
            raise self._unfit
        name = self.input.name
        run = self._engine.runner(self._signature({name: x}), len(x), (name,), (self.logits,))
        self._runs[tuple(x.shape), x.dtype] = run
        return run

    def _signature(self, given: Mapping[str, Tensor]) -> Signature:
        return self._inputs.signature(given, self._engine.batch)

    def _plan_at(self, batch: int) -> Plan:
        return self._engine.plan(self._inputs.signature_at(batch))

    def _evaluate(self, inputs: Mapping[str, Tensor], names: Sequence[str]) -> Sequence[Tensor]:
        """Runs the plan of these shapes; where there is none, computes node by node."""
        signature = self._inputs.exact_signature(inputs)
        try:
            return self._engine.direct(signature, inputs, names)
        except UnknownShape:
            given = {name: inputs[name].to(dtype) for name, _, dtype in signature}
            return self._engine.compute(given, names)


def _stored(tensor: onnx.TensorProto, floating: torch.dtype) -> Tensor:
    try:
        return to_torch(tensor, floating)
    except Refused as reason:
        raise UnsupportedOperator(f"initializer '{tensor.name}': {reason}") from reason
    except ValueError as error:
        raise InvalidModel(f"initializer '{tensor.name}' is damaged: {error}") from error
