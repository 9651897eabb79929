"""Run the REST catalog: in a thread of this process, or as this process."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from headrace.catalog.server import CatalogApp
from headrace.catalog.store import Catalog
from headrace.catalog.warehouses import DEFAULT_NAME
from headrace.errors import LakeUnavailable

LOOPBACK = "127.0.0.1"
START_SECONDS = 10.0

Wrapper = Callable[[Callable[..., Awaitable[None]]], Callable[..., Awaitable[None]]]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a REST catalog listens (``http://127.0.0.1:8181``) and the bearer token that it asks for."""

    url: str
    token: str = field(repr=False)


def new_token() -> str:
    return secrets.token_urlsafe(32)


@contextmanager
def serve_in_thread(
    catalog: Catalog,
    *,
    name: str = DEFAULT_NAME,
    host: str = LOOPBACK,
    port: int = 0,
    token: str | None = None,
    wrap: Wrapper | None = None,
) -> Iterator[Endpoint]:
    """Serve the catalog, as the warehouse of that name, from a thread of this process until the block ends, on a free port
    unless one is given.

    ``wrap`` may put another ASGI application around ours, as tests do. Raises LakeUnavailable when the port cannot be had.
    """
    token = token or new_token()
    app = CatalogApp(catalog, token=token, name=name)
    listener = _listen(host, port)
    server = _Server(uvicorn.Config(wrap(app) if wrap else app, **_SETTINGS))
    thread = threading.Thread(target=server.run, args=([listener],), name="headrace-catalog", daemon=True)
    try:
        thread.start()
        if not server.listening.wait(START_SECONDS):
            raise LakeUnavailable(f"The catalog's server did not start within {START_SECONDS:g} s.")
        yield Endpoint(url=_url(host, listener.getsockname()[1]), token=token)
    finally:
        server.stop()
        thread.join(START_SECONDS)
        listener.close()
        app.close()


def serve_here(
    catalog: Catalog,
    *,
    name: str = DEFAULT_NAME,
    host: str = LOOPBACK,
    port: int,
    token: str,
    ready: Callable[[Endpoint], None] | None = None,
) -> None:
    """Serve the catalog in the foreground until SIGINT or SIGTERM; ``ready`` is called once it listens. Raises
    LakeUnavailable.
    """
    app = CatalogApp(catalog, token=token, name=name)
    listener = _listen(host, port)
    url = _url(host, listener.getsockname()[1])
    server = _Server(
        uvicorn.Config(app, **_SETTINGS), started_hook=lambda: ready(Endpoint(url=url, token=token)) if ready else None
    )
    # uvicorn raises the signal again once it has stopped: by SIGTERM, too, this process shall end as one that is done.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            server.run([listener])
    finally:
        signal.signal(signal.SIGTERM, before)
        listener.close()
        app.close()


_SETTINGS: dict[str, Any] = {
    "loop": "asyncio",
    "http": "h11",
    "ws": "none",
    "lifespan": "off",
    "log_config": None,
    "log_level": "error",
    "access_log": False,
    "server_header": False,
    "timeout_keep_alive": 60,
    "timeout_graceful_shutdown": 3,
}


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started_hook: Callable[[], None] | None = None) -> None:
        super().__init__(config)
        self.listening = threading.Event()
        self._hook = started_hook
        self._stopping = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.listening.set()
        if self._hook:
            self._hook()

    async def main_loop(self) -> None:
        # As uvicorn's own, which looks for its end ten times a second, but woken by `stop`: no query should wait for that.
        ticks = 0
        while not await self.on_tick(ticks):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), 0.1)
            ticks += 1

    def stop(self) -> None:
        """From any thread."""
        self.should_exit = True
        with suppress(RuntimeError):  # its loop is closed: it has stopped
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._stopping.set)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise LakeUnavailable(
            f"The catalog cannot listen on {host}:{port}: {error.strerror or error}.",
            remedy="Choose another port with --port, or stop what holds it.",
        ) from error
    return listener


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
