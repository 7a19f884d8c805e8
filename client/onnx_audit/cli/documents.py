"""The documents that a verdict leaves behind: for people, build services and code hosts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from onnx_audit import v1
from onnx_audit.cli.ci import code_quality
from onnx_audit.cli.options import CommandT, chosen, joined_options
from onnx_audit.cli.output import to_json
from onnx_audit.client import Client
from onnx_audit.errors import Unimplemented
from onnx_audit.policies import LoadedPolicy
from onnx_audit.report_calls import ReportLike

FORMATS: Final = {
    "html": v1.REPORT_FORMAT_HTML,
    "markdown": v1.REPORT_FORMAT_MARKDOWN,
    "sarif": v1.REPORT_FORMAT_SARIF,
    "junit": v1.REPORT_FORMAT_JUNIT,
    "json": v1.REPORT_FORMAT_JSON,
}
_FILES: Final = {
    v1.REPORT_FORMAT_HTML: "report.html",
    v1.REPORT_FORMAT_MARKDOWN: "report.md",
    v1.REPORT_FORMAT_SARIF: "report.sarif",
    v1.REPORT_FORMAT_JUNIT: "report.junit.xml",
    v1.REPORT_FORMAT_JSON: "report.json",
}


@dataclass(frozen=True)
class Documents:
    """Which documents are asked for.

    Attributes:
        forms: The forms of the report.
        gitlab_code_quality: File for GitLab's code quality, if any.
    """

    forms: tuple[v1.ReportFormat.ValueType, ...]
    gitlab_code_quality: Path | None

    def write(
        self,
        console: Console,
        client: Client,
        report: ReportLike,
        result: v1.PolicyResult,
        policy: LoadedPolicy,
        folder: Path,
        baseline: ReportLike | None = None,
    ) -> None:
        """Writes them and says so; adds to the step's summary where GitHub Actions wants one.

        Args:
            console: Where to say so.
            client: The service, which makes the documents.
            report: The report.
            result: What the policy says of it.
            policy: The policy.
            folder: Where the report's documents go.
            baseline: What the policy has compared it with; for an audit of its own not needed.
        """
        # An audit has its result, with the time at which it was made.
        rules = None if isinstance(report, v1.Audit) else policy
        if self.gitlab_code_quality is not None:
            text = to_json(code_quality(result, policy)) + "\n"
            _write(console, self.gitlab_code_quality, text.encode())
        for form in self.forms:
            document = client.render(report, form, policy=rules, baseline=baseline)
            _write(console, folder / _FILES[form], document.content)
        if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            with Path(summary).open("ab") as file:
                file.write(_summary(client, report, result, rules, baseline))


def _write(console: Console, path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


def _summary(
    client: Client,
    report: ReportLike,
    result: v1.PolicyResult,
    policy: LoadedPolicy | None,
    baseline: ReportLike | None,
) -> bytes:
    try:
        form = v1.REPORT_FORMAT_MARKDOWN
        return client.render(report, form, policy=policy, baseline=baseline).content + b"\n"
    except Unimplemented:  # the verdict is worth more than the look
        verdict = v1.Verdict.Name(result.verdict).removeprefix("VERDICT_")
        return f"**onnx-audit: {verdict}**\n".encode()


def document_options(command: CommandT) -> CommandT:
    """Adds --format and --gitlab-code-quality, joined into the parameter `documents`."""

    def take(given: dict[str, Any]) -> Documents:
        forms = dict.fromkeys(given.pop("forms") or ())
        return Documents(tuple(forms), given.pop("gitlab_code_quality"))

    options = (
        click.option(
            "--format",
            "forms",
            metavar="NAME[,NAME...]",
            callback=chosen(FORMATS),
            help=f"Documents to write: {', '.join(FORMATS)}.",
        ),
        click.option(
            "--gitlab-code-quality",
            metavar="FILE",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Write the gates that do not hold as a code quality report of GitLab.",
        ),
    )
    return joined_options(command, "documents", options, take)
