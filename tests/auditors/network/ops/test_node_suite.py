"""The ONNX project's own node tests: what is in scope passes, and nothing is wrong."""

from __future__ import annotations

from functools import lru_cache

import pytest
from benchmarks.node_tests import PASS, UNSUPPORTED, WRONG, Case, judge_ours, load_cases

PARTS = 4
SHOWN_DIFFERENTLY = {
    "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal",
}
"""Refused: ONNX Runtime shows masked scores as its lowest number, the standard as -inf."""


@lru_cache(maxsize=1)
def cases() -> list[Case]:
    return load_cases()


@pytest.mark.parametrize("part", range(PARTS))
def test_in_scope(part: int) -> None:
    """Every in-scope test passes, by ONNX Runtime's answer where it differs from the standard's."""
    chosen = [case for case in cases() if case.in_scope][part::PARTS]
    outcomes = {case.name: judge_ours(case)[0] for case in chosen}
    assert len(outcomes) > 300
    assert [name for name, outcome in outcomes.items() if outcome == WRONG] == []
    assert {n for n, outcome in outcomes.items() if outcome == UNSUPPORTED} <= SHOWN_DIFFERENTLY


def test_out_of_scope() -> None:
    """Of the other tests, every fifth is not wrong; all that PyTorch once exported pass."""
    others = [case for case in cases() if not case.in_scope and case.kind == "node"][::5]
    wrong = [case.name for case in others if judge_ours(case)[0] == WRONG]
    assert wrong == []
    exported = [case for case in cases() if case.kind.startswith("pytorch")]
    assert len(exported) == 117
    assert [case.name for case in exported if judge_ours(case)[0] != PASS] == []
