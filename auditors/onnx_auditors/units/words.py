"""What a layer's figures say, in a sentence."""

from __future__ import annotations

from onnx_audit import v1

NAMES = {
    v1.UNIT_SCORE_KIND_LABEL: "labels",
    v1.UNIT_SCORE_KIND_CONCEPT: "concepts",
    v1.UNIT_SCORE_KIND_COHERENCE: "coherence",
    v1.UNIT_SCORE_KIND_IOU: "masks",
    v1.UNIT_SCORE_KIND_SELECTIVITY: "class selectivity",
    v1.UNIT_SCORE_KIND_TWO_AFC: "2-AFC",
}
"""What a score is made of."""
_SAYINGS = {
    v1.UNIT_VERDICT_MORE: "more meaningful than random",
    v1.UNIT_VERDICT_NO_DISTINCTION: "no distinction",
    v1.UNIT_VERDICT_LESS: "less meaningful than random",
}


def summary(layer: v1.UnitsLayer) -> str:
    """Returns the sentence of a layer: a verdict for each score."""
    said: dict[str, list[str]] = {}
    for score in layer.scores:
        said.setdefault(saying(score), []).append(NAMES[score.kind])
    clauses = [f"{text} by {_joined(names)}" for text, names in said.items()]
    return f"{layer.live} live units of {layer.dimension}: {'; '.join(clauses)}."


def saying(score: v1.UnitScore) -> str:
    """Returns what a score says of its layer."""
    if score.verdict in _SAYINGS:
        return _SAYINGS[score.verdict]
    if score.probes_to_decide:
        return f"undecided (about {score.probes_to_decide:,} probes would decide)"
    return "undecided (more probes alone would not decide)"


def _joined(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
