"""Edge: the HTTP server with all that no path of ours does: address, TLS, limits, who calls, health, errors, drain."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final, cast
from urllib.parse import unquote

import structlog
from aiohttp import web

from romancy_service.config import CannotListen, Config
from romancy_service.errors import (
    Draining,
    InternalError,
    InvalidField,
    PermissionDenied,
    RomancyError,
    Unauthenticated,
)
from romancy_service.http.errors import RETRY_AFTER_S, MethodNotAllowed, NoSuchPath, body_of, headers_of, status_of
from romancy_service.rpc.auth import CALLER, Grant, read_access
from romancy_service.rpc.errors import hidden
from romancy_service.rpc.tls import ssl_context
from romancy_service.rpc.validate import namespace_of

_log = structlog.get_logger("romancy.http")

PUBLISH: Final = "/romancy.v1.EventService/PublishEvents"
"""The method whose right is needed: what HTTP may do is what gRPC may."""
_HEALTH: Final = "/health"
_EVENTS: Final = "events"
_HEADERS: Final = 80
"""Headers of a request: as many as an event has attributes, and the usual ones."""
_FIELD_BYTES: Final = 8 * 1024
"""The longest header. What is longer when it is percent-encoded goes in the structured mode."""
_FULL_TEXT: Final = b'{"reason": "TOO_MANY_CONNECTIONS", "message": "this replica has all that it takes; try again"}\n'
_FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    b"Retry-After: %d\r\nConnection: close\r\n\r\n%b"
) % (len(_FULL_TEXT), RETRY_AFTER_S, _FULL_TEXT)
_NOBODY: Final = logging.getLogger("romancy.http.unread")
"""aiohttp would log each malformed request with a traceback; what there is to say is said here."""

Answer = Callable[[web.BaseRequest, str], Awaitable[object]]
"""What becomes of a request for a namespace: the body of the answer."""


class HttpEdge:
    """An HTTP server that serves health, and events once it has started."""

    def __init__(self, config: Config) -> None:
        """Raises InvalidConfig when a file of `config` cannot be used."""
        assert config.http is not None
        self._address = config.http
        self._limits = config.limits
        self._access = read_access(config.security)
        self._tls = ssl_context(config.security) if config.security.encrypts else None
        self._able = self._draining = False
        self._answer: Answer | None = None
        self._listening: asyncio.Server | None = None
        self._server: _Server | None = None
        self.port = 0
        """Where it listens, once `bind` took the address."""

    async def bind(self) -> None:
        """Take the address. Raises CannotListen."""
        self._server = _Server(
            self._handle,
            most=self._limits.http_connections,
            keepalive_timeout=self._limits.http_head_ms / 1000,
            lingering_time=1.0,
            auto_decompress=False,
            access_log=None,
            logger=_NOBODY,
            max_headers=_HEADERS,
            max_field_size=_FIELD_BYTES,
        )
        try:
            self._listening = await asyncio.get_running_loop().create_server(
                self._server,
                self._address.host,
                self._address.port,
                ssl=self._tls,
                ssl_handshake_timeout=self._limits.http_head_ms / 1000 if self._tls is not None else None,
                start_serving=False,
            )
        except OSError as error:
            raise CannotListen(
                f"cannot listen on {self._address}: end the process that has this port, or give another --http, or off"
            ) from error
        self.port = self._listening.sockets[0].getsockname()[1]

    def answer(self, answer: Answer) -> None:
        """What is to be done with events, before it starts."""
        self._answer = answer

    async def start(self) -> None:
        """Serve."""
        assert self._listening is not None
        await self._listening.start_serving()
        await self.serves(True)

    async def serves(self, able: bool) -> None:
        """Tell load balancers whether requests can be answered now: not while the database is away."""
        self._able = able

    async def not_serving(self) -> None:
        """Tell load balancers to send nobody here any more, and take no new connections; requests in flight go on."""
        self._draining = True
        if self._listening is not None:
            self._listening.close()

    async def stop(self, grace_s: float) -> None:
        """Take no new requests, and end those in flight after `grace_s`."""
        await self.not_serving()
        if self._server is not None:
            self._server.pre_shutdown()
            await self._server.shutdown(grace_s)

    # One request --------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer, whatever becomes of the request."""
        grant: Grant | None = None
        try:
            if request.path == _HEALTH:
                return self._health(request)
            grant = self._authenticate(request)
            namespace = self._namespace(request, grant)
            if request.method != "POST":
                raise MethodNotAllowed(request.method, "POST")
            if self._draining or self._answer is None:
                raise Draining()
            return self._respond(HTTPStatus.ACCEPTED, await self._answer(request, namespace))
        except RomancyError as error:
            return self._refuse(request, grant, error)
        except Exception as error:
            return self._refuse(request, grant, InternalError(f"{type(error).__name__} was raised"), error)

    def _health(self, request: web.BaseRequest) -> web.Response:
        if request.method != "GET":
            return self._refuse(request, None, MethodNotAllowed(request.method, "GET"))
        able = self._able and not self._draining
        status = HTTPStatus.OK if able else HTTPStatus.SERVICE_UNAVAILABLE
        return self._respond(status, {"status": "SERVING" if able else "NOT_SERVING"})

    def _authenticate(self, request: web.BaseRequest) -> Grant | None:
        """Who calls; None where nobody needs to say. Raises Unauthenticated and PermissionDenied."""
        if self._access is None:
            return None
        metadata = [(name.lower(), value) for name, value in request.headers.items()]
        grant = self._access.authenticate(metadata, _certificate(request))
        grant.check_method(PUBLISH)
        CALLER.set(grant)
        return grant

    def _namespace(self, request: web.BaseRequest, grant: Grant | None) -> str:
        """The namespace that the path names. Raises NoSuchPath, InvalidField and PermissionDenied."""
        path = request.raw_path.partition("?")[0]
        first, *rest = path.removeprefix("/").split("/")
        if first != _EVENTS or len(rest) > 1 or rest == [""]:
            raise NoSuchPath(path[:200])
        try:
            named = unquote("".join(rest), errors="strict")
        except UnicodeDecodeError:
            raise InvalidField("namespace", "is no UTF-8", "encode it as %XX of UTF-8") from None
        namespace = namespace_of(named, self._limits)
        if grant is not None:
            grant.check_namespace(namespace)
        return namespace

    def _refuse(
        self, request: web.BaseRequest, grant: Grant | None, error: RomancyError, cause: Exception | None = None
    ) -> web.Response:
        """Log in one line what happened, and say it. What is our fault is named by a number only, not told."""
        status = status_of(error)
        where = f"{request.method} {request.path}"[:200]
        principal = grant.principal if grant is not None else ""
        facts = {"method": where, "principal": principal, "code": int(status), "reason": error.reason}
        if status is HTTPStatus.INTERNAL_SERVER_ERROR:
            error = hidden(error, cause, where)
        elif isinstance(error, Unauthenticated | PermissionDenied):
            _log.warning("call refused", peer=request.remote, error=str(error), **facts)
        elif status is HTTPStatus.SERVICE_UNAVAILABLE:
            _log.warning("call failed", error=str(error), **facts)
        else:
            _log.info("call refused", error=str(error), **facts)
        return self._respond(status, body_of(error), headers_of(error))

    def _respond(self, status: HTTPStatus, body: object, headers: Mapping[str, str] | None = None) -> web.Response:
        response = _json_response(status, body, headers)
        if self._draining:
            response.force_close()
        return response


def _json_response(status: HTTPStatus, body: object, headers: Mapping[str, str] | None = None) -> web.Response:
    said = {"Server": "romancy", **(headers or {})}  # aiohttp would tell its version to everybody
    return web.Response(status=status, text=json.dumps(body) + "\n", content_type="application/json", headers=said)


def _certificate(request: web.BaseRequest) -> dict[str, Iterable[bytes]]:
    """The names in the caller's certificate, as gRPC says them."""
    shown: Mapping[str, Any] = request.get_extra_info("peercert") or {}
    subject = [pair for group in shown.get("subject", ()) for pair in group]
    return {
        "x509_subject_alternative_name": [value.encode() for _, value in shown.get("subjectAltName", ())],
        "x509_common_name": [value.encode() for name, value in subject if name == "commonName"],
    }


# Connections ----------------------------------------------------------------------------------------------------------


class _Server(web.Server):
    """Makes connections."""

    def __init__(self, handler: Any, *, most: int, **options: Any) -> None:
        super().__init__(handler, **options)
        self.most = most

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    """One connection. There are only so many, and what is no HTTP is answered as everything else."""

    __slots__ = ("_most",)

    def __init__(self, server: _Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._most = server.most

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it, or say that there are too many."""
        super().connection_made(transport)
        assert self._manager is not None
        if len(self._manager.connections) > self._most:
            cast(asyncio.Transport, transport).write(_FULL)
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no request, after which nothing can be read of the connection any more."""
        said = " ".join((message or "the service failed").split())[:200]
        _log.info("no request", peer=request.remote, code=status, error=said)
        reason = "BAD_REQUEST" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "INTERNAL"
        response = _json_response(HTTPStatus(status), {"reason": reason, "message": said})
        response.force_close()
        return response
