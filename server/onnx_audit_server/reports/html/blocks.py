"""What a page is made of: sections of tables, charts and pictures, which the template lays out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from markupsafe import Markup

Text: TypeAlias = str | Markup


@dataclass(frozen=True)
class Facts:
    """Names with values below each other, or in two columns; empty values are left out."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, Text]]
    title: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: What is in it.
        columns: Its header; the first column names the rows.
        rows: Cells.
        meaning: A sentence that says what the figures mean.
        method: Anchor of the method in the page.
        folded: Whether it is closed until somebody opens it.
    """

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Text]]
    meaning: str = ""
    method: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Chart:
    """A drawing with the sentence that says what it means; `method` is an anchor in the page."""

    kind: ClassVar[str] = "chart"
    title: str
    svg: Markup
    meaning: str
    method: str


@dataclass(frozen=True)
class Cell:
    """A cell of a heat map: its figure, what stands below it, and a shade from 0 to 1."""

    text: str
    notes: Sequence[str] = ()
    shade: float = 0.0
    strong: bool = False


@dataclass(frozen=True)
class Heat:
    """A matrix whose cells are shaded by their figures."""

    kind: ClassVar[str] = "heat"
    title: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    meaning: str
    method: str


@dataclass(frozen=True)
class Example:
    """An input before and after: pictures as data URIs, and the answers."""

    original: str
    adversarial: str
    difference: str
    before: str
    after: str
    note: str
    name: str


@dataclass(frozen=True)
class Gallery:
    """Inputs beside their adversarial examples and the amplified difference."""

    kind: ClassVar[str] = "gallery"
    title: str
    examples: Sequence[Example]
    meaning: str
    method: str
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A stored picture; without `uri` only its note is shown."""

    kind: ClassVar[str] = "picture"
    title: str
    uri: str
    alt: str
    meaning: str
    method: str
    note: str = ""
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Note:
    """A sentence of its own."""

    kind: ClassVar[str] = "note"
    text: Text


@dataclass(frozen=True)
class Group:
    """Blocks under a heading of their own, which may be closed until somebody opens them."""

    kind: ClassVar[str] = "group"
    title: str
    blocks: Sequence[Block]
    lead: str = ""
    folded: bool = False


Block: TypeAlias = Facts | Table | Chart | Heat | Gallery | Picture | Note | Group


@dataclass(frozen=True)
class Section:
    """A part of the page with an anchor of its own."""

    anchor: str
    title: str
    lead: str
    blocks: Sequence[Block] = field(default_factory=tuple)
