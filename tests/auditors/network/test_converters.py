"""The benchmark's processes of other converters go on after crashes and delays."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from benchmarks import converters
from onnx import helper
from tests.support import graph_model

PACKAGE = """
import os, time, torch

class Module(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        print("printed between the answers")
        if self.kind == "crash":
            os._exit(3)
        if self.kind == "wait":
            time.sleep(60)
        if self.kind == "refuse":
            raise NotImplementedError(self.kind)
        return x + 1

def convert(model):
    return Module(model.producer_name)
"""


@pytest.mark.slow
def test_processes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter that refuses, crashes or hangs on a test has no answer to it, and runs others."""
    (tmp_path / "onnx2torch.py").write_text(PACKAGE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    kinds = ["add", "refuse", "crash", "add", "wait", "add"]
    for test, kind in enumerate(kinds):
        model = graph_model([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 2]})
        model.producer_name = kind
        converters.write(tmp_path, test, model, [torch.full((1, 2), float(test))])
    python = Path(sys.executable)
    assert converters.run(python, "onnx2torch", tmp_path, range(len(kinds)), limit_s=5.0) == 2
    answers = [converters.read(tmp_path, "onnx2torch", test) for test in range(len(kinds))]
    assert [answer is not None for answer in answers] == [kind == "add" for kind in kinds]
    for test, answer in enumerate(answers):
        if answer is not None:
            assert [x.tolist() for x in answer] == [[[test + 1.0, test + 1.0]]]
