"""A float32 model beside its twins in 16-bit floats and in 8 bits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnxruntime import quantization
from onnxruntime.transformers.float16 import convert_float_to_float16
from tests.auditors.transfer.planted import (
    MEAN,
    STD,
    Audit,
    Form,
    answers,
    images,
    network,
    run,
    weights,
)

from onnx_audit import v1

COUNT = 24
PRECISIONS = ("float32", "float16", "int8")
MINIMAL, MOMENTUM = v1.TRANSFER_ATTACK_MINIMAL, v1.TRANSFER_ATTACK_MOMENTUM
Floats = npt.NDArray[np.float32]


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc] # has no types
    """Hands images to the calibration, one at a time."""

    def __init__(self, inputs: Floats) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> dict[str, Floats] | None:
        """Returns the next image as the model's input; None after the last."""
        x = next(self._inputs, None)
        return None if x is None else {"x": x[None]}


def fed(x: Floats) -> Floats:
    """Returns images as the models take them."""
    return (x - np.float32(MEAN)) / np.float32(STD)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """An audit of a network and its twins, tagged with their precision."""
    folder = tmp_path_factory.mktemp("twins")
    source, target = folder / "float32.onnx", folder / "int8.onnx"
    original = network(weights(), Form(batch="n"))
    onnx.save(original, source)
    # With the full range of weights some processors saturate sums where others do not.
    quantization.quantize_static(
        source,
        target,
        Reader(fed(images(64, seed=9))),
        quant_format=quantization.QuantFormat.QDQ,
        reduce_range=True,
    )
    models = [original, convert_float_to_float16(onnx.load(source)), onnx.load(target)]
    config = v1.TransferConfig(
        budget=60,
        attacks=[MINIMAL, MOMENTUM],
        tags={"precision": PRECISIONS[0]},
        peers=[v1.PeerModel(tags={"precision": name}) for name in PRECISIONS[1:]],
    )
    inputs = images(COUNT)
    return run(folder, models, config, inputs, answers(weights(), inputs))


def test_twins_have_the_precision_that_their_files_say(twins: Audit) -> None:
    """One takes 16-bit floats, one rounds to 8 bits, and all answer as the original mostly does."""
    stored = [onnx.load(path) for path in twins.models]
    kinds = [{node.op_type for node in proto.graph.node} for proto in stored]
    assert "QuantizeLinear" in kinds[2]
    assert "QuantizeLinear" not in kinds[0] | kinds[1]
    types = [proto.graph.input[0].type.tensor_type.elem_type for proto in stored]
    assert types[:2] == [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16]
    assert all(detail.clean_accuracy.value > 0.8 for detail in twins.section.details)


def test_counts_are_those_of_sessions_on_the_files(twins: Audit) -> None:
    """Every cell is what other sessions of ONNX Runtime count on the exported examples."""
    labels = twins.labels
    assert labels is not None
    sessions = [onnxruntime.InferenceSession(path) for path in twins.models]
    dtypes = [np.float32, np.float16, np.float32]

    def ask(model: int, x: Floats) -> npt.NDArray[np.int64]:
        found = sessions[model].run(None, {"x": fed(x).astype(dtypes[model])})[0].argmax(1)
        return np.asarray(found)

    for attack in (MINIMAL, MOMENTUM):
        table = twins.examples(attack)
        for target in range(3):
            right = ask(target, twins.inputs) == labels
            wrong = ask(target, table["example"]) != table["label"]
            for source in range(3):
                rows = (table["source"] == source) & right[table["probe"]]
                cell = twins.cell(source, target, attack)
                assert cell.error_rate.count == rows.sum() > COUNT / 2
                assert cell.error_rate.value == pytest.approx(wrong[rows].mean())


def test_the_report_answers_for_each_pair_of_precisions(twins: Audit) -> None:
    """float32 to int8, and back, pool what the cells hold."""
    for attack in (MINIMAL, MOMENTUM):
        kinds = {
            (kind.source_value, kind.target_value): kind
            for kind in twins.section.kinds
            if kind.attack == attack and kind.alone
        }
        assert len(kinds) == 1 + 6
        pairs = 0.0
        for source, mine in enumerate(PRECISIONS):
            for target, other in enumerate(PRECISIONS):
                if source == target:
                    continue
                kind, cell = kinds[mine, other], twins.cell(source, target, attack)
                assert kind.tag == "precision"
                assert kind.error_rate.value == pytest.approx(cell.error_rate.value)
                assert kind.noise_error_rate.value == pytest.approx(cell.noise_error_rate.value)
                pairs += kind.pairs
        assert kinds["", ""].pairs == pairs == 6
    # The nearest examples of a model that rounds sit on its steps; those of one size fool all.
    for target in range(3):
        cell = twins.cell(0, target, MOMENTUM)
        assert cell.error_rate.value > 0.9
        assert cell.excess.interval.lower > 0
