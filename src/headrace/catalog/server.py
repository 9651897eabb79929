"""The Iceberg REST catalog as an ASGI application."""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, unquote_to_bytes

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from headrace.catalog.endpoints import OPERATIONS, Operation
from headrace.catalog.store import Catalog
from headrace.catalog.warehouses import DEFAULT_NAME, LEASE_SECONDS, Warehouses
from headrace.catalog.wire import Call, Refused, answer, error_answer, refusal
from headrace.errors import HeadraceError

log = logging.getLogger(__name__)

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# Stands for a slash inside a name while the path is taken apart at its real slashes: a letter of a private use area.
_SLASH_IN_NAME = "\uf02f"


class CatalogApp:
    """The application: an ASGI callable. ``close`` ends the leases that it gave out.

    Every request but the OAuth one needs ``Authorization: Bearer <token>``. The token is also the client secret of the OAuth
    client-credentials exchange, whatever the client id, for clients that only know that way.
    """

    def __init__(self, catalog: Catalog, *, token: str, name: str = DEFAULT_NAME, lease_seconds: float = LEASE_SECONDS) -> None:
        self._catalog, self._token = catalog, token
        self._warehouses = Warehouses(catalog, name=name, lease_seconds=lease_seconds)
        routes = [
            Route("/v1/config", self._config, methods=["GET"]),
            Route("/v1/oauth/tokens", self._tokens, methods=["POST"]),
        ]
        # A client that does not ask for the configuration uses no prefix, and sees the live lake.
        for start in ("/v1", "/v1/{prefix}"):
            by_path: dict[str, dict[str, Operation]] = {}
            for endpoint in OPERATIONS:
                by_path.setdefault(endpoint.path, {})[endpoint.method] = endpoint
            routes += [Route(start + path, self._serving(methods), methods=list(methods)) for path, methods in by_path.items()]
        self._app = Starlette(routes=routes, exception_handlers={HTTPException: _unrouted})

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and b"%2F" in scope.get("raw_path", b"").upper():
            raw = scope["raw_path"].replace(b"%2f", b"%2F").replace(b"%2F", _SLASH_IN_NAME.encode())
            scope = {**scope, "path": unquote_to_bytes(raw).decode("utf-8", "replace")}
        await self._app(scope, receive, send)

    def close(self) -> None:
        self._warehouses.close()

    def _serving(self, methods: dict[str, Operation]) -> Callable[[Request], Awaitable[Response]]:
        async def serve(request: Request) -> Response:
            if not self._authorized(request):
                return _unauthorized()
            endpoint = methods[request.method]
            try:
                body = await request.body()
            except ClientDisconnect:
                return Response(status_code=499)
            path = {key: value.replace(_SLASH_IN_NAME, "/") for key, value in request.path_params.items()}
            return await run_in_threadpool(self._answer, endpoint, path, request, body)

        return serve

    def _answer(self, endpoint: Operation, path: dict[str, str], request: Request, body: bytes) -> Response:
        try:
            version = self._warehouses.version(path.pop("prefix", self._warehouses.name))
            if version is not None and endpoint.changes:
                raise Refused(
                    403,
                    "ForbiddenException",
                    f"Version {version} of the lake is past: attach to {self._warehouses.name} to write.",
                )
            call = Call(
                catalog=self._catalog, version=version, path=path, query=request.query_params, headers=request.headers, body=body
            )
            return endpoint.answer(call)
        except Refused as refused:
            return error_answer(refused.status, refused.kind, refused.message)
        except HeadraceError as error:
            return refusal(error)
        except Exception as error:
            # The state is unknown to us, and whoever sent a commit must not clean up after it.
            kind = "CommitStateUnknownException" if endpoint.changes else "InternalServerError"
            log.exception("%s %s failed", request.method, request.url.path)
            return error_answer(500, kind, f"The catalog failed unexpectedly ({type(error).__name__}); its log says more.")

    async def _config(self, request: Request) -> Response:
        if not self._authorized(request):
            return _unauthorized()
        try:
            prefix = await run_in_threadpool(self._warehouses.attach, request.query_params.get("warehouse", ""))
        except Refused as refused:
            return error_answer(refused.status, refused.kind, refused.message)
        except HeadraceError as error:
            return refusal(error)
        endpoints = [f"{one.method} /v1/{{prefix}}{_specified(one.path)}" for one in OPERATIONS]
        return answer({"defaults": {}, "overrides": {"prefix": prefix}, "endpoints": endpoints})

    async def _tokens(self, request: Request) -> Response:
        form = {key: values[0] for key, values in parse_qs((await request.body()).decode("utf-8", "replace")).items()}
        # Who renews its token shows the one it has.
        offered = form.get("client_secret") or form.get("subject_token") or _basic_password(request) or _bearer(request)
        if form.get("grant_type") not in ("client_credentials", "urn:ietf:params:oauth:grant-type:token-exchange"):
            return answer({"error": "unsupported_grant_type", "error_description": "client_credentials is supported"}, 400)
        if not self._is_token(offered):
            return answer({"error": "invalid_client", "error_description": "the client secret is not this catalog's token"}, 401)
        issued = "urn:ietf:params:oauth:token-type:access_token"
        return answer({"access_token": self._token, "token_type": "bearer", "issued_token_type": issued})

    def _authorized(self, request: Request) -> bool:
        return self._is_token(_bearer(request))

    def _is_token(self, offered: str) -> bool:
        return hmac.compare_digest(offered.encode(), self._token.encode())


def _bearer(request: Request) -> str:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


def _basic_password(request: Request) -> str:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(given).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _specified(path: str) -> str:
    """The path as the specification writes it, by which clients look up what a server can do."""
    return path.replace("tables/{name}", "tables/{table}").replace("views/{name}", "views/{view}")


def _unauthorized() -> Response:
    message = "Not authorized: the request needs the header Authorization: Bearer TOKEN with this catalog's token."
    return error_answer(401, "NotAuthorizedException", message, {"WWW-Authenticate": "Bearer"})


async def _unrouted(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    if status == 405:
        return error_answer(405, "UnsupportedOperationException", f"{request.method} is not supported here.")
    return error_answer(status, "NotFoundException", f"There is nothing at {request.url.path}.")
