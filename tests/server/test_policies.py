"""Policies and comparisons over real gRPC, on reports whose figures are known."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf import json_format
from tests.server.made_reports import report

from onnx_audit import Client, ConfigError, InvalidRequest, NotFound, v1
from onnx_audit.errors import FailedPrecondition
from onnx_audit.policies import READY_MADE, parse_policy

SIZES = np.random.default_rng(0).gamma(3, 0.1, 60)
RELEASED, REGRESSED = report(SIZES), report(SIZES / 1.25)
GATE = """\
display_name: mine
gates:
  - id: g
    expression: {}
"""
WAIVER = """\
waivers:
  - gate_id: g
    model: "scorer*"
    reason: known
    owner: ann
    expire_time: {}
"""


def test_a_planted_regression_is_caught(client: Client) -> None:
    """Distances that are 1.25 times less fail what is for regressions, and only that way round."""
    found = {row.path: row for row in client.compare(RELEASED, REGRESSED).comparisons}
    median = found["distortion.norms[L2].quantiles[0.5]"]
    assert median.movement == v1.MOVEMENT_WORSE
    assert median.candidate.value == pytest.approx(median.baseline.value / 1.25)
    assert found["distortion.clean_accuracy"].movement == v1.MOVEMENT_WITHIN_NOISE
    result = client.evaluate_policy(REGRESSED, "regression-only", RELEASED)
    failed = {row.gate.id for row in result.gates if row.verdict == v1.VERDICT_FAIL}
    assert failed == {"distortion", "robust-accuracy"}
    assert result.verdict == v1.VERDICT_FAIL
    for other in (REGRESSED, RELEASED):
        assert client.evaluate_policy(RELEASED, "regression-only", other).verdict == v1.VERDICT_PASS
    alone = client.evaluate_policy(REGRESSED, "regression-only")
    assert alone.verdict == v1.VERDICT_INCONCLUSIVE


@pytest.mark.parametrize(
    ("expression", "waived_until", "verdict"),
    [
        ("at_least(report.distortion.clean_accuracy, 0.9)", "", v1.VERDICT_PASS),
        ("at_most(report.distortion.clean_accuracy, 0.9)", "", v1.VERDICT_FAIL),
        ("at_least(report.distortion.clean_accuracy, 0.95)", "", v1.VERDICT_INCONCLUSIVE),
        ("report.lipschitz.network.size() > 0", "", v1.VERDICT_INCONCLUSIVE),
        ("report.parity.tolerance > 1.0", "2999-01-01", v1.VERDICT_PASS),
        ("report.parity.tolerance > 1.0", "2000-01-01", v1.VERDICT_FAIL),
    ],
)
def test_reports_are_held_against_policies(
    client: Client, expression: str, waived_until: str, verdict: int
) -> None:
    """What passes, fails, is undecided, is waived, or was."""
    text = GATE.format(expression) + (WAIVER.format(waived_until) if waived_until else "")
    result = client.evaluate_policy(RELEASED, parse_policy(text, "p"))
    assert result.verdict == verdict
    assert result.report_digest == RELEASED.digest


def test_what_cannot_be_evaluated_is_refused(client: Client) -> None:
    """Mistakes name their line; reports must exist, be given once, and be whole."""
    with pytest.raises(ConfigError, match=r"p:4:30: gates\[0\]\.expression: undefined field 'x'"):
        client.check_policy(parse_policy(GATE.format("report.parity.x"), "p"))
    for name in READY_MADE:
        client.check_policy(name)
    with pytest.raises(NotFound):
        client.evaluate_policy("audits/none", "baseline")
    with pytest.raises(FailedPrecondition, match="not uploaded"):
        client.evaluate_policy(RELEASED, "baseline", "blobs/" + "0" * 64)
    changed = v1.Report()
    changed.CopyFrom(RELEASED)
    changed.parity.tolerance = 1
    for call in (
        lambda: client.evaluate_policy(changed, "baseline"),
        lambda: client.compare(RELEASED, changed),
        lambda: client.render(changed, v1.REPORT_FORMAT_JSON),
    ):
        with pytest.raises(InvalidRequest, match="digest"):
            call()


def test_a_report_that_is_rendered_as_json_is_itself(client: Client) -> None:
    """The canonical JSON of a report that the caller holds parses back into it."""
    document = client.render(RELEASED, v1.REPORT_FORMAT_JSON)
    assert document.media_type == "application/json"
    assert json_format.Parse(document.content, v1.Report()) == RELEASED
