"""OutboxService: where events are delivered to, and what could not be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, TypeVar

import grpc
import structlog

from romancy.v1.outbox_service_pb2 import (
    DeleteSinkRequest,
    DeleteSinkResponse,
    DropDeadLettersRequest,
    DropDeadLettersResponse,
    ListOutboxRequest,
    ListOutboxResponse,
    ListSinksRequest,
    ListSinksResponse,
    OutboxEvent,
    RetryDeadLettersRequest,
    RetryDeadLettersResponse,
    SetSinkRequest,
    SetSinkResponse,
    Sink,
)
from romancy.v1.outbox_service_pb2_grpc import OutboxServiceServicer

from romancy_service import faults
from romancy_service.core.check import check_duration, check_id
from romancy_service.core.destinations import Destinations
from romancy_service.core.limits import Limits
from romancy_service.core.outgoing import sink_name
from romancy_service.core.sink import PORTS, check_url, read_secret
from romancy_service.core.task import NEVER_MS
from romancy_service.core.times import duration_ms, timestamp
from romancy_service.errors import DeadLetterNotFound, InvalidField, SinkNotFound, TooManySinks
from romancy_service.node import Node
from romancy_service.outbox import Outbox
from romancy_service.rpc.auth import identity_of
from romancy_service.rpc.once import once
from romancy_service.rpc.pages import name_token, read_name_token
from romancy_service.rpc.validate import namespace_of, page_size
from romancy_service.starter import new_id
from romancy_service.store.outbox import Undelivered, Waiting
from romancy_service.store.sinks import SinkRow
from romancy_service.store.store import Request

_audit = structlog.get_logger("romancy.audit")

AT_A_TIME: Final = 1_000
"""So many dead letters are sent again, or dropped, by one call: however many there are, each is answered soon."""

Counted = TypeVar("Counted", RetryDeadLettersResponse, DropDeadLettersResponse)
_Change: TypeAlias = SetSinkRequest | DeleteSinkRequest | RetryDeadLettersRequest | DropDeadLettersRequest

# The generated servicer names its methods as the contract does.


class OutboxService(OutboxServiceServicer):
    """Works on what is in the database, so every replica can."""

    def __init__(self, node: Node, outbox: Outbox, destinations: Destinations) -> None:
        self._node = node
        self._outbox = outbox
        self._destinations = destinations

    async def SetSink(self, request: SetSinkRequest, context: grpc.aio.ServicerContext[Any, Any]) -> SetSinkResponse:
        """Say what a sink is."""
        limits, store = self._node.limits, self._node.store
        namespace, name = _names(request.namespace, request.name, limits)
        _check_asker(request, limits)
        self._check_url(request.url)
        check_duration("keep_secret", request.keep_secret)
        kept_ms = duration_ms(request.keep_secret)
        if kept_ms > limits.kept_secret_ms:
            problem = f"is {kept_ms} ms, at most {limits.kept_secret_ms} are allowed"
            raise InvalidField("keep_secret", problem, value=kept_ms, limit=limits.kept_secret_ms)
        if request.secret:
            read_secret("secret", request.secret)
            if request.unsigned:
                raise InvalidField("unsigned", "is set, and a secret too", "set one or the other")
        request_id = request.request_id or new_id()
        method = f"SetSink {name}"

        async def carry_out() -> SetSinkResponse:
            now_ms = self._node.clock.now_ms()
            sinks = {each.name: each for each in await store.list_sinks(namespace)}
            if name not in sinks and len(sinks) >= limits.sinks:
                raise TooManySinks(limits.sinks)
            sink = _changed(sinks.get(name), name, request, kept_ms, now_ms)
            response = SetSinkResponse(sink=_sink(sink, await store.count_outbox(namespace, name)))
            await store.set_sink(sink, Request(namespace, request_id, "", method, response.SerializeToString()))
            # The URL is not logged: it may be a secret itself.
            facts = {"namespace": namespace, "sink": name, "signed": bool(sink.secret), "request_id": request_id}
            _audit.info("sink set", identity=identity_of(request.identity), **facts)
            await self._outbox.sink_changed(namespace, name)
            return response

        return await once(store, namespace, request_id, method, SetSinkResponse, carry_out)

    def _check_url(self, url: str) -> None:
        parts = check_url("url", url, self._node.limits)
        host, port = str(parts.hostname), parts.port or PORTS[parts.scheme]
        if not self._destinations.allow_host(host, port):
            problem = f"leads to {host} port {port}, where this service may not send"
            remedy = "ask an operator to start it with --sink-allow for it"
            raise InvalidField("url", problem, remedy, reason="SINK_NOT_ALLOWED")

    async def ListSinks(
        self, request: ListSinksRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ListSinksResponse:
        """All of a namespace, with what waits for each."""
        limits, store = self._node.limits, self._node.store
        namespace = namespace_of(request.namespace, limits)
        sinks = {each.name: each for each in await store.list_sinks(namespace)}
        for name in await store.used_sinks(namespace, limits.sinks):
            sinks.setdefault(name, SinkRow(name, "", "", "", 0, 0))
        return ListSinksResponse(
            sinks=[
                _sink(sinks[name], await store.count_outbox(namespace, name)) for name in sorted(sinks, key=str.encode)
            ]
        )

    async def DeleteSink(
        self, request: DeleteSinkRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> DeleteSinkResponse:
        """Forget a sink."""
        store, now_ms = self._node.store, self._node.clock.now_ms()
        namespace, name = _names(request.namespace, request.name, self._node.limits)
        _check_asker(request, self._node.limits)
        request_id = request.request_id or new_id()
        method = f"DeleteSink {name}"

        async def carry_out() -> DeleteSinkResponse:
            if not await store.delete_sink(name, Request(namespace, request_id, "", method, b""), now_ms):
                raise SinkNotFound(name)
            facts = {"namespace": namespace, "sink": name, "request_id": request_id}
            _audit.info("sink deleted", identity=identity_of(request.identity), **facts)
            await self._outbox.sink_changed(namespace, name)
            return DeleteSinkResponse()

        return await once(store, namespace, request_id, method, DeleteSinkResponse, carry_out)

    async def ListOutbox(
        self, request: ListOutboxRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ListOutboxResponse:
        """A page of what is not delivered, or of dead letters."""
        limits = self._node.limits
        namespace = namespace_of(request.namespace, limits)
        for field in ("sink", "workflow_id"):
            if getattr(request, field):
                check_id(field, getattr(request, field), limits)
        size = page_size("page_size", request.page_size, limits.page_outbox, limits.page_outbox)
        listed = f"{namespace} {'dead' if request.dead else 'waiting'}"
        after = _position_after(request.page_token, listed, limits)
        response = ListOutboxResponse()
        left = limits.page_bytes
        found = await self._node.store.list_outbox(
            namespace,
            dead=request.dead,
            sink=request.sink,
            workflow_id=request.workflow_id,
            after=after,
            limit=size + 1,
        )
        for each in found:
            shown = _event(each)
            left -= shown.ByteSize()
            if len(response.events) == size or (left < 0 and response.events):
                response.next_page_token = name_token(listed, str(response.events[-1].position))
                break
            response.events.append(shown)
        return response

    async def RetryDeadLetters(
        self, request: RetryDeadLettersRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> RetryDeadLettersResponse:
        """Send dead letters again."""
        store, now_ms = self._node.store, self._node.clock.latest_ms()

        def some(namespace: str, sink: str, after: int) -> Awaitable[list[int]]:
            return store.revive(namespace, sink, after, now_ms, AT_A_TIME)

        response = RetryDeadLettersResponse
        answer = await self._with_letters(request, "RetryDeadLetters", response, store.revive_one, some, "sent again")
        self._outbox.look_now()
        return answer

    async def DropDeadLetters(
        self, request: DropDeadLettersRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> DropDeadLettersResponse:
        """Delete dead letters."""
        store = self._node.store

        def some(namespace: str, sink: str, after: int) -> Awaitable[list[int]]:
            return store.drop_dead(namespace, sink, after, AT_A_TIME)

        response = DropDeadLettersResponse
        return await self._with_letters(request, "DropDeadLetters", response, store.drop_one, some, "dropped")

    async def _with_letters(
        self,
        request: RetryDeadLettersRequest | DropDeadLettersRequest,
        method: str,
        response: type[Counted],
        one: Callable[[int, Request, int], Awaitable[bool]],
        some: Callable[[str, str, int], Awaitable[list[int]]],
        done: str,
    ) -> Counted:
        """Do something with `one` dead letter, or with `some` of a sink."""
        store, now_ms = self._node.store, self._node.clock.latest_ms()
        namespace, which = _which(request, self._node.limits)
        request_id = request.request_id or new_id()
        exactly = f"{method} {which if isinstance(which, int) else f'of {which} after {request.after_position}'}"

        async def carry_out() -> Counted:
            answer = response(count=1)
            if isinstance(which, int):
                asked = Request(namespace, request_id, "", exactly, answer.SerializeToString())
                faults.point("letters.before")
                if not await one(which, asked, now_ms):
                    raise DeadLetterNotFound(which)
                faults.point("letters.after")
            else:
                faults.point("letters.before")
                positions = await some(namespace, which, request.after_position)
                faults.point("letters.after")
                answer.count = len(positions)
                answer.next_after_position = max(positions) if len(positions) == AT_A_TIME else 0
                asked = Request(namespace, request_id, "", exactly, answer.SerializeToString())
                await store.remember(asked, now_ms)
            facts = {"namespace": namespace, "which": which, "count": answer.count, "request_id": request_id}
            _audit.info(f"dead letters {done}", identity=identity_of(request.identity), **facts)
            return answer

        return await once(store, namespace, request_id, exactly, response, carry_out)


def _names(namespace: str, name: str, limits: Limits) -> tuple[str, str]:
    if name:
        check_id("name", name, limits)
    return namespace_of(namespace, limits), sink_name(name)


def _check_asker(request: _Change, limits: Limits) -> None:
    for field in ("identity", "request_id"):
        if getattr(request, field):
            check_id(field, getattr(request, field), limits)


def _which(request: RetryDeadLettersRequest | DropDeadLettersRequest, limits: Limits) -> tuple[str, int | str]:
    """The namespace, and a position or a sink."""
    namespace = namespace_of(request.namespace, limits)
    _check_asker(request, limits)
    match request.WhichOneof("which"):
        case "position":
            if request.position < 1:
                raise InvalidField("position", "is none", "give one that ListOutbox shows", value=request.position)
            return namespace, request.position
        case "sink":
            check_id("sink", request.sink, limits)
            if request.after_position < 0:
                problem, remedy = "is negative", "give next_after_position of the answer before, or none"
                raise InvalidField("after_position", problem, remedy, value=request.after_position)
            return namespace, request.sink
        case _:
            raise InvalidField("which", "is missing", "set position, or sink for all of a sink")


def _position_after(token: str, listed: str, limits: Limits) -> int:
    name = read_name_token(token, listed, limits) or "0"
    if not (name.isascii() and name.isdecimal() and len(name) <= 18):
        remedy = "give next_page_token as it was, with the same namespace"
        raise InvalidField("page_token", "is not of this list", remedy, reason="INVALID_PAGE_TOKEN")
    return int(name)


def _changed(before: SinkRow | None, name: str, request: SetSinkRequest, kept_ms: int, now_ms: int) -> SinkRow:
    """The sink that is asked for. The same secret again changes nothing about the one before it."""
    secret = before.secret if before is not None else ""
    old_secret, old_until_ms = (before.old_secret, before.old_until_ms) if before is not None else ("", 0)
    if request.unsigned:
        secret, old_secret, old_until_ms = "", "", 0
    elif request.secret and request.secret != secret:
        kept = bool(secret) and kept_ms > 0
        old_secret, old_until_ms = (secret, now_ms + kept_ms) if kept else ("", 0)
        secret = request.secret
    return SinkRow(name, request.url, secret, old_secret, old_until_ms, now_ms)


def _sink(row: SinkRow, count: Waiting) -> Sink:
    return Sink(
        name=row.name,
        url=row.url,
        signed=bool(row.secret),
        secret_kept_until=timestamp(row.old_until_ms) if row.old_secret else None,
        update_time=timestamp(row.update_ms) if row.update_ms else None,
        waiting=count.waiting,
        dead=count.dead,
        oldest_time=timestamp(count.oldest_ms) if count.oldest_ms else None,
    )


def _event(found: Undelivered) -> OutboxEvent:
    return OutboxEvent(
        position=found.position,
        event=found.event,
        sink=found.sink,
        workflow_id=found.workflow_id,
        run_id=found.run_id,
        since=timestamp(found.since_ms),
        attempts=found.attempts,
        last_error=found.error,
        next_attempt_time=timestamp(found.next_ms) if found.next_ms < NEVER_MS else None,
        dead_time=timestamp(found.dead_ms) if found.dead_ms else None,
        forget_time=timestamp(found.forget_ms) if found.dead_ms else None,
    )
