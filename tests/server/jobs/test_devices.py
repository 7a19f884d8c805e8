"""How many slots a worker has, and which device each of its tasks gets."""

from __future__ import annotations

import threading

import pynvml  # type: ignore[import-untyped] # has no types
import pytest

from onnx_audit_server.jobs import devices
from onnx_audit_server.settings import Settings


@pytest.mark.parametrize(
    ("device", "slots", "gpus", "expected"),
    [
        ("cpu", None, 0, ["cpu"]),
        ("cpu", 3, 0, ["cpu"] * 3),
        ("cuda", None, 4, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("cuda", 3, 2, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda", None, 0, ["cuda:0"]),
        ("cuda:2", None, 4, ["cuda:2"]),
        ("cuda:2", 2, 4, ["cuda:2"] * 2),
    ],
)
def test_there_is_a_slot_for_each_device(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    slots: int | None,
    gpus: int,
    expected: list[str],
) -> None:
    """One each, unless the settings say otherwise."""
    monkeypatch.setattr(devices, "visible_gpus", lambda: gpus)
    assert devices.devices(Settings(device=device, slots=slots)) == expected


def test_gpus_that_are_hidden_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the variable says that CUDA itself looks at."""
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices.visible_gpus() == 8
    for value, count in (("0,3", 2), ("", 0), ("MIG-1234", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert devices.visible_gpus() == count


def test_an_audit_comes_back_to_its_device() -> None:
    """There its model is loaded; when that device is taken, it gets another one."""
    slots = devices.Slots(["cuda:0", "cuda:1"])
    with slots.lend("a") as first, slots.lend("b") as second:
        assert {first, second} == {"cuda:0", "cuda:1"}
    with slots.lend("b") as again:
        assert again == second
        with slots.lend("b") as other:
            assert other == first


def test_no_device_is_lent_beyond_its_slots() -> None:
    """Whoever comes too early waits."""
    slots = devices.Slots(["cpu", "cpu"])
    running, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal running, most
        with slots.lend("a"):
            with lock:
                running += 1
                most = max(most, running)
            with lock:
                running -= 1

    threads = [threading.Thread(target=work) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 2
