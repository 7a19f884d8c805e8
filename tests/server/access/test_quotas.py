"""Quotas: how many get through, counted by hand beside the service's own counting."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from tests.server.postgres import postgres

from onnx_audit import v1
from onnx_audit_server.access.identity import ANONYMOUS, Principal, Scope
from onnx_audit_server.access.ledger import STEP, Ledger, Reservation
from onnx_audit_server.access.quotas import BURST, ProcessQuotas, TokenBucket
from onnx_audit_server.errors import ServiceError
from onnx_audit_server.settings import Settings
from onnx_audit_server.store.database import connect, migrate
from onnx_audit_server.store.records import Records
from onnx_audit_server.store.tables import uploads

ADA, BOB = (Principal.with_scopes(name, [Scope.SUBMIT]) for name in ("token:ada", "token:bob"))


def refused(function: Callable[[], object]) -> dict[str, str] | None:
    """What the refusal of a call says for machines, None where it was let through."""
    refusal = None
    try:
        function()
    except ServiceError as error:
        refusal = error
    if refusal is None:
        return None
    assert refusal.reason == "QUOTA_EXCEEDED"
    assert refusal.retry_after is not None
    assert refusal.retry_after > 0
    return refusal.metadata


@given(
    rate=st.floats(0.5, 50),
    pauses=st.lists(st.floats(0, 2), min_size=1, max_size=60),
)
def test_a_bucket_never_lets_through_more_than_it_should(rate: float, pauses: list[float]) -> None:
    """In no stretch of time more than the burst and what the stretch earns; and no less."""
    moment, passed = [0.0], []
    bucket = TokenBucket(rate, lambda: moment[0])
    burst = max(1.0, rate * BURST)
    for pause in pauses:
        moment[0] += pause
        wait = bucket.wait()
        if not wait:
            bucket.take()
            passed.append(moment[0])
            continue
        # Who waits as long as told gets through.
        moment[0] += wait * (1 + 1e-9) + 1e-9
        assert bucket.wait() == 0
        bucket.take()
        passed.append(moment[0])
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            earned = burst + rate * (passed[last] - passed[first])
            assert last - first + 1 <= earned + 1e-6


def test_calls_are_counted_for_each_and_for_all() -> None:
    """A call that one limit refuses uses up nothing of the other."""
    moment = [0.0]
    settings = Settings(quota_requests=2, quota_requests_total=3)
    quotas = ProcessQuotas(settings, lambda: moment[0])
    answers = [refused(lambda: quotas.count_call(ADA)) for _ in range(10)]
    assert [answer is None for answer in answers] == [True] * 4 + [False] * 6
    assert answers[-1] is not None
    assert (answers[-1]["quota"], answers[-1]["scope"]) == ("requests", "principal")
    assert [refused(lambda: quotas.count_call(BOB)) is None for _ in range(3)] == [
        True,
        True,
        False,
    ]
    last = refused(lambda: quotas.count_call(BOB))
    assert last is not None
    assert (last["scope"], last["setting"]) == ("total", "quota_requests_total")
    moment[0] += 1 / 3 + 1e-9
    assert refused(lambda: quotas.count_call(BOB)) is None


def test_without_authentication_there_is_one_limit() -> None:
    """Callers that are not told apart share the limit of all."""
    settings = Settings(quota_requests=1, quota_requests_total=5, quota_uploads=1)
    quotas = ProcessQuotas(settings, lambda: 0.0)
    passed = [refused(lambda: quotas.count_call(ANONYMOUS)) is None for _ in range(20)]
    assert sum(passed) == 5 * BURST
    with quotas.upload(ANONYMOUS), quotas.upload(ANONYMOUS):
        pass


def test_uploads_at_once() -> None:
    """One that ends, well or badly, makes room."""
    quotas = ProcessQuotas(Settings(quota_uploads=2, quota_uploads_total=3))

    def fail() -> None:
        with quotas.upload(ADA):
            raise OSError("the client has gone")

    def enter(principal: Principal) -> dict[str, str] | None:
        return refused(lambda: held.enter_context(quotas.upload(principal)))

    with ExitStack() as held:
        assert [enter(ADA), enter(ADA)] == [None, None]
        third = enter(ADA)
        assert third is not None
        assert (third["scope"], third["limit"], third["used"]) == ("principal", "2", "2")
        assert enter(BOB) is None
        fourth = enter(BOB)
        assert fourth is not None
        assert fourth["scope"] == "total"
    for _ in range(5):
        with pytest.raises(OSError, match="has gone"):
            fail()
    assert refused(lambda: quotas.upload(ADA).__enter__()) is None


def engine_of(url: str) -> sa.Engine:
    """A database with the tables."""
    engine = connect(url)
    migrate(engine)
    return engine


def race(function: Callable[[int], object], count: int) -> list[dict[str, str] | None]:
    """Calls a function from many threads at the same moment; says who was refused."""
    start = threading.Barrier(count)

    def one(number: int) -> dict[str, str] | None:
        start.wait()
        return refused(lambda: function(number))

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def start_audit(engine: sa.Engine, ledger: Ledger, identifier: str, principal: Principal) -> None:
    """Accepts an audit as the API does."""
    audit = v1.Audit(
        name=f"audits/{identifier}", state=v1.AUDIT_STATE_QUEUED, principal=principal.name
    )
    Records(engine).create_audit(
        audit, "", identifier, lambda connection: ledger.admit_audit(connection, principal)
    )


def check_two_servers(url: str) -> None:
    """Two servers on one database, at the same moment: exactly what is allowed gets through."""
    settings = Settings(
        quota_audits=5, quota_audits_total=7, quota_bytes=100, quota_bytes_total=120
    )
    engines = [engine_of(url), connect(url)]
    ledgers = [Ledger(settings, engine) for engine in engines]

    def start(number: int, principal: Principal) -> None:
        side = number % 2
        start_audit(engines[side], ledgers[side], f"{principal.name}-{number}", principal)

    def put(number: int, principal: Principal) -> None:
        ledgers[number % 2].reserve(f"{principal.name}{number}"[-64:], principal, 10)

    answers = race(lambda number: start(number, ADA), 12)
    assert answers.count(None) == 5
    assert {answer["scope"] for answer in answers if answer} == {"principal"}
    answers = race(lambda number: start(number, BOB), 6)
    assert answers.count(None) == 2
    assert {answer["scope"] for answer in answers if answer} == {"total"}
    states = [audit.state for audit in Records(engines[0]).list_audits(50, None)[0]]
    assert states == [v1.AUDIT_STATE_QUEUED] * 7

    def end(audit: v1.Audit) -> list[v1.AuditEvent]:
        audit.state = v1.AUDIT_STATE_CANCELLED
        return []

    (done, *_), _ = Records(engines[0]).list_audits(50, None)
    Records(engines[0]).update_audit(done.name.partition("/")[2], end)
    assert refused(lambda: start(100, BOB)) is None
    assert race(lambda number: put(number, ADA), 14).count(None) == 10
    assert race(lambda number: put(number, BOB), 5).count(None) == 2
    with engines[1].begin() as connection:
        assert connection.execute(sa.select(sa.func.sum(uploads.c.size_bytes))).scalar() == 120
    for engine in engines:
        engine.dispose()


def test_two_servers_count_together(tmp_path: Path) -> None:
    """On SQLite."""
    check_two_servers(f"sqlite:///{tmp_path / 'records.sqlite'}")


def test_two_servers_count_together_on_postgresql() -> None:
    """On PostgreSQL, where transactions run beside each other."""
    with postgres() as url:
        check_two_servers(url)


def test_an_upload_is_counted_ahead_and_settled(tmp_path: Path) -> None:
    """Few transactions while it grows, and its true size in the end; the last bytes fit too."""
    engine = engine_of(f"sqlite:///{tmp_path / 'records.sqlite'}")
    limit = 3 * STEP
    ledger = Ledger(Settings(quota_bytes=limit), engine)

    def counted() -> int:
        with engine.begin() as connection:
            total = sa.func.coalesce(sa.func.sum(uploads.c.size_bytes), 0)
            return int(connection.execute(sa.select(total)).scalar_one())

    reservation, chunk, transactions = Reservation(ledger, "a" * 64, ADA), 1 << 20, 0
    for size in range(chunk, STEP + 1, chunk):
        if reservation.needs(size):
            reservation.grow(size, last=False)
            transactions += 1
        assert counted() >= size
    assert transactions == 1
    reservation.settle(STEP)
    assert counted() == STEP
    # Nearly full: there is no room for the step ahead, but for what comes.
    other = Reservation(ledger, "b" * 64, ADA)
    other.grow(2 * STEP - 1, last=False)
    assert refused(lambda: other.grow(2 * STEP + 1, last=False)) is not None
    other.grow(2 * STEP, last=True)
    assert counted() == limit
    assert refused(lambda: Reservation(ledger, "c" * 64, ADA).grow(0, last=True)) is None
    assert refused(lambda: Reservation(ledger, "c" * 64, ADA).grow(1, last=True)) is not None
    # Nothing of it is kept, and nothing comes back when the call ends.
    other.drop()
    other.settle(2 * STEP - 1)
    ledger.forget(["c" * 64])
    assert counted() == STEP
    # Somebody else brings the rest of what the first has begun, and answers for it from then on.
    Reservation(ledger, "a" * 64, BOB).grow(STEP, last=True)
    assert refused(lambda: Reservation(ledger, "d" * 64, ADA).grow(limit, last=True)) is None
    engine.dispose()
