"""Policies: rules over reports, written in CEL (the Common Expression Language).

`check` says what is wrong with a policy, `evaluate` what a policy says of a report.
"""

from onnx_audit_server.reports.policy.check import check
from onnx_audit_server.reports.policy.evaluate import evaluate

__all__ = ["check", "evaluate"]
