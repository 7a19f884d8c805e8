"""A real server with TLS, tokens and an identity provider: who gets what from it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from tests import models
from tests.server.access.credentials import AUDIENCE, ISSUER, Authority, Provider
from tests.service import ServiceProcess

from onnx_audit import Client, PermissionDenied, RetryPolicy, Unauthenticated, v1
from onnx_audit.connection import Token
from onnx_audit.errors import AuditCancelled, ResourceExhausted, Unavailable
from onnx_audit_server.access import methods
from onnx_audit_server.access.guard import REMEMBERED
from onnx_audit_server.access.identity import Scope
from onnx_audit_server.access.tokens import Tokens
from onnx_audit_server.service import SERVICES
from onnx_audit_server.store.database import connect

CONFIG = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=20))
ONCE = RetryPolicy(attempts=1)
MISSING = "audits/20200101-000000-abcdef"


class Guarded:
    """A running server that asks who calls, and what is needed to answer it."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.authority = Authority(folder)
        self.own = self.authority.issue("server")
        self.provider = Provider()
        keys = folder / "keys.json"
        keys.write_text(json.dumps(self.provider.key_set))
        self.process = ServiceProcess(
            folder / "data",
            *("--tls-cert", str(self.own.certificate), "--tls-key", str(self.own.key)),
            *("--http-tls", "--auth", "--oidc-issuer", ISSUER, "--oidc-audience", AUDIENCE),
            *("--oidc-jwks", str(keys), *more),
        )

    def token(self, name: str, scope: Scope) -> str:
        """A new API token."""
        engine = connect(f"sqlite:///{self.process.data / 'onnx-audit.sqlite'}")
        try:
            return Tokens(engine).create(name, (scope,), None)
        finally:
            engine.dispose()

    def client(self, token: Token | None, **options: Any) -> Client:
        """A client with a token."""
        options = {"retries": ONCE, "ca": self.authority.file, **options}
        return Client(self.process.target, token=token, timeout=300, **options)

    def channel(self) -> grpc.Channel:
        """A bare channel."""
        credentials = grpc.ssl_channel_credentials(self.authority.file.read_bytes())
        return grpc.secure_channel(self.process.target, credentials)

    def http(self, path: str, body: str | None = None, **headers: str) -> tuple[Any, str]:
        """Asks the HTTP port; returns answer and text."""
        context = ssl.create_default_context(cafile=str(self.authority.file))
        address = self.process.addresses["http"]
        connection = http.client.HTTPSConnection(address, timeout=60, context=context)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        with contextlib.closing(connection):
            connection.request("GET" if body is None else "POST", path, body, names)
            response = connection.getresponse()
            return response, response.read().decode()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A server with a worker."""
    limits = {
        "ONNX_AUDIT_QUOTA_AUDITS": "2",
        "ONNX_AUDIT_QUOTA_BYTES": str(1 << 20),
        "ONNX_AUDIT_INSPECT_TIMEOUT": "300",  # for machines that are busy with other tests
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in limits.items():
            patch.setenv(name, value)
        guarded = Guarded(tmp_path_factory.mktemp("guarded"))
        with guarded.process:
            yield guarded


@pytest.fixture(scope="module")
def submitter(guarded: Guarded) -> str:
    """A token that may submit."""
    return guarded.token("ci", Scope.SUBMIT)


@pytest.fixture(scope="module")
def audit(guarded: Guarded, submitter: str, tmp_path_factory: pytest.TempPathFactory) -> v1.Audit:
    """An audit that somebody known has started and that has ended."""
    path = models.save(models.mlp(), tmp_path_factory.mktemp("model") / "model.onnx")
    with guarded.client(submitter) as client:
        model = client.upload_model(path)
        probe_set = client.upload_probes(models.probes(20, 16))
        return client.wait(client.audit(model, probe_set, auditors=CONFIG))


def code_of(channel: grpc.Channel, method: str, token: str = "") -> grpc.StatusCode:
    """What a method answers to an empty request."""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    multicallable: Any = channel.stream_stream(method)
    call = multicallable(iter([b""]), metadata=metadata, timeout=60)
    with contextlib.suppress(grpc.RpcError):
        list(call)
    code: grpc.StatusCode = call.code()
    return code


def test_every_method_asks_who_calls(guarded: Guarded, submitter: str) -> None:
    """Without credentials, with wrong ones, and with a scope too small; health alone is open."""
    reader = guarded.token("reader", Scope.READ)
    every = [method for names in SERVICES.values() for method in names]
    every.append("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    with guarded.channel() as channel:
        for method in every:
            assert code_of(channel, method) == grpc.StatusCode.UNAUTHENTICATED
            assert code_of(channel, method, submitter + "x") == grpc.StatusCode.UNAUTHENTICATED
            refused = code_of(channel, method, reader) == grpc.StatusCode.PERMISSION_DENIED
            assert refused == (methods.SCOPES[method] != Scope.READ), method
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
        health = check(health_pb2.HealthCheckRequest(), timeout=60)
        assert health.status == health_pb2.HealthCheckResponse.SERVING


def test_what_exists_is_not_told_to_strangers(guarded: Guarded, audit: v1.Audit) -> None:
    """The answer is the same for an audit that is there and one that is not, field by field."""
    with guarded.client(None) as stranger, guarded.client("oat_x") as forger:
        for client in (stranger, forger):
            answers = []
            for name in (audit.name, MISSING):
                with pytest.raises(Unauthenticated) as caught:
                    client.get_audit(name)
                answers.append((str(caught.value), caught.value.reason, caught.value.metadata))
            assert answers[0] == answers[1]
            assert "--token-file" in answers[0][0]
    with guarded.client(guarded.token("reader", Scope.READ)) as reader:
        refusals = []
        for name in (audit.name, MISSING):
            with pytest.raises(PermissionDenied) as denied:
                reader.cancel(name)
            refusals.append((str(denied.value), denied.value.metadata))
        assert refusals[0] == refusals[1]
        expected = {"principal": "token:reader", "scope": "submit", "held": "read"}
        assert refusals[0][1] == expected


def test_an_audit_says_who_started_it(guarded: Guarded, submitter: str, audit: v1.Audit) -> None:
    """The record and the log lines do, the report, whose digest others compare, does not."""
    assert audit.principal == "token:ci"
    with guarded.client(submitter) as client:
        report = client.report(audit)
    assert b"token:ci" not in report.SerializeToString()
    lines = guarded.process.log_lines()
    accepted = [line for line in lines if line["event"] == "audit accepted"]
    assert [line["principal"] for line in accepted] == ["token:ci"]
    create = [line for line in lines if str(line.get("method")).endswith("/CreateModel")]
    assert "token:ci" in {line.get("principal") for line in create}
    shards = [line for line in lines if line.get("audit") == audit.name.partition("/")[2]]
    worked = [line for line in shards if line.get("task") == "shard"]
    assert worked
    assert {line["principal"] for line in worked} == {"token:ci"}


def test_a_reader_sees_what_others_have_audited(guarded: Guarded, audit: v1.Audit) -> None:
    """One service is one circle of trust: audits, reports, models and blobs of all."""
    with guarded.client(guarded.token("stranger", Scope.READ)) as reader:
        assert audit.name in {each.name for each in reader.audits()}
        assert reader.get_audit(audit).principal == "token:ci"
        assert reader.report(audit).digest == audit.report_digest
        assert list(reader.watch(audit))[-1].state_changed.state == v1.AUDIT_STATE_SUCCEEDED
        assert audit.model in {model.name for model in reader.models()}


def test_only_its_own_audits_may_be_cancelled(guarded: Guarded, audit: v1.Audit) -> None:
    """Those of others need the scope admin; the state is looked at after that."""
    with (
        guarded.client(guarded.token("other", Scope.SUBMIT)) as client,
        pytest.raises(PermissionDenied, match="scope admin"),
    ):
        client.cancel(audit)
    with (
        guarded.client(guarded.token("boss", Scope.ADMIN)) as client,
        pytest.raises(Exception, match="has ended: SUCCEEDED"),
    ):
        client.cancel(audit)


def test_the_identity_provider_s_tokens_are_good(guarded: Guarded, audit: v1.Audit) -> None:
    """The principal is the subject; a token is asked for anew before every call."""
    asked: list[str] = []

    def token() -> str:
        asked.append(guarded.provider.token(scope="onnx-audit:submit"))
        return asked[-1]

    with guarded.client(token) as client:
        model = next(client.models())
        again = client.audit(model, audit.probe_set, auditors=CONFIG)
        assert again.principal == "oidc:repo:acme/models"
        client.cancel(again)
    assert len(asked) >= 3
    with (
        guarded.client(guarded.provider.token(aud="other")) as client,
        pytest.raises(Unauthenticated, match="another audience"),
    ):
        client.get_audit(audit)
    with (
        guarded.client(guarded.provider.token(scope="openid")) as client,
        pytest.raises(PermissionDenied, match="has none"),
    ):
        client.get_audit(audit)


def test_a_revoked_token_is_useless_soon(guarded: Guarded) -> None:
    """Within the seconds for which servers remember, without a restart."""
    token = guarded.token("gone", Scope.READ)
    with guarded.client(token) as client:
        list(client.models())
        environment = os.environ | {"ONNX_AUDIT_DATA": str(guarded.process.data)}
        command = [sys.executable, "-m", "onnx_audit_server", "tokens", "revoke"]
        subprocess.run([*command, token.split("_")[1]], check=True, env=environment)
        time.sleep(REMEMBERED)
        with pytest.raises(Unauthenticated, match="is revoked"):
            list(client.models())


def test_reflection_describes_to_those_who_may_read(guarded: Guarded) -> None:
    """The API's description is not for strangers either."""
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    metadata = (("authorization", f"Bearer {guarded.token('tool', Scope.READ)}"),)
    with guarded.channel() as channel:
        describe = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        (answer,) = describe(iter([request]), metadata=metadata, timeout=60)
        names = {service.name for service in answer.list_services_response.service}
        assert "onnx_audit.v1.AuditService" in names


def test_a_full_store_takes_no_more(guarded: Guarded, tmp_path: Path) -> None:
    """The quota of bytes counts what was stored, also of uploads that are refused halfway."""
    token = guarded.token("hoarder", Scope.SUBMIT)
    files = [tmp_path / name for name in ("first", "second", "small")]
    for file, size in zip(files, (700_000, 400_000, 300_000), strict=True):
        file.write_bytes(os.urandom(size))
    # Whoever would have to wait for an hour is told at once, whatever the retries.
    with guarded.client(token, retries=RetryPolicy()) as client:
        client.upload_files([files[0]])
        with pytest.raises(ResourceExhausted) as caught:
            client.upload_files([files[1]])
        assert caught.value.reason == "QUOTA_EXCEEDED"
        expected = {"quota": "bytes", "scope": "principal", "limit": str(1 << 20)}
        assert caught.value.metadata.items() >= expected.items()
        assert caught.value.metadata["used"] == "700000"
        assert caught.value.retry_delay == 3600
        client.upload_files([files[2]])
        client.upload_files([files[0]])  # stored already: costs nothing
    staging = guarded.process.data / "uploads"
    assert not list(staging.glob("*.part"))


def test_audits_of_one_are_limited(guarded: Guarded, audit: v1.Audit) -> None:
    """Those that wait and run count, for each by itself; one that has ended makes room."""
    # A worker that is busy with long audits; they are cancelled in the end.
    long = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=100_000))
    model, probes = audit.model, audit.probe_set
    with (
        guarded.client(guarded.token("eager", Scope.SUBMIT)) as client,
        guarded.client(guarded.token("modest", Scope.SUBMIT)) as other,
    ):
        started = [client.audit(model, probes, auditors=long, seed=n) for n in range(2)]
        with pytest.raises(ResourceExhausted, match="quota_audits") as caught:
            client.audit(model, probes, auditors=long, seed=2)
        assert caught.value.metadata["used"] == "2"
        assert caught.value.retry_delay is not None
        other.cancel(other.audit(model, probes, auditors=long))
        client.cancel(started[1])
        with pytest.raises(AuditCancelled):
            client.wait(started[1])  # asked to stop is not ended yet
        third = client.audit(model, probes, auditors=long, seed=2)
        for one in (started[0], third):
            client.cancel(one)


def test_pages_ask_who_looks(guarded: Guarded) -> None:
    """Browsers are sent to the form, programs are told; what is open stays open."""
    for path in ("/", "/audits/x", "/audits/x/events", "/models", "/metrics", "/nothing"):
        response, text = guarded.http(path)
        assert response.status == 401, path
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
        assert "authorization: Bearer" in text
    response, _ = guarded.http("/history?model=a%26b", Accept="text/html")
    assert response.status == 303
    assert response.headers["Location"] == "/login?next=%2Fhistory%3Fmodel%3Da%2526b"
    for path in ("/healthz", "/login", "/static/console.css"):
        assert guarded.http(path)[0].status == 200
    assert guarded.http("/healthz/../metrics")[0].status == 401
    assert guarded.http("/static/../metrics")[0].status in {401, 404}


def test_programs_show_a_token(guarded: Guarded) -> None:
    """As Prometheus does; a client certificate is no part of HTTP here."""
    bearer = f"Bearer {guarded.token('prometheus', Scope.READ)}"
    response, text = guarded.http("/metrics", Authorization=bearer)
    assert response.status == 200
    assert "onnx_audit_rpcs_total" in text
    assert guarded.http("/metrics", Authorization=bearer + "x")[0].status == 401
    nothing = f"Bearer {guarded.provider.token(scope='')}"
    assert guarded.http("/metrics", Authorization=nothing)[0].status == 403


def test_people_log_in_and_out(guarded: Guarded) -> None:
    """The form sets a cookie that scripts and other sites cannot use."""
    token = guarded.token("ada", Scope.READ)

    def log_in(value: str, target: str = "/models", **headers: str) -> tuple[Any, str]:
        body = urllib.parse.urlencode({"token": value, "next": target})
        return guarded.http("/login", body, **headers)

    response, _ = log_in(f" {token}\n")
    assert (response.status, response.headers["Location"]) == (303, "/models")
    cookie = response.headers["Set-Cookie"]
    parts = {part.strip().lower() for part in cookie.split(";")}
    assert {"httponly", "samesite=strict", "secure", "path=/"} <= parts
    pair = cookie.partition(";")[0]
    response, text = guarded.http("/", Cookie=pair)
    assert response.status == 200
    assert "token:ada" in text
    assert token not in text
    for target in ("//evil.example", "https://evil.example", "/\\evil.example", "x", "/a\nb"):
        assert log_in(token, target)[0].headers["Location"] == "/"
    response, text = log_in(token + "x")
    assert response.status == 401
    assert token not in text
    assert log_in(token, Origin="https://evil.example")[0].status == 403
    assert log_in(token, Sec_Fetch_Site="cross-site")[0].status == 403
    assert guarded.http("/login", "x" * 40_000)[0].status == 413
    response, _ = guarded.http("/logout", "", Cookie=pair)
    assert re.search(r'onnx_audit_token="";.*Max-Age=0', response.headers["Set-Cookie"])


def test_the_form_has_the_headers_of_other_pages(guarded: Guarded) -> None:
    """No script, style or frame of others; what the form was opened for is text."""
    response, text = guarded.http("/login?next=/%22%3E%3Cscript%3Ealert(1)%3C/script%3E")
    policy = response.headers["Content-Security-Policy"]
    assert "unsafe-inline" not in policy
    assert {"frame-ancestors 'none'", "form-action 'self'"} <= set(policy.split("; "))
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "same-origin"
    assert response.headers["Cache-Control"] == "no-store"
    assert "<script>alert" not in text


def served_serial(address: str, authority: Path) -> int:
    """Serial number of the certificate that a port shows now."""
    context = ssl.create_default_context(cafile=str(authority))
    context.set_alpn_protocols(["h2", "http/1.1"])
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=30) as raw,
        context.wrap_socket(raw, server_hostname=host) as connection,
    ):
        certificate = connection.getpeercert()
        assert certificate is not None
        return int(str(certificate["serialNumber"]), 16)


def test_certificates_change_on_disk(guarded: Guarded, submitter: str) -> None:
    """New connections get the new one on both ports; those that are open stay."""
    addresses = guarded.process.addresses
    with guarded.client(submitter) as client:
        list(client.models())
        before = guarded.own.serial
        assert guarded.authority.issue("server").serial != before
        for port in ("grpc", "http"):
            shown = served_serial(addresses[port], guarded.authority.file)
            assert shown == guarded.own.serial, port
        list(client.models())
    with guarded.client(submitter) as client:
        list(client.models())
    stranger = Client(guarded.process.target, tls=True, token=submitter, retries=ONCE)
    with stranger, pytest.raises(Unavailable):  # not an authority that everybody trusts
        list(stranger.models())


def test_no_secret_is_left_behind(guarded: Guarded, submitter: str, audit: v1.Audit) -> None:
    """Not in the log, the metrics, the report, the data folder, nor where other users can look."""
    assert audit.state == v1.AUDIT_STATE_SUCCEEDED
    jwt = guarded.provider.token()
    with guarded.client(jwt) as client:
        report = client.report(audit)
        client.get_audit(audit)
    bearer = f"Bearer {submitter}"
    places = {
        "log": guarded.process.log,
        "metrics": guarded.http("/metrics", Authorization=bearer)[1],
        "page": guarded.http("/audits/" + audit.name.partition("/")[2], Authorization=bearer)[1],
        "report": str(report),
    }
    for path in guarded.process.data.rglob("*"):
        if path.is_file():
            places[path.name] = path.read_bytes().decode("latin-1")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().decode("latin-1")
            if "onnx_audit_server" in command:
                places[f"arguments of {process.name}"] = command
    assert any(name.startswith("arguments") for name in places)
    secrets = [submitter.split("_", 2)[2], jwt.rpartition(".")[2]]
    found = {name for name, text in places.items() for secret in secrets if secret in text}
    assert not found


def test_an_address_that_guesses_is_held_up(guarded: Guarded, submitter: str) -> None:
    """It is told when to try again; whoever was let in from there before goes on."""
    with guarded.client(submitter) as client, guarded.client("oat_wrong") as guesser:
        client.get_audit(next(client.audits()))
        for _ in range(500):
            with pytest.raises((Unauthenticated, ResourceExhausted)) as caught:
                guesser.get_audit(MISSING)
            if isinstance(caught.value, ResourceExhausted):
                break
        assert caught.value.reason == "QUOTA_EXCEEDED"
        assert caught.value.metadata["setting"] == "quota_refusals"
        assert caught.value.retry_delay is not None
        assert 0 < caught.value.retry_delay < 1
        client.get_audit(next(client.audits()))
