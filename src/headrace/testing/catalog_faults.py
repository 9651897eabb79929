"""Lose the catalog's answers on purpose: the request takes effect, and whoever sent it does not hear so."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

Message = MutableMapping[str, Any]
App = Callable[..., Awaitable[None]]
Fault = Literal["500", "503", "cut"]


@dataclass(kw_only=True)
class _Planned:
    fault: Fault
    method: str
    path: str
    times: int


class CatalogFaults:
    """An ASGI application around the catalog's: ``serve_in_thread(catalog, wrap=faults.around)``.

    ``lose`` plans a fault for the next requests of that method whose path ends so: the catalog carries them out, then the client
    gets that status instead of the answer, or its connection is cut. ``lost`` counts the answers that were lost.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._planned: list[_Planned] = []
        self.lost = 0

    def lose(self, fault: Fault, *, method: str = "POST", path: str = "/transactions/commit", times: int = 1) -> None:
        with self._lock:
            self._planned.append(_Planned(fault=fault, method=method, path=path, times=times))

    def around(self, app: App) -> App:
        async def faulty(
            scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
        ) -> None:
            fault = self._next_for(scope)
            if fault is None:
                await app(scope, receive, send)
                return
            await app(scope, receive, _unheard)
            self.lost += 1
            if fault == "cut":
                await _cut(send)
            else:
                await _answer(send, int(fault))

        return faulty

    def _next_for(self, scope: Message) -> Fault | None:
        with self._lock:
            for planned in self._planned:
                if planned.times and scope.get("method") == planned.method and scope["path"].endswith(planned.path):
                    planned.times -= 1
                    return planned.fault
        return None


async def _unheard(_: Message) -> None:
    pass


async def _answer(send: Callable[[Message], Awaitable[None]], status: int) -> None:
    kind = "CommitStateUnknownException" if status == 500 else "ServiceUnavailableException"
    body = orjson.dumps({"error": {"message": "The answer was lost on purpose", "type": kind, "code": status}})
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})


async def _cut(send: Callable[[Message], Awaitable[None]]) -> None:
    # ASGI has no word for it: reach for the transport of the server that we know, uvicorn.
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is None:
        raise RuntimeError("cutting a connection needs uvicorn as the server")
    transport.abort()
    await asyncio.sleep(0)  # let the server notice, before it misses an answer
