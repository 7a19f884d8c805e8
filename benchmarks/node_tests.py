"""The ONNX project's own backend node tests: our network, ONNX Runtime, onnx.reference and peers.

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
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnx
import onnx.backend.test.loader
import onnx.reference
import onnxruntime as ort
import torch
from onnx import TensorProto, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import converters
from benchmarks.agreement import agree, to_torch

from onnx_auditors.errors import AuditError
from onnx_auditors.network import load
from onnx_auditors.network.reading import walk

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
    """What came of a test for each of them, and why ours failed.

    `peers` has what came of it for the converters of the other environment, by name.
    """

    case: int
    ours: str
    reason: str
    runtime: str
    reference: str
    judged_by_runtime: bool
    peers: dict[str, str] = field(default_factory=dict)

    def of(self, who: str) -> str:
        """Returns what came of it for one of them."""
        known = {"ours": self.ours, "ONNX Runtime": self.runtime, "onnx.reference": self.reference}
        return known[who] if who in known else self.peers[who]


@dataclass(frozen=True)
class Peers:
    """What public converters of another environment gave.

    Attributes:
        folder: Where it lies.
        versions: Of the converters, by name.
    """

    folder: Path
    versions: dict[str, str]

    @classmethod
    def ask(cls, python: Path, folder: Path, indices: Sequence[int], limit_s: float) -> Peers:
        """Writes the tests and runs every converter that the python has on them."""
        written = []
        for index in indices:
            case = _CASES[index]
            with contextlib.suppress(TypeError):  # texts, of which torch has no tensors
                inputs = [_to_torch(x) for x in case.inputs.values()]
                converters.write(folder, index, case.model, inputs)
                written.append(index)
        versions = converters.installed(python)
        for name in versions:
            lost = converters.run(python, name, folder, written, limit_s)
            print(f"{name}: {lost} tests crashed the process or took more than {limit_s:g} s")
        return cls(folder, versions)

    def judge(self, index: int, truths: Sequence[Sequence[Any]]) -> dict[str, str]:
        """Says what came of a test; a peer passes with any of the answers that are true."""
        outcomes = {}
        for name in self.versions:
            found = converters.read(self.folder, name, index)
            if found is None:
                outcomes[name] = UNSUPPORTED
                continue
            # A sequence may come as it is, or as the one output.
            right = any(agree(form, truth) for truth in truths for form in (found, [found]))
            outcomes[name] = PASS if right else WRONG
        return outcomes


def _to_torch(value: Any) -> Any:  # noqa: ANN401 - a tensor or a list of them
    return [to_torch(x) for x in value] if isinstance(value, list) else to_torch(value)


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
        truths = [case.outputs] if answers is None else [case.outputs, answers]
        peers = _PEERS[0].judge(index, truths) if _PEERS else {}
    return Outcome(index, ours, reason, runtime, reference, by_runtime, peers)


_CASES: list[Case] = []
_PEERS: list[Peers] = []


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
    peers = _PEERS[0].versions if _PEERS else {}
    everyone = ["ours", "ONNX Runtime", "onnx.reference", *peers]
    print(f"{'':20}{'tests':>7}" + "".join(f"{who:>20}" for who in everyone))
    for name, group in groups.items():
        columns = []
        for who in everyone:
            counts = Counter(o.of(who) for o in group)
            columns.append(" / ".join(str(counts[k]) for k in (PASS, WRONG, UNSUPPORTED)))
        print(f"{name:20}{len(group):>7}" + "".join(f"{c:>20}" for c in columns))
    known = {"ONNX Runtime": ort.__version__, "onnx": onnx.__version__, "torch": torch.__version__}
    print(", ".join(f"{who} {version}" for who, version in (known | peers).items()))
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
    parser.add_argument(
        "--peers-python", type=Path, default=os.environ.get("ONNX_AUDIT_PEERS_PYTHON"),
        help="python of an environment with onnx2torch, onnx2pytorch or onnx2fx",
    )  # fmt: skip
    parser.add_argument("--limit", type=float, default=20.0, help="seconds for a peer's test")
    options = parser.parse_args()
    _CASES.extend(load_cases())
    chosen = [
        i for i, case in enumerate(_CASES)
        if re.search(options.only, case.name) and (case.in_scope or not options.in_scope)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        if options.peers_python:
            _PEERS.append(Peers.ask(options.peers_python, Path(folder), chosen, options.limit))
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
