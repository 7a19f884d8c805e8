"""The synchronous and the asynchronous client behind one face, so that each test serves both."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from onnx_audit import AsyncClient, Client, RetryPolicy

FAST = RetryPolicy(attempts=4, initial_delay=0.01, max_delay=0.05)


class BlockingAsyncClient:
    """An AsyncClient whose coroutines are run and whose iterators are listed."""

    def __init__(self, target: str, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._open(target, options))

    @staticmethod
    async def _open(target: str, options: dict[str, Any]) -> AsyncClient:
        return AsyncClient(target, **options)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def blocking(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            if inspect.isawaitable(result):
                return self._runner.run(self._awaited(result))
            return self._runner.run(self._listed(result))

        return blocking

    @staticmethod
    async def _awaited(result: Any) -> Any:
        return await result

    @staticmethod
    async def _listed(result: Any) -> list[Any]:
        return [item async for item in result]

    def close(self) -> None:
        """Closes client and loop."""
        self._runner.run(self._client.close())
        self._runner.close()


def open_client(kind: str, target: str, **options: Any) -> Any:
    """A client of one of the kinds "sync" and "async"; typed loosely to stand for both."""
    options.setdefault("retries", FAST)
    return Client(target, **options) if kind == "sync" else BlockingAsyncClient(target, **options)
