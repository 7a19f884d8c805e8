"""Models whose weights lie in files of their own: several blobs, one model, one digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import pytest
from tests import models

from onnx_audit import Client, ModelFileError, v1
from onnx_audit.errors import InvalidRequest

CONFIG = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=40))


@pytest.fixture
def split_model(tmp_path: Path) -> Path:
    """The usual model with every weight in a file of its own, in a subfolder."""
    proto = models.mlp()
    (tmp_path / "weights").mkdir()
    for tensor in proto.graph.initializer:
        onnx.external_data_helper.set_external_data(tensor, f"weights/{tensor.name}.bin")
    onnx.save_model(proto, tmp_path / "split.onnx")
    return tmp_path / "split.onnx"


def test_a_split_model_is_audited_like_a_whole_one(
    client: Client, split_model: Path, probe_set: v1.ProbeSet, model: v1.Model
) -> None:
    """The same weights give the same figures, whichever files they lie in."""
    split = client.upload_model(split_model)
    assert [file.path for file in split.external_files] == [
        f"weights/{name}.bin" for name in ("b0", "b1", "w0", "w1")
    ]
    files = {file.path: split_model.parent / file.path for file in split.external_files}
    files["model.onnx"] = split_model
    text = "".join(
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {path}\n"
        for path, file in sorted(files.items())
    )
    assert split.name == f"models/{hashlib.sha256(text.encode()).hexdigest()}"
    reports = [
        client.report(client.wait(client.audit(each, probe_set, auditors=CONFIG)))
        for each in (split, model)
    ]
    assert reports[0].distortion.norms[0].probes == reports[1].distortion.norms[0].probes
    named = {file.path or "model.onnx": file.sha256 for file in reports[0].model.files}
    assert named == {
        path: hashlib.sha256(file.read_bytes()).hexdigest() for path, file in files.items()
    }
    assert [file.sha256 for file in reports[1].model.files] == [reports[1].model.sha256]


def test_a_missing_file_is_named(client: Client, split_model: Path) -> None:
    """The client says which file the model wants and does not have."""
    (split_model.parent / "weights" / "w1.bin").unlink()
    with pytest.raises(ModelFileError, match=r"w1\.bin"):
        client.upload_model(split_model)


def test_a_truncated_weight_file_is_refused(client: Client, split_model: Path) -> None:
    """A file that is too short for its tensor is INVALID_MODEL."""
    weights = split_model.parent / "weights" / "w0.bin"
    weights.write_bytes(weights.read_bytes()[:10])
    with pytest.raises(InvalidRequest) as caught:
        client.upload_model(split_model)
    assert caught.value.reason == "INVALID_MODEL"
