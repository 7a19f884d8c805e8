"""Sections that an earlier audit has computed are taken over, and only those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.message import Message
from tests import models
from tests.service import ServiceProcess

from onnx_audit import Client, v1
from onnx_audit_server.jobs.reuse import StoredSections, artefacts, section_key
from onnx_audit_server.store.blobs import BlobStore
from onnx_audit_server.store.database import connect, migrate
from onnx_audit_server.store.sections import SectionRecords

DISTORTION = v1.DistortionConfig(budget=8, max_probes=6, exact_probes=0)
CONFIG = v1.AuditorConfigs(distortion=DISTORTION)
ATTACKS = [v1.TRANSFER_ATTACK_MINIMAL]


def shards_started(client: Client, audit: v1.Audit) -> list[v1.Auditor.ValueType]:
    """Auditors whose shards an audit has started."""
    return [
        event.shard_started.auditor
        for event in client.watch(audit)
        if event.WhichOneof("event") == "shard_started"
    ]


def reused(report: v1.Report) -> dict[str, str]:
    """The audits that computed sections, by auditor."""
    return {
        v1.Auditor.Name(row.auditor): row.reused_from
        for row in report.execution.auditor_seconds
        if row.reused_from
    }


@pytest.fixture(scope="module")
def first(client: Client, model: v1.Model, probe_set: v1.ProbeSet) -> v1.Audit:
    """An audit that computes its section."""
    audit = client.wait(client.audit(model, probe_set, auditors=CONFIG))
    assert shards_started(client, audit) == [v1.AUDITOR_DISTORTION]
    assert reused(client.report(audit)) == {}
    return audit


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fresh_computes_anew(
    client: Client, model: v1.Model, probe_set: v1.ProbeSet, first: v1.Audit
) -> None:
    """The figures are the same; later audits then take over the newer section."""
    fresh = client.wait(client.audit(model, probe_set, auditors=CONFIG, fresh=True))
    assert shards_started(client, fresh) == [v1.AUDITOR_DISTORTION]
    assert fresh.report_digest == first.report_digest
    later = client.wait(client.audit(model, probe_set, auditors=CONFIG))
    assert reused(client.report(later)) == {"AUDITOR_DISTORTION": fresh.name}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_another_job_is_computed(
    client: Client, model: v1.Model, probe_set: v1.ProbeSet, first: v1.Audit
) -> None:
    """Seed, configuration, probes and box are parts of the job."""
    other_probes = client.upload_probes(models.probes(40, 16, seed=2))
    box = v1.InputSpec(lower=[0.0], upper=[1.25])
    budget = v1.AuditorConfigs(
        distortion=v1.DistortionConfig(budget=9, max_probes=6, exact_probes=0)
    )
    jobs: list[dict[str, Any]] = [
        {"auditors": CONFIG, "seed": 1},
        {"auditors": budget},
        {"auditors": CONFIG, "probes": other_probes},
        {"auditors": CONFIG, "input_spec": box},
    ]
    for job in jobs:
        audit = client.wait(client.audit(model, **{"probes": probe_set, **job}))
        assert shards_started(client, audit) == [v1.AUDITOR_DISTORTION]
        assert audit.report_digest != first.report_digest


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_transfer_builds_on_sections_taken_over(
    client: Client, model: v1.Model, probe_set: v1.ProbeSet, tmp_path: Path
) -> None:
    """It reads what the earlier audit's shards found; its peers are a part of its job."""
    peers = [
        client.upload_model(models.save(models.mlp(seed=seed), tmp_path / f"peer{seed}.onnx"))
        for seed in (1, 2)
    ]

    def audit(peer: v1.Model, *, fresh: bool = False) -> v1.Audit:
        transfer = v1.TransferConfig(
            peers=[v1.PeerModel(model=peer.name)],
            attacks=ATTACKS,
            budget=8,
            noise_draws=1,
            max_probes=6,
        )
        configs = v1.AuditorConfigs(distortion=DISTORTION, transfer=transfer)
        return client.wait(client.audit(model, probe_set, auditors=configs, fresh=fresh))

    client.wait(client.audit(model, probe_set, auditors=CONFIG))
    built = audit(peers[0])
    assert set(shards_started(client, built)) == {v1.AUDITOR_TRANSFER}
    anew = audit(peers[0], fresh=True)
    assert set(shards_started(client, anew)) == {v1.AUDITOR_DISTORTION, v1.AUDITOR_TRANSFER}
    assert anew.report_digest == built.report_digest
    again = audit(peers[0])
    assert shards_started(client, again) == []
    assert again.report_digest == built.report_digest
    other = audit(peers[1])
    assert set(shards_started(client, other)) == {v1.AUDITOR_TRANSFER}
    assert other.report_digest != built.report_digest


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_is_gone_is_computed_again(
    client: Client,
    service: ServiceProcess,
    model: v1.Model,
    probe_set: v1.ProbeSet,
) -> None:
    """A section whose artefact is missing is not taken over, and afterwards it is there again."""
    seed = 5
    first = client.wait(client.audit(model, probe_set, auditors=CONFIG, seed=seed))
    artefact = client.report(first).distortion.norms[0].artefact
    path = service.data / "blobs" / artefact.sha256[:2] / artefact.sha256
    content = path.read_bytes()
    path.unlink()
    again = client.wait(client.audit(model, probe_set, auditors=CONFIG, seed=seed))
    assert shards_started(client, again) == [v1.AUDITOR_DISTORTION]
    assert again.report_digest == first.report_digest
    assert path.read_bytes() == content


def job() -> tuple[v1.Audit, v1.AuditPlan]:
    """An audit and its plan, with every field that a section depends on."""
    audit = v1.Audit(
        name="audits/a",
        model="models/1",
        probe_set="probes/1",
        input_spec=v1.InputSpec(lower=[0.0], upper=[1.0], mean=[0.1], std=[0.3]),
        auditors=CONFIG,
    )
    plan = v1.AuditPlan(
        provenance=v1.Provenance(
            seed=1,
            software=[v1.SoftwareVersion(name="torch", version="1")],
            device="cpu",
            machine="x86_64",
            precision=["float32"],
            providers=["CPU"],
            threads=2,
        ),
        auditors=v1.AuditorConfigs(
            distortion=DISTORTION,
            lipschitz=v1.LipschitzConfig(norms=[v1.NORM_L2]),
            transfer=v1.TransferConfig(peers=[v1.PeerModel(model="models/2", tags={"a": "b"})]),
        ),
        linear_head=v1.LinearHead(sha256="h"),
        code_sha256="c",
        plans=[v1.AuditEvent.AuditorPlan(auditor=v1.AUDITOR_DISTORTION, shards=1)],
    )
    return audit, plan


@pytest.mark.parametrize(
    ("of_audit", "of_plan"),
    [
        ("model: 'models/3'", ""),
        ("probe_set: 'probes/3'", ""),
        ("input_spec { mean: 0.2 }", ""),
        ("", "provenance { seed: 2 }"),
        ("", "provenance { software { name: 'numpy' version: '2' } }"),
        ("", "provenance { device: 'NVIDIA' }"),
        ("", "provenance { machine: 'aarch64' }"),
        ("", "provenance { precision: 'tf32=on' }"),
        ("", "provenance { providers: 'CUDA' }"),
        ("", "provenance { threads: 1 }"),
        ("", "linear_head { sha256: 'i' }"),
        ("", "code_sha256: 'd'"),
        ("", "auditors { distortion { budget: 31 } }"),
    ],
)
def test_the_key_holds_what_figures_depend_on(of_audit: str, of_plan: str) -> None:
    """Each such field changes the key."""
    audit, plan = job()
    key = section_key(audit, plan, v1.AUDITOR_DISTORTION)
    text_format.Merge(of_audit, audit)
    text_format.Merge(of_plan, plan)
    assert section_key(audit, plan, v1.AUDITOR_DISTORTION) != key


def test_the_key_holds_nothing_else() -> None:
    """Names, times, policies and other auditors do not change it."""
    audit, plan = job()
    key = section_key(audit, plan, v1.AUDITOR_DISTORTION)
    audit.name, audit.display_name, audit.last_sequence, audit.fresh = "audits/b", "b", 9, True
    audit.policy.gates.add(id="gate")
    audit.baseline, audit.verdict = "audits/c/report", v1.VERDICT_FAIL
    plan.auditors.lipschitz.norms[0] = v1.NORM_LINF
    plan.auditors.ClearField("transfer")
    plan.warnings.add(code="CODE")
    assert section_key(audit, plan, v1.AUDITOR_DISTORTION) == key


@pytest.mark.parametrize(
    "change",
    [
        "transfer { peers { model: 'models/4' } }",
        "transfer { tags { key: 'a' value: 'c' } }",
        "transfer { display_name: 'y' }",
        "distortion { budget: 31 }",
    ],
)
def test_peers_are_a_part_of_the_key(change: str) -> None:
    """So is what `distortion` looks for, on which `transfer` builds where both are asked for."""
    audit, plan = job()
    key = section_key(audit, plan, v1.AUDITOR_TRANSFER)
    text_format.Merge(change, plan.auditors)
    assert section_key(audit, plan, v1.AUDITOR_TRANSFER) != key


def test_a_missing_section_or_partial(tmp_path: Path) -> None:
    """Shards' results are needed only where another auditor builds on them."""
    engine = connect(f"sqlite:///{tmp_path / 'records.sqlite'}")
    migrate(engine)
    blobs = BlobStore(tmp_path)
    stored = StoredSections(SectionRecords(engine), blobs)
    audit, plan = job()
    section = blobs.put(
        v1.SectionResult(distortion=v1.DistortionSection()).SerializeToString(), ""
    ).sha256
    gone = "0" * 64
    stored.keep(audit, plan, v1.AUDITOR_DISTORTION, section, [gone])
    assert list(stored.find(audit, plan)) == [v1.AUDITOR_DISTORTION]
    plan.plans.add(auditor=v1.AUDITOR_TRANSFER, shards=1)
    assert stored.find(audit, plan) == {}
    stored.keep(audit, plan, v1.AUDITOR_TRANSFER, section, [gone])
    assert set(stored.find(audit, plan)) == {v1.AUDITOR_DISTORTION, v1.AUDITOR_TRANSFER}
    stored.keep(audit, plan, v1.AUDITOR_DISTORTION, gone, [])
    assert list(stored.find(audit, plan)) == [v1.AUDITOR_TRANSFER]
    engine.dispose()


def test_every_blob_of_a_section_is_found() -> None:
    """References at every depth, beside maps and empty ones."""

    def ref(name: str) -> v1.BlobRef:
        return v1.BlobRef(sha256=name)

    sections: list[Message] = [
        v1.DistortionSection(
            norms=[v1.NormDistortion(artefact=ref("a"), training_set=v1.BlobRef())]
        ),
        v1.UnitsSection(layers=[v1.UnitsLayer(galleries=[v1.UnitGallery(image=ref("b"))])]),
        v1.TransferSection(
            details=[v1.TransferModel(tags={"k": "v"})],
            artefacts=[v1.TransferArtefact(examples=ref("c"), training_set=ref("d"))],
        ),
    ]
    assert [blob.sha256 for section in sections for blob in artefacts(section)] == list("abcd")
