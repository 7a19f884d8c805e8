"""A runner that takes time and memory as it is told; run in place of the real one."""

from __future__ import annotations

import json
import mmap
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnx_audit_server.jobs.runner import Channel
from onnx_audit_server.jobs.terms import Terms

STEP = 4 << 20
"""Bytes that are taken at once."""


def sleep(command: dict[str, Any], _: Channel) -> None:
    """Does nothing, for a while."""
    time.sleep(command["seconds"])


def chatter(command: dict[str, Any], channel: Channel) -> None:
    """Tells of progress all the time."""
    end = time.monotonic() + command["seconds"]
    while time.monotonic() < end:
        channel.send("progress", done=0.0, total=1.0, running="", label="")


def hold(command: dict[str, Any], _: Channel) -> None:
    """Holds memory of its own."""
    held = bytearray()
    while len(held) < command["bytes"]:
        held += b"x" * STEP
        time.sleep(0.002)
    time.sleep(command["seconds"])


def share(command: dict[str, Any], _: Channel) -> None:
    """Holds memory that could be shared."""
    with mmap.mmap(-1, command["bytes"]) as held:
        for at in range(0, command["bytes"], STEP):
            held[at : at + STEP] = b"x" * min(STEP, command["bytes"] - at)
            time.sleep(0.002)
        time.sleep(command["seconds"])


def map_file(command: dict[str, Any], _: Channel) -> None:
    """Reads through a file that it has mapped."""
    path = Path("mapped")
    with path.open("wb") as created:
        created.truncate(command["bytes"])
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        for at in range(0, command["bytes"], mmap.PAGESIZE):
            mapped[at]
        time.sleep(command["seconds"])


COMMANDS: dict[str, Callable[[dict[str, Any], Channel], None]] = {
    each.__name__: each for each in (sleep, chatter, hold, share, map_file)
}


def main() -> None:
    """Carries out commands, confined like the real one."""
    terms = Terms(**json.loads(sys.argv[2]))
    terms.enforce()
    channel = Channel(int(sys.argv[1]))
    for line in sys.stdin:
        command = json.loads(line)
        COMMANDS[command["op"]](command, channel)
        channel.send("done")


if __name__ == "__main__":
    main()
