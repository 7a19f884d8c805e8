"""Alerts, recording rules and the dashboard as far as they can be judged without a service."""

from __future__ import annotations

import subprocess
import urllib.request

import pytest
import yaml
from deploy.grafana import dashboard
from prometheus_client.parser import text_string_to_metric_families
from tests.deploy.prometheus import RULES, alerts, device_exporter, program

from onnx_audit_server.metrics import CATALOGUE


def test_rules_are_valid_and_their_cases_hold() -> None:
    """Promtool accepts the rules, and every alert fires and keeps still as its cases say."""
    promtool = program("promtool")
    for verb, files in (("check", ("recording.yml", "alerts.yml")), ("test", ("rules_test.yml",))):
        command = [promtool, verb, "rules", *(str(RULES / name) for name in files)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_where_it_fires_and_one_where_it_does_not() -> None:
    """No alert goes without proof, and each names the metric that its reader should look up."""
    cases: dict[str, set[bool]] = {}
    for test in yaml.safe_load((RULES / "rules_test.yml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            cases.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    for alert in alerts():
        assert cases.get(alert["alert"]) == {True, False}, alert["alert"]
        assert alert["annotations"]["metric"] in CATALOGUE


def test_the_dashboard_is_fresh() -> None:
    """The committed JSON is what the script builds."""
    assert dashboard.FILE.read_text() == dashboard.build(), "run deploy/grafana/dashboard.py"


def test_devices_are_exported_as_nvml_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes and ratios by device; one that is lost is left out and hides no other."""
    with (
        device_exporter(monkeypatch) as address,
        urllib.request.urlopen(f"http://{address}/metrics") as response,
    ):
        text = response.read().decode()
    found = {
        sample.name: (sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found == {
        "onnx_audit_device_memory_used_bytes": ({"device": "0"}, 20 * 2**30),
        "onnx_audit_device_memory_total_bytes": ({"device": "0"}, 80 * 2**30),
        "onnx_audit_device_utilization_ratio": ({"device": "0"}, 0.75),
    }
