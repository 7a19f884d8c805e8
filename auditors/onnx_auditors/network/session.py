"""ONNX Runtime on the file as uploaded: the judge of every prediction."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx
import onnx.defs

from onnx_audit import v1
from onnx_auditors.errors import InvalidModel, ModelFailed, UnsupportedOperator
from onnx_auditors.network.head import Head
from onnx_auditors.network.outputs import FLOATS, Column, choose_output, two_classes
from onnx_auditors.network.saturation import probe

# Read when the libraries are first imported, or first use the GPU.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
import onnxruntime as ort

_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(uint16)": np.uint16,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}
_LARGEST_BATCH = 256
_OLD_IR = 8
"""Version of the file format that every ONNX Runtime with these operators reads."""


_QDQ_REWRITES = frozenset({"QDQS8ToU8Transformer", "QDQSelectorActionTransformer"})
"""Graph optimisations of ONNX Runtime that make integer products of quantised floats."""


class Session:
    """ONNX Runtime with one model.

    Args:
        path: The ONNX file, or its bytes.
        device: "cpu", or a CUDA device such as "cuda:0"; an ONNX Runtime that was built without
            CUDA judges on the CPU.
        threads: Threads of one operator.
        output: Name of the output that the answer is read from; found as the network does if left
            out.
        classes: Number of classes, for an output of labels.
        column: What the output means where it is one score per sample; without it such a score
            stays alone.
        optimized: Whether ONNX Runtime may rewrite the graph, as it does by default.

    Raises:
        ModelFailed: ONNX Runtime does not take the model, or knows CUDA and cannot use it.
        InvalidModel: The model has several inputs, or no input or output of numbers.

    Attributes:
        providers: Execution providers that run, in order.
        threads: Threads of one operator.
        output: Name of the output that the answer is read from.
        dtype: Its element type, such as "float".
        column: As given.
        head: What makes class scores of the rows of the output; None where they are class scores.
    """

    providers: list[str]
    output: str
    dtype: str
    column: Column | None
    head: Head | None

    def __init__(
        self,
        path: str | Path | bytes,
        device: str = "cpu",
        threads: int = 2,
        *,
        output: str | None = None,
        classes: int = 0,
        column: Column | None = None,
        optimized: bool = True,
    ) -> None:
        self.threads = threads
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            device = "cpu"
        guard = optimized and saturates()
        opened = _open_guarded if guard else _open
        self._session = opened(path, device, threads, optimized=optimized)
        self.providers = list(self._session.get_providers())
        if device.startswith("cuda") and "CUDAExecutionProvider" not in self.providers:
            raise ModelFailed(
                f"ONNX Runtime was asked for {device} and runs on {self.providers}; install the "
                "onnxruntime-gpu of this CUDA version, or onnxruntime, which judges on the CPU"
            )
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(i.name for i in inputs) or "none"
            raise InvalidModel(f"audits take models with one input; this one's inputs: {names}")
        self._input = inputs[0]
        if self._input.type not in _DTYPES:
            raise InvalidModel(
                f"input '{self._input.name}' is {self._input.type}; expected numbers"
            )
        outputs = [_info(o) for o in self._session.get_outputs()]
        self.output = output or choose_output(outputs, {}, -1)
        self.dtype = next(o.dtype for o in outputs if o.name == self.output)
        self._labels = self.dtype not in FLOATS
        self._classes = classes
        self.column = column
        self.head = None
        first = self._input.shape[0] if self._input.shape else 1
        self._batch: int | None = first if isinstance(first, int) else None

    def run(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Returns the model's class scores; its answer is the largest, the first of equals.

        Args:
            x: Batch in model-input space, float32 [n, *sample shape], n at least 1. Where the
                model takes integers it is rounded and clipped to their range.

        Returns:
            Float32 [n, classes]; 1 for the label and 0 else where the model gives labels, and two
            classes where it gives one score that is read as such.

        Raises:
            ModelFailed: ONNX Runtime reports an error, or the rows do not come back.
        """
        return two_classes(self.table(x), self.column)

    def table(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Returns the rows of the output as the file gives them, [n, entries]; else as `run`."""
        size = self._batch or _LARGEST_BATCH
        blocks = [self._run_block(x[i : i + size]) for i in range(0, len(x), size)]
        return np.concatenate(blocks)

    def as_fed(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Returns a batch as the model gets it: rounded to the type of its input, and clipped."""
        return _fit(x, _DTYPES[self._input.type]).astype(np.float32)

    def _run_block(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        rows = len(x)
        if self._batch and rows < self._batch:
            x = np.concatenate([x, np.repeat(x[-1:], self._batch - rows, axis=0)])
        scores = self.values(x, [self.output])[0]
        if scores.size % len(x) or (self._batch is None and scores.shape[:1] != (len(x),)):
            if self._batch is None and len(x) > 1:
                # The graph says that its batch is open and then fixes it to one.
                self._batch = 1
                return self.table(x)
            raise ModelFailed(
                f"{len(x)} inputs gave an output of shape {list(scores.shape)}; expected one row "
                "of class scores for each"
            )
        table = scores.reshape(len(x), -1)[:rows]
        if self.head is not None:
            return self.head(table)
        return self._one_hot(table) if self._labels else table.astype(np.float32)

    def with_head(self, head: Head | None) -> Self:
        """Returns a view of the session that reads the output through a head."""
        other = copy.copy(self)
        other.head = head
        return other

    def _one_hot(self, labels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        first = labels[:, 0].astype(np.int64)
        if not 0 <= first.min() <= first.max() < self._classes:
            raise ModelFailed(
                f"the labels reach from {first.min()} to {first.max()}; expected 0 to "
                f"{self._classes - 1}"
            )
        return np.eye(self._classes, dtype=np.float32)[first]

    def values(self, x: npt.NDArray[Any], names: list[str]) -> list[npt.NDArray[Any]]:
        """Returns outputs of the file by name for one batch that fits it.

        Raises:
            ModelFailed: ONNX Runtime reports an error.
        """
        feed = {self._input.name: _fit(x, _DTYPES[self._input.type])}
        try:
            return list(self._session.run(names, feed))
        except Exception as error:
            raise ModelFailed(f"ONNX Runtime could not run the model: {error}") from error


def _fit(x: npt.NDArray[Any], dtype: Any) -> npt.NDArray[Any]:  # noqa: ANN401 - any of the dtypes above
    """Returns x in the dtype of the model's input; rounded to the nearest where that is integer."""
    if np.issubdtype(dtype, np.integer) and np.issubdtype(x.dtype, np.floating):
        bounds = np.iinfo(dtype)
        x = np.clip(np.rint(x.astype(np.float64)), bounds.min, bounds.max)
    return np.ascontiguousarray(x, dtype=dtype)


def _open_guarded(
    path: str | Path | bytes, device: str, threads: int, *, optimized: bool
) -> ort.InferenceSession:
    """Opens a model so that 8-bit products do not saturate, as far as ONNX Runtime can.

    Quantised floats stay floats. Stored signed factors become unsigned ones; ONNX Runtime 1.31 then
    has no kernel for some products of two signed factors, which do not saturate.
    """
    try:
        return _open(path, device, threads, optimized=optimized, precise=True)
    except ModelFailed:
        return _open(path, device, threads, optimized=optimized, precise=False)


def _open(
    path: str | Path | bytes,
    device: str,
    threads: int,
    *,
    optimized: bool,
    precise: bool | None = None,
) -> ort.InferenceSession:
    """Opens a model.

    Args:
        path: The file or its bytes.
        device: As `Session`.
        threads: As `Session`.
        optimized: As `Session`.
        precise: On processors that saturate: whether ONNX Runtime may store signed factors of 8-bit
            products as unsigned ones. None leaves it as it is by default.

    Raises:
        ModelFailed: ONNX Runtime does not take the model.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    # Of an error it tells in the exception too; it need not where there is another way.
    options.log_severity_level = 4 if precise else 3
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Spinning threads take the processor from the network that runs beside.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.startswith("cuda"):
        index = int(device.partition(":")[2] or 0)
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": index, "use_tf32": 0}))
    content = path if isinstance(path, bytes) else str(path)
    disabled = None if precise is None else _QDQ_REWRITES
    try:
        return ort.InferenceSession(
            content, options, providers=providers, disabled_optimizers=disabled
        )
    except Exception as error:
        raise ModelFailed(f"ONNX Runtime does not take the model: {error}") from error


@lru_cache(maxsize=1)
def saturates() -> bool:
    """Whether ONNX Runtime saturates 8-bit products on this processor; see `saturation`."""
    content, feed, exact = probe()
    session = _open(content, "cpu", 1, optimized=True)
    return int(session.run(None, feed)[0].item()) != exact


def check_opset(opset: int) -> None:
    """Refuses a model that ONNX Runtime cannot judge.

    Raises:
        UnsupportedOperator: Its opset is newer than what is run.
    """
    if opset > newest_opset():
        raise UnsupportedOperator(
            f"opset {opset} is newer than {newest_opset()}, the newest that ONNX Runtime "
            f"{ort.__version__} runs; export the model with an older opset"
        )


@lru_cache(maxsize=1)
def newest_opset() -> int:
    """Returns the newest version of the standard operators that this ONNX Runtime runs."""
    return next(v for v in range(onnx.defs.onnx_opset_version(), 0, -1) if _runs(v))


def _runs(opset: int) -> bool:
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "probe",
        [info("x", onnx.TensorProto.FLOAT, [1])],
        [info("y", onnx.TensorProto.FLOAT, [1])],
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=_OLD_IR)
    try:
        _open(model.SerializeToString(), "cpu", 1, optimized=True)
    except ModelFailed:
        return False
    return True


def _info(node: Any) -> v1.TensorInfo:  # noqa: ANN401 - ONNX Runtime's NodeArg has no types
    name = node.type.removeprefix("tensor(").removesuffix(")")
    shape = [size if isinstance(size, int) else -1 for size in node.shape or []]
    return v1.TensorInfo(name=node.name, dtype=name, shape=shape)


def debug_model(proto: onnx.ModelProto) -> tuple[bytes, list[str]]:
    """Returns a copy of a model that outputs every value, and their names in topological order."""
    names = [name for node in proto.graph.node for name in node.output if name]
    return with_outputs(proto, names), names


def with_outputs(proto: onnx.ModelProto, names: Iterable[str]) -> bytes:
    """Returns a copy of a model that outputs some of its values too, their types left open."""
    extended = onnx.ModelProto()
    extended.CopyFrom(proto)
    present = {output.name for output in extended.graph.output}
    extended.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(n) for n in names if n not in present
    )
    return extended.SerializeToString()
