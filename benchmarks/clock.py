"""The clock of the benchmarks that run on the CPU or on a GPU."""

from __future__ import annotations

import time

import torch


def seconds(device: str) -> float:
    """Returns CPU seconds of this process; seconds by the clock once a GPU's work is done."""
    if not device.startswith("cuda"):
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def name_of(device: str) -> str:
    """Returns what figures were taken on."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of the CPU"
