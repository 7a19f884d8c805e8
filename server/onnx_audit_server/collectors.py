"""Metrics that are read at each scrape: of the database, the devices and the data folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pynvml  # type: ignore[import-untyped] # it has no types
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from onnx_audit import v1
from onnx_audit_server import logs, metrics
from onnx_audit_server.jobs.queue import DEVICES, JobQueue
from onnx_audit_server.metrics import Described, describe
from onnx_audit_server.retention.janitor import CHORE
from onnx_audit_server.store.clock import now_us
from onnx_audit_server.store.records import Records

log = logs.get(__name__)

AUDITS = describe(
    "onnx_audit_audits",
    "gauge",
    "audits",
    "Audits in the database by state, the same from every process; `verdict` is `none` without a "
    "policy.",
    "Many running and few shards ending: look at `onnx_audit_worker_slots_busy`.",
    ["state", "verdict"],
)
QUEUE_DEPTH = describe(
    "onnx_audit_queue_depth",
    "gauge",
    "audits",
    "Audits that wait for a worker, the same from every process.",
    "If it grows: more workers; if there are none, see `onnx_audit_worker_slots`.",
)
QUEUE_OLDEST = describe(
    "onnx_audit_queue_oldest_seconds",
    "gauge",
    "seconds",
    "Time since the audit that waits longest was accepted; 0 where none waits.",
    "An old audit while newer ones run: a worker of its version is missing. Else more workers.",
)
TASKS_WAITING = describe(
    "onnx_audit_tasks_waiting",
    "gauge",
    "tasks",
    "Plans, shards and merges that wait for a slot of a kind of device (`cpu` or `cuda`), counted "
    "up to 1,000; the same from every process.",
    "What to scale workers by, beside `onnx_audit_worker_slots_busy`: if it stays above the number "
    "of slots, add some.",
    ["device"],
)
DEVICE_MEMORY = describe(
    "onnx_audit_device_memory_used_bytes",
    "gauge",
    "bytes",
    "Memory in use on each GPU of the machine, by whatever process; absent without NVML.",
    "Near the total: another process shares the device, or there are too many slots for it.",
    ["device"],
)
DEVICE_MEMORY_TOTAL = describe(
    "onnx_audit_device_memory_total_bytes",
    "gauge",
    "bytes",
    "Memory of each GPU.",
    "Absent on a GPU machine: the driver's NVML library is not found.",
    ["device"],
)
DEVICE_UTILISATION = describe(
    "onnx_audit_device_utilization_ratio",
    "gauge",
    "ratio",
    "Share of the last sample period in which a kernel ran on the GPU, 0 to 1.",
    "Low while all slots are busy: models too small for the device, or a CPU that cannot keep up; "
    "offer more slots.",
    ["device"],
)
GC_LAST_SUCCESS = describe(
    "onnx_audit_gc_last_success_timestamp_seconds",
    "gauge",
    "seconds since 1970",
    "When a garbage collection last ended well, the same from every process; 0 for never. One "
    "server of all does it.",
    "If it is long ago, look for `garbage collection failed` in the servers' logs.",
)
DATA_FREE = describe(
    "onnx_audit_data_free_bytes",
    "gauge",
    "bytes",
    "Free space where the data folder lies.",
    "Shorten the retention, run `onnx-audit gc`, or enlarge the disk before it is full.",
)
DATA_SIZE = describe(
    "onnx_audit_data_size_bytes",
    "gauge",
    "bytes",
    "Size of the file system of the data folder.",
    "To be read beside the free space.",
)


def _family(known: Described, value: float | None = None) -> GaugeMetricFamily:
    labels = known.labels or None
    return GaugeMetricFamily(known.name, known.meaning, value=value, labels=labels)


class RecordsCollector(Collector):
    """Reads what the database knows, the same from every process."""

    def __init__(self, records: Records, queue: JobQueue | None = None) -> None:
        self._records = records
        self._queue = queue

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields the number of audits by state, and those that wait for a worker."""
        try:
            counts = self._records.count_audits()
            oldest = self._records.oldest_queued_us()
            collected = self._records.chore_done_us(CHORE)
            waiting = (
                {kind: self._queue.count_waiting(kind) for kind in DEVICES} if self._queue else {}
            )
        except Exception:
            log.exception("cannot count audits")
            return
        audits = _family(AUDITS)
        for state in metrics.STATES:
            for verdict in metrics.VERDICTS:
                if verdict == 0 or (state, verdict) in counts:
                    labels = [metrics.state_label(state), metrics.verdict_label(verdict)]
                    audits.add_metric(labels, counts.get((state, verdict), 0))
        yield audits
        depth = sum(count for (state, _), count in counts.items() if state == v1.AUDIT_STATE_QUEUED)
        yield _family(QUEUE_DEPTH, depth)
        age = 0.0 if oldest is None else max(0.0, (now_us() - oldest) / 1e6)
        yield _family(QUEUE_OLDEST, age)
        yield _family(GC_LAST_SUCCESS, collected / 1e6)
        tasks = _family(TASKS_WAITING)
        for device, count in waiting.items():
            tasks.add_metric([device], count)
        yield tasks


class DeviceCollector(Collector):
    """Reads the GPUs through NVML; says nothing where there is none."""

    def __init__(self) -> None:
        self._lost: set[int] = set()
        try:
            pynvml.nvmlInit()
            self._devices: Sequence[object] = [
                pynvml.nvmlDeviceGetHandleByIndex(index)
                for index in range(pynvml.nvmlDeviceGetCount())
            ]
        except pynvml.NVMLError:
            self._devices = ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields memory and utilisation of each GPU."""
        if not self._devices:
            return
        used, total, busy = (
            _family(known) for known in (DEVICE_MEMORY, DEVICE_MEMORY_TOTAL, DEVICE_UTILISATION)
        )
        for index, device in enumerate(self._devices):
            # A device that has fallen off the bus must not take the others' figures with it.
            try:
                memory = pynvml.nvmlDeviceGetMemoryInfo(device)
                rates = pynvml.nvmlDeviceGetUtilizationRates(device)
            except pynvml.NVMLError as error:
                if index not in self._lost:
                    log.warning("cannot read a device", device=index, error=str(error))
                self._lost.add(index)
                continue
            used.add_metric([str(index)], memory.used)
            total.add_metric([str(index)], memory.total)
            busy.add_metric([str(index)], rates.gpu / 100)
        yield from (used, total, busy)


class FolderCollector(Collector):
    """Reads how much room the data folder has."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields free space and size."""
        usage = shutil.disk_usage(self._folder)
        yield _family(DATA_FREE, usage.free)
        yield _family(DATA_SIZE, usage.total)
