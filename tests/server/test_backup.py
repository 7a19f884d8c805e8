"""docs/backup.md, carried out: a copy of a service at work goes on elsewhere."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import obstore
import psycopg
import pytest
from obstore.store import LocalStore, ObjectStore, S3Store
from tests import models
from tests.server.postgres import program
from tests.service import ServiceProcess
from tests.stores import BUCKET, servers

from onnx_audit import Client, v1

pytestmark = pytest.mark.slow

QUICK = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=20))
LONG = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=1000))


@dataclass
class Place:
    """Where a service keeps its data, and how that is copied to another place.

    Attributes:
        original: The service that is copied.
        restored: The service that goes on.
        copy: What copies the database, then the blobs.
        restore: What puts both where the restored service looks for them.
    """

    original: ServiceProcess
    restored: ServiceProcess
    copy: tuple[Callable[[], object], Callable[[], object]]
    restore: tuple[Callable[[], object], Callable[[], object]]


@contextmanager
def folder_place(folder: Path) -> Iterator[Place]:
    """Database and blobs in the data folder."""
    kept, blobs = folder / "backup.sqlite", folder / "backup"
    old, new = folder / "data", folder / "new"
    new.mkdir()

    def copy() -> None:
        source = sqlite3.connect(old / "onnx-audit.sqlite")
        source.execute(f"VACUUM INTO '{kept}'")
        source.close()

    yield Place(
        ServiceProcess(old),
        ServiceProcess(new),
        (copy, lambda: shutil.copytree(old / "blobs", blobs)),
        (
            lambda: shutil.copy(kept, new / "onnx-audit.sqlite"),
            lambda: shutil.copytree(blobs, new / "blobs"),
        ),
    )


@contextmanager
def servers_place(folder: Path) -> Iterator[Place]:
    """Database and blobs of a PostgreSQL and an S3 server."""
    dump, restore = program("pg_dump"), program("pg_restore")
    kept, blobs = folder / "backup.dump", folder / "backup"
    with servers(folder) as stores:
        assert stores.postgres is not None
        url = stores.postgres.url
        plain = url.replace("+psycopg", "")
        new = plain.rpartition("/")[0] + "/new"
        there = (
            "--database-url",
            url.rpartition("/")[0] + "/new",
            "--blob-url",
            f"s3://{BUCKET}/new",
        )

        def copy() -> None:
            subprocess.run([dump, "--format=custom", f"--file={kept}", plain], check=True)

        def put_back() -> None:
            with psycopg.connect(plain, autocommit=True) as connection:
                connection.execute("CREATE DATABASE new")
            subprocess.run([restore, "--no-owner", f"--dbname={new}", kept], check=True)

        def bucket(prefix: str) -> ObjectStore:
            return S3Store(
                BUCKET,
                prefix=prefix,
                endpoint=stores.environment["AWS_ENDPOINT_URL"],
                access_key_id=stores.environment["AWS_ACCESS_KEY_ID"],
                secret_access_key=stores.environment["AWS_SECRET_ACCESS_KEY"],
                region=stores.environment["AWS_REGION"],
                client_options={"allow_http": True},
            )

        name = ("--worker-name", "one")
        yield Place(
            stores.process("one"),
            ServiceProcess(folder / "new", *there, *name, environment=stores.environment),
            (copy, lambda: sync(bucket("blobs"), LocalStore(blobs, mkdir=True))),
            (put_back, lambda: sync(LocalStore(blobs), bucket("new"))),
        )


def sync(source: ObjectStore, sink: ObjectStore) -> None:
    """Copies all objects, as `aws s3 sync` into an empty place."""
    for batch in obstore.list(source):
        for meta in batch:
            obstore.put(sink, meta["path"], obstore.get(source, meta["path"]).bytes())


def reports(client: Client, audits: list[v1.Audit]) -> list[str]:
    """Digests of the reports, once all have ended."""
    ended = [client.wait(audit) for audit in audits]
    for audit in ended:
        assert client.report(audit).digest == audit.report_digest
    return [audit.report_digest for audit in ended]


@pytest.mark.parametrize("make", [folder_place, servers_place])
def test_a_copy_of_a_service_at_work_goes_on_elsewhere(
    tmp_path: Path, make: Callable[[Path], AbstractContextManager[Place]]
) -> None:
    """Ended audits keep their reports, an unfinished one comes to the same one as the original."""
    with make(tmp_path) as place:
        with place.original, place.original.client(300) as client:
            model = client.upload_model(models.save(models.mlp(), tmp_path / "model.onnx"))
            probes = client.upload_probes(models.probes(64, 16))
            audits = [client.audit(model, probes, auditors=QUICK)]
            client.wait(audits[0])
            audits.append(client.audit(model, probes, auditors=LONG))
            for event in client.watch(audits[1]):
                if event.WhichOneof("event") == "shard_finished":
                    break
            for copy in place.copy:
                copy()
            unfinished = client.get_audit(audits[1]).state
            expected = reports(client, audits)
        assert unfinished == v1.AUDIT_STATE_RUNNING, "it ended before it was copied"
        for restore in place.restore:
            restore()
        with place.restored, place.restored.client(300) as client:
            assert reports(client, audits) == expected
            events = list(client.watch(audits[1]))
        finished = [each.shard_finished.shard for each in events if each.HasField("shard_finished")]
        assert len(finished) == len(set(finished)) == audits_shards(events)


def audits_shards(events: list[v1.AuditEvent]) -> int:
    """Number of shards of the plan."""
    return next(
        sum(part.shards for part in event.plan_ready.auditors)
        for event in events
        if event.HasField("plan_ready")
    )
