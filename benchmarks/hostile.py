"""What another client feels while somebody uploads models that are made to harm.

Starts a real server, times a client's calls at rest, then sends the corpus of tests/hostile one
model after another, and times the same client's calls meanwhile: GetAudit, and an upload with
CreateModel of a small model that nobody has sent before. Prints both, and how long the models take
to be refused.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import grpc
from benchmarks.watchers import report
from tests import models
from tests.hostile import corpus
from tests.hostile.test_hostile_models import CONFIG, SHARD_TIMEOUT, send
from tests.service import ServiceProcess

from onnx_audit import Client

PAUSE = 0.05


class Neighbour:
    """A client that means no harm, and what its calls take."""

    def __init__(self, client: Client, folder: Path) -> None:
        self._client, self._folder = client, folder
        self._made = 0
        model = client.upload_model(models.save(models.mlp(), folder / "first.onnx"))
        self._audit = client.audit(
            model, client.upload_probes(models.probes(8, 16)), auditors=CONFIG
        )
        client.wait(self._audit)

    def looks(self, enough: Callable[[int], bool]) -> tuple[list[float], list[float]]:
        """Milliseconds of GetAudit, and of a new model after each tenth, until it is enough."""
        gets: list[float] = []
        news: list[float] = []
        while not enough(len(gets)):
            start = time.perf_counter()
            self._client.get_audit(self._audit)
            gets.append((time.perf_counter() - start) * 1e3)
            if len(gets) % 10 == 0:
                self._made += 1
                path = models.save(models.mlp(seed=self._made), self._folder / "next.onnx")
                start = time.perf_counter()
                self._client.upload_model(path)
                news.append((time.perf_counter() - start) * 1e3)
            time.sleep(PAUSE)
        return gets, news


def attack(target: str, times: dict[str, float], over: threading.Event) -> None:
    """Sends every model of the corpus."""
    try:
        with grpc.insecure_channel(target) as channel:
            for name, case in corpus.REFUSED.items():
                content = case.build()
                start = time.perf_counter()
                with contextlib.suppress(grpc.RpcError):
                    send(channel, content, case.files)
                    raise AssertionError(f"{name} was not refused")
                times[name] = time.perf_counter() - start
    finally:
        over.set()


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    limits = {
        "ONNX_AUDIT_SHARD_TIMEOUT": str(SHARD_TIMEOUT),
        "ONNX_AUDIT_RUNNER_MEMORY_BYTES": str(3 << 30),
    }
    with (
        tempfile.TemporaryDirectory() as name,
        ServiceProcess(Path(name) / "data", environment=limits) as process,
        process.client(timeout=120) as client,
    ):
        neighbour = Neighbour(client, Path(name))
        rest = neighbour.looks(lambda count: count >= 200)
        times: dict[str, float] = {}
        over = threading.Event()
        threading.Thread(target=attack, args=(process.target, times, over), daemon=True).start()
        attacked = neighbour.looks(lambda _: over.is_set())
    for label, before, during in zip(("GetAudit", "new model"), rest, attacked, strict=True):
        ratio = report(f"{label}, attacked", during) / report(f"{label}, at rest", before)
        print(f"{'ratio of the medians':28} {ratio:.1f}; longest {max(during):.0f} ms")
    print(f"{len(times)} models refused after {statistics.median(times.values()):.1f} s (median)")
    for name, seconds in sorted(times.items(), key=lambda pair: -pair[1])[:5]:
        print(f"    {name:40} {seconds:.1f} s")


if __name__ == "__main__":
    main()
