"""A port of its own for health checks: plaintext, and nothing but grpc.health.v1 on it.

Probes of an orchestrator have neither certificates nor tokens, and the API's port may ask for both.
What is said is the state of the process: SERVING once it takes work, NOT_SERVING from the first
signal to stop.
"""

from __future__ import annotations

import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from onnx_audit_server.settings import Settings

OFF = "none"
"""The address that stands for no port."""
TIMEOUT = 4.0
"""Seconds that a check waits for an answer."""


class HealthPort:
    """Serves one health servicer on an address of its own."""

    def __init__(self, address: str, servicer: HealthServicer) -> None:
        self._address = address
        self._servicer = servicer
        self._server: grpc.aio.Server | None = None

    async def start(self) -> str:
        """Starts to serve; returns the address.

        Raises:
            RuntimeError: The address cannot be had.
        """
        # Two processes on one port would share it silently.
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        port = self._server.add_insecure_port(self._address)
        await self._server.start()
        return f"{self._address.rpartition(':')[0]}:{port}"

    async def stop(self) -> None:
        """Ends at once: by now every check has been told that the process is going."""
        if self._server is not None:
            await self._server.stop(None)


def check(address: str) -> str:
    """Asks a health port, as a probe does.

    Returns:
        The state's name, such as "SERVING", or the code of the error: "UNAVAILABLE" where nothing
        answers, or where the port closes on the check.
    """
    host, _, port = address.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its methods are set at run time
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            # Nobody here cancels: so ends what a server had taken in, but not begun, as it stopped.
            gone = code is grpc.StatusCode.CANCELLED
            return grpc.StatusCode.UNAVAILABLE.name if gone else code.name
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def main() -> None:
    """Checks the process that has this environment's settings; exit status 0 if it serves."""
    address = Settings().health
    state = "no health port is set (ONNX_AUDIT_HEALTH)" if address == OFF else check(address)
    print(state)  # noqa: T201 - what `docker inspect` shows
    sys.exit(state != "SERVING")


if __name__ == "__main__":
    main()
