"""The differentiable network of an ONNX model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import onnx
import torch
from torch import Tensor, nn

from onnx_audit import v1
from onnx_auditors.errors import AuditError, InvalidModel, UnsupportedOperator
from onnx_auditors.network.limits import Limits
from onnx_auditors.network.node import Refused, output_dtype, to_dtype, to_torch
from onnx_auditors.network.plan import Binder, Plan, UnknownShape, check_operators, program
from onnx_auditors.network.reading import ModelFile, prepare, read, standard_opset
from onnx_auditors.network.summary import prediction_output

_PASSES_ON = frozenset(
    {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout"}
)
_HALF = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})
_TRIAL_BATCH = 2
_NEWEST_OPSET = 28


def load(
    source: str | Path | bytes | onnx.ModelProto,
    device: str | torch.device = "cpu",
    limits: Limits | None = None,
    *,
    floating: torch.dtype = torch.float32,
    sample_shape: Sequence[int] | None = None,
) -> Network:
    """Forms the network of a model.

    Args:
        source: A path, the bytes of a file without external data, or a parsed model.
        device: Where it computes.
        limits: What the model may cost.
        floating: Dtype in which half and single precision are computed.
        sample_shape: Shape of one sample without the batch axis, for models that leave it open.

    Raises:
        UnsupportedOperator: Nodes that cannot be made differentiable; lists them all.
        InvalidModel: Not a readable ONNX file, or one that breaks ONNX's rules.
        LimitExceeded: Larger than the limits allow.
    """
    limits = limits or Limits()
    file = read(source, limits)
    opset = standard_opset(file.proto)
    if not file.proto.functions:
        check_operators(file.proto.graph, opset)
    prepared = prepare(file.proto)
    check_operators(prepared.graph, opset)
    if standard_opset(prepared) > _NEWEST_OPSET:
        raise UnsupportedOperator(
            f"opset {standard_opset(prepared)} is newer than {_NEWEST_OPSET}; export the model "
            "with an older opset"
        )
    return Network(
        file,
        prepared,
        torch.device(device),
        limits,
        floating=floating,
        sample_shape=sample_shape,
    )


class Network(nn.Module):
    """A model's graph as a differentiable function; its weights are buffers.

    `network(x)` gives logits: a softmax at the end of the graph is left out, so that gradients do
    not vanish where the model is sure. A model with a fixed batch takes any batch.

    Attributes:
        summary: What the file says of itself.
        original: The model as uploaded, with external data filled in.
        half_precision: Whether the model stores weights in half precision.
        output: Name of the output that holds the class scores.
        logits: Name of the value that `network(x)` returns.
    """

    summary: v1.ModelSummary
    original: onnx.ModelProto
    half_precision: bool
    output: str
    logits: str

    def __init__(
        self,
        file: ModelFile,
        proto: onnx.ModelProto,
        device: torch.device,
        limits: Limits,
        *,
        floating: torch.dtype,
        sample_shape: Sequence[int] | None,
    ) -> None:
        super().__init__()
        summary = file.summary
        self.summary = summary
        self.original = file.proto
        self.half_precision = any(t.data_type in _HALF for t in file.proto.graph.initializer)
        self._graph = proto.graph
        self._floating = floating
        self._binder = Binder(proto.graph, standard_opset(proto), floating, limits)
        self._weights: dict[str, str] = {}
        for i, tensor in enumerate(proto.graph.initializer):
            self._weights[tensor.name] = f"weight_{i}"
            self.register_buffer(f"weight_{i}", _stored(tensor, floating).to(device))
        self._forget_plans()
        self._unfit: AuditError | None = None
        self.output = self.logits = ""
        try:
            self.output = self.logits = prediction_output(summary.outputs)
        except InvalidModel as error:
            self._unfit = error
        self._batch = self._declared_batch()
        self._sample_shape = sample_shape
        self._classes = 0
        if all(size > 0 for info in summary.inputs for size in self._shape(info, 1)):
            try:
                self._try_out()
            except UnknownShape as error:
                self._unfit = error

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
    def classes(self) -> int:
        """Number of classes.

        Raises:
            InvalidModel: The model leaves its input's shape open, and no sample shape was given.
        """
        if not self._classes:
            raise InvalidModel(
                f"input '{self.input.name}' has the open shape {list(self.input.shape)}: load the "
                "model with a sample shape to know its classes"
            )
        return self._classes

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next((b.device for b in self.buffers()), torch.device("cpu"))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits.

        Args:
            x: Batch in model-input space, [n, *sample shape].

        Returns:
            Float tensor [n, classes].
        """
        if self._unfit is not None:
            raise self._unfit
        (scores,) = self._execute({self.input.name: x}, (self.logits,), len(x))
        return scores.reshape(len(x), -1)

    def evaluate(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns every output of the graph, by name, as the file defines it.

        Args:
            inputs: Every input of the graph, by name. Element types of 2 and 4 bits come as int8,
                uint8 or float32.

        Raises:
            InvalidModel: A node that cannot be evaluated on these inputs.
        """
        names = [output.name for output in self._graph.output]
        if self._as_declared(inputs):
            results = self._evaluate(inputs, names)
        else:
            results = self._execute(inputs, names, len(next(iter(inputs.values()))))
        types = {o.name: o.type.tensor_type.elem_type for o in self._graph.output}
        return {n: r.to(output_dtype(types[n], r)) for n, r in zip(names, results, strict=True)}

    def _as_declared(self, inputs: Mapping[str, Tensor]) -> bool:
        """Says whether the inputs have the shapes that the file declares, batch and all."""
        return all(
            len(info.shape) == 0
            or all(size in {-1, given} for size, given in zip(info.shape, inputs[info.name].shape))
            for info in self.summary.inputs
            if info.name in inputs
        )

    def _evaluate(self, inputs: Mapping[str, Tensor], names: Sequence[str]) -> Sequence[Tensor]:
        """Runs the plan of these shapes; where there is none, computes node by node."""
        shapes = tuple((name, tuple(x.shape)) for name, x in inputs.items())
        try:
            dtypes = self._plan(shapes).dtypes
            run = self._program(shapes, tuple(inputs), tuple(names))
            return run(*[x.to(dtypes[name]) for name, x in inputs.items()])
        except UnknownShape:
            given = {name: x.to(self._input_dtypes()[name]) for name, x in inputs.items()}
            plan = self._binder.bind(self._stored_weights() | given, {}, self.device)
            return [plan.constants[name] for name in names]

    def _stored_weights(self) -> dict[str, Tensor]:
        return {name: self.get_buffer(buffer) for name, buffer in self._weights.items()}

    def _input_dtypes(self) -> dict[str, torch.dtype]:
        types = {i.name: i.type.tensor_type.elem_type for i in self._graph.input}
        return {
            info.name: _input_dtype(info.name, types[info.name], self._floating)
            for info in self.summary.inputs
        }

    def values(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Returns values of the graph by name, each [n, ...].

        Args:
            x: Batch in model-input space, [n, *sample shape].
            names: Names of values.

        Raises:
            InvalidModel: The graph has no such value.
        """
        results = self._execute({self.input.name: x}, names, len(x))
        return dict(zip(names, results, strict=True))

    def from_value(self, name: str, h: Tensor) -> Tensor:
        """Returns the logits as a function of one value of the graph.

        Args:
            name: Name of the value; every path from the input to the logits must go through it.
            h: The value, [n, ...] as `values` returns it.

        Raises:
            InvalidModel: A path leads around the value.
        """
        (scores,) = self._execute({name: h}, (self.logits,), len(h))
        return scores.reshape(len(h), -1)

    def value_names(self) -> list[str]:
        """Returns the names of all computed values, in topological order."""
        return [name for node in self._graph.node for name in node.output if name]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        self._forget_plans()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call] # torch leaves it untyped
        return self

    def _forget_plans(self) -> None:
        self._plan = lru_cache(maxsize=32)(self._bind)
        self._program = lru_cache(maxsize=256)(self._compile)

    def _declared_batch(self) -> int | None:
        """Returns the batch that the file fixes; None where it is open."""
        sizes = {info.shape[0] for info in self.summary.inputs if info.shape}
        return max(sizes) if sizes and min(sizes) > 0 else None

    def _shape(self, info: v1.TensorInfo, batch: int) -> tuple[int, ...]:
        declared = tuple(info.shape)
        sample = declared[1:] if self._sample_shape is None else tuple(self._sample_shape)
        first = declared[:1] if declared[:1] > (0,) else (batch,)
        return (*first, *sample) if declared else ()

    def _try_out(self) -> None:
        """Binds once, so that all that is not covered is refused now; finds the logits.

        A graph that says its batch is open and then writes a batch of one into a reshape is run
        like one with a fixed batch of one.
        """
        if not self.output:
            self._plan(self._input_shapes(self._batch or _TRIAL_BATCH))
            return
        if self._batch is None and not self._takes_batches():
            self._batch = 1
        batch = self._batch or _TRIAL_BATCH
        plan = self._plan(self._input_shapes(batch))
        self.logits = _before_softmax(self._graph, self.output, plan)
        self._classes = math.prod(plan.shapes[self.output]) // batch

    def _takes_batches(self) -> bool:
        try:
            plan = self._plan(self._input_shapes(_TRIAL_BATCH))
        except InvalidModel:
            return False
        return plan.shapes[self.output][:1] == (_TRIAL_BATCH,)

    def _input_shapes(self, batch: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return tuple((info.name, self._shape(info, batch)) for info in self.summary.inputs)

    def _bind(self, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Plan:
        dtypes = self._input_dtypes()
        inputs = {
            name: torch.empty(shape, dtype=dtypes[name], device="meta") for name, shape in shapes
        }
        return self._binder.bind(self._stored_weights(), inputs, self.device)

    def _compile(
        self,
        shapes: tuple[tuple[str, tuple[int, ...]], ...],
        sources: tuple[str, ...],
        targets: tuple[str, ...],
    ) -> Callable[..., tuple[Tensor, ...]]:
        try:
            return program(self._plan(shapes), sources, targets)
        except KeyError as error:
            raise InvalidModel(
                f"value {error} does not follow from {', '.join(sources)} alone"
            ) from error

    def _execute(
        self, given: Mapping[str, Tensor], targets: Sequence[str], rows: int
    ) -> Sequence[Tensor]:
        names, wanted = tuple(given), tuple(targets)
        batch = self._batch
        if batch is None or batch == rows:
            inputs = [given.get(info.name) for info in self.summary.inputs]
            shapes = tuple(
                (info.name, self._shape(info, rows) if x is None else tuple(x.shape))
                for info, x in zip(self.summary.inputs, inputs, strict=True)
            )
            dtypes = self._plan(shapes).dtypes
            run = self._program(shapes, names, wanted)
            return run(*[x.to(dtypes[name]) for name, x in given.items()])
        shapes = self._input_shapes(batch)
        plan = self._plan(shapes)
        chunks = [_chunk(x.to(plan.dtypes[n]), plan.shapes[n], batch) for n, x in given.items()]
        run = self._program(shapes, names, wanted)
        results = torch.func.vmap(run)(*chunks)
        return [
            _join(result, plan.shapes[name], batch, rows)
            for result, name in zip(results, wanted, strict=True)
        ]


def _chunk(x: Tensor, shape: tuple[int, ...], batch: int) -> Tensor:
    """Cuts [n, ...] into [m, *shape] for a graph with a fixed batch, repeating the last row."""
    missing = -len(x) % batch
    if missing:
        x = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])
    return x.reshape(len(x) // batch, *shape)


def _join(x: Tensor, shape: tuple[int, ...], batch: int, rows: int) -> Tensor:
    """Puts the rows [m, *shape] of a graph with a fixed batch back together to [n, ...]."""
    if shape[:1] == (batch,):
        return x.reshape(-1, *shape[1:])[:rows]
    return x[:rows]


def _stored(tensor: onnx.TensorProto, floating: torch.dtype) -> Tensor:
    try:
        return to_torch(tensor, floating)
    except Refused as reason:
        raise UnsupportedOperator(f"initializer '{tensor.name}': {reason}") from reason
    except ValueError as error:
        raise InvalidModel(f"initializer '{tensor.name}' is damaged: {error}") from error


def _input_dtype(name: str, element_type: int, floating: torch.dtype) -> torch.dtype:
    try:
        return to_dtype(element_type, floating)
    except Refused as reason:
        raise UnsupportedOperator(f"input '{name}': {reason}") from reason


def _before_softmax(graph: onnx.GraphProto, output: str, plan: Plan) -> str:
    """Returns the value before a softmax over the classes at the end of the graph, or the output.

    Between softmax and output only operators that keep the entries and their order may stand.
    """
    makers = {name: node for node in graph.node for name in node.output}
    node = makers.get(output)
    while node is not None and node.op_type in _PASSES_ON:
        node = makers.get(node.input[0])
    if node is None or node.op_type != "Softmax":
        return output
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
    shape = plan.shapes[node.input[0]]
    scores = plan.shapes[output]
    classes = math.prod(scores[1:])
    one_row_per_sample = math.prod(shape) == scores[0] * classes and shape[axis] == classes
    return node.input[0] if one_row_per_sample else output
