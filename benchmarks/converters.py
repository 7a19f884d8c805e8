"""Runs public converters from ONNX to torch in an environment of their own, test by test.

Each converter has a process, which is given tests one after the other. One that crashes or takes
too long is replaced, and has not run the test.
"""

from __future__ import annotations

import json
import select
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

import onnx
import torch

WORKER = Path(__file__).with_name("converters_worker.py")
_START_S = 120.0


def installed(python: Path) -> dict[str, str]:
    """Returns the versions of the converters that a python has, by name."""
    command = [str(python), str(WORKER), "--versions"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(result.stdout)
    return found


def write(folder: Path, test: int, model: onnx.ModelProto, inputs: Sequence[Any]) -> None:
    """Stores a test where the converters look for it.

    Args:
        folder: Where tests and answers lie.
        test: Its number.
        model: Its model.
        inputs: Tensors, or lists of tensors, in the graph's order.
    """
    (folder / f"{test}.onnx").write_bytes(model.SerializeToString())
    torch.save(list(inputs), folder / f"{test}.pt")


def read(folder: Path, name: str, test: int) -> list[Any] | None:
    """Returns what a converted model gave, None if it did not run."""
    path = folder / f"{name}-{test}.pt"
    if not path.exists():
        return None
    found: list[Any] = torch.load(path, weights_only=True)
    return found


def run(python: Path, name: str, folder: Path, tests: Sequence[int], limit_s: float) -> int:
    """Runs tests with a converter, which leaves its answers in the folder.

    Args:
        python: Python of the environment that holds it.
        name: Its name.
        folder: Where the tests are written.
        tests: Numbers of tests.
        limit_s: Seconds that one of them may take.

    Returns:
        How many of the tests crashed the process or ran past the limit.
    """
    worker, lost = None, 0
    for test in tests:
        worker = worker or _Worker(python, name, folder)
        if not worker.ask(test, limit_s):
            worker.stop()
            worker, lost = None, lost + 1
    if worker is not None:
        worker.stop()
    return lost


class _Worker:
    """A process with one converter."""

    def __init__(self, python: Path, name: str, folder: Path) -> None:
        self._process = subprocess.Popen(
            [str(python), str(WORKER), name, str(folder)], bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._asked = cast("IO[bytes]", self._process.stdin)
        self._answers = cast("IO[bytes]", self._process.stdout)
        if not self._line(_START_S):
            self.stop()
            raise RuntimeError(f"{name} does not start in {python}")

    def ask(self, test: int, limit_s: float) -> bool:
        """Has a test run; says whether the process lives and was in time."""
        try:
            self._asked.write(f"{test}\n".encode())
        except BrokenPipeError:
            return False
        return bool(self._line(limit_s))

    def _line(self, limit_s: float) -> bytes:
        """Returns the next line; empty if there is none in time or the process has ended."""
        ready, _, _ = select.select([self._answers], [], [], limit_s)
        return self._answers.readline() if ready else b""

    def stop(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
