"""The forms of a report, by the schema's names for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from onnx_audit import v1
from onnx_audit_server.reports import assemble
from onnx_audit_server.reports.document import Artefacts, Document

Render: TypeAlias = Callable[[Document], bytes]


class BrokenReportError(Exception):
    """A report's parts do not fit together."""


@dataclass(frozen=True)
class Format:
    """How a report becomes a document.

    Attributes:
        media_type: Of the document.
        render: Makes it.
    """

    media_type: str
    render: Render


# Each form is imported when it is asked for: together they take long, drawing above all.
def _html(document: Document) -> bytes:
    from onnx_audit_server.reports.html import page  # noqa: PLC0415

    return page.render(document)


def _markdown(document: Document) -> bytes:
    from onnx_audit_server.reports import markdown  # noqa: PLC0415

    return markdown.render(document)


def _sarif(document: Document) -> bytes:
    from onnx_audit_server.reports import sarif  # noqa: PLC0415

    return sarif.render(document)


def _junit(document: Document) -> bytes:
    from onnx_audit_server.reports import junit  # noqa: PLC0415

    return junit.render(document)


FORMATS: Final = {
    v1.REPORT_FORMAT_JSON: Format("application/json", lambda doc: assemble.to_json(doc.report)),
    v1.REPORT_FORMAT_HTML: Format("text/html; charset=utf-8", _html),
    v1.REPORT_FORMAT_MARKDOWN: Format("text/markdown; charset=utf-8", _markdown),
    v1.REPORT_FORMAT_SARIF: Format("application/sarif+json", _sarif),
    v1.REPORT_FORMAT_JUNIT: Format("application/xml", _junit),
}
"""Every form that there is."""


def render(
    form: v1.ReportFormat.ValueType,
    report: v1.Report,
    result: v1.PolicyResult | None,
    baseline: v1.Report | None,
    artefacts: Artefacts,
) -> v1.RenderReportResponse:
    """Returns a report as a document.

    Args:
        form: One of FORMATS.
        report: The report.
        result: What a policy says of it; None where none was applied.
        baseline: The report that it is compared with, if any.
        artefacts: Reads the blobs that the report refers to; those that are missing are named.

    Raises:
        KeyError: There is no such form.
        BrokenReportError: The report's parts do not fit together.
    """
    chosen = FORMATS[form]
    document = Document(report, result, baseline, artefacts)
    try:
        content = chosen.render(document)
    except (ArithmeticError, LookupError, ValueError) as error:
        raise BrokenReportError(f"the report does not hold together: {error}") from error
    return v1.RenderReportResponse(content=content, media_type=chosen.media_type)
