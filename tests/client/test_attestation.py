"""Attestations: what they state, and that nothing but the original verifies."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from tests.client.clients import FAST
from tests.client.fake_service import FakeService
from tests.client.models import write_model
from tests.client.reports import full_report

from onnx_audit import Client, v1
from onnx_audit.attestation import envelope, keys, statement
from onnx_audit.attestation.envelope import NotVerified
from onnx_audit.cli import options
from onnx_audit.cli.app import cli
from onnx_audit.errors import ConfigError
from onnx_audit_server.reports import assemble

KINDS: dict[str, Callable[[], Any]] = {
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


def write_keys(folder: Path, key: Any) -> tuple[str, str]:
    """Writes a key pair as PEM; returns the private and the public file."""
    private, public = folder / "key.pem", folder / "key.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return str(private), str(public)


@pytest.fixture(scope="module", params=list(KINDS))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    """Files of a private and a public key, of each kind."""
    return write_keys(tmp_path_factory.mktemp("keys"), KINDS[request.param]())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with two files of external data."""
    return write_model(tmp_path / "scorer.onnx", external=["a.bin", "sub/b.bin"])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def report_of(model: Path) -> v1.Report:
    """A whole report about a model's files, of an audit that ended a day ago."""
    report = full_report()
    for location in ("", "a.bin", "sub/b.bin"):
        path = model.parent / location if location else model
        report.model.files.add(path=location, sha256=sha256(path))
    report.execution.end_time.FromDatetime(datetime.now(UTC) - timedelta(days=1))
    report.digest = assemble.digest(report)
    return report


def gate(name: str, verdict: int, **fields: Any) -> v1.GateResult:
    severity = fields.pop("severity", v1.SEVERITY_BLOCK)
    return v1.GateResult(
        gate=v1.Gate(id=name, severity=severity),
        verdict=v1.Verdict.ValueType(verdict),
        **fields,
    )


def result_of(report: v1.Report, *gates: v1.GateResult, verdict: int = v1.VERDICT_PASS) -> Any:
    return v1.PolicyResult(
        verdict=v1.Verdict.ValueType(verdict),
        gates=gates or [gate("accuracy", v1.VERDICT_PASS)],
        policy_display_name="release",
        policy_digest="f" * 64,
        report_digest=report.digest,
    )


def pre_authentication(content: bytes) -> tuple[bytes, bytes]:
    """Signed bytes and signature of an envelope, by the text of the DSSE specification."""
    fields = json.loads(content)
    kind, body = fields["payloadType"].encode(), base64.b64decode(fields["payload"])
    signed = b"DSSEv1 " + b" ".join([str(len(kind)).encode(), kind, str(len(body)).encode(), body])
    return signed, base64.b64decode(fields["signatures"][0]["sig"])


def test_the_statement(model: Path) -> None:
    """It is the specification's JSON, subjects and configuration by digest."""
    report = report_of(model)
    failing = gate("noise", v1.VERDICT_FAIL, severity=v1.SEVERITY_WARN)
    waived = gate("l1", v1.VERDICT_FAIL, waiver_state=v1.WAIVER_STATE_ACTIVE)
    fine = gate("accuracy", v1.VERDICT_PASS)
    stated = json.loads(statement.make(report, result_of(report, fine, failing, waived)))
    environment = hashlib.sha256(
        b'{"device":"cpu","machine":"x86_64","seed":"7",'
        b'"software":[{"name":"torch","version":"2.13.0"}],"threads":2}'
    ).hexdigest()
    assert stated == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": "model.onnx", "digest": {"sha256": sha256(model)}},
            {"name": "a.bin", "digest": {"sha256": sha256(model.parent / "a.bin")}},
            {"name": "sub/b.bin", "digest": {"sha256": sha256(model.parent / "sub/b.bin")}},
        ],
        "predicateType": "https://in-toto.io/attestation/test-result/v0.1",
        "predicate": {
            "result": "WARNED",
            "configuration": [
                {"name": "probes", "digest": {"sha256": "2" * 64}},
                {
                    "name": "policy",
                    "digest": {"sha256": "f" * 64},
                    "annotations": {"displayName": "release"},
                },
                {
                    "name": "report",
                    "digest": {"sha256": report.digest},
                    "annotations": {"auditEndTime": report.execution.end_time.ToJsonString()},
                },
                {"name": "environment", "digest": {"sha256": environment}},
            ],
            "passedTests": ["accuracy"],
            "warnedTests": ["noise", "l1"],
        },
    }


def test_the_report_digest_is_the_service_s(model: Path) -> None:
    """Client and service agree on what a report's digest is."""
    report = report_of(model)
    assert statement.report_digest(report) == assemble.digest(report) == report.digest


def test_another_library_verifies_it(pair: tuple[str, str], model: Path) -> None:
    """`cryptography` alone verifies the signature over the specification's bytes."""
    report = report_of(model)
    content = envelope.sign(statement.make(report, result_of(report)), keys.load_signer(pair[0]))
    signed, signature = pre_authentication(content)
    public: Any = serialization.load_pem_public_key(Path(pair[1]).read_bytes())
    scheme = [] if isinstance(public, ed25519.Ed25519PublicKey) else [ec.ECDSA(hashes.SHA256())]
    public.verify(signature, signed, *scheme)
    with pytest.raises(InvalidSignature):
        public.verify(signature, signed + b" ", *scheme)


def test_openssl_verifies_it(pair: tuple[str, str], model: Path, tmp_path: Path) -> None:
    """So does the program that everyone has."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    report = report_of(model)
    content = envelope.sign(statement.make(report, result_of(report)), keys.load_signer(pair[0]))
    signed, signature = tmp_path / "signed", tmp_path / "signature"
    for path, part in zip((signed, signature), pre_authentication(content), strict=True):
        path.write_bytes(part)
    public = serialization.load_pem_public_key(Path(pair[1]).read_bytes())
    if isinstance(public, ed25519.Ed25519PublicKey):
        command = ["pkeyutl", "-verify", "-pubin", "-inkey", pair[1], "-rawin"]
        command += ["-in", str(signed), "-sigfile", str(signature)]
    else:
        command = ["dgst", "-sha256", "-verify", pair[1], "-signature", str(signature), str(signed)]
    assert subprocess.run(["openssl", *command], check=False).returncode == 0
    signed.write_bytes(signed.read_bytes()[:-1] + b"X")
    assert subprocess.run(["openssl", *command], check=False).returncode != 0


@functools.cache
def signed_example(private: str) -> bytes:
    payload = b'{"_type":"https://in-toto.io/Statement/v1","subject":[]}'
    return envelope.sign(payload, keys.load_signer(private))


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_no_byte_can_be_altered(pair: tuple[str, str], data: st.DataObject) -> None:
    """Neither the signed bytes nor those around them: base64's spare bits, white space, names."""
    content = signed_example(pair[0])
    position = data.draw(st.integers(0, len(content) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != content[position]))
    altered = content[:position] + bytes([value]) + content[position + 1 :]
    public = keys.load_verifier(pair[1])
    assert envelope.verify(content, public)
    with pytest.raises(NotVerified):
        envelope.verify(altered, public)


def test_no_bit_can_be_flipped(pair: tuple[str, str]) -> None:
    """The same for every single bit, spare ones of base64 too, and for cuts and joins."""
    content, public = signed_example(pair[0]), keys.load_verifier(pair[1])
    altered = [
        content[:i] + bytes([content[i] ^ 1 << bit]) + content[i + 1 :]
        for i in range(len(content))
        for bit in range(8)
    ]
    altered += [content[:-1], content + b"\n", b" " + content, content * 2, b"", b"[]", b"{}"]
    for text in altered:
        with pytest.raises(NotVerified):
            envelope.verify(text, public)


def test_the_type_of_the_payload_is_checked(pair: tuple[str, str]) -> None:
    """A well signed envelope of something else is no attestation."""
    signer = keys.load_signer(pair[0])
    other = Envelope(b"{}", "text/plain", {})
    other.sign(signer)
    content = json.dumps(other.to_dict(), sort_keys=True, separators=(",", ":")).encode() + b"\n"
    with pytest.raises(NotVerified, match="text/plain"):
        envelope.verify(content, keys.load_verifier(pair[1]))
    for payload in (b"no JSON", b'{"_type":"x"}', b'{"predicateType":"other"}'):
        with pytest.raises(NotVerified, match="not an in-toto statement"):
            statement.read(payload)


def test_an_inconclusive_verdict_has_failed(model: Path) -> None:
    """What could not be decided is no pass; a verdict that contradicts its gates is refused."""
    report = report_of(model)
    open_gate = gate("l2", v1.VERDICT_INCONCLUSIVE)
    result = result_of(report, open_gate, verdict=v1.VERDICT_INCONCLUSIVE)
    attested = statement.read(statement.make(report, result))
    assert (attested.result, attested.failed) == ("FAILED", ["l2"])
    with pytest.raises(NotVerified, match="FAILED: l2"):
        statement.require_pass(attested)
    with pytest.raises(ConfigError, match="does not hold"):
        statement.make(report, result_of(report, open_gate))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("verdict", "no policy was applied"),
        ("report", "was altered"),
        ("result", "the verdict is of a report"),
        ("files", "does not name the model's files"),
    ],
)
def test_what_cannot_be_attested(model: Path, change: str, message: str) -> None:
    """No verdict, an altered report, another report's verdict, unknown files."""
    report = report_of(model)
    result = result_of(report)
    if change == "verdict":
        result.ClearField("verdict")
    elif change == "report":
        report.distortion.norms[0].mean.value += 1
    elif change == "result":
        result.report_digest = "e" * 64
    else:
        report.model.ClearField("files")
        report.digest = result.report_digest = assemble.digest(report)
    with pytest.raises(ConfigError, match=message):
        statement.make(report, result)


@pytest.mark.parametrize("kind", ["rsa", "p384", "encrypted", "text", "missing", "unset"])
def test_keys_that_cannot_be_used(kind: str, tmp_path: Path) -> None:
    """Each is refused with what was found and what is expected."""
    source = str(tmp_path / "key.pem")
    if kind == "rsa":
        source, _ = write_keys(tmp_path, rsa.generate_private_key(65537, 2048))
    elif kind == "p384":
        source, _ = write_keys(tmp_path, ec.generate_private_key(ec.SECP384R1()))
    elif kind == "encrypted":
        Path(source).write_bytes(
            KINDS["ed25519"]().private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )
    elif kind == "text":
        Path(source).write_text("key")
    elif kind == "unset":
        source = "env:ONNX_AUDIT_NO_SUCH_KEY"
    expected = {
        "rsa": "a key of the kind RSA",
        "p384": "secp384r1",
        "encrypted": "encrypted",
        "text": "not a private key",
        "missing": "No such file",
        "unset": "is not set",
    }
    with pytest.raises(ConfigError, match=expected[kind]):
        keys.load_signer(source)


@pytest.fixture
def run(
    service: FakeService, address: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Runs a command against a service with one audit, which has passed its policy."""
    report = report_of(model)
    service.reports["audits/1/report"] = report
    service.audits["audits/1"] = v1.Audit(name="audits/1", policy_result=result_of(report))
    monkeypatch.setattr(options, "Client", functools.partial(Client, retries=FAST))

    def invoke(*arguments: object) -> Result:
        server = ["--server", address] if arguments[0] == "attest" else []
        return CliRunner().invoke(cli, [*map(str, arguments), *server])

    return invoke


def test_from_audit_to_verification(
    run: Callable[..., Result], model: Path, pair: tuple[str, str], tmp_path: Path
) -> None:
    """The command signs the audit's verdict; the other one says what fits and what does not."""
    out = tmp_path / "model.intoto.json"
    made = run("attest", "audits/1", "--key", pair[0], "-o", out)
    assert made.exit_code == 0, made.output
    checked = run("verify", out, "--key", pair[1], "--model", model, "--max-age", "2d")
    assert checked.exit_code == 0, checked.output
    assert "VERIFIED" in checked.output
    old = run("verify", out, "--key", pair[1], "--model", model, "--max-age", "12h")
    assert (old.exit_code, "1 days ago" in old.output) == (1, True)
    policy = run("verify", out, "--key", pair[1], "--model", model, "--policy", "strict")
    assert (policy.exit_code, "of the policy" in policy.output) == (1, True)
    _, stranger = write_keys(tmp_path, KINDS["p256"]())
    wrong = run("verify", out, "--key", stranger, "--model", model)
    assert (wrong.exit_code, "another key" in wrong.output) == (1, True)
    (model.parent / "sub" / "b.bin").write_bytes(b"other weights")
    other = run("verify", out, "--key", pair[1], "--model", model)
    assert (other.exit_code, "sub/b.bin is" in other.output) == (1, True)
    (model.parent / "sub" / "b.bin").unlink()
    gone = run("verify", out, "--key", pair[1], "--model", model)
    assert (gone.exit_code, "sub/b.bin is missing" in gone.output) == (1, True)


def test_a_model_with_fewer_files(
    run: Callable[..., Result], model: Path, pair: tuple[str, str], tmp_path: Path
) -> None:
    """A model that lacks a file of the audited one, or differs in its graph, is another one."""
    out = tmp_path / "model.intoto.json"
    assert run("attest", "audits/1", "--key", pair[0], "-o", out).exit_code == 0
    other = write_model(tmp_path / "other.onnx", padding=1, external=["a.bin", "sub/b.bin"])
    wrong = run("verify", out, "--key", pair[1], "--model", other)
    assert (wrong.exit_code, "model.onnx is" in wrong.output) == (1, True)
    attested = statement.read(envelope.verify(out.read_bytes(), keys.load_verifier(pair[1])))
    found = statement.model_digests(model)
    statement.require_model(attested, found)
    del found["a.bin"]
    with pytest.raises(NotVerified, match=r"also about a\.bin"):
        statement.require_model(attested, found)


def test_a_failed_verdict_is_attested_and_does_not_verify(
    run: Callable[..., Result],
    service: FakeService,
    model: Path,
    pair: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both commands end with status 1; the key may come from the environment."""
    report = service.reports["audits/1/report"]
    failed = result_of(report, gate("l2", v1.VERDICT_FAIL), verdict=v1.VERDICT_FAIL)
    service.audits["audits/1"].policy_result.CopyFrom(failed)
    monkeypatch.setenv("SIGNING_KEY", Path(pair[0]).read_text())
    out = tmp_path / "model.intoto.json"
    assert run("attest", "audits/1", "--key", "env:SIGNING_KEY", "-o", out).exit_code == 1
    checked = run("verify", out, "--key", pair[1], "--model", model)
    assert (checked.exit_code, "FAILED: l2" in checked.output) == (1, True)


def test_wrong_usage_has_its_own_status(
    run: Callable[..., Result], model: Path, pair: tuple[str, str], tmp_path: Path
) -> None:
    """A missing envelope, a private key in the public one's place, no verdict: status 2."""
    assert run("verify", tmp_path / "none", "--key", pair[1], "--model", model).exit_code == 2
    out = tmp_path / "model.intoto.json"
    assert run("attest", "audits/1", "--key", pair[0], "-o", out).exit_code == 0
    private = run("verify", out, "--key", pair[0], "--model", model)
    assert (private.exit_code, "holds a private key" in private.output) == (2, True)
    baseline = run("attest", "audits/1", "--key", pair[0], "-o", out, "--baseline", "audits/2")
    assert (baseline.exit_code, "--baseline needs --policy" in baseline.output) == (2, True)


def test_times_that_cannot_be(model: Path) -> None:
    """An audit that ends in the future, or at no known time, is of no age that can be allowed."""
    report = report_of(model)
    report.execution.end_time.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
    attested = statement.read(statement.make(report, result_of(report)))
    with pytest.raises(NotVerified, match="future"):
        statement.require_age(attested, 3600)
    report.execution.ClearField("end_time")
    attested = statement.read(statement.make(report, result_of(report)))
    with pytest.raises(NotVerified, match="does not say when"):
        statement.require_age(attested, 3600)
