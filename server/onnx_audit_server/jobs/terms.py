"""What a runner is told when it starts: how it is confined, and what a model may cost."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx_audit_server.sandbox.confine import Means, confine


@dataclass(frozen=True)
class Terms:
    """The terms.

    Attributes:
        scratch: The folder that is the runner's own.
        landlock: Version of Landlock to use, 0 for none.
        seccomp: Whether to filter system calls.
        cuda: Whether it computes on an NVIDIA GPU.
        file_bytes: Largest file that it may write.
        device_share: Share of a GPU's memory that torch may take.
        limits: Arguments of the auditors' Limits.
    """

    scratch: str
    landlock: int
    seccomp: bool
    cuda: bool
    file_bytes: int
    device_share: float
    limits: dict[str, Any]

    def to_json(self) -> str:
        """The terms as a runner's argument."""
        return json.dumps(asdict(self))

    def enforce(self) -> None:
        """Confines this process.

        Raises:
            OSError: The kernel refuses something that it offers.
        """
        confine(
            Means(self.landlock, self.seccomp),
            Path(self.scratch),
            cuda=self.cuda,
            file_bytes=self.file_bytes,
        )
