"""A report as one self-contained page: no script, and no request leaves it."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jinja2
from markupsafe import Markup

from onnx_audit import v1
from onnx_audit_server.reports import gates, summary
from onnx_audit_server.reports.document import Document
from onnx_audit_server.reports.html import distortion, lipschitz, pictures, provenance
from onnx_audit_server.reports.html import transfer as transfer_page
from onnx_audit_server.reports.html import units as units_page
from onnx_audit_server.reports.html.blocks import Section
from onnx_audit_server.reports.words import clean, verdict_name

_STATES = {
    v1.VERDICT_PASS: ("pass", "✓", "PASS"),
    v1.VERDICT_FAIL: ("fail", "✗", "FAIL"),
    v1.VERDICT_INCONCLUSIVE: ("inconclusive", "?", "INCONCLUSIVE"),
}
_NO_STATE = ("none", "", "NO POLICY")


def render(document: Document) -> bytes:
    """The report as a page of at most 10 MB, UTF-8."""
    result = document.result
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(
            document=document,
            report=document.report,
            baseline=document.baseline,
            state=_STATES.get(result.verdict, _NO_STATE) if result is not None else _NO_STATE,
            sentence=gates.sentence(result),
            gates=gates.worst_first(result),
            result=result,
            figures=summary.key_figures(document.report, document.baseline),
            probes=summary.probes_text(document.report),
            ended=provenance.moment(document.report.execution.end_time),
            sections=list(_sections(document)),
            verdict_name=verdict_name,
        )
    )
    return page.encode()


def _sections(document: Document) -> Iterator[Section]:
    report = document.report
    allowance = pictures.Allowance()
    if report.HasField("distortion"):
        yield distortion.section(document, allowance)
    if report.HasField("lipschitz"):
        yield lipschitz.section(report)
    if report.HasField("transfer"):
        yield transfer_page.section(report)
    if report.HasField("units"):
        yield units_page.section(document, allowance)
    yield provenance.section(report)


@functools.cache
def _environment() -> jinja2.Environment:
    """Templates in which every name is escaped."""
    loader = jinja2.PackageLoader("onnx_audit_server.reports.html")
    environment = jinja2.Environment(
        autoescape=True,
        finalize=_clean,
        loader=loader,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    style = loader.get_source(environment, "style.css")[0]
    # Written here: the style sheet is no user's text.
    environment.globals["style"] = Markup(style)  # noqa: S704
    return environment


def _clean(value: object) -> object:
    """Text without characters that no page may hold; what is markup already has none."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
