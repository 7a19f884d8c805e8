"""Input specs and auditor configurations as people write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onnx_audit import ConfigError, v1
from onnx_audit.configs import input_spec, load_auditor_configs, load_input_spec, merged

FULL = """
input_name: data_0
lower: 0
upper: [1, 1, 1]
mean: 0.485,0.456,0.406
std: [2e-1, 0.2, 0.2]
probe_layout: HWC
model_layout: layout_chw
channel_order: reversed
divisor: 255
"""


def test_spec_file_is_read_in_full(tmp_path: Path) -> None:
    """Scalars, lists, text with commas, exponents and short names all mean what they say."""
    path = tmp_path / "spec.yaml"
    path.write_text(FULL)
    assert load_input_spec(path) == v1.InputSpec(
        input_name="data_0",
        lower=[0],
        upper=[1, 1, 1],
        mean=[0.485, 0.456, 0.406],
        std=[0.2, 0.2, 0.2],
        probe_layout=v1.LAYOUT_HWC,
        model_layout=v1.LAYOUT_CHW,
        channel_order=v1.CHANNEL_ORDER_REVERSED,
        divisor=255,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"men": 1}, "unknown key 'men'; did you mean mean"),
        ({"mean": "a,b"}, "mean is 'a'; expected a number"),
        ({"mean": []}, "mean is empty"),
        ({"mean": {"r": 1}}, "expected a number"),
        ({"upper": float("inf")}, "upper is inf; expected a number"),
        ({"probe_layout": "hcw"}, "unknown value 'hcw'; did you mean hwc"),
        ({"probe_layout": "unspecified"}, "unknown value 'unspecified'"),
    ],
)
def test_wrong_spec_settings_are_named(settings: dict[str, Any], message: str) -> None:
    """Unknown keys and values name the nearest known ones; nothing is ignored."""
    with pytest.raises(ConfigError, match=message):
        input_spec(settings, "spec")


def test_stronger_spec_replaces_lists_instead_of_joining_them() -> None:
    """A field that both specs have is taken from the stronger one, lists as a whole."""
    base = v1.InputSpec(mean=[1, 2, 3], std=[4], probe_layout=v1.LAYOUT_HWC)
    stronger = v1.InputSpec(mean=[5], divisor=2)
    assert merged(base, stronger) == v1.InputSpec(
        mean=[5], std=[4], probe_layout=v1.LAYOUT_HWC, divisor=2
    )


def test_auditor_file_is_proto_json_in_yaml(tmp_path: Path) -> None:
    """Settings land in their fields; an auditor without settings runs with its defaults."""
    path = tmp_path / "audit.yaml"
    path.write_text(
        "distortion:\n  norms: [NORM_L2, NORM_LINF]\n  budget: 200\n  maxProbes: 5\nlipschitz:\n"
    )
    configs = load_auditor_configs(path)
    assert configs.distortion == v1.DistortionConfig(
        norms=[v1.NORM_L2, v1.NORM_LINF], budget=200, max_probes=5
    )
    assert configs.HasField("lipschitz")
    assert not configs.HasField("units")


@pytest.mark.parametrize(
    ("text", "budget", "seconds"),
    [
        ("quick", 100, 0.0),
        ("'50'", 50, 0.0),
        ("90s", 0, 90.0),
        ("1.5m", 0, 90.0),
        ("2h", 0, 7200.0),
    ],
)
def test_budgets_by_name_and_time(tmp_path: Path, text: str, budget: int, seconds: float) -> None:
    """A budget is a name, a number of evaluations, or a length of time."""
    path = tmp_path / "audit.yaml"
    path.write_text(f"distortion: {{budget: {text}, max_probes: 4}}")
    assert load_auditor_configs(path).distortion == v1.DistortionConfig(
        budget=budget, budget_seconds=seconds, max_probes=4
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distorsion: {}", "in the file: unknown field 'distorsion'; did you mean distortion"),
        ("distortion: {bugdet: 5}", "in distortion: unknown field 'bugdet'; did you mean budget"),
        ("distortion: {norms: [NORM_L3]}", "distortion.norms: unknown value 'NORM_L3'"),
        ("distortion: {budget: many}", "budget"),
        ("distortion: {budget: 0s}", "budget is '0s'; expected .* a time such as 90s"),
        ("distortion: 7", "distortion is 7; expected the fields of DistortionConfig"),
        ("- distortion", "expected fields with values, found list"),
        ("distortion: {", "not a readable YAML file"),
        ("transfer: {peers: [{modle: x}]}", "in transfer.peers: unknown field 'modle'"),
    ],
)
def test_wrong_auditor_settings_are_named(tmp_path: Path, text: str, message: str) -> None:
    """Every unknown field or value is an error that says where it is."""
    path = tmp_path / "audit.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_auditor_configs(path)
