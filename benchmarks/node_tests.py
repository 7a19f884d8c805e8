"""The ONNX project's own backend node tests: our network, ONNX Runtime and onnx.reference.

`onnx.backend.test.loader` generates the node tests and loads the small models that PyTorch once
exported. A test passes when every output has the expected shape, type and values; where ONNX
Runtime runs the test and gives another answer than the standard, its answer is the truth.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import numpy.typing as npt
import onnx
import onnx.backend.test.loader
import onnx.reference
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper

from onnx_auditors.errors import AuditError
from onnx_auditors.network import load
from onnx_auditors.network.reading import walk

Array = npt.NDArray[Any]

KINDS = ("node", "pytorch-converted", "pytorch-operator", "simple")
PASS, WRONG, UNSUPPORTED = "pass", "wrong", "unsupported"

_LISTED = """
Abs Add Sub Mul Div Neg Pow Sqrt Exp Log Erf Reciprocal Min Max Sum Mean Mod Floor Ceil Round
Sign Clip Sin Cos Equal Greater GreaterOrEqual Less LessOrEqual And Or Not Xor Where IsNaN IsInf
Relu LeakyRelu PRelu Elu Selu Celu Gelu Sigmoid Tanh HardSigmoid HardSwish Mish Swish SwiGLU
Softplus Softsign ThresholdedRelu Shrink Softmax LogSoftmax Hardmax
MatMul Gemm Conv ConvTranspose Einsum Attention RotaryEmbedding Col2Im
MaxPool AveragePool LpPool GlobalMaxPool GlobalAveragePool GlobalLpPool
BatchNormalization InstanceNormalization LayerNormalization GroupNormalization RMSNormalization
LpNormalization MeanVarianceNormalization LRN
Reshape Transpose Flatten Squeeze Unsqueeze Concat Split Slice Gather GatherElements GatherND
ScatterElements ScatterND Expand Tile Pad Shape Size Identity Cast CastLike Constant
ConstantOfShape Range Trilu DepthToSpace SpaceToDepth CumSum TopK ArgMax ArgMin OneHot NonZero
EyeLike Compress Dropout CenterCropPad Resize Upsample GridSample AffineGrid
ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare
ReduceLogSum ReduceLogSumExp
QuantizeLinear DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul MatMulInteger
ConvInteger
"""
IN_SCOPE = frozenset(_LISTED.split())
"""The operators of classifiers, autoencoders and transformers."""
_ORDINARY = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE,
     TensorProto.BOOL, TensorProto.UINT8, TensorProto.INT8, TensorProto.INT16, TensorProto.INT32,
     TensorProto.INT64}
)  # fmt: skip
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype"})
_EXACT_BITS = {"bfloat16": (np.int16, torch.bfloat16),
               "float8_e4m3fn": (np.int8, torch.float8_e4m3fn),
               "float8_e5m2": (np.int8, torch.float8_e5m2),
               "float8_e4m3fnuz": (np.int8, torch.float8_e4m3fnuz),
               "float8_e5m2fnuz": (np.int8, torch.float8_e5m2fnuz),
               "float8_e8m0fnu": (np.int8, torch.float8_e8m0fnu)}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A test: a model, its inputs by name, the outputs that the standard expects."""

    name: str
    kind: str
    model: onnx.ModelProto
    inputs: dict[str, Any]
    outputs: list[Any]

    @property
    def in_scope(self) -> bool:
        """Says whether operators and element types are those of the networks that are audited."""
        nodes = list(walk(self.model.graph.node))
        listed = all(n.domain in {"", "ai.onnx"} and n.op_type in IN_SCOPE for n in nodes)
        infos = [*self.model.graph.input, *self.model.graph.output]
        types = {i.type.tensor_type.elem_type for i in infos}
        types |= {a.i for n in nodes for a in n.attribute if a.name in _TYPE_ATTRIBUTES and a.i}
        return listed and types <= _ORDINARY and "train" not in self.name


@dataclass(frozen=True)
class Outcome:
    """What came of a test for each of the three, and why ours failed."""

    case: int
    ours: str
    reason: str
    runtime: str
    reference: str
    judged_by_runtime: bool


def load_cases() -> list[Case]:
    """Generates the node tests and loads those on disk."""
    cases = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in KINDS:
            for test in onnx.backend.test.loader.load_model_tests(kind=kind):
                model, data = test.model, [(list(x), list(y)) for x, y in test.data_sets or []]
                if model is None:
                    model, data = _from_disk(test)
                stored = {t.name for t in model.graph.initializer}
                names = [i.name for i in model.graph.input]
                if len(data[0][0]) < len(names):
                    names = [n for n in names if n not in stored]
                inputs = {n: _array(x) for n, x in zip(names, data[0][0], strict=False)}
                outputs = [_array(y) for y in data[0][1]]
                cases.append(Case(test.name, kind, model, inputs, outputs))
    return cases


def _from_disk(test: Any) -> tuple[onnx.ModelProto, list[tuple[list[Any], list[Any]]]]:  # noqa: ANN401 - onnx leaves it untyped
    folder = Path(test.model_dir)
    model = onnx.load(folder / "model.onnx")
    sides = []
    for side, infos in (("input", model.graph.input), ("output", model.graph.output)):
        files = sorted(
            (folder / "test_data_set_0").glob(f"{side}_*.pb"),
            key=lambda p: int(p.stem.split("_")[1]),
        )
        sides.append([_read(f, i) for f, i in zip(files, infos, strict=False)])
    return model, [(sides[0], sides[1])]


def _read(file: Path, info: onnx.ValueInfoProto) -> Any:  # noqa: ANN401 - a tensor or a list of them
    content = file.read_bytes()
    if info.type.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    return numpy_helper.to_array(TensorProto.FromString(content))


def _array(value: Any) -> Any:  # noqa: ANN401 - a tensor or a list of them
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def to_torch(array: Array) -> torch.Tensor:
    """Returns a tensor of the array; 4- and 2-bit types are widened, as torch has none."""
    array = np.asarray(array)
    if array.dtype.name in _EXACT_BITS:
        bits, dtype = _EXACT_BITS[array.dtype.name]
        return torch.from_numpy(np.array(array.view(bits))).view(dtype)
    if array.dtype.name in {"int4", "int2"}:
        return torch.from_numpy(array.astype(np.int8))
    if array.dtype.name in {"uint4", "uint2"}:
        return torch.from_numpy(array.astype(np.uint8))
    if array.dtype.name == "float4_e2m1fn":
        return torch.from_numpy(array.astype(np.float32))
    return torch.from_numpy(np.array(array))


def run_ours(case: Case) -> list[Any]:
    """Runs our network; raises what it raises."""
    tensors = {name: to_torch(x) for name, x in case.inputs.items()}
    results = load(case.model).evaluate(tensors)
    return [results[o.name] for o in case.model.graph.output]


def run_runtime(case: Case) -> list[Any]:
    """Runs ONNX Runtime on the CPU, without graph optimisations."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        case.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, case.inputs))


def run_reference(case: Case) -> list[Any]:
    """Runs onnx.reference."""
    return list(onnx.reference.ReferenceEvaluator(case.model).run(None, case.inputs))


def agree(found: Sequence[Any], expected: Sequence[Any], *, of_largest: bool = False) -> bool:
    """Says whether outputs agree in number, type, shape and values.

    Args:
        found: Outputs.
        expected: Outputs that they are compared with.
        of_largest: Whether a difference is taken relative to the largest entry, as one that comes
            of rounding is.
    """
    pairs = zip(found, expected, strict=False)
    return len(found) == len(expected) and all(_agree(*p, of_largest=of_largest) for p in pairs)


def _agree(found: Any, expected: Any, *, of_largest: bool = False) -> bool:  # noqa: ANN401, PLR0911 - a tensor or a list of them; one for each way to differ
    if isinstance(expected, list):
        return isinstance(found, list) and agree(found, expected)
    if found is None or expected is None:
        return found is None and expected is None
    expected = np.asarray(expected)
    if isinstance(found, torch.Tensor):
        like = to_torch(expected) if expected.dtype.kind != "U" else None
        if like is None or found.dtype != like.dtype:
            return False
        found, expected = _plain(found), _plain(like)
    else:
        found = np.asarray(found)
        if found.dtype != expected.dtype:
            return False
    if found.shape != expected.shape:
        return False
    if expected.dtype.kind not in "fcV" and expected.dtype.name not in _EXACT_BITS:
        return bool(np.array_equal(found, expected))
    relative, absolute = _tolerance(expected.dtype.name)
    with np.errstate(invalid="ignore"):  # NaN has no real and imaginary part
        a, b = found.astype(np.complex128), expected.astype(np.complex128)
    if of_largest:
        finite = np.abs(b[np.isfinite(b)])
        absolute = max(absolute, relative * float(finite.max(initial=0.0)))
    return bool(np.allclose(a, b, rtol=relative, atol=absolute, equal_nan=True))


def _plain(x: torch.Tensor) -> Array:
    array: Array = (
        (x.float() if x.dtype.itemsize == 1 and x.is_floating_point() else x).numpy()
        if (x.dtype != torch.bfloat16)
        else x.float().numpy().astype(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
    )
    return array


def _tolerance(dtype: str) -> tuple[float, float]:
    return {"float16": (5e-3, 1e-3), "bfloat16": (2e-2, 1e-2)}.get(dtype, (1e-3, 1e-5))


def judge_ours(case: Case, runtime: Sequence[Any] | None = None) -> tuple[str, str]:
    """Runs a test with our network; says what came of it, and why if it did not run.

    Args:
        case: The test.
        runtime: ONNX Runtime's answer, if it is known; it is asked where ours is another than the
            standard's.
    """
    try:
        found = run_ours(case)
    except AuditError as error:
        return UNSUPPORTED, str(error)
    except Exception as error:  # noqa: BLE001 - reported with the test's name
        return UNSUPPORTED, f"{type(error).__name__}: {error}"
    if runtime is None and not agree(found, case.outputs):
        runtime = _answers(case)
    truth = case.outputs
    if runtime is not None and not agree(runtime, case.outputs, of_largest=True):
        truth = list(runtime)
    return (PASS if agree(found, truth) else WRONG), ""


def _answers(case: Case) -> list[Any] | None:
    try:
        return run_runtime(case)
    except Exception:  # noqa: BLE001 - whatever it raises, it does not run the test
        return None


def judge(index: int) -> Outcome:
    """Runs one test in all three."""
    case = _CASES[index]
    runtime = reference = UNSUPPORTED
    by_runtime = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answers = _answers(case)
        if answers is not None:
            runtime = PASS if agree(answers, case.outputs) else WRONG
            by_runtime = not agree(answers, case.outputs, of_largest=True)
        with contextlib.suppress(Exception):  # as above
            reference = PASS if agree(run_reference(case), case.outputs) else WRONG
        ours, reason = judge_ours(case, answers)
    return Outcome(index, ours, reason, runtime, reference, by_runtime)


_CASES: list[Case] = []


def judge_all(indices: Sequence[int], workers: int) -> Iterator[Outcome]:
    """Judges tests in forked processes, which share the generated tests."""
    context = multiprocessing.get_context("fork")
    with context.Pool(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.imap(judge, indices, chunksize=16)


def print_table(outcomes: Sequence[Outcome]) -> None:
    """Prints pass / wrong / unsupported for each group of tests."""
    groups: dict[str, list[Outcome]] = {"node tests": [], "in scope": []}
    for outcome in outcomes:
        case = _CASES[outcome.case]
        groups.setdefault("node tests" if case.kind == "node" else case.kind, []).append(outcome)
        if case.kind == "node" and case.in_scope:
            groups["in scope"].append(outcome)
    print(f"{'':20}{'tests':>7}{'ours':>20}{'ONNX Runtime':>20}{'onnx.reference':>20}")
    for name, group in groups.items():
        columns = []
        for who in ("ours", "runtime", "reference"):
            counts = Counter(getattr(o, who) for o in group)
            columns.append(" / ".join(str(counts[k]) for k in (PASS, WRONG, UNSUPPORTED)))
        print(f"{name:20}{len(group):>7}" + "".join(f"{c:>20}" for c in columns))
    print("pass / wrong / unsupported")
    judged = [_CASES[o.case].name for o in outcomes if o.judged_by_runtime]
    print(f"ONNX Runtime differs from the standard, and is the truth for ours, in {len(judged)}:")
    print("  " + ", ".join(judged))


def main() -> None:
    """Runs the tests that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="regular expression that names must match")
    parser.add_argument("--list-wrong", action="store_true")
    parser.add_argument("--list-unsupported", action="store_true")
    parser.add_argument("--in-scope", action="store_true", help="the in-scope subset alone")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    _CASES.extend(load_cases())
    chosen = [
        i for i, case in enumerate(_CASES)
        if re.search(options.only, case.name) and (case.in_scope or not options.in_scope)
    ]  # fmt: skip
    outcomes = list(judge_all(chosen, options.workers))
    for status, wanted in ((WRONG, options.list_wrong), (UNSUPPORTED, options.list_unsupported)):
        for outcome in outcomes:
            case = _CASES[outcome.case]
            if wanted and outcome.ours == status:
                mark = "in scope" if case.in_scope else case.kind
                print(f"{status}: {case.name} ({mark}) {outcome.reason[:200]}")
    print_table(outcomes)


if __name__ == "__main__":
    main()
