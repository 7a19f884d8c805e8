"""How a client says who it is, and what it refuses to send."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Any

import click
import grpc
import pytest
from click.testing import CliRunner
from tests.client.clients import open_client
from tests.client.fake_service import FakeService, rich_status, serving

from onnx_audit import RetryPolicy, errors, v1
from onnx_audit.cli.access import VARIABLE
from onnx_audit.cli.app import cli
from onnx_audit.cli.options import connection_options
from onnx_audit.connection import Connection, token_file
from onnx_audit.embedded import EmbeddedService
from onnx_audit.errors import ConfigError

TOKEN = "oat_0123456789ab_" + "x" * 43


@pytest.mark.parametrize(
    ("target", "options", "encrypted"),
    [
        ("h:1", {}, False),
        ("https://h:1", {}, True),
        ("https://h:1/", {"token": TOKEN}, True),
        ("h:1", {"tls": True, "token": TOKEN}, True),
        ("h:1", {"ca": "x", "token": TOKEN}, True),
        ("h:1", {"certificate": "x", "key": "y"}, True),
        ("http://h:1", {"token": TOKEN}, False),
        ("127.0.0.1:1", {"token": TOKEN}, False),
        ("[::1]:1", {"token": TOKEN}, False),
        ("localhost:1", {"token": TOKEN}, False),
        ("unix:/run/x", {"token": TOKEN}, False),
    ],
)
def test_ways_to_a_service(target: str, options: dict[str, Any], encrypted: bool) -> None:
    """TLS where anything asks for it; the address is what gRPC takes."""
    connection = Connection(target, **options)
    assert connection.encrypted == encrypted
    assert "//" not in connection.address
    assert TOKEN not in repr(connection)


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("h:1", {"token": TOKEN}, "everybody on the way"),
        ("10.0.0.1:1", {"token": TOKEN}, "https://10.0.0.1:1"),
        ("127.0.0.1.evil.org:1", {"token": TOKEN}, "everybody on the way"),
        ("http://h:1", {"tls": True}, "asks for no TLS"),
        ("http://h:1", {"ca": "x"}, "asks for no TLS"),
        ("h:1", {"certificate": "x"}, "go together"),
        ("h:1", {"key": "x"}, "go together"),
    ],
)
def test_what_is_never_sent(target: str, options: dict[str, Any], words: str) -> None:
    """Contradictions, and tokens that others could read."""
    with pytest.raises(ConfigError, match=words) as caught:
        Connection(target, **options)
    assert TOKEN not in str(caught.value)


def test_tokens_that_cannot_be_are_refused(tmp_path: Path) -> None:
    """Before they end up in a header; a file that has changed is read anew."""
    for wrong in ("", " ", "a b", "a\nb", "ü", "a\x00"):
        with pytest.raises(ConfigError, match="the token is empty"):
            _ = Connection("localhost:1", token=wrong).metadata
    file = tmp_path / "token"
    connection = Connection("localhost:1", token=token_file(file))
    with pytest.raises(ConfigError, match="cannot read the token"):
        _ = connection.metadata
    for content in ("first\n", "second"):
        file.write_text(content)
        assert connection.metadata == (("authorization", f"Bearer {content.strip()}"),)
    with pytest.raises(ConfigError, match="cannot read"):
        _ = Connection("h:1", ca=tmp_path / "none").credentials


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_answer_says_how_long_to_wait(kind: str) -> None:
    """A wait within the patience is kept to, a longer one is not begun."""

    def full(seconds: float) -> Any:
        code = grpc.StatusCode.RESOURCE_EXHAUSTED
        return rich_status(code, "full", reason="QUOTA_EXCEEDED", retry_seconds=seconds)

    service = FakeService()
    with serving(service) as target:
        policy = RetryPolicy(attempts=3, initial_delay=0.001, patience=0.5)
        client = open_client(kind, target, retries=policy, token=TOKEN)
        service.audits["audits/1"] = v1.Audit(name="audits/1")
        service.faults["GetAudit"] = [full(0.05), full(0.05)]
        assert client.get_audit("1").name == "audits/1"
        assert service.calls == ["GetAudit"] * 3
        service.faults["GetAudit"] = [full(0.6)]
        with pytest.raises(errors.ResourceExhausted) as caught:
            client.get_audit("1")
        assert caught.value.retry_delay == 0.6
        client.close()


def taken(*arguments: str, **environment: str) -> Any:
    """The connection that a command gets."""
    found: list[Any] = []

    @click.command()
    @connection_options
    def command(*, connection: Any) -> None:
        found.append(connection)

    result = CliRunner().invoke(command, arguments, env=environment)
    assert result.exit_code == 0, result.output
    return found[0]


def test_the_command_line_takes_tokens_from_files_and_the_environment(tmp_path: Path) -> None:
    """The file counts for more; without --server nothing of it is used."""
    file = tmp_path / "token"
    file.write_text("of the file")
    at, variable = ("--server", "localhost:1"), {VARIABLE: TOKEN}
    assert taken(*at, **variable).access["token"] == TOKEN
    assert taken(*at).access["token"] is None
    for arguments, more in (
        (("--token-file", str(file)), {}),
        ((), {"ONNX_AUDIT_TOKEN_FILE": str(file)}),
    ):
        read = taken(*at, *arguments, **variable, **more).access["token"]
        assert read() == "of the file"
    assert taken(**variable).access == {}
    assert TOKEN not in repr(taken(*at, **variable))


def test_no_option_takes_a_secret() -> None:
    """What stands on the command line can be read by others."""
    help_text = CliRunner().invoke(cli, ["run", "--help"]).output
    assert "--token-file" in help_text
    assert "--token " not in help_text


def test_a_service_of_one_s_own_gets_no_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings for a service elsewhere do not reach it, and do not keep it from starting."""
    seen = tmp_path / "environment"
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nenv > {seen}\nexit 1\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(python))
    for name in ("TOKEN", "AUTH", "TLS_CERT", "OIDC_ISSUER", "DEVICE"):
        monkeypatch.setenv(f"ONNX_AUDIT_{name}", "given")
    with pytest.raises(errors.OnnxAuditError, match="ended with status 1"):
        EmbeddedService(tmp_path / "data").__enter__()
    ours = [line for line in seen.read_text().splitlines() if line.startswith("ONNX_AUDIT_")]
    assert ours == ["ONNX_AUDIT_DEVICE=given"]
