"""The contract between an auditor and whoever runs it.

An auditor is a pure function of (model, probes, config, seed), cut into shards so that the work can
spread over processes and be redone piece by piece. It knows nothing of gRPC, databases or metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from onnx_audit import v1

if TYPE_CHECKING:
    from onnx_auditors.context import Context

ConfigT = TypeVar("ConfigT")
PartialT = TypeVar("PartialT")
SectionT = TypeVar("SectionT")


@dataclass(frozen=True)
class Plan:
    """How an auditor divides its work.

    Attributes:
        shards: Number of shards, at least 1; shard numbers run from 0.
        items: Items of work over all shards.
        unit: What an item is, such as "probes".
    """

    shards: int
    items: int
    unit: str


class Progress(Protocol):
    """Takes what a shard has done so far; cheap enough to call after every step."""

    def __call__(
        self, done: float, total: float, running: v1.Estimate | None = None, label: str = ""
    ) -> None:
        """Reports `done` of `total` items and, if given, a running figure under its label."""


class SaveArtefact(Protocol):
    """Keeps a large result beside the section."""

    def __call__(self, content: Iterable[bytes], media_type: str) -> v1.BlobRef:
        """Stores the content, given in pieces, and returns the reference that the section holds."""


class Auditor(Protocol[ConfigT, PartialT, SectionT]):
    """One of the four auditors, over its own message types."""

    kind: v1.Auditor.ValueType
    partial_type: type[PartialT]

    def resolve(self, config: ConfigT, context: Context) -> ConfigT:
        """Returns a copy with every default filled in.

        Raises:
            onnx_auditors.errors.AuditError: The configuration does not fit the model or probes.
        """

    def plan(self, config: ConfigT, context: Context) -> Plan:
        """Divides the work; depends on nothing but its arguments."""

    def run(self, config: ConfigT, context: Context, shard: int, progress: Progress) -> PartialT:
        """Does one shard; the same arguments give the same partial."""

    def merge(
        self, config: ConfigT, context: Context, partials: Sequence[PartialT], save: SaveArtefact
    ) -> SectionT:
        """Joins the partials of all shards, in their order, into the section.

        A partial may be read anew each time that it is asked for.
        """

    def warnings(self, section: SectionT, context: Context) -> list[v1.ReportWarning]:
        """Says what a reader must know to judge the section."""
