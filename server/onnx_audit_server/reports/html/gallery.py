"""Adversarial examples for the eye: original, example, and what lies between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from onnx_audit import v1
from onnx_audit_server.reports.document import Document
from onnx_audit_server.reports.html import pictures
from onnx_audit_server.reports.html.blocks import Block, Example, Gallery, Note, Table
from onnx_audit_server.reports.words import bytes_text, norm_name, number

SHOWN: Final = 8
_LARGEST_CHANGES: Final = 5


def examples(
    document: Document, norm: v1.NormDistortion, allowance: pictures.Allowance
) -> list[Block]:
    """Confirmed examples from the nearest to the farthest, as pictures or as tables of numbers."""
    blob = norm.artefact
    try:
        rows = _chosen(document, blob) if blob.sha256 else []
    except FileNotFoundError:
        return [Note(f"The examples are in the blob {blob.sha256} ({bytes_text(blob.size_bytes)}), "
                     "which is not at hand here.")]  # fmt: skip
    if not rows:
        return []
    frame = pictures.frame(document.report.probes, document.report.input_spec)
    if frame is None:
        return [_table(rows, norm)]
    return [_gallery(rows, norm, frame, allowance)]


def _chosen(document: Document, blob: v1.BlobRef) -> list[dict[str, Any]]:
    """Rows of the file, spread evenly over the order of the distances."""
    outcome = pictures.column(document.artefacts, blob, "outcome")
    distance = pictures.column(document.artefacts, blob, "distance")
    found = np.flatnonzero(outcome == v1.PROBE_OUTCOME_CONFIRMED)
    rising = found[np.argsort(distance[found], kind="stable")]
    places = np.unique(np.linspace(0, max(len(rising) - 1, 0), SHOWN).round().astype(int))
    wanted = [int(rising[place]) for place in places] if len(rising) else []
    return pictures.rows(document.artefacts, blob, wanted)


def _gallery(
    rows: Sequence[dict[str, Any]],
    norm: v1.NormDistortion,
    frame: pictures.Frame,
    allowance: pictures.Allowance,
) -> Gallery:
    shown = []
    for row in rows:
        change = row["perturbation"].astype(np.float64)
        width = float(np.max(frame.upper - frame.lower))
        factor = width / max(float(np.abs(change).max()), 1e-30)
        uris = [
            allowance.data_uri(*pictures.encoded(levels))
            for levels in (
                frame.draw(row["original"].astype(np.float64)),
                frame.draw(row["example"].astype(np.float64)),
                frame.draw_change(change, factor / width),
            )
        ]
        if all(uris):
            shown.append(_example(row, norm, uris, factor))
    note = f"All examples are in the blob {norm.artefact.sha256} " + (
        f"({bytes_text(norm.artefact.size_bytes)})."
    )
    if frame.square:
        note = f"Flat inputs are drawn as squares of {frame.square} x {frame.square}. {note}"
    return Gallery(
        f"Examples from the nearest to the farthest, {norm_name(norm.norm)}",
        shown,
        "Each row is an input, the nearest input that was found to change the answer, and their "
        "difference, amplified until its largest entry spans the box: grey is no change.",
        "distortion",
        note,
    )


def _example(
    row: dict[str, Any], norm: v1.NormDistortion, uris: Sequence[str], factor: float
) -> Example:
    before, after = int(row["clean_prediction"]), int(row["adversarial_prediction"])
    original, adversarial, difference = uris
    return Example(
        original=original,
        adversarial=adversarial,
        difference=difference,
        before=f"class {before}",
        after=f"class {after}",
        note=f"{norm_name(norm.norm)} {number(float(row['distance']))}, difference x "
        f"{number(factor)}",
        name=f"probe {int(row['probe'])}",
    )


def _table(rows: Sequence[dict[str, Any]], norm: v1.NormDistortion) -> Table:
    """The largest changes of each example, for inputs that are no images."""
    cells = []
    for row in rows:
        before, after = row["original"].ravel(), row["example"].ravel()
        places = np.argsort(-np.abs(after - before), kind="stable")[:_LARGEST_CHANGES]
        changed = [place for place in places if after[place] != before[place]]
        cells.append([
            str(int(row["probe"])),
            f"{int(row['clean_prediction'])} → {int(row['adversarial_prediction'])}",
            number(float(row["distance"])),
            "; ".join(f"[{place}] {number(float(before[place]))} → {number(float(after[place]))}"
                      for place in changed),
        ])  # fmt: skip
    return Table(
        f"Examples from the nearest to the farthest, {norm_name(norm.norm)}",
        ("probe", "answer", norm_name(norm.norm), "largest changes: [entry] before → after"),
        cells,
        "Each row is an input and the entries that the nearest example changes most.",
        "distortion",
    )
