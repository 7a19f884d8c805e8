"""What the service bears, and what it costs beside the bare parts that it is made of.

Prints the time from start to SERVING; the throughput of uploads beside a plain copy with SHA-256
and beside a bare gRPC server that drops what it gets; GetAudit beside a bare server that answers
with the same message; the time that scheduling adds to a shard on SQLite and on PostgreSQL; and
errors, latency and memory under 200 watchers, 50 submitting clients and 4 uploads at once. Shards
compute nothing (tests/faults/stub_runner.py), so that the service itself is what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import grpc
import numpy as np
import onnx
import psutil
from benchmarks.bare_server import bare_server
from grpc_health.v1 import health_pb2
from onnx import TensorProto, helper
from tests import models
from tests.faults.fleet import Fleet, running
from tests.faults.stub_runner import BARE
from tests.service import ServiceProcess
from tests.stores import Stores, servers

from onnx_audit import AsyncClient, Client, v1
from onnx_audit.files import CHUNK_BYTES
from onnx_audit.retries import RetryPolicy

CONFIG = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=10))
MIB = 1 << 20
ROUNDS = 9
"""Of each upload and copy."""
TAKEOVER = 12.0
"""Seconds, as by default."""
ONCE = RetryPolicy(attempts=1)
"""For clients that count every error."""


def show(label: str, value: str) -> None:
    print(f"{label:58} {value}", flush=True)


def quantiles(seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100)
    return "p50 {:.1f} ms  p90 {:.1f}  p99 {:.1f}".format(*(cuts[k] * 1e3 for k in (49, 89, 98)))


def start_time(folder: Path) -> None:
    """Seconds from the start of the process to SERVING, on a folder that exists."""
    times = []
    for _ in range(4):
        began = time.monotonic()
        with ServiceProcess(folder / "start") as process:
            with grpc.insecure_channel(process.target) as channel:
                check = channel.unary_unary(
                    "/grpc.health.v1.Health/Check",
                    request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                    response_deserializer=health_pb2.HealthCheckResponse.FromString,
                )
                if check(health_pb2.HealthCheckRequest()).status != 1:
                    raise SystemExit("the server does not serve")
            times.append(time.monotonic() - began)
            cpu = sum(psutil.Process(process.pid).cpu_times()[:2])
    show("start to SERVING", f"{min(times[1:]):.2f} s at best, {cpu:.2f} s of CPU")


def copied(source: Path, target: Path) -> str:
    """Copies a file plainly and returns the copy's digest."""
    shutil.copyfile(source, target)
    with target.open("r+b") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def uploads(folder: Path, size: int) -> None:
    """Throughput of one upload, in turns with the same bytes copied and sent to nobody."""
    times: dict[str, list[float]] = {"copy": [], "upload": [], "bare": []}
    folder.mkdir()
    with (
        bare_server(b"") as channel,
        ServiceProcess(folder / "data") as process,
        Client(process.target) as client,
    ):
        sink: Callable[..., bytes] = channel.stream_unary("/bare/Sink")
        source = folder / "upload"

        def send() -> None:
            with source.open("rb") as file:
                sink(iter(lambda: file.read(CHUNK_BYTES), b""))

        for turn in range(ROUNDS):
            source.write_bytes(np.random.default_rng().bytes(size))
            for name, action in (
                # As uploads do, each copy makes a file.
                ("copy", lambda turn=turn: copied(source, folder / f"copy-{turn}")),
                ("upload", lambda: client.upload_files([source])),
                ("bare", send),
            ):
                os.sync()
                warm(6 * size)
                start = time.perf_counter()
                action()
                times[name].append(time.perf_counter() - start)
    speed = {name: size / statistics.median(taken) / MIB for name, taken in times.items()}
    ratios = [one / other for one, other in zip(times["copy"], times["upload"], strict=True)]
    show("copy with SHA-256", f"{speed['copy']:.0f} MiB/s")
    show(
        "upload, digests on both sides",
        f"{speed['upload']:.0f} MiB/s, {statistics.median(ratios):.0%} of the copy (median of "
        f"{ROUNDS}; {min(ratios):.0%} to {max(ratios):.0%})",
    )
    show("the same messages to a bare server", f"{speed['bare']:.0f} MiB/s")


def warm(size: int) -> None:
    """Takes and returns memory.

    A virtual machine gets what it has not used for a while from its host first, which takes several
    times as long as to fill it.
    """
    np.ones(size, np.uint8)


def calls(fleet: Fleet, audit: v1.Audit) -> None:
    """GetAudit at rest, in turns with the same message from a server that does nothing."""
    ours: list[float] = []
    bare: list[float] = []
    with fleet.client() as client, bare_server(audit.SerializeToString()) as channel:
        echo: Callable[..., bytes] = channel.unary_unary("/bare/Echo")
        request = v1.GetAuditRequest(name=audit.name).SerializeToString()
        steps: tuple[tuple[list[float], Callable[[], object]], ...] = (
            (ours, lambda: client.get_audit(audit)),
            (bare, lambda: echo(request)),
        )
        for _ in range(300):
            for times, step in steps:
                start = time.perf_counter()
                step()
                times.append(time.perf_counter() - start)
    show("GetAudit", quantiles(ours))
    ratio = statistics.median(ours) / statistics.median(bare)
    show("the same message from a bare server", f"{quantiles(bare)}; ratio {ratio:.1f}")


def scheduling(fleet: Fleet, label: str, shards: int) -> v1.Audit:
    """Time that a shard takes which computes nothing, one after another on one slot."""
    for worker in fleet.workers[1:]:
        worker.kill()
    with fleet.client() as client:
        model = client.upload_model(models.save(models.mlp(), fleet.stores.folder / "model.onnx"))
        probes = client.upload_probes(models.probes(8, 16))
        name = f"{BARE}{shards}"
        audit = client.audit(model, probes, auditors=CONFIG, display_name=name, fresh=True)
        times = [event.time for event in client.watch(audit) if event.HasField("shard_finished")]
    seconds = (times[-1].ToNanoseconds() - times[0].ToNanoseconds()) / 1e9
    show(f"scheduling of a shard on {label}", f"{seconds / (shards - 1) * 1e3:.0f} ms")
    return audit


def large_model(fleet: Fleet, folder: Path, gib: float) -> None:
    """Memory of client and server while a model with large external data is uploaded."""
    size = int(gib * (1 << 30)) // 4 // 1024 * 1024
    weights = folder / "large.bin"
    with weights.open("wb") as file:
        block = np.random.default_rng(0).bytes(64 * MIB)
        for offset in range(0, size * 4, len(block)):
            # No two blocks are the same.
            file.write(offset.to_bytes(8, "big") + block[: min(len(block), size * 4 - offset) - 8])
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[size // 1024, 1024])
    tensor.raw_data = b"elsewhere"  # which the helper insists on
    onnx.external_data_helper.set_external_data(tensor, "large.bin", 0, size * 4)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, size // 1024])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, 1024])],
        [tensor],
    )
    path = folder / "large.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    watched = [psutil.Process(), *(psutil.Process(server.pid) for server in fleet.servers)]
    before = [process.memory_info().rss for process in watched]
    most = list(before)

    def look(*_: object) -> None:
        for n, process in enumerate(watched):
            most[n] = max(most[n], process.memory_info().rss)

    start = time.perf_counter()
    with Client(f"127.0.0.1:{fleet.servers[0].port}", timeout=600) as client:
        client.upload_model(path, progress=look)
    seconds = time.perf_counter() - start
    grown = [(most[n] - before[n]) / MIB for n in range(len(before))]
    show(
        f"model with {gib:g} GiB of external data",
        f"{seconds:.0f} s; memory grows by {grown[0]:.0f} MiB in the client, "
        f"{max(grown[1:]):.0f} in the server",
    )
    weights.unlink()


class Load:
    """Many clients at once, and what they see."""

    def __init__(self, fleet: Fleet, model: v1.Model, probes: v1.ProbeSet) -> None:
        self._targets = [f"127.0.0.1:{server.port}" for server in fleet.servers]
        self._processes = [psutil.Process(member.pid) for member in fleet.members]
        self._model, self._probes = model, probes
        self._current: list[v1.Audit] = []
        self.errors: list[str] = []
        self.create: list[float] = []
        self.lag: list[float] = []
        self.ended = self.uploaded = 0
        self._until = 0.0
        self.memory: list[float] = []

    async def run(self, seconds: float, watchers: int, clients: int, uploaders: int) -> None:
        """Keeps everybody busy for a while."""
        self._until = time.monotonic() + seconds
        tasks = [self._submit(n) for n in range(clients)]
        tasks += [self._watch(n) for n in range(watchers)]
        tasks += [self._upload(n) for n in range(uploaders)]
        await asyncio.gather(self._measure(), *(self._safe(task) for task in tasks))

    async def _safe(self, task: Any) -> None:  # noqa: ANN401 - a coroutine
        try:
            await task
        except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
            self.errors.append(f"{type(error).__name__}: {error}"[:200])

    def _client(self, number: int) -> AsyncClient:
        return AsyncClient(self._targets[number % 2], retries=ONCE, timeout=60)

    async def _submit(self, number: int) -> None:
        async with self._client(number) as client:
            while time.monotonic() < self._until:
                start = time.perf_counter()
                audit = await client.audit(
                    self._model, self._probes, auditors=CONFIG, display_name=f"{BARE}2", fresh=True
                )
                self.create.append(time.perf_counter() - start)
                self._current = [*self._current[-20:], audit]
                await client.wait(audit)
                await client.report(audit)
                self.ended += 1

    async def _watch(self, number: int) -> None:
        async with self._client(number) as client:
            while time.monotonic() < self._until:
                if not self._current:
                    await asyncio.sleep(0.1)
                    continue
                began = time.time()
                async for event in client.watch(self._current[number % len(self._current)]):
                    sent = event.time.ToNanoseconds() / 1e9
                    if sent > began:
                        self.lag.append(time.time() - sent)

    async def _upload(self, number: int) -> None:
        with tempfile.TemporaryDirectory() as name:
            async with self._client(number) as client:
                while time.monotonic() < self._until:
                    path = Path(name) / "blob"
                    path.write_bytes(np.random.default_rng().bytes(8 * MIB))
                    await client.upload_files([path])
                    self.uploaded += 8

    async def _measure(self) -> None:
        while time.monotonic() < self._until:
            self.memory.append(max(p.memory_info().rss for p in self._processes) / MIB)
            await asyncio.sleep(1)


def load(fleet: Fleet, options: argparse.Namespace) -> None:
    """Runs the load and prints what came of it."""
    with fleet.client() as client:
        model = client.upload_model(fleet.stores.folder / "model.onnx")
        probes = client.upload_probes(models.probes(8, 16))
    made = Load(fleet, model, probes)
    asyncio.run(made.run(options.seconds, options.watchers, options.clients, options.uploads))
    show(
        f"{options.watchers} watchers, {options.clients} clients, {options.uploads} uploads",
        f"{options.seconds:g} s, {len(made.errors)} errors",
    )
    for error in made.errors[:5]:
        print("   ", error)
    show("audits that ended; uploaded", f"{made.ended}; {made.uploaded} MiB")
    show("CreateAudit", quantiles(made.create))
    show("from an event's time to its watcher", quantiles(made.lag))
    third = len(made.memory) // 3
    show(
        "memory of the largest process, first and last third",
        f"{max(made.memory[:third]):.0f} and {max(made.memory[-third:]):.0f} MiB",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--watchers", type=int, default=200)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--uploads", type=int, default=4)
    parser.add_argument("--upload-mib", type=int, default=512)
    parser.add_argument("--model-gib", type=float, default=3)
    parser.add_argument("--shards", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("start", "sqlite", "postgres"):
            (folder / part).mkdir()
        start_time(folder / "start")
        uploads(folder / "uploads", options.upload_mib * MIB)
        with servers(folder / "postgres") as stores, running(stores, TAKEOVER) as fleet:
            scheduling(fleet, "PostgreSQL", options.shards)
        with running(Stores(folder / "sqlite"), TAKEOVER) as fleet:
            audit = scheduling(fleet, "SQLite", options.shards)
            calls(fleet, audit)
            large_model(fleet, folder, options.model_gib)
            fleet.start()
            load(fleet, options)


if __name__ == "__main__":
    main()
