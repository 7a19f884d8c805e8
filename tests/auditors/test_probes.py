"""Probe sets, whole and broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file
from tests.support import save_probes

from onnx_auditors.errors import InvalidProbes
from onnx_auditors.probes import open_probes, summarize

SHA = "0" * 64


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
def test_summary(dtype: str, tmp_path: Path) -> None:
    """The summary has count, shape, type, range and labels of what was saved."""
    inputs = np.arange(24).reshape(4, 2, 3).astype(dtype)
    path = save_probes(tmp_path / "p", inputs, np.array([3, 1, 0, 2], np.int32))
    summary = summarize(path, SHA)
    assert (summary.count, list(summary.shape), summary.dtype) == (4, [2, 3], dtype)
    assert (summary.min, summary.max, summary.sha256) == (0, 23, SHA)
    assert (summary.has_labels, summary.min_label, summary.max_label) == (True, 0, 3)
    probes = open_probes(path)
    assert isinstance(probes.inputs, np.memmap)
    np.testing.assert_array_equal(probes.inputs, inputs)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_bad_probe_is_named(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN and infinite values are refused with the probe's index, in whatever block it lies."""
    monkeypatch.setattr("onnx_auditors.probes._BLOCK_BYTES", 64)
    inputs = np.zeros((100, 3), np.float32)
    inputs[71, 1] = inputs[93, 0] = value
    with pytest.raises(InvalidProbes, match="probe 71 "):
        summarize(save_probes(tmp_path / "p", inputs), SHA)


@pytest.mark.parametrize(
    ("inputs", "labels", "words"),
    [
        (np.zeros((2, 3), np.int32), None, "int32"),
        (np.zeros((0, 3), np.float32), None, r"\[0, 3\]"),
        (np.zeros(3, np.float32), None, r"\[3\]"),
        (np.zeros((2, 3), np.float32), np.zeros(2, np.float32), "float32"),
        (np.zeros((2, 3), np.float32), np.zeros((2, 1), np.int64), r"\[2, 1\]"),
        (np.zeros((2, 3), np.float32), np.zeros(3, np.int64), r"\[3\]"),
        (np.zeros((2, 3), np.float32), np.array([0, -2]), "probe 1 .*-2"),
    ],
)
def test_wrong_form(
    inputs: npt.NDArray[Any], labels: npt.NDArray[Any] | None, words: str, tmp_path: Path
) -> None:
    """Types and shapes that no audit can use are refused with what was found."""
    with pytest.raises(InvalidProbes, match=words):
        summarize(save_probes(tmp_path / "p", inputs, labels), SHA)


def test_unknown_and_missing_tensors(tmp_path: Path) -> None:
    """Other tensors, and none called inputs, are refused."""
    save_file({"inputs": np.zeros((1, 2)), "label": np.zeros(1)}, tmp_path / "p")
    with pytest.raises(InvalidProbes, match="label"):
        summarize(tmp_path / "p", SHA)
    save_file({"labels": np.zeros(1, np.int64)}, tmp_path / "q")
    with pytest.raises(InvalidProbes, match="'inputs'"):
        summarize(tmp_path / "q", SHA)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    """A probe set cut short anywhere is refused."""
    path = save_probes(tmp_path / "p", np.ones((3, 4), np.float32), np.arange(3))
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(InvalidProbes):
            summarize(path, SHA)


@pytest.mark.parametrize(
    "entry",
    [
        None, 3, {}, {"dtype": "F32", "shape": [1, -1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1, 2], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [1, True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1] * 40, "data_offsets": [0, 4]},
        {"dtype": "BOOL", "shape": [1, 4], "data_offsets": [0, 4]},
    ],
)  # fmt: skip
def test_hostile_headers(entry: object, tmp_path: Path) -> None:
    """Headers that lie are refused before anything is mapped."""
    header = json.dumps({"inputs": entry}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(8)
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(InvalidProbes):
        summarize(tmp_path / "p", SHA)


def test_a_huge_header_is_not_read(tmp_path: Path) -> None:
    """A header length beyond the bound is refused by its number alone."""
    (tmp_path / "p").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(InvalidProbes, match="not safetensors"):
        summarize(tmp_path / "p", SHA)
