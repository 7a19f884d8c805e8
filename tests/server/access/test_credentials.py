"""Who is recognised by what, without a server: tokens, JWTs, certificates, addresses, secrets."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import hmac
import json
import threading
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.server.access.credentials import AUDIENCE, ISSUER, Authority, Provider

from onnx_audit_server import main
from onnx_audit_server.access import methods, oidc
from onnx_audit_server.access.certificates import (
    CertificateError,
    CertificateFiles,
    certificate_principal,
    peer_name,
)
from onnx_audit_server.access.exposure import ExposedError, check_exposure
from onnx_audit_server.access.guard import Guard
from onnx_audit_server.access.identity import (
    ANONYMOUS,
    InvalidTokenError,
    Principal,
    Scope,
)
from onnx_audit_server.access.oidc import Keys, OidcVerifier
from onnx_audit_server.access.tokens import Tokens
from onnx_audit_server.errors import ServiceError
from onnx_audit_server.redact import redact
from onnx_audit_server.service import SERVICES
from onnx_audit_server.settings import Settings
from onnx_audit_server.store.database import connect, migrate

OIDC = {"oidc_issuer": ISSUER, "oidc_audience": AUDIENCE}
HOUR = 3600.0


@pytest.fixture(scope="module")
def provider() -> Provider:
    """An identity provider."""
    return Provider()


@pytest.fixture
def verifier(provider: Provider) -> OidcVerifier:
    """Knows the provider's keys."""
    return OidcVerifier(Settings(**OIDC), Keys(lambda: provider.key_set))  # type: ignore[arg-type]


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    """An empty table of tokens."""
    engine = connect(f"sqlite:///{tmp_path / 'records.sqlite'}")
    migrate(engine)
    return Tokens(engine)


def test_every_method_has_a_scope() -> None:
    """The table names the methods that exist, and no others."""
    reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    existing = {method for names in SERVICES.values() for method in names} | {reflection}
    assert set(methods.SCOPES) == existing
    assert methods.needed("/grpc.health.v1.Health/Watch") is None
    assert methods.needed("/onnx_audit.v1.AuditService/Forgotten") == Scope.ADMIN


def test_scopes_include_lesser_ones() -> None:
    """Admin is everything, submit can follow what it submits, read is itself."""
    sizes = {scope: len(Principal.with_scopes("x", [scope]).scopes) for scope in Scope}
    assert sizes == {Scope.READ: 1, Scope.SUBMIT: 2, Scope.ADMIN: 3}
    assert Principal.with_scopes("x", []).scopes == frozenset()
    assert ANONYMOUS.scopes == frozenset(Scope)


def test_a_token_is_kept_as_its_digest(tokens: Tokens, tmp_path: Path) -> None:
    """It is recognised whole and unchanged only, and the database file does not hold its secret."""
    token = tokens.create("ci", (Scope.SUBMIT,), HOUR)
    assert token.startswith("oat_")
    info = tokens.find(token)
    assert info is not None
    assert info.principal == Principal("token:ci", frozenset({Scope.READ, Scope.SUBMIT}))
    last = "A" if token[-1] != "A" else "B"
    for wrong in (token[:-1], token + "x", token[:-1] + last, token.upper(), "", "oat_"):
        assert tokens.find(wrong) is None
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert token.split("_", 2)[2].encode() not in stored
    assert hashlib.sha256(token.encode()).hexdigest().encode() in stored


def test_tokens_end_and_are_revoked(tokens: Tokens) -> None:
    """The state is found with the token, so that its bearer can be told."""
    old, gone = tokens.create("a", (Scope.READ,), 1e-6), tokens.create("b", (Scope.READ,), None)
    live = tokens.create("b", (Scope.READ,), None)
    found = tokens.find(gone)
    assert found is not None
    assert tokens.revoke(found.identifier) is not None
    first = tokens.list()[1].revoked_us
    tokens.revoke(found.identifier)
    assert tokens.list()[1].revoked_us == first
    assert tokens.revoke("0" * 12) is None
    states = [info.state for token in (old, gone, live) if (info := tokens.find(token))]
    assert states == ["expired", "revoked", "active"]


@pytest.mark.parametrize("name", ["", "a b", "-a", "x" * 101, "a\n", "<b>", "ü"])
def test_names_of_tokens_are_plain(tokens: Tokens, name: str) -> None:
    """A name goes into logs and pages."""
    with pytest.raises(ValueError, match="no name for a token"):
        tokens.create(name, (Scope.READ,), None)


def test_the_command_makes_lists_and_revokes(tmp_path: Path) -> None:
    """The token alone is on standard output; the list has no secrets."""
    runner, data = CliRunner(), ("--data", str(tmp_path))

    def invoke(*arguments: str) -> Any:
        return runner.invoke(main.main, ["tokens", *arguments, *data])

    made = invoke("create", "ci", "--scope", "submit", "--expires", "12h")
    assert made.exit_code == 0, made.output
    token = made.stdout.strip()
    (entry,) = json.loads(invoke("list", "--json").stdout)
    assert (entry["name"], entry["scopes"], entry["state"]) == ("ci", ["submit"], "active")
    assert entry["id"] == token.split("_")[1]
    lasts = [datetime.datetime.fromisoformat(entry[name]) for name in ("created", "expires")]
    assert lasts[1] - lasts[0] == datetime.timedelta(hours=12)
    listed = invoke("list").stdout
    assert "ci" in listed
    assert token.split("_", 2)[2] not in listed
    assert invoke("revoke", entry["id"]).exit_code == 0
    assert json.loads(invoke("list", "--json").stdout)[0]["state"] == "revoked"
    assert invoke("revoke", "nothing").exit_code == 2
    assert invoke("create", "a b").exit_code == 2
    assert invoke("create", "a", "--expires", "soon").exit_code == 2
    assert invoke("create", "a", "--scope", "all").exit_code == 2


def test_a_password_is_no_argument() -> None:
    """Everybody on a machine may list processes with their arguments."""
    url = "postgresql+psycopg://audit:secret@db/audit"
    for command in (("serve",), ("worker",), ("tokens", "list"), ("migrate",), ("gc",)):
        result = CliRunner().invoke(main.main, [*command, "--database-url", url])
        assert result.exit_code == 2
        assert "ONNX_AUDIT_DATABASE_URL" in result.output
        assert "secret" not in result.output


def test_a_provider_s_token_is_accepted(provider: Provider, verifier: OidcVerifier) -> None:
    """The principal is its subject, the scopes are those of the claim that the table knows."""
    both = frozenset({Scope.READ, Scope.SUBMIT})
    assert verifier.verify(provider.token()) == Principal("oidc:repo:acme/models", both)
    other = provider.token(key=provider.ec, algorithm="ES256", kid="ec", aud=["x", AUDIENCE])
    assert verifier.verify(other).scopes == both
    claim: object
    for claim in (["onnx-audit:submit", 3], "onnx-audit:submit"):
        assert verifier.verify(provider.token(scope=claim)).scopes == both
    for claim in ("submit admin", 7, None, {"onnx-audit:admin": 1}):
        assert verifier.verify(provider.token(scope=claim)).scopes == frozenset()


def _public(provider: Provider) -> bytes:
    return provider.rsa.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _hmac_of_public_key(provider: Provider) -> str:
    """The forgery that mixes up kinds of keys; PyJWT would not sign with such a secret."""
    parts = provider.token().split(".")
    header = {"alg": "HS256", "typ": "JWT", "kid": "rsa"}
    signed = f"{jwt.utils.base64url_encode(json.dumps(header).encode()).decode()}.{parts[1]}"
    tag = hmac.digest(_public(provider), signed.encode(), "sha256")
    return f"{signed}.{jwt.utils.base64url_encode(tag).decode()}"


def _ago(seconds: float) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)


FORGED: dict[str, tuple[Callable[[Provider], str], str]] = {
    "expired": (lambda p: p.token(exp=_ago(60)), "has expired"),
    "not yet": (lambda p: p.token(nbf=_ago(-90)), "not valid yet"),
    "issuer": (lambda p: p.token(iss=ISSUER + "/"), "issuer"),
    "audience": (lambda p: p.token(aud="other"), "another audience"),
    "no audience": (lambda p: p.token(without="aud"), "lacks"),
    "no expiry": (lambda p: p.token(without="exp"), "lacks"),
    "no subject": (lambda p: p.token(without="sub"), "lacks"),
    "empty subject": (lambda p: p.token(sub=""), "subject"),
    "long subject": (lambda p: p.token(sub="x" * 201), "subject"),
    "control characters": (lambda p: p.token(sub="a\nb"), "subject"),
    "unsigned": (lambda p: p.token(key="", algorithm="none"), "algorithm"),
    "own secret": (lambda p: p.token(key="x" * 32, algorithm="HS256"), "algorithm"),
    "public key as secret": (_hmac_of_public_key, "algorithm"),
    "not in the list": (lambda p: p.token(algorithm="RS512"), "algorithm"),
    "key of another kind": (
        lambda p: p.token(key=p.ec, algorithm="ES256", kid="rsa"),
        "not that of the key",
    ),
    "other key": (
        lambda p: p.token(key=rsa.generate_private_key(public_exponent=65537, key_size=2048)),
        "signature",
    ),
    "unknown key": (lambda p: p.token(kid="gone"), "does not have"),
    "encryption key": (lambda p: p.token(kid="encryption"), "does not have"),
    "shared key": (lambda p: p.token(kid="shared"), "does not have"),
    "no token": (lambda _: "a.b.c", "malformed"),
    # 341 characters of the signature are left: no bytes are written in four times some and one.
    "cut": (lambda p: p.token()[:-1], "malformed"),
    "cut elsewhere": (lambda p: p.token()[:-4], "malformed|signature"),
}


@pytest.mark.parametrize("case", FORGED)
def test_other_tokens_are_not(provider: Provider, verifier: OidcVerifier, case: str) -> None:
    """Each with a reason that holds nothing of the token."""
    make, words = FORGED[case]
    token = make(provider)
    with pytest.raises(InvalidTokenError, match=words) as caught:
        verifier.verify(token)
    assert not any(part in str(caught.value) for part in token.split(".") if len(part) > 3)


def test_clocks_may_differ_a_little(provider: Provider, verifier: OidcVerifier) -> None:
    """By the leeway of the settings, 30 seconds."""
    assert verifier.verify(provider.token(exp=_ago(20), nbf=_ago(-20)))


def test_keys_are_fetched_when_needed_and_not_more(provider: Provider) -> None:
    """A new key is found at once after a pause, unknown ones cause one fetch per pause at most."""
    moment, fetched, whole = [0.0], [0], [{"keys": provider.key_set["keys"][:1]}]

    def load() -> dict[str, Any]:
        fetched[0] += 1
        return whole[0]

    keys = Keys(load, lambda: moment[0])
    assert [keys.find("rsa").key_id for _ in range(5)] == ["rsa"] * 5
    assert fetched == [1]
    whole[0] = provider.key_set
    for _ in range(50):
        with pytest.raises(InvalidTokenError):
            keys.find("ec")
    assert fetched == [1]
    moment[0] += oidc.PAUSE
    assert keys.find("ec").key_id == "ec"
    assert fetched == [2]
    # The provider withdraws a key: it is good for LIFESPAN at most.
    whole[0] = {"keys": provider.key_set["keys"][1:]}
    moment[0] += oidc.LIFESPAN
    with pytest.raises(InvalidTokenError):
        keys.find("rsa")


def test_a_slow_provider_holds_up_nobody_whose_key_is_known(provider: Provider) -> None:
    """One caller asks anew; the others go on with what they have."""
    moment, asked, answer = [0.0], threading.Event(), threading.Event()

    def load() -> dict[str, Any]:
        if moment[0]:
            asked.set()
            assert answer.wait(60)
        return provider.key_set

    keys = Keys(load, lambda: moment[0])
    assert keys.find("rsa")
    moment[0] += oidc.LIFESPAN
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(keys.find, "rsa")
        assert asked.wait(60)
        assert keys.find("ec").key_id == "ec"
        assert not waiting.done()
        answer.set()
        assert waiting.result(60).key_id == "rsa"


def test_known_keys_outlast_a_provider_that_is_away(provider: Provider) -> None:
    """A fault of the provider locks nobody out whose key is known."""
    moment, answers = [0.0], [provider.key_set]

    def load() -> dict[str, Any]:
        return answers.pop()  # IndexError is not what a provider raises, OSError is

    def away() -> dict[str, Any]:
        try:
            return load()
        except IndexError:
            raise ConnectionRefusedError from None

    keys = Keys(away, lambda: moment[0])
    assert keys.find("rsa")
    moment[0] += oidc.LIFESPAN
    assert keys.find("rsa")


def test_keys_come_from_a_file_or_a_safe_address(provider: Provider, tmp_path: Path) -> None:
    """What anybody on the way could replace is refused."""
    file = tmp_path / "keys.json"
    file.write_text(json.dumps(provider.key_set))
    settings = Settings(**OIDC, oidc_jwks=str(file))  # type: ignore[arg-type]
    assert OidcVerifier(settings).verify(provider.token()).name == "oidc:repo:acme/models"
    for url in ("http://issuer.example.org/keys", "ftp://x/keys", "file:///etc/passwd"):
        with pytest.raises(ValueError, match="must be an https URL"):
            oidc.check_url(url)
    oidc.check_url("https://issuer.example.org/keys")
    oidc.check_url("http://127.0.0.1:8080/keys")


@pytest.mark.parametrize(
    "wrong",
    [
        {"oidc_issuer": ISSUER},
        {**OIDC, "oidc_algorithms": ["HS256"]},
        {**OIDC, "oidc_algorithms": ["none"]},
        {**OIDC, "oidc_algorithms": []},
        {"tls_cert": "x.pem"},
        {"http_tls": True},
        {"tls_client_ca": "x.pem"},
    ],
)
def test_settings_that_would_not_protect_are_refused(wrong: dict[str, Any]) -> None:
    """Half a configuration is none."""
    with pytest.raises(ValidationError):
        Settings(**wrong)


def test_whom_a_certificate_names(tmp_path: Path) -> None:
    """A URI before a DNS name before the common name; scopes by pattern, all that match."""
    authority = Authority(tmp_path)
    made = {
        "spiffe://example.org/ci": authority.issue("a", "x", "spiffe://example.org/ci", "ci.org"),
        "ci.org": authority.issue("b", "x", dns="ci.org"),
        "ci": authority.issue("c", "ci"),
    }
    for name, certificate in made.items():
        assert peer_name({"x509_pem_cert": [certificate.certificate.read_bytes()]}) == name
    assert peer_name({}) is None
    endless = authority.issue("d", dns="x" * 201).certificate.read_bytes()
    assert peer_name({"x509_pem_cert": [endless]}) is None
    table = {"ci.*": (Scope.SUBMIT,), "*.org": (Scope.READ,), "boss": (Scope.ADMIN,)}
    assert certificate_principal("ci.org", table).scopes == {Scope.READ, Scope.SUBMIT}
    assert certificate_principal("boss.net", table) == Principal("cert:boss.net", frozenset())


def test_files_of_tls_are_checked_together(tmp_path: Path) -> None:
    """A key of another certificate is refused at start, and passed over when it comes later."""
    authority = Authority(tmp_path)
    one, two = authority.issue("one"), authority.issue("two")
    wrong = Settings(tls_cert=one.certificate, tls_key=two.key)
    with pytest.raises(CertificateError, match="is not the key of"):
        CertificateFiles(wrong)
    files = CertificateFiles(Settings(tls_cert=one.certificate, tls_key=one.key))
    before = files.content
    one.key.write_bytes(two.key.read_bytes())
    files.refresh()
    assert files.content is before
    one.certificate.write_bytes(two.certificate.read_bytes())
    files.refresh()
    assert files.content[:2] == (two.certificate.read_bytes(), two.key.read_bytes())


OPEN: list[tuple[dict[str, Any], bool]] = [
    ({"listen": "0.0.0.0:1"}, True),
    ({"listen": "[::]:1"}, True),
    ({"listen": ":1"}, True),
    ({"listen": "audits.example.org:1"}, True),
    ({"http": "10.0.0.1:1"}, True),
    ({"http": "0.0.0.0:1"}, False),  # a worker's metrics
]


@pytest.mark.parametrize(("settings", "api"), OPEN)
def test_nobody_is_served_by_accident(settings: dict[str, Any], api: bool) -> None:
    """Other machines' reach needs a way to ask who they are, or an explicit word."""
    with pytest.raises(ExposedError, match="--auth"):
        check_exposure(Settings(**settings), api=api)
    for way in ({"auth": True}, {"insecure_no_auth": True}, OIDC):
        check_exposure(Settings(**settings, **way), api=api)
    if not api:
        check_exposure(Settings(**settings, metrics_open=True), api=False)


def test_this_machine_is_served_as_it_is() -> None:
    """The defaults, and other ways to stay here."""
    for settings in ({}, {"listen": "localhost:1"}, {"listen": "[::1]:1"}, {"listen": "unix:/x"}):
        check_exposure(Settings(**settings), api=True)  # type: ignore[arg-type]


def test_permission_needs_a_recognised_caller(tmp_path: Path) -> None:
    """What the guard answers to each kind of credentials, in words that hold no secret."""
    engine = connect(f"sqlite:///{tmp_path / 'records.sqlite'}")
    migrate(engine)
    token = Tokens(engine).create("ci", (Scope.READ,), None)
    guard = Guard(Settings(auth=True), engine)
    assert asyncio.run(guard.identify(f"bearer  {token}")).name == "token:ci"
    for header in ("", "Basic eDp5", f"Bearer {token}x", "Bearer", "Bearer a.b.c", "Bearer ü"):
        with pytest.raises(ServiceError) as caught:
            asyncio.run(guard.identify(header))
        assert caught.value.reason == "UNAUTHENTICATED"
        assert "ONNX_AUDIT_TOKEN" in str(caught.value)
        assert token not in str(caught.value)
    assert asyncio.run(Guard(Settings(), engine).identify("Bearer anything")) == ANONYMOUS


@given(
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1),
    st.text(min_size=3).map(lambda text: urllib.parse.quote(text, safe="!$&'()*+,;=")),
)
def test_passwords_of_urls_are_taken_out(user: str, password: str) -> None:
    """Whatever they are made of, quoted as URLs want it."""
    secret = f"{password}-end"
    line = redact(f'{{"error": "no way to postgresql+psycopg://{user}:{secret}@db:5432/audit"}}')
    assert f":{secret}@" not in line
    assert line.endswith('@db:5432/audit"}')


def test_tokens_are_taken_out(provider: Provider, tokens: Tokens) -> None:
    """What tells a token from others stays; text without secrets stays as it is."""
    token = tokens.create("ci", (Scope.READ,), None)
    assert redact(f"x {token}, y") == f"x oat_{token.split('_')[1]}_***, y"
    assert redact(f"Authorization: Bearer {provider.token()}") == "Authorization: Bearer ***"
    assert redact(f'"{provider.token()}"') == '"***"'
    for plain in ("at 12:30 a@b.org wrote", "https://x.org/a:b", "bearer of news", "s3://bucket/x"):
        assert redact(plain) == plain
