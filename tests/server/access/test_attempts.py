"""Credentials that are not accepted: how many an address may show."""

from __future__ import annotations

import http.client
from pathlib import Path
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.server.site import Site

from onnx_audit_server.access.attempts import BURST, Attempts, address_of
from onnx_audit_server.access.identity import Scope
from onnx_audit_server.access.tokens import Tokens
from onnx_audit_server.errors import ServiceError


@given(
    rate=st.floats(0.1, 20),
    pauses=st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=80),
)
def test_an_address_fails_no_more_often_than_it_may(
    rate: float, pauses: list[tuple[float, bool]]
) -> None:
    """Never more than the burst and what has been earned since; another address is not held up."""
    moment, failures = [0.0], 0
    attempts = Attempts(rate, lambda: moment[0])
    for pause, wait in pauses:
        moment[0] += pause
        try:
            attempts.check("10.0.0.1", "Bearer wrong")
        except ServiceError as error:
            if not wait:
                continue
            moment[0] += (error.retry_after or 0) * (1 + 1e-9) + 1e-9
            attempts.check("10.0.0.1", "Bearer wrong")
        attempts.failed("10.0.0.1", "Bearer wrong")
        failures += 1
        attempts.check("10.0.0.2", "Bearer wrong")
    assert failures <= max(1.0, rate * BURST) + rate * moment[0] + 1


def test_those_who_were_let_in_before_are_not_held_up() -> None:
    """Somebody behind the same address does not lock them out."""
    attempts = Attempts(1.0, lambda: 0.0)
    attempts.succeeded("Bearer good")
    for _ in range(int(BURST)):
        attempts.check("10.0.0.1", "Bearer wrong")
        attempts.failed("10.0.0.1", "Bearer wrong")
    for authorization in ("Bearer wrong", "Bearer new"):
        with pytest.raises(ServiceError, match="quota_refusals"):
            attempts.check("10.0.0.1", authorization)
    attempts.check("10.0.0.1", "Bearer good")
    attempts.failed("10.0.0.1", "Bearer good")
    with pytest.raises(ServiceError, match="quota_refusals"):
        attempts.check("10.0.0.1", "Bearer good")


def test_without_a_limit_nobody_is_held_up() -> None:
    """A rate of 0."""
    attempts = Attempts(0.0, lambda: 0.0)
    for _ in range(1000):
        attempts.check("10.0.0.1", "Bearer wrong")
        attempts.failed("10.0.0.1", "Bearer wrong")


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.7:50051", "192.0.2.7"),
        ("192.0.2.7", "192.0.2.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:443", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("ipv6:[::ffff:192.0.2.7]:443", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix:/run/audit.sock", "unix:/run/audit.sock"),
    ],
)
def test_what_stands_for_a_caller(peer: str, address: str) -> None:
    """Ports do not count, nor the half of an IPv6 address that its owner chooses."""
    assert address_of(peer) == address


def test_the_console_holds_guessers_up(tmp_path: Path) -> None:
    """Pages and the form answer 429 and say when to come again; a known browser goes on."""
    with Site(tmp_path, auth=True, quota_refusals=0.2) as site:
        tokens = Tokens(site.engine)
        good, new = (tokens.create(name, (Scope.READ,), None) for name in ("ada", "bob"))
        assert site.open("/models", Authorization=f"Bearer {good}").status == 200
        answers = [site.open("/models", Authorization="Bearer oat_x") for _ in range(8)]
        assert [answer.status for answer in answers] == [401] * 6 + [429] * 2
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 5
        form = log_in(site, new)
        assert form.status == 429
        assert int(form.headers["Retry-After"]) >= 1
        assert site.open("/models", Cookie=f"onnx_audit_token={good}").status == 200
        assert site.open("/healthz").status == 200


def log_in(site: Site, token: str) -> http.client.HTTPResponse:
    """Sends the form."""
    connection = http.client.HTTPConnection(site.address, timeout=60)
    connection.request("POST", "/login", urlencode({"token": token, "next": "/"}))
    response = connection.getresponse()
    response.read()
    connection.close()
    return response
