"""What a model and the process that runs it may take, and that the settings say so."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
import torch
from onnx import helper, numpy_helper
from tests import models
from tests.hostile import corpus

from onnx_audit import v1
from onnx_audit_server.api.models import MAX_ONNX_BYTES
from onnx_audit_server.jobs import memory, process
from onnx_audit_server.jobs.confinement import terms
from onnx_audit_server.jobs.process import RunnerError, RunnerProcess
from onnx_audit_server.jobs.runner import Job
from onnx_audit_server.settings import Settings
from onnx_auditors import context
from onnx_auditors.errors import LimitExceeded
from onnx_auditors.network import Limits, load

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


@contextmanager
def greedy(
    folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> Iterator[RunnerProcess]:
    """A runner that takes what it is told to."""
    monkeypatch.setattr(process, "RUNNER", "tests.sandbox.greedy_runner")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    runner = RunnerProcess(Settings(data=folder, **settings), folder / "scratch")
    try:
        yield runner
    finally:
        runner.kill()


def ends(runner: RunnerProcess, **command: object) -> tuple[RunnerError, float]:
    """How a command is ended, and after how many seconds; nothing is left of the runner."""
    begin = time.monotonic()
    with pytest.raises(RunnerError) as caught:
        runner.call(command, lambda: None, lambda _: None)
    seconds = time.monotonic() - begin
    assert not runner.alive
    assert not runner.scratch.exists()
    own = [child for child in psutil.Process().children() if "runner" in " ".join(child.cmdline())]
    assert not own
    return caught.value, seconds


@pytest.mark.parametrize("op", ["sleep", "chatter"])
def test_a_step_may_last_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    """Whatever it does meanwhile, it is ended then; the error names the setting."""
    with greedy(tmp_path, monkeypatch, shard_timeout=2.0) as runner:
        runner.call({"op": op, "seconds": 0.1}, lambda: None, lambda _: None)
        error, seconds = ends(runner, op=op, seconds=60)
    assert error.reason == "DEADLINE_EXCEEDED"
    assert error.metadata == {"limit": "shard_timeout", "allowed": "2"}
    assert "at most 2" in str(error)
    assert 2 <= seconds < 20


@pytest.mark.parametrize("op", ["hold", "share"])
def test_a_runner_may_take_so_much_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op: str
) -> None:
    """Memory of its own is counted, of every kind; the error says how much was found."""
    allowed = 120 * MIB
    with greedy(tmp_path, monkeypatch, runner_memory_bytes=allowed) as runner:
        runner.call({"op": op, "bytes": 40 * MIB, "seconds": 0.2}, lambda: None)
        runner.call({"op": "map_file", "bytes": 400 * MIB, "seconds": 0.2}, lambda: None)
        error, _ = ends(runner, op=op, bytes=900 * MIB, seconds=60)
    assert error.reason == "LIMIT_EXCEEDED"
    assert error.metadata["limit"] == "memory"
    assert error.metadata["allowed"] == str(allowed)
    # It was caught on the way, long before it had all that it was after.
    assert allowed < int(error.metadata["found"]) < 800 * MIB
    assert f"{allowed:,}" in str(error)


def test_memory_is_shared_by_the_slots() -> None:
    """By default the runners together leave a quarter of the machine to others."""
    whole = memory.machine_bytes()
    assert memory.limit(0, 4) == int(whole * 0.75 / 4)
    assert memory.limit(123, 4) == 123


def test_a_gpu_s_memory_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting reaches torch for the device of the job before anything is loaded."""
    told: list[tuple[float, str] | str] = []
    monkeypatch.setattr(
        torch.cuda,
        "set_per_process_memory_fraction",
        lambda share, device: told.append((share, device)),
    )
    monkeypatch.setattr(context, "open_context", lambda *_, **__: told.append("opened"))
    (tmp_path / "audit").write_bytes(v1.Audit(seed=1).SerializeToString())
    command = {name: str(tmp_path / name) for name in ("audit", "model", "probes")} | {
        "threads": 1,
        "peers": {},
        "arrays": {},
    }
    given = terms(Settings(data=tmp_path, runner_device_share=0.25, device="cuda"), tmp_path)
    Job(command | {"device": "cuda:1"}, given)
    Job(command | {"device": "cpu"}, given)
    assert told == [(0.25, "cuda:1"), "opened", "opened"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_no_more_than_the_share() -> None:
    """What is beyond it is refused as out of memory."""
    torch.cuda.set_per_process_memory_fraction(0.05, "cuda:0")
    try:
        total = torch.cuda.get_device_properties(0).total_memory
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(total // 10, dtype=torch.uint8, device="cuda:0")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, "cuda:0")


def test_defaults_of_settings_are_those_of_the_limits(tmp_path: Path) -> None:
    """A model is taken by the service exactly where the auditors alone take it."""
    given = json.loads(terms(Settings(data=tmp_path), tmp_path).to_json())["limits"]
    assert dataclasses.replace(Limits(**given), domains=()) == Limits()
    assert given["domains"] == []
    assert Limits().max_model_bytes == MAX_ONNX_BYTES


def ranked(rank: int) -> onnx.ModelProto:
    """A weight of some axes."""
    weight = numpy_helper.from_array(np.zeros((1,) * (rank - 1) + (4,), np.float32), "w")
    node = helper.make_node("Add", ["x", "w"], ["logits"])
    return models.model([node], [1, 4], [1] * (rank - 1) + [4], [weight])


def widened(size: int) -> onnx.ModelProto:
    """A value of some bytes, from few."""
    nodes = [
        helper.make_node("Expand", ["x", "to"], ["wide"]),
        helper.make_node("ReduceSum", ["wide", "axis"], ["logits"], keepdims=0),
    ]
    weights = [corpus.ints("to", size // 16, 1, 4), corpus.ints("axis", 0)]
    return models.model(nodes, [1, 4], [1, 4], weights)


def dense(width: int) -> onnx.ModelProto:
    """A matrix [4, width]."""
    weight = numpy_helper.from_array(np.zeros((4, width), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["logits"])
    return models.model([node], [1, 4], [1, width], [weight])


def gelu() -> onnx.ModelProto:
    """An operator of ONNX Runtime's own."""
    node = helper.make_node("Gelu", ["x"], ["logits"], domain="com.microsoft")
    model = models.model([node], [1, 4], [1, 4])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def proto(content: bytes) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(content)


@pytest.mark.parametrize(
    ("setting", "allowed", "good", "bad", "limit", "found"),
    [
        ("model_nodes", 3, lambda: proto(corpus.many_nodes(3)),
         lambda: proto(corpus.many_nodes(4)), "max_nodes", "4"),
        ("model_subgraph_depth", 2, lambda: proto(corpus.nested_if(2)),
         lambda: proto(corpus.nested_if(3)), "max_subgraph_depth", "3"),
        ("model_rank", 3, lambda: ranked(3), lambda: ranked(4), "max_rank", "4"),
        ("model_dimension", 7, lambda: dense(7), lambda: dense(8), "max_dimension", "8"),
        ("model_initializer_bytes", 160, lambda: dense(10), lambda: dense(11),
         "max_initializer_bytes", "176"),
        ("model_value_bytes", 3200, lambda: widened(3200), lambda: widened(3216),
         "max_value_bytes", "3216"),
        ("model_domains", "ai.onnx, com.example", lambda: dense(4), gelu, "domains",
         "com.microsoft"),
    ],
)  # fmt: skip
def test_each_limit_of_a_model(
    tmp_path: Path,
    setting: str,
    allowed: Any,
    good: Callable[[], onnx.ModelProto],
    bad: Callable[[], onnx.ModelProto],
    limit: str,
    found: str,
) -> None:
    """What is at the limit is taken; one more is refused, with what was found and is allowed."""
    settings = Settings(data=tmp_path, **{setting: allowed})
    limits = Limits(**terms(settings, tmp_path).limits)
    load(good(), limits=limits)
    load(bad())
    with pytest.raises(LimitExceeded) as caught:
        load(bad(), limits=limits)
    assert caught.value.metadata == {"limit": limit, "found": found, "allowed": str(allowed)}
