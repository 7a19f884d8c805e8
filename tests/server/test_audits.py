"""The life of audits over real gRPC: events, states, reports, lists, cancelling, deadlines."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import cast

import grpc
import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from google.protobuf import json_format
from safetensors.numpy import load_file, save_file
from tests import models
from tests.server import made_reports
from tests.service import ROOT, ServiceProcess

from onnx_audit import AuditFailed, Client, v1
from onnx_audit.cli.app import cli
from onnx_audit.cli.output import write_report
from onnx_audit.errors import FailedPrecondition, InvalidRequest
from onnx_audit.v1 import audit_pb2_grpc
from onnx_audit_server.reports.compare.figures import figures

QUICK = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=40))
LONG = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=100_000))


@pytest.fixture(scope="module")
def finished(client: Client, model: v1.Model, probe_set: v1.ProbeSet) -> v1.Audit:
    """An audit that has succeeded, with a policy and a baseline."""
    policy = v1.Policy(
        gates=[
            v1.Gate(id="parity", expression="report.parity.passed && baseline.parity.passed"),
            v1.Gate(id="accuracy", expression="report.distortion.clean_accuracy.value == 1.0"),
        ]
    )
    audit = client.wait(
        client.audit(
            model,
            probe_set,
            auditors=QUICK,
            seed=7,
            policy=policy,
            baseline=made_reports.report([1]),
        )
    )
    assert audit.state == v1.AUDIT_STATE_SUCCEEDED
    return audit


def wait_for_state(client: Client, audit: v1.Audit, state: int, seconds: float = 60) -> v1.Audit:
    deadline = time.monotonic() + seconds
    while (found := client.get_audit(audit)).state != state:
        assert time.monotonic() < deadline, f"still {v1.AuditState.Name(found.state)}"
        time.sleep(0.02)
    return found


def test_events_tell_the_whole_story(client: Client, finished: v1.Audit) -> None:
    """Events are numbered without gaps, from QUEUED to the report's digest."""
    events = list(client.watch(finished))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert finished.last_sequence == len(events)
    kinds = [event.WhichOneof("event") for event in events]
    assert events[0].state_changed.state == v1.AUDIT_STATE_QUEUED
    assert events[1].state_changed.state == v1.AUDIT_STATE_RUNNING
    assert kinds[2] == "plan_ready"
    plan = events[2].plan_ready.auditors[0]
    assert plan.items == 40
    assert kinds.count("shard_started") == kinds.count("shard_finished") == plan.shards
    assert kinds.count("section_ready") == 1
    last = events[-1].state_changed
    assert last.state == v1.AUDIT_STATE_SUCCEEDED
    assert last.report_digest == finished.report_digest == client.report(finished).digest
    assert finished.progress.shards_done == finished.progress.shards_total == plan.shards


def test_an_audit_ends_with_the_verdict_of_its_policy(client: Client, finished: v1.Audit) -> None:
    """Verdict and result are kept with the audit, watchers get the verdict, the report has none."""
    result = finished.policy_result
    assert finished.verdict == result.verdict == v1.VERDICT_PASS
    assert [row.verdict for row in result.gates] == [v1.VERDICT_PASS] * 2
    assert result.report_digest == finished.report_digest
    assert result.baseline_digest == made_reports.report([1]).digest
    assert list(client.watch(finished))[-1].state_changed.verdict == v1.VERDICT_PASS
    assert "policy" not in json_format.MessageToJson(client.report(finished))
    again = client.evaluate_policy(finished, finished.policy, finished.baseline)
    again.evaluate_time.CopyFrom(result.evaluate_time)
    assert again == result
    with pytest.raises(InvalidRequest, match=r"audit\.baseline"):
        client.audit(finished.model, finished.probe_set, baseline=finished)


def test_figures_are_made_of_their_rows(client: Client, finished: v1.Audit) -> None:
    """What comparisons resample gives, undrawn, the very figures of the report."""
    made = figures(client.report(finished))
    with_rows = [one for one in made.values() if one.rows is not None]
    assert len(with_rows) >= 5
    for one in with_rows:
        assert one.rows is not None
        values = one.rows.values[~np.isnan(one.rows.values)]
        if one.rows.probability is None:
            assert values.mean() == pytest.approx(one.estimate.value, rel=1e-12)
        else:
            rank = max(1, math.ceil(one.rows.probability * len(values) - 1e-9))
            assert np.sort(values)[rank - 1] == one.estimate.value


def test_a_watch_goes_on_from_any_event(client: Client, finished: v1.Audit) -> None:
    """The events after any number are the same as in the full story."""
    events = list(client.watch(finished))
    for after in (1, 3, len(events) - 1, len(events)):
        assert list(client.watch(finished, after)) == events[after:]
    with pytest.raises(InvalidRequest):
        list(client.watch(finished, len(events) + 1))


def test_many_watchers_see_the_same(
    client: Client, service: ServiceProcess, model: v1.Model, probe_set: v1.ProbeSet
) -> None:
    """Thirty watchers of a running audit, joining at different times, all get every event once."""
    audit = client.audit(model, probe_set, auditors=QUICK, seed=8)
    stories: list[list[v1.AuditEvent]] = []

    def watch(delay: float) -> None:
        time.sleep(delay)
        with service.client() as own:
            stories.append(list(own.watch(audit)))

    threads = [threading.Thread(target=watch, args=(0.05 * n,)) for n in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    story = list(client.watch(audit))
    assert len(stories) == 30
    assert all(one == story for one in stories)


def test_every_counted_example_fools_onnx_runtime(
    client: Client, finished: v1.Audit, tmp_path: Path
) -> None:
    """Examples lie in the box, at the stated distance, and change the answer of the file."""
    report = client.report(finished)
    norm = report.distortion.norms[0]
    table = load_file(client.download(norm.artefact, tmp_path / "examples.safetensors"))
    proto = models.mlp()
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    answers = session.run(None, {"x": table["example"]})[0].argmax(1)
    inputs = models.probes(40, 16)
    clean = session.run(None, {"x": inputs})[0].argmax(1)
    confirmed = table["outcome"] == v1.PROBE_OUTCOME_CONFIRMED
    assert confirmed.sum() == norm.confirmed > 30
    assert (answers[confirmed] != clean[confirmed]).all()
    assert np.array_equal(answers, table["adversarial_prediction"])
    assert table["example"].min() >= 0
    assert table["example"].max() <= 1
    size = np.linalg.norm(table["example"].astype(float) - inputs, axis=1)
    np.testing.assert_allclose(size[confirmed], table["distance"][confirmed], rtol=1e-12)
    assert [probe.distance for probe in norm.probes] == table["distance"].tolist()
    assert norm.mean.value == pytest.approx(table["distance"][confirmed].mean())


def test_the_same_job_gives_the_same_digest(
    client: Client, model: v1.Model, probe_set: v1.ProbeSet, finished: v1.Audit
) -> None:
    """Two runs of one job agree to the last bit, another seed is another job."""
    again = client.wait(client.audit(model, probe_set, auditors=QUICK, seed=7, fresh=True))
    assert again.name != finished.name
    assert again.report_digest == finished.report_digest
    other = client.wait(client.audit(model, probe_set, auditors=QUICK, seed=9))
    assert other.report_digest != finished.report_digest


def test_the_same_job_again_runs_no_shard(
    client: Client, model: v1.Model, probe_set: v1.ProbeSet, finished: v1.Audit
) -> None:
    """The section is taken over from the audit that computed it; report and events say so."""
    again = client.wait(
        client.audit(model, probe_set, auditors=QUICK, seed=7, display_name="nightly")
    )
    events = list(client.watch(again))
    assert "shard_started" not in [event.WhichOneof("event") for event in events]
    assert again.report_digest == finished.report_digest
    assert again.progress == finished.progress
    execution = client.report(again).execution
    assert execution.audit == again.name
    (row,) = execution.auditor_seconds
    computed_by = [event.section_ready.reused_from for event in events]
    assert [name for name in computed_by if name] == [row.reused_from]
    source = client.report(row.reused_from)
    assert source.digest == again.report_digest
    assert not source.execution.auditor_seconds[0].reused_from


@pytest.mark.parametrize(
    ("form", "media_type", "begin"),
    [
        (v1.REPORT_FORMAT_JSON, "application/json", b'{"digest":'),
        (v1.REPORT_FORMAT_HTML, "text/html; charset=utf-8", b"<!doctype html>"),
        (v1.REPORT_FORMAT_MARKDOWN, "text/markdown; charset=utf-8", b"## "),
        (v1.REPORT_FORMAT_SARIF, "application/sarif+json", b'{\n  "$schema"'),
        (v1.REPORT_FORMAT_JUNIT, "application/xml", b"<?xml version"),
    ],
)
def test_reports_are_rendered(
    client: Client,
    finished: v1.Audit,
    form: v1.ReportFormat.ValueType,
    media_type: str,
    begin: bytes,
) -> None:
    """Every form is made by name and of a report that the caller holds, with a policy's result."""
    report = client.report(finished)
    for source in (finished, report):
        document = client.render(source, form)
        assert (document.media_type, document.content[: len(begin)]) == (media_type, begin)
    judged = client.render(report, form, policy="baseline", baseline=finished).content
    assert (b"better-than-chance" in judged) == (form != v1.REPORT_FORMAT_JSON)
    if form == v1.REPORT_FORMAT_JSON:
        assert json_format.Parse(document.content, v1.Report()) == report


def test_forms_that_do_not_exist_are_refused(channel: grpc.Channel, finished: v1.Audit) -> None:
    service = audit_pb2_grpc.AuditServiceStub(channel)
    name = f"{finished.name}/report"
    for number, code in ((0, "INVALID_ARGUMENT"), (99, "UNIMPLEMENTED")):
        form = cast("v1.ReportFormat.ValueType", number)
        with pytest.raises(grpc.RpcError) as caught:
            service.RenderReport(v1.RenderReportRequest(name=name, format=form))
        assert caught.value.code() == grpc.StatusCode[code]


def test_a_folder_is_rendered_with_its_files(
    service: ServiceProcess, client: Client, finished: v1.Audit, tmp_path: Path
) -> None:
    """The command lends the service what it lacks of a report: here the examples."""
    report = client.report(finished)
    write_report(client, report, tmp_path)
    private = (tmp_path / "distortion-l2.safetensors").read_bytes()[::-1]
    (tmp_path / "private.safetensors").write_bytes(private)
    blob = report.distortion.norms[0].artefact.sha256
    (service.data / "blobs" / blob[:2] / blob).unlink()
    assert b"which is not at hand" in client.render(report, v1.REPORT_FORMAT_HTML).content
    page = tmp_path / "new" / "page.html"
    result = CliRunner().invoke(
        cli,
        [
            *("report", "render", str(tmp_path), "--to", "html", "-o", str(page)),
            *("--server", service.target, "--policy", "baseline"),
        ],
    )
    assert result.exit_code == 0, result.output
    text = page.read_text(encoding="utf-8")
    assert "largest changes" in text
    assert "better-than-chance" in text
    other = hashlib.sha256(private).hexdigest()
    assert not (service.data / "blobs" / other[:2] / other).exists()


def test_lists_run_from_new_to_old_in_pages(
    channel: grpc.Channel, client: Client, finished: v1.Audit
) -> None:
    """Pages of two join to the same list as one page, and filters hold."""
    service = audit_pb2_grpc.AuditServiceStub(channel)
    whole = service.ListAudits(v1.ListAuditsRequest(page_size=1000)).audits
    moments = [audit.create_time.ToNanoseconds() for audit in whole]
    assert moments == sorted(moments, reverse=True)
    joined: list[v1.Audit] = []
    token = ""
    while True:
        page = service.ListAudits(v1.ListAuditsRequest(page_size=2, page_token=token))
        assert len(page.audits) <= 2
        joined += page.audits
        token = page.next_page_token
        if not token:
            break
    assert [audit.name for audit in joined] == [audit.name for audit in whole]
    failed = v1.ListAuditsRequest(states=[v1.AUDIT_STATE_FAILED])
    assert finished.name not in [audit.name for audit in service.ListAudits(failed).audits]
    other = v1.ListAuditsRequest(model="models/" + "0" * 64)
    assert not service.ListAudits(other).audits
    assert finished in list(client.audits())


def test_checking_alone_starts_nothing(
    channel: grpc.Channel, client: Client, model: v1.Model, probe_set: v1.ProbeSet
) -> None:
    """validate_only fills in defaults and leaves no audit behind."""
    before = len(list(client.audits()))
    audit = v1.Audit(model=model.name, probe_set=probe_set.name)
    request = v1.CreateAuditRequest(audit=audit, validate_only=True)
    checked = audit_pb2_grpc.AuditServiceStub(channel).CreateAudit(request)
    assert checked.auditors.HasField("distortion")
    assert list(checked.input_spec.upper) == [1.0]
    assert checked.input_spec_notes
    assert len(list(client.audits())) == before


def test_a_running_audit_is_cancelled_within_a_second(
    client: Client, model: v1.Model, probe_set: v1.ProbeSet, finished: v1.Audit
) -> None:
    """CANCELLING at once, CANCELLED soon, no report, and the next audit runs."""
    audit = client.audit(model, probe_set, auditors=LONG, seed=1)
    for event in client.watch(audit):
        if event.WhichOneof("event") == "shard_started":
            break
    start = time.monotonic()
    assert client.cancel(audit).state in {v1.AUDIT_STATE_CANCELLING, v1.AUDIT_STATE_CANCELLED}
    ended = wait_for_state(client, audit, v1.AUDIT_STATE_CANCELLED)
    assert time.monotonic() - start < 2, "the runner was not stopped"
    assert ended.HasField("end_time")
    assert client.cancel(audit).state == v1.AUDIT_STATE_CANCELLED
    with pytest.raises(FailedPrecondition, match="CANCELLED"):
        client.report(audit)
    with pytest.raises(FailedPrecondition, match="SUCCEEDED"):
        client.cancel(finished)
    again = client.wait(client.audit(model, probe_set, auditors=QUICK, seed=7, fresh=True))
    assert again.report_digest == finished.report_digest


def test_a_queued_audit_is_cancelled_at_once(
    client: Client, model: v1.Model, probe_set: v1.ProbeSet
) -> None:
    """An audit that nobody has begun needs nobody to end it."""
    running = client.audit(model, probe_set, auditors=LONG, seed=1)
    queued = [client.audit(model, probe_set, auditors=LONG, seed=n) for n in range(40)]
    assert client.cancel(queued[-1]).state == v1.AUDIT_STATE_CANCELLED
    for audit in [running, *queued]:
        client.cancel(audit)
    for audit in [running, *queued]:
        wait_for_state(client, audit, v1.AUDIT_STATE_CANCELLED)


def test_an_audit_that_takes_too_long_fails(
    client: Client, model: v1.Model, probe_set: v1.ProbeSet
) -> None:
    """The deadline ends it with DEADLINE_EXCEEDED."""
    audit = client.audit(model, probe_set, auditors=LONG, seed=2, timeout=1.5)
    with pytest.raises(AuditFailed, match="time"):
        client.wait(audit)
    ended = client.get_audit(audit)
    assert ended.state == v1.AUDIT_STATE_FAILED
    assert ended.error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


def test_known_content_is_registered_again_without_harm(
    client: Client, model: v1.Model, tmp_path: Path
) -> None:
    """The same file gives the same model, under its latest display name."""
    path = models.save(models.mlp(), tmp_path / "again.onnx")
    again = client.upload_model(path, display_name="scorer 3.2", tags={"release": "3.2"})
    assert again.name == model.name
    assert again.create_time == model.create_time
    assert again.display_name == "scorer 3.2"
    assert [found.name for found in client.models()].count(model.name) == 1


def test_an_auditor_that_lacks_something_starts_nothing(
    client: Client, model: v1.Model, probe_set: v1.ProbeSet
) -> None:
    """Asking for one that can run and one that needs other models too starts neither."""
    before = len(list(client.audits()))
    with pytest.raises(InvalidRequest, match="transfer needs at least one other model"):
        client.audit(model, probe_set, auditors=("distortion", "transfer"))
    assert len(list(client.audits())) == before


def test_an_audit_that_names_no_auditor(
    client: Client, model: v1.Model, probe_set: v1.ProbeSet
) -> None:
    """It runs what any classifier allows."""
    audit = client.audit(model, probe_set, auditors=v1.AuditorConfigs())
    client.cancel(audit)
    assert [field.name for field, _ in audit.auditors.ListFields()] == ["distortion", "lipschitz"]


def test_a_linear_head_is_in_the_report(client: Client, model: v1.Model) -> None:
    """A head on a hidden value is fitted, kept in the report and covered by its digest."""
    inputs = models.probes(24, 16)
    probe_set = client.upload_probes(inputs, labels=inputs[:, :3].argmax(1))
    head = v1.LinearHeadConfig(value="a0", method=v1.HEAD_METHOD_SOFTMAX, l2=0.01)
    audits = [
        client.wait(client.audit(model, probe_set, auditors=QUICK, linear_head=head, fresh=True))
        for _ in range(2)
    ]
    report, again = (client.report(audit) for audit in audits)
    assert audits[0].linear_head == report.linear_head.config == head
    assert report.linear_head.training_accuracy.value > 0.5
    assert report.digest == again.digest
    assert [warning.code for warning in report.warnings].count("LINEAR_HEAD") == 1
    failed = client.audit(
        model, probe_set, auditors=QUICK, linear_head=v1.LinearHeadConfig(value="a00")
    )
    with pytest.raises(AuditFailed, match="no value 'a00'; near are a0"):
        client.wait(failed)


@pytest.mark.parametrize(
    ("head", "labels", "field"),
    [
        (v1.LinearHeadConfig(), None, "audit.linear_head"),
        (v1.LinearHeadConfig(), [2, 2, 2], "audit.linear_head"),
        (v1.LinearHeadConfig(l2=-1), [0, 1, 2], "audit.linear_head.l2"),
        (v1.LinearHeadConfig(l2=float("nan")), [0, 1, 2], "audit.linear_head.l2"),
        (v1.LinearHeadConfig(method=9), [0, 1, 2], "audit.linear_head.method"),  # type: ignore[arg-type] # wrong on purpose
    ],
)
def test_a_head_that_cannot_be_fitted(
    client: Client, model: v1.Model, head: v1.LinearHeadConfig, labels: list[int] | None, field: str
) -> None:
    """Labels and settings are checked before an audit is accepted."""
    probes = client.upload_probes(np.zeros((3, 16), np.float32), labels=labels)
    with pytest.raises(InvalidRequest) as caught:
        client.audit(model, probes, linear_head=head)
    assert [violation.field for violation in caught.value.field_violations] == [field]


def test_a_client_of_the_first_release_works(service: ServiceProcess, tmp_path: Path) -> None:
    """Generated code of the first release gets from an upload to a verdict on this server."""
    model = models.save(models.mlp(seed=77), tmp_path / "model.onnx")
    probes = tmp_path / "probes.safetensors"
    save_file({"inputs": models.probes(10, 16, seed=77)}, probes)
    script = ROOT / "tests" / "compat" / "first_client.py"
    done = subprocess.run(
        [sys.executable, script, service.target, model, probes],
        env=os.environ | {"PYTHONPATH": str(script.with_name("onnx_audit_v1-0.1.0.zip"))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert ".zip" in found["code"], "the code of today was used"
    assert found["sequences"] == list(range(1, len(found["sequences"]) + 1))
    assert (found["state"], found["verdict"]) == ("AUDIT_STATE_SUCCEEDED", "VERDICT_PASS")
    assert found["result"] == "VERDICT_PASS"
    assert found["digests"][0] == found["digests"][1] != ""
    assert found["probes"] == 10
    assert found["page"] > 100
    assert found["listed"]
    assert found["refused"] == "FAILED_PRECONDITION"
