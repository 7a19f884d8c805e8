"""Audits of models without classes, by a linear head that is fitted on the labelled probes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import helper
from safetensors.numpy import load_file
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import cross_val_score
from tests.auditors.whole import audit
from tests.support import graph_model, save_probes

from onnx_audit import v1
from onnx_auditors.context import Context, open_context
from onnx_auditors.errors import InvalidModel, ProbesDoNotFit
from onnx_auditors.network import Head

Table = npt.NDArray[np.float32]
CODE = 12
COUNT = 300
SPEC = v1.InputSpec(lower=[-40], upper=[40], divisor=1)
"""Wide enough that the box does not bind."""


def digits() -> tuple[Table, npt.NDArray[np.int64]]:
    data = load_digits()
    return (data.data[:COUNT] / 16).astype(np.float32), data.target[:COUNT].astype(np.int64)


def autoencoder(rows: int | str = "n") -> tuple[onnx.ModelProto, npt.NDArray[np.float64]]:
    """Returns a network that encodes images in their principal components, and these [64, 12]."""
    x, _ = digits()
    basis = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:CODE].T
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("MatMul", ["centred", "encode"], ["code"]),
        helper.make_node("MatMul", ["code", "decode"], ["decoded"]),
        helper.make_node("Sigmoid", ["decoded"], ["pixels"]),
        helper.make_node("Reshape", ["pixels", "image"], ["y"]),
    ]
    weights = {"mean": x.mean(0), "encode": basis, "decode": basis.T.copy(),
               "image": np.array([rows if isinstance(rows, int) else 0, 1, 8, 8])}  # fmt: skip
    return graph_model(nodes, {"x": [rows, 64]}, weights), basis.astype(np.float64)


def opened(
    folder: Path, proto: onnx.ModelProto, labels: npt.NDArray[np.int64] | None, value: str = ""
) -> Context:
    onnx.save(proto, folder / "m.onnx")
    probes = save_probes(folder / "p", digits()[0], labels)
    head = v1.LinearHeadConfig(value=value)
    return open_context(folder / "m.onnx", probes, SPEC, head=head)


@pytest.mark.parametrize("rows", ["n", 1])
def test_an_autoencoder_is_audited_as_a_classifier(rows: int | str, tmp_path: Path) -> None:
    """Distances are the exact ones of the linear classifier that code and head are together.

    The examples fool ONNX Runtime on the file as uploaded, its code read by numpy.
    """
    x, labels = digits()
    proto, basis = autoencoder(rows)
    context = opened(tmp_path, proto, labels)
    configs = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=200, max_probes=60))
    planned, result = audit(configs, context, tmp_path)
    section = result.distortion
    head = context.session.head
    assert isinstance(head, Head)
    _check_record(planned, head, labels)
    norm = section.norms[0]
    assert norm.confirmed == section.probe_count - section.misclassified >= 45

    classifier = basis @ head.weight.astype(np.float64)
    scores = (x.astype(np.float64) - x.mean(0)) @ classifier + head.bias
    for row in norm.probes:
        if row.outcome == v1.PROBE_OUTCOME_MISCLASSIFIED:
            assert scores[row.probe].argmax() != labels[row.probe]
            continue
        margins = scores[row.probe, row.label] - scores[row.probe]
        slopes = np.linalg.norm(classifier[:, [row.label]] - classifier, axis=0)
        exact = np.delete(margins / np.maximum(slopes, 1e-12), row.label).min()
        assert (1 - 1e-4) * exact - 1e-5 <= row.distance <= 1.01 * exact + 1e-4

    table = load_file(tmp_path / norm.artefact.sha256)
    code = _code(proto, table["example"])
    answers = (code @ head.weight.astype(np.float64) + head.bias).astype(np.float32).argmax(1)
    confirmed = table["outcome"] == v1.PROBE_OUTCOME_CONFIRMED
    assert (answers[confirmed] != table["label"][confirmed]).all()


def _check_record(planned: v1.AuditPlan, head: Head, labels: npt.NDArray[np.int64]) -> None:
    """Checks what the plan says of the head, and that it says so."""
    record, (warning,) = planned.linear_head, planned.warnings
    assert planned.parity.passed
    assert (record.config.value, record.config.method) == ("code", v1.HEAD_METHOD_RIDGE)
    assert (record.features, record.classes, record.probe_count) == (CODE, 10, COUNT)
    content = head.weight.astype("<f4").tobytes() + head.bias.astype("<f4").tobytes()
    assert record.sha256 == hashlib.sha256(content).hexdigest()
    # Another library's head on the same components is as good, on what it saw and on what not.
    x, basis = digits()[0], autoencoder()[1]
    code = (x - x.mean(0)) @ basis
    reference = RidgeClassifier(alpha=1e-3 * COUNT * code.std(ddof=1) ** 2)
    trained = reference.fit(code, labels).score(code, labels)
    assert record.training_accuracy.value == pytest.approx(trained, abs=0.01)
    held_out = cross_val_score(reference, code, labels, cv=5).mean()
    assert record.held_out_accuracy.value == pytest.approx(held_out, abs=0.05)
    assert record.held_out_accuracy.value < record.training_accuracy.value
    assert warning.code == "LINEAR_HEAD"
    assert "'code'" in warning.message


def _code(proto: onnx.ModelProto, x: Table) -> npt.NDArray[np.float64]:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output.append(helper.make_empty_tensor_value_info("code"))
    session = onnxruntime.InferenceSession(copy.SerializeToString())
    rows = [session.run(["code"], {"x": row.reshape(1, 64)})[0] for row in x]
    return np.concatenate(rows).astype(np.float64)


def test_the_same_job_has_the_same_head(tmp_path: Path) -> None:
    """Two processes' fits are the same to the last bit, held-out accuracy included."""
    first, second = (opened(tmp_path, autoencoder()[0], digits()[1]).head for _ in range(2))
    assert first is not None
    assert first == second


def test_a_map_is_no_row_of_class_scores(tmp_path: Path) -> None:
    """An autoencoder is not audited as if its pixels were classes; the error says what to do."""
    onnx.save(autoencoder()[0], tmp_path / "m.onnx")
    probes = save_probes(tmp_path / "p", *digits())
    with pytest.raises(InvalidModel, match=r"output 'y' is a map .*--head"):
        open_context(tmp_path / "m.onnx", probes, SPEC)


def test_what_a_head_cannot_do_without(tmp_path: Path) -> None:
    """Labels, two classes among them, and a value that is there and of a floating type."""
    proto, labels = autoencoder()[0], digits()[1]
    with pytest.raises(ProbesDoNotFit, match="has none"):
        opened(tmp_path, proto, None)
    with pytest.raises(ProbesDoNotFit, match="at least two different"):
        opened(tmp_path, proto, np.full(COUNT, 3))
    with pytest.raises(InvalidModel, match=r"no value 'cod'; near are code"):
        opened(tmp_path, proto, labels, "cod")
    proto.graph.node.append(helper.make_node("ArgMax", ["code"], ["place"], axis=1))
    proto.graph.node.append(helper.make_node("Mul", ["place", "place"], ["square"]))
    with pytest.raises(InvalidModel, match=r"'place' is of int64"):
        opened(tmp_path, proto, labels, "place")
