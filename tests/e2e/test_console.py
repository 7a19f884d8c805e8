"""The console in a real browser, on a real server that runs a real audit; and its attestation."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser
from tests import models
from tests.browser import Watched, browser
from tests.client.test_attestation import KINDS, write_keys
from tests.service import ServiceProcess

from onnx_audit import v1


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser for all tests."""
    with browser() as found:
        yield found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_audit_in_the_browser(chromium: Browser, tmp_path: Path) -> None:
    """Progress moves by itself to its end, the report opens, history and health are drawn.

    The audit's verdict is then attested and verified by the commands.
    """
    with ServiceProcess(tmp_path / "data") as service, service.client() as client:
        path = models.save(models.mlp((16, 48, 4), seed=3), tmp_path / "scorer.onnx")
        model = client.upload_model(path, display_name="<b>scorer</b>", tags={"release": "7"})
        inputs = models.probes(48, 16)
        probes = client.upload_probes(inputs, labels=np.zeros(len(inputs), np.int64))
        config = v1.DistortionConfig(budget=4000, exact_probes=0)
        gate = v1.Gate(id="examples", expression="report.distortion.probe_count >= 48")
        audit = client.audit(
            model,
            probes,
            auditors=v1.AuditorConfigs(distortion=config),
            policy=v1.Policy(display_name="release", gates=[gate]),
        )
        watched = Watched(chromium, f"http://{service.addresses['http']}")
        watched.open(f"/{audit.name}")
        page = watched.page
        shown = "document.querySelector('progress')?.value ?? 0"
        watched.wait_for(f"({shown}) > 0", 400)
        first = page.evaluate(shown)
        watched.wait_for(f"({shown}) > {first}", 400)
        page.wait_for_selector(".state.succeeded", timeout=400_000)
        page.wait_for_selector("text=Open the report", timeout=30_000)
        assert "PASS" in page.inner_text("#live")
        page.screenshot(path=tmp_path / "audit.png", full_page=True)
        page.click("text=Open the report")
        page.wait_for_selector("text=PASS")
        assert "<b>scorer</b>" in page.inner_text("body")
        for dark in (False, True):
            other = Watched(chromium, watched.origin, dark=dark)
            for number, place in enumerate(
                (
                    "/",
                    f"/{audit.name}",
                    "/models",
                    "/history?model=%3Cb%3Escorer%3C/b%3E",
                    "/health",
                )
            ):
                other.open(place)
                name = f"{number}-{'phone-dark' if dark else 'laptop-light'}.png"
                other.page.screenshot(path=tmp_path / name, full_page=True)
                assert "scorer" in other.page.inner_text("body") or place == "/health"
            other.page.goto(other.origin + "/history?model=%3Cb%3Escorer%3C/b%3E")
            assert other.page.locator("circle").count() == 1
            other.page.click("button")
            assert other.page.locator("circle").count() == 1
            assert other.complaints == []
        assert watched.complaints == []
        attest_and_verify(service, audit, path, tmp_path)


def attest_and_verify(service: ServiceProcess, audit: v1.Audit, model: Path, folder: Path) -> None:
    """Signs the verdict of the audit, and another policy's, and checks what was signed."""
    private, public = write_keys(folder, KINDS["ed25519"]())
    out = folder / "scorer.intoto.json"
    policy = folder / "policy.yaml"
    policy.write_text(
        "gates:\n- id: none\n  expression: report.distortion.probe_count < 0\n  message: never\n"
    )

    def command(*arguments: object) -> int:
        call = [sys.executable, "-m", "onnx_audit", *map(str, arguments)]
        return subprocess.run(call, check=False).returncode

    attest = ("attest", audit.name, "--key", private, "-o", out, "--server", service.target)
    verify = ("verify", out, "--key", public, "--model", model, "--max-age", "1h")
    assert command(*attest) == 0
    assert command(*verify) == 0
    assert command(*attest, "--policy", policy) == 1
    assert command(*verify) == 1
