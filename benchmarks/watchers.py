"""How soon does GetAudit answer while an audit runs and a hundred others watch it?

Starts a real server, runs an audit on it, opens the watchers, and times GetAudit from a further
client; beside it the same call on an idle server. Prints both and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests import models
from tests.service import ServiceProcess

from onnx_audit import Client, v1

CALLS = 300
PAUSE = 0.01


def time_calls(client: Client, audit: v1.Audit) -> list[float]:
    """Milliseconds of each of CALLS calls of GetAudit, one after another."""
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        client.get_audit(audit)
        times.append((time.perf_counter() - start) * 1e3)
        time.sleep(PAUSE)
    return times


def report(label: str, times: list[float]) -> float:
    """Prints median, 90th and 99th percentile; returns the median."""
    cuts = statistics.quantiles(times, n=100)
    print(f"{label:28} median {cuts[49]:6.2f} ms   p90 {cuts[89]:6.2f}   p99 {cuts[98]:6.2f}")
    return cuts[49]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--watchers", type=int, default=100)
    watchers: int = parser.parse_args().watchers
    config = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=100_000))
    with (
        tempfile.TemporaryDirectory() as name,
        ServiceProcess(Path(name) / "data") as process,
        process.client() as client,
    ):
        path = models.save(models.mlp((64, 128, 128, 10)), Path(name) / "model.onnx")
        model, probes = client.upload_model(path), client.upload_probes(models.probes(512, 64))
        done = client.wait(
            client.audit(
                model, probes, auditors=v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=10))
            )
        )
        idle = report("idle server", time_calls(client, done))
        audit = client.audit(model, probes, auditors=config)
        events = [0] * watchers

        def watch(index: int) -> None:
            with process.client() as own:
                for _ in own.watch(audit):
                    events[index] += 1

        threads = [threading.Thread(target=watch, args=(n,)) for n in range(watchers)]
        for thread in threads:
            thread.start()
        while min(events) < 4:
            time.sleep(0.05)
        busy = report(f"audit and {watchers} watchers", time_calls(client, audit))
        client.cancel(audit)
        for thread in threads:
            thread.join()
        print(f"ratio of the medians {busy / idle:.2f}; events per watcher {min(events)}")


if __name__ == "__main__":
    main()
