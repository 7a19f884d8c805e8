"""Peers without classes of their own, each through its own linear head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import helper
from safetensors.numpy import load_file
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from tests.auditors.whole import audit
from tests.support import graph_model, save_probes

from onnx_audit import v1
from onnx_auditors.context import open_context
from onnx_auditors.errors import AuditError, InvalidConfig, InvalidModel, ProbesDoNotFit

CODE, COUNT, L2 = 12, 150, 1e-3
MINIMAL = v1.TRANSFER_ATTACK_MINIMAL
Table = npt.NDArray[Any]


def digits() -> tuple[Table, Table]:
    data = load_digits()
    return (data.data[:COUNT] / 16).astype(np.float32), data.target[:COUNT].astype(np.int64)


def basis(seed: int | None = None) -> Table:
    """Principal components of the images [64, 12], or an orthogonal mix of these."""
    x = digits()[0]
    found: Table = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:CODE].T
    if seed is not None:
        numbers = np.random.default_rng(seed).normal(size=(CODE, CODE))
        found = found @ np.linalg.qr(numbers)[0].astype(np.float32)
    return found


def autoencoder(encode: Table) -> onnx.ModelProto:
    """Returns a network that gives back its input by way of a code."""
    nodes = [
        helper.make_node("MatMul", ["x", "encode"], ["code"]),
        helper.make_node("MatMul", ["code", "decode"], ["y"]),
    ]
    return graph_model(nodes, {"x": ["n", 64]}, {"encode": encode, "decode": encode.T.copy()})


def classifier() -> onnx.ModelProto:
    """Returns a linear classifier of the digits."""
    x, labels = digits()
    w = np.linalg.lstsq(x, np.eye(10)[labels], rcond=None)[0].astype(np.float32)
    return graph_model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 64]}, {"w": w})


def run(
    folder: Path,
    models: list[onnx.ModelProto],
    peers: list[v1.PeerModel],
    head: v1.LinearHeadConfig | None,
    labels: Table | None = None,
) -> v1.SectionResult:
    """Audits the first model beside the others."""
    paths = {f"models/{i:064x}": folder / f"{i}" / "m.onnx" for i in range(len(models))}
    for proto, path in zip(models, paths.values(), strict=True):
        path.parent.mkdir()
        onnx.save(proto, path)
    for peer, name in zip(peers, list(paths)[1:], strict=True):
        peer.model = name
    x = digits()[0]
    probes = save_probes(folder / "p", x, digits()[1] if labels is None else labels)
    spec = v1.InputSpec(lower=[-40], upper=[40])
    context = open_context(folder / "0" / "m.onnx", probes, spec, head=head, peers=paths)
    config = v1.TransferConfig(peers=peers, attacks=[MINIMAL], budget=60, max_probes=50)
    return audit(v1.AuditorConfigs(transfer=config), context, folder)[1]


def test_each_peer_answers_through_its_own_head(tmp_path: Path) -> None:
    """Heads are another library's on each peer's own value; a classifier needs none.

    Ridge regression does not care how a code is turned: such a twin is fooled by every example.
    Without a word about it, a peer's head is on the value that is chosen for any, here the output.
    """
    codes = [basis(), basis(1), np.ascontiguousarray(basis()[:, :6])]
    models = [*(autoencoder(code) for code in codes), classifier()]
    head = v1.LinearHeadConfig(value="code", l2=L2)
    asked = [v1.PeerModel(linear_head=head), v1.PeerModel(), v1.PeerModel()]
    result = run(tmp_path, models, asked, head)
    section = result.transfer
    table = load_file(tmp_path / section.artefacts[0].examples.sha256)
    x, labels = digits()
    values = [*codes[:2], codes[2] @ codes[2].T]
    for column, value in enumerate(values):
        features = (x @ value).astype(np.float64)
        alpha = COUNT * L2 * features.std(ddof=1) ** 2
        peer = RidgeClassifier(alpha=alpha).fit(features, labels)
        expected = peer.predict(table["example"].astype(np.float64) @ value)
        assert (table["answers"][:, column] == expected).mean() > 0.98
        record = section.details[column].linear_head
        assert (record.classes, record.features) == ((10, value.shape[1]) if column else (0, 0))
        if column:
            accuracy = peer.score(features, labels)
            assert record.training_accuracy.value == pytest.approx(accuracy, abs=0.01)
    assert not section.details[3].HasField("linear_head")
    session = onnxruntime.InferenceSession(tmp_path / "3" / "m.onnx")
    own = session.run(None, {"x": table["example"]})[0].argmax(1)
    np.testing.assert_array_equal(table["answers"][:, 3], own)
    cells = {(cell.source, cell.target): cell for cell in section.cells}
    assert cells[0, 1].error_rate.value > 0.98
    assert cells[1, 0].error_rate.value > 0.98
    assert cells[0, 1].error_rate.count > 40
    said = [w.message for w in result.warnings if w.code == "LINEAR_HEAD"]
    assert len(said) == 2
    assert "value 'code'" in said[0]
    assert section.merges[0].distance < 0.02
    assert {section.merges[0].left, section.merges[0].right} == {0, 1}


def test_a_classifier_beside_an_autoencoder(tmp_path: Path) -> None:
    """A head of a peer alone has the audited model's classes, those without a probe among them."""
    labels = digits()[1] % 8
    asked = [v1.PeerModel(linear_head=v1.LinearHeadConfig(value="code"))]
    section = run(tmp_path, [classifier(), autoencoder(basis())], asked, None, labels).transfer
    assert section.details[1].linear_head.classes == section.details[1].classes == 10
    assert section.details[1].clean_accuracy.value > 0.5


@pytest.mark.parametrize(
    ("peer", "error", "field"),
    [
        (v1.PeerModel(), InvalidModel, "linear_head"),
        (v1.PeerModel(linear_head=v1.LinearHeadConfig(value="cod")), InvalidModel,
         "linear_head.value"),
        (v1.PeerModel(linear_head=v1.LinearHeadConfig(), label_map=range(10)), InvalidConfig,
         "label_map"),
        (v1.PeerModel(linear_head=v1.LinearHeadConfig()), ProbesDoNotFit, "linear_head"),
    ],
)  # fmt: skip
def test_heads_that_cannot_be_fitted(
    tmp_path: Path, peer: v1.PeerModel, error: type[AuditError], field: str
) -> None:
    """The peer and its field are named."""
    labels = np.full(COUNT, 3) if error is ProbesDoNotFit else None
    with pytest.raises(error) as caught:
        run(tmp_path, [classifier(), _image_map()], [peer], None, labels)
    assert caught.value.metadata["field"] == f"peers[0].{field}"


def _image_map() -> onnx.ModelProto:
    """Returns an autoencoder that gives back an image."""
    proto = autoencoder(basis())
    proto.graph.node[-1].output[0] = "flat"
    proto.graph.node.append(helper.make_node("Reshape", ["flat", "shape"], ["y"]))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 1, 8, 8]), "shape"))
    return proto
