"""Stands in for the isolated process: the same commands and answers, next to no computing.

It lets hundreds of runs end within minutes, with processes and stores broken at will; all of those
are real. A shard's result says which shard it is, and a merge takes no other ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

from onnx_audit import v1

SHARDS = 4
LONGEST_SHARD = 0.4
"""Seconds."""
BARE = "bare "
"""An audit whose display name starts so has as many shards as it then says; they take no time."""


class Stub:
    """Carries out commands, as onnx_audit_server.jobs.runner does."""

    def __init__(self, descriptor: int) -> None:
        self._answers = os.fdopen(descriptor, "w", encoding="utf-8")
        self._audit = v1.Audit()

    def send(self, kind: str, **fields: object) -> None:
        """Sends one message."""
        self._answers.write(json.dumps({"kind": kind, **fields}) + "\n")
        self._answers.flush()

    def inspect(self, command: dict[str, Any]) -> None:
        """Gives every model the same summary."""
        summary = v1.ModelSummary(
            inputs=[v1.TensorInfo(name="x", dtype="float", shape=[-1, 16])],
            outputs=[v1.TensorInfo(name="logits", dtype="float", shape=[-1, 4])],
            opset=17,
            ir_version=9,
            node_count=3,
            parameter_count=508,
        )
        Path(command["result"]).write_bytes(summary.SerializeToString())

    def open(self, command: dict[str, Any]) -> None:
        """Takes the audit in."""
        self._audit = v1.Audit.FromString(Path(command["audit"]).read_bytes())

    @property
    def _bare(self) -> bool:
        return self._audit.display_name.startswith(BARE)

    @property
    def _shards(self) -> int:
        return int(self._audit.display_name.removeprefix(BARE)) if self._bare else SHARDS

    def plan(self, command: dict[str, Any]) -> None:
        """Plans some shards of `distortion`."""
        plan = v1.AuditPlan(
            parity=v1.Parity(passed=True), code_sha256="0" * 64, auditors=self._audit.auditors
        )
        plan.plans.add(
            auditor=v1.AUDITOR_DISTORTION,
            shards=self._shards,
            items=2 * self._shards,
            unit="probes",
        )
        Path(command["result"]).write_bytes(plan.SerializeToString(deterministic=True))

    def shard(self, command: dict[str, Any]) -> None:
        """Says which shard it is, after a while."""
        steps = 0 if self._bare else 3
        for step in range(steps):
            self.send("progress", done=step, total=steps, running="", label="")
            time.sleep(random.uniform(0, LONGEST_SHARD / steps))  # noqa: S311 - changes no result
        Path(command["result"]).write_bytes(partial(self._audit.seed, command["shard"]))

    def merge(self, command: dict[str, Any]) -> None:
        """Takes the shards of its audit, in order, and no others."""
        found = [Path(path).read_bytes() for path in command["partials"]]
        if found != [partial(self._audit.seed, shard) for shard in range(self._shards)]:
            raise ValueError(f"wrong partials {found}")
        digest = hashlib.sha256(b"".join(found)).digest()
        artefact = Path(command["artefacts"]) / "examples"
        artefact.write_bytes(digest)
        section = v1.DistortionSection(probe_count=int.from_bytes(digest[:3], "big"))
        result = v1.SectionResult(distortion=section)
        Path(command["result"]).write_bytes(result.SerializeToString(deterministic=True))


def partial(seed: int, shard: int) -> bytes:
    """A shard's result."""
    return f"shard {shard} with seed {seed}".encode()


def main() -> None:
    stub = Stub(int(sys.argv[-2]))

    def carry_out(command: dict[str, Any]) -> None:
        try:
            getattr(stub, command["op"])(command)
        except ValueError as error:
            stub.send("error", reason="INTERNAL", message=str(error), metadata={})
        else:
            stub.send("done")

    for line in sys.stdin:
        # The end of standard input ends the process, whatever it does.
        threading.Thread(target=carry_out, args=(json.loads(line),), daemon=True).start()
    os._exit(0)


if __name__ == "__main__":
    main()
