"""Where a request's reports come from: an audit, an uploaded file, or the request itself."""

from __future__ import annotations

from google.protobuf import json_format

from onnx_audit import v1
from onnx_audit_server.api import names
from onnx_audit_server.errors import ServiceError, invalid
from onnx_audit_server.reports import assemble
from onnx_audit_server.store.blobs import BlobStore
from onnx_audit_server.store.records import Records


class ReportSources:
    """Finds reports."""

    def __init__(self, records: Records, blobs: BlobStore) -> None:
        self._records = records
        self._blobs = blobs

    def required(self, name: str, given: v1.Report | None, field: str) -> v1.Report:
        """A report that a request must have; see `optional`.

        Raises:
            ServiceError: It has none, or as `optional`.
        """
        report = self.optional(name, given, field)
        if report is None:
            raise invalid((field, "is required: the name of a report, or a report"))
        return report

    def optional(self, name: str, given: v1.Report | None, field: str) -> v1.Report | None:
        """The report that a request names or brings, None if it does neither.

        Args:
            name: `audits/{id}/report`, `blobs/{sha256}`, or empty.
            given: The report that it brings, if any.
            field: The field of the name, for errors.

        Raises:
            ServiceError: It does both, the report does not exist, or it is not whole.
        """
        if name and given is not None:
            raise invalid((field, "is given beside a report; use one of them"))
        if given is not None:
            return whole(given, field)
        if not name:
            return None
        if name.startswith("blobs/"):
            return self._uploaded(name, field)
        return assemble.from_json(self.content(name, field))

    def audit(self, name: str) -> v1.Audit:
        """The audit that made `audits/{id}/report`; an empty one for reports from elsewhere."""
        if not name.startswith("audits/"):
            return v1.Audit()
        return self._records.get_audit(names.parse_report(name, "name")) or v1.Audit()

    def content(self, name: str, field: str = "name") -> bytes:
        """The canonical JSON of `audits/{id}/report`.

        Raises:
            ServiceError: There is no such audit, or it has no report.
        """
        identifier = names.parse_report(name, field)
        audit = self._records.get_audit(identifier)
        if audit is None:
            raise names.not_found(f"audits/{identifier}")
        if audit.state != v1.AUDIT_STATE_SUCCEEDED:
            state = v1.AuditState.Name(audit.state).removeprefix("AUDIT_STATE_")
            raise ServiceError(
                "WRONG_STATE",
                f"audits/{identifier} is {state}; only a SUCCEEDED audit has a report",
                metadata={"state": state},
            )
        blob = self._records.report_blob(identifier)
        assert blob is not None  # noqa: S101 - set before the state
        return self._blobs.get(blob)

    def _uploaded(self, name: str, field: str) -> v1.Report:
        digest = names.parse(name, "blobs", field)
        if self._blobs.hold(digest) is None:
            raise ServiceError(
                "BLOB_MISSING", f"{name} is not uploaded", metadata={"resource": name}
            )
        try:
            report = assemble.from_json(self._blobs.get(digest))
        except (json_format.ParseError, UnicodeDecodeError) as error:
            raise invalid((field, f"{name} is not a report in JSON: {error}")) from None
        return whole(report, field)


def whole(report: v1.Report, field: str) -> v1.Report:
    """A report from outside whose digest is that of its content.

    Raises:
        ServiceError: It is not: it was cut, changed, or never was a report.
    """
    if (digest := assemble.digest(report)) != report.digest:
        text = f"the report's digest is {report.digest!r}, but its content has {digest}"
        raise invalid((field, text))
    return report
