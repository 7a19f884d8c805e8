"""A gRPC server that does nothing, in a process of its own: what gRPC alone costs."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc

MAX_MESSAGE = 64 << 20


class Bare:
    """A gRPC server that does nothing: drops streams, and answers a call with a given message."""

    def __init__(self) -> None:
        self.answer = b""
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", MAX_MESSAGE)])
        handlers: dict[str, Any] = {
            "Sink": grpc.stream_unary_rpc_method_handler(self._sink),
            "Echo": grpc.unary_unary_rpc_method_handler(self._echo),
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("bare", handlers),)
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    async def _sink(self, requests: AsyncIterator[bytes], _: object) -> bytes:
        async for _request in requests:
            pass
        return b""

    async def _echo(self, _request: bytes, _: object) -> bytes:
        return self.answer

    @classmethod
    async def serve(cls, pipe: Any) -> None:  # noqa: ANN401 - a connection between processes
        """Serves in this process; takes the answer from the pipe, gives its port."""
        bare = cls()
        bare.answer = pipe.recv()
        await bare._server.start()
        pipe.send(bare.port)
        await bare._server.wait_for_termination()


def bare_main(pipe: Any) -> None:  # noqa: ANN401
    asyncio.run(Bare.serve(pipe))


@contextlib.contextmanager
def bare_server(answer: bytes) -> Iterator[grpc.Channel]:
    """A channel to a bare server in another process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=bare_main, args=(theirs,), daemon=True)
    process.start()
    ours.send(answer)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{ours.recv()}") as channel:
            yield channel
    finally:
        process.kill()
