"""The templates for build services, run as far as that goes without the vendor."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.service import ROOT

CI = ROOT / "deploy" / "ci"
END = "end of the call"
GIVEN = {"model": "my model.onnx", "probes": "p.npz", "options": "--box 0,1 --norms l2,*"}


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder of commands that note how they were called; onnx-audit ends as $STATUS says."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("onnx-audit", "python"):
        path = folder / name
        path.write_text(
            "#!/bin/sh\n"
            f'for word in {name} "$@"; do printf \'%s\\n\' "$word"; done >> {tmp_path}/calls\n'
            f"echo {END} >> {tmp_path}/calls\n"
            f'[ {name} != onnx-audit ] || exit "$STATUS"\n'
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


def run(
    script: str | Path, tools: Path, environment: dict[str, str], shell: str = "bash"
) -> tuple[int, list[list[str]]]:
    """Runs a script of a job; returns its status and the calls that it made."""
    command = [str(script)] if isinstance(script, Path) else [shell, "-e", "-c", script]
    path = os.pathsep.join([str(tools), os.environ["PATH"]])
    calls = tools.parent / "calls"
    calls.unlink(missing_ok=True)
    (tools.parent / "l2,star").touch()  # what a "*" that is expanded would find
    done = subprocess.run(
        command, cwd=tools.parent, env=environment | {"PATH": path}, check=False, timeout=60
    )
    text = calls.read_text() if calls.exists() else ""
    return done.returncode, [call.splitlines() for call in text.split(f"{END}\n") if call]


def gate_call(formats: str, *more: str) -> list[str]:
    options = ["--box", "0,1", "--norms", "l2,*"]
    return [
        *("onnx-audit", "gate", "my model.onnx", "--probes", "p.npz", "--policy", "baseline"),
        *("--out", "onnx-audit-report", "--format", formats, *more, *options),
    ]


@pytest.mark.parametrize("status", [0, 1, 2, 3])
def test_the_shell_script_calls_the_gate_and_passes_its_status_on(tools: Path, status: int) -> None:
    """Names with spaces stay whole, options are split, the status is the gate's."""
    environment = {f"ONNX_AUDIT_{name.upper()}": value for name, value in GIVEN.items()}
    found, calls = run(CI / "gate.sh", tools, environment | {"STATUS": str(status)})
    assert found == status
    assert calls == [gate_call("html,markdown,sarif,junit")]


def test_the_shell_script_refuses_to_guess(tools: Path) -> None:
    """Without a model nothing is called, and the step fails."""
    status, calls = run(CI / "gate.sh", tools, {"ONNX_AUDIT_PROBES": "p.npz"})
    assert status != 0
    assert calls == []


def filled(values: dict[str, str], inputs: dict[str, str]) -> dict[str, str]:
    """Variables of a step with the action's inputs put in."""
    return {
        name: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda match: inputs[match.group(1)], value)
        for name, value in values.items()
    }


def github_steps(given: dict[str, str], tools: Path, status: int = 0) -> tuple[int, Any]:
    """Runs the steps of the action as a runner would, with these inputs."""
    action = yaml.safe_load((CI / "github" / "action.yml").read_text())
    assert action["runs"]["using"] == "composite"
    required = {name for name, field in action["inputs"].items() if field.get("required")}
    assert required <= given.keys()
    inputs = {name: str(field.get("default", "")) for name, field in action["inputs"].items()}
    inputs |= given
    made = []
    for step in action["runs"]["steps"]:
        assert step["shell"] == "bash"
        assert "${{" not in step["run"]  # inputs must not become a part of the script
        if step.get("if") == "inputs.install != ''" and not inputs["install"]:
            continue
        environment = filled(step["env"], inputs) | {
            "GITHUB_ACTION_PATH": str(CI / "github"),
            "STATUS": str(status),
        }
        code, calls = run(step["run"], tools, environment)
        made += calls
        if code:
            return code, made
    return 0, made


def test_the_github_action_installs_and_gates(tools: Path) -> None:
    """Its two steps install the package and call the gate; a blocked model fails the step."""
    code, calls = github_steps(GIVEN, tools)
    assert code == 0
    install = ["python", "-m", "pip", "install", "--quiet", "onnx-audit[server]"]
    assert calls == [install, gate_call("html,markdown,sarif,junit")]
    code, calls = github_steps(GIVEN | {"install": "", "baseline": "$(touch x)"}, tools, 1)
    assert code == 1
    assert calls == [gate_call("html,markdown,sarif,junit", "--baseline", "$(touch x)")]
    assert not (tools.parent / "x").exists()


def test_the_gitlab_template_installs_and_gates(tools: Path) -> None:
    """Its scripts install the package and call the gate; reports are where the job looks."""
    job = yaml.safe_load((CI / "gitlab" / "onnx-audit.gitlab-ci.yml").read_text())[
        ".onnx-audit-gate"
    ]
    variables = {name: str(value) for name, value in job["variables"].items()}
    variables |= {f"ONNX_AUDIT_{name.upper()}": value for name, value in GIVEN.items()}
    script = "\n".join([*job["before_script"], *job["script"]])
    for shell in ("bash", "sh"):
        code, calls = run(script, tools, variables | {"STATUS": "2"}, shell)
        assert code == 2
        quality = ("--gitlab-code-quality", job["artifacts"]["reports"]["codequality"])
        assert calls[1] == gate_call("html,junit,sarif", *quality)
        assert calls[0][-1] == "onnx-audit[server]"
    folder, name = job["artifacts"]["reports"]["junit"].split("/")
    assert (folder, name) == ("onnx-audit-report", "report.junit.xml")
    assert job["artifacts"]["when"] == "always"
