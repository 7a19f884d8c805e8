"""How often an address may show credentials that are not accepted."""

from __future__ import annotations

import hashlib
import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote

from onnx_audit_server.access.quotas import TokenBucket
from onnx_audit_server.errors import ServiceError

BURST: Final = 30.0
"""Seconds' worth of failures that may come at once: people mistype, and jobs come in crowds."""
_MOST_ADDRESSES: Final = 10_000
_MOST_GOOD: Final = 10_000
_NETWORK: Final = 64
"""Bits of an IPv6 address that tell one customer from another; the rest they choose themselves."""


class Attempts:
    """Counts failures by address, in this process.

    Credentials that were good before get through from an address that is held up, as others may
    share it, behind a proxy or a gateway; whether they still are is for others to check.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts with none.

        Args:
            rate: Failures per second of one address; 0 sets no limit.
            clock: Gives the seconds that go by.
        """
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._addresses: OrderedDict[str, TokenBucket] = OrderedDict()
        self._good: OrderedDict[bytes, None] = OrderedDict()

    def check(self, address: str, authorization: str) -> None:
        """Lets an attempt through, before anything is looked up.

        Raises:
            ServiceError: QUOTA_EXCEEDED; it says how long to wait.
        """
        with self._lock:
            bucket = self._addresses.get(address)
            if bucket is None or _digest(authorization) in self._good:
                return
            wait = bucket.wait()
        if wait:
            raise ServiceError(
                "QUOTA_EXCEEDED",
                f"{address} has shown too many credentials that were not accepted; at most "
                f"{self._rate:g} a second are (quota_refusals); try again in {wait:.3g} s",
                metadata={
                    "quota": "refusals",
                    "scope": "address",
                    "setting": "quota_refusals",
                    "limit": f"{self._rate:g}",
                },
                retry_after=wait,
            )

    def failed(self, address: str, authorization: str) -> None:
        """Counts an attempt with credentials that are not accepted, even if they once were."""
        if not self._rate:
            return
        with self._lock:
            self._good.pop(_digest(authorization), None)
            bucket = self._addresses.pop(address, None)
            if bucket is None:
                bucket = TokenBucket(self._rate, self._clock, BURST)
            bucket.wait()
            bucket.take()
            self._addresses[address] = bucket
            while len(self._addresses) > _MOST_ADDRESSES:
                self._addresses.popitem(last=False)

    def succeeded(self, authorization: str) -> None:
        """Remembers credentials that were accepted."""
        if not self._rate:
            return
        with self._lock:
            digest = _digest(authorization)
            self._good.pop(digest, None)
            self._good[digest] = None
            while len(self._good) > _MOST_GOOD:
                self._good.popitem(last=False)


def address_of(peer: str) -> str:
    """What stands for a caller: its IPv4 address, or the network of its IPv6 address.

    Args:
        peer: An address, or what gRPC says of a connection, such as "ipv6:%5B::1%5D:50051".
    """
    text = unquote(peer)
    if text.startswith(("ipv4:", "ipv6:")):
        text = text[5:].rpartition(":")[0].strip("[]")
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return text  # a socket of this machine
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, _NETWORK), strict=False))
    return str(address)


def _digest(authorization: str) -> bytes:
    return hashlib.sha256(authorization.encode(errors="replace")).digest()
