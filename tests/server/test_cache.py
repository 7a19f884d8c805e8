"""The copies of a remote store's blobs on this machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from onnx_audit_server.store.blobs import BlobStore, DigestMismatchError
from onnx_audit_server.store.cache import BlobCache


def test_a_blob_is_fetched_once(tmp_path: Path) -> None:
    """The second time it comes from the cache, and what was lent before stays readable."""
    cache = BlobCache(tmp_path / "cache", 100)
    fetched: list[str] = []

    def lend(name: str, size: int) -> Path:
        path = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"

        def fetch(target: Path) -> None:
            fetched.append(name)
            target.write_bytes(name.encode() * size)

        cache.link(name, size, path, fetch)
        return path

    first = lend("a", 60)
    assert lend("a", 60).read_bytes() == first.read_bytes() == b"a" * 60
    assert fetched == ["a"]
    lend("b", 30)
    lend("a", 60)
    assert fetched == ["a", "b"]
    lend("c", 30)
    # The one that was used longest ago went.
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"a", "c"}
    assert first.read_bytes() == b"a" * 60
    lend("d", 101)
    assert fetched == ["a", "b", "c", "d"]
    assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= 100


def test_what_a_store_gives_is_checked(tmp_path: Path) -> None:
    """Other bytes than those that the digest names are refused, and not kept."""
    (tmp_path / "remote").mkdir()
    store = BlobStore(tmp_path / "data", (tmp_path / "remote").as_uri(), cache_bytes=1000)
    blob = store.put(b"right", "text/plain")
    place = tmp_path / "remote" / blob.sha256[:2] / blob.sha256
    place.write_bytes(b"wrong")
    with pytest.raises(DigestMismatchError):
        store.copy_to(blob.sha256, tmp_path / "copy")
    place.write_bytes(b"right")
    store.copy_to(blob.sha256, tmp_path / "copy")
    assert hashlib.sha256((tmp_path / "copy").read_bytes()).hexdigest() == blob.sha256
    # From now on it is here.
    place.write_bytes(b"wrong")
    store.copy_to(blob.sha256, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"right"
    with pytest.raises(FileNotFoundError):
        store.copy_to("0" * 64, tmp_path / "copy")
