"""The devices of a worker: how many tasks it does at once, and each on which device."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pynvml  # type: ignore[import-untyped] # has no types

from onnx_audit_server.settings import Settings


def kind(device: str) -> str:
    """The kind of a device: "cpu" or "cuda"."""
    return device.partition(":")[0]


def devices(settings: Settings) -> list[str]:
    """The device of each slot: one slot for each device, or as many as the settings say.

    Slots beyond the devices share them in turn.
    """
    found = [settings.device]
    if settings.device == "cuda":
        found = [f"cuda:{number}" for number in range(max(1, visible_gpus()))]
    return [found[slot % len(found)] for slot in range(settings.slots or len(found))]


def visible_gpus() -> int:
    """Number of NVIDIA GPUs that processes of this one may use; 0 without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        count = int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # What it names may be a part of a GPU, which the driver's count leaves out.
    return count if visible is None else len([name for name in visible.split(",") if name.strip()])


class Slots:
    """Lends the devices, each as often as it has slots."""

    def __init__(self, places: list[str]) -> None:
        self._free = [(place, "") for place in places]
        self._changed = threading.Condition()

    @contextmanager
    def lend(self, audit: str) -> Iterator[str]:
        """Lends a device, if possible one on which this audit was before; waits for a free one."""
        with self._changed:
            self._changed.wait_for(lambda: self._free)
            slot = next((slot for slot in self._free if slot[1] == audit), self._free[0])
            self._free.remove(slot)
        try:
            yield slot[0]
        finally:
            with self._changed:
                self._free.append((slot[0], audit))
                self._changed.notify()
