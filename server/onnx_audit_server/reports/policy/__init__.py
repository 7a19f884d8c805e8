"""Policies: rules over reports, written in CEL (the Common Expression Language).

CEL takes long to import, and a server that serves needs none of it until somebody has a policy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_audit import v1

if TYPE_CHECKING:
    from datetime import datetime

    from onnx_audit_server.reports.policy.checking import Violation


def check(policy: v1.Policy) -> list[Violation]:
    """Everything that is wrong with a policy; nothing if it can be applied.

    What is wrong inside an expression starts with "line L, column C: ".
    """
    from onnx_audit_server.reports.policy import checking  # noqa: PLC0415

    return checking.check(policy)


def evaluate(
    policy: v1.Policy, report: v1.Report, baseline: v1.Report | None, moment: datetime
) -> v1.PolicyResult:
    """Applies a policy in which `check` has found nothing.

    Args:
        policy: The policy.
        report: The report.
        baseline: The report to compare with, if there is one.
        moment: The time at which waivers have to be in force, with its zone.
    """
    from onnx_audit_server.reports.policy import evaluation  # noqa: PLC0415

    return evaluation.evaluate(policy, report, baseline, moment)
