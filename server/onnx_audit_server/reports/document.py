"""What a report is drawn from: the report, a policy's result, a baseline, and stored blobs."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from onnx_audit import v1


class Artefacts(Protocol):
    """Reads blobs by their digest; `store.blobs.BlobStore` does."""

    def get(self, digest: str) -> bytes:
        """Content of a blob that fits in memory.

        Raises:
            FileNotFoundError: There is no such blob.
        """

    def as_file(self, digest: str) -> AbstractContextManager[Path]:
        """Lends a blob as a file that must not be written to.

        Raises:
            FileNotFoundError: There is no such blob.
        """


@dataclass(frozen=True)
class Document:
    """Everything that a form of a report is made of.

    Attributes:
        report: The report.
        result: What a policy says of it; None where none was applied.
        baseline: The report that it is compared with, if any.
        artefacts: Reads the blobs that the report refers to.
    """

    report: v1.Report
    result: v1.PolicyResult | None
    baseline: v1.Report | None
    artefacts: Artefacts

    @property
    def model_name(self) -> str:
        """What people call the model; its digest where nobody named it."""
        report = self.report
        return report.execution.model_display_name or f"model {report.model.sha256[:12]}"
