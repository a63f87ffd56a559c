"""Context: what workflow code may call besides activities and asyncio."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from random import Random
from typing import Any, Final, NoReturn, ParamSpec, Protocol, TypeVar, TypeVarTuple, Unpack, overload

from romancy.v1.command_pb2 import RecordStep, Send, SendMessage, StartChild
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import AttributeValue, WorkflowSpec

from romancy._asked import check_name, check_timer, check_where
from romancy._checks import check_choice, refuse_unknown
from romancy._failure import from_failure, step_error, to_failure
from romancy._frames import user_place
from romancy._handlers import Handlers, handler_of, handling
from romancy._inbox import Inbox
from romancy._loop import WorkflowLoop, shielded
from romancy._signature import Signature, local_names
from romancy._time_limit import time_limit
from romancy.activity import ActivityDefinition
from romancy.attributes import Attribute, attributes_command, encode_attributes
from romancy.channels import MODE_NUMBERS, MODES, ChannelMode, Message, check_metadata, to_message
from romancy.children import CLOSE_POLICIES, Child, ChildOptions, OtherWorkflow
from romancy.converter import codec
from romancy.errors import CompensationError, MessageTimeout, SendError, WorkflowTaskError
from romancy.events import Event, EventStream, Scalar, next_event, where_of
from romancy.options import Seconds, check_seconds, to_duration
from romancy.outbox import DEFAULT_SINK, outgoing

P = ParamSpec("P")
_T = TypeVar("_T")
_A = TypeVar("_A", str, int, float, bool, datetime, list[str])
_Args = TypeVarTuple("_Args")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowInfo:
    """What a run may know about itself."""

    workflow_id: str
    run_id: str
    workflow_type: str
    task_queue: str
    start_time: datetime
    priority: int
    headers: Mapping[str, str]
    continued_from_run_id: str
    """The run before, which this one continues; empty: this is the first."""
    first_run_id: str
    """The first run of the chain."""


@dataclass(frozen=True, slots=True)
class Cancellation:
    """Somebody asked the workflow to stop."""

    reason: str
    requester: str
    """Who, as the client or its credentials named it; empty if it did not say."""


class Recurrence(BaseException):
    """What `ctx.recur` raises to leave the code. Not an Exception, so that `except Exception` lets it through."""

    def __init__(self, arguments: Sequence[Payload]) -> None:
        super().__init__("the workflow goes on in its next run")
        self.arguments = arguments


def from_ms(time_ms: int) -> datetime:
    """A time in ms since 1970, in UTC. Exact: no float is involved."""
    return _EPOCH + timedelta(milliseconds=time_ms)


class Definition(Protocol):
    """What a run needs of its workflow's definition."""

    def encode_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Payload]: ...


class WorkflowContext:
    """What workflow code may call. The first argument of every workflow function."""

    def __init__(
        self,
        loop: WorkflowLoop,
        handlers: Handlers,
        inbox: Inbox,
        info: WorkflowInfo,
        definition: Definition,
        attributes: Mapping[str, AttributeValue],
    ) -> None:
        self._loop = loop
        self._handlers = handlers
        self._inbox = inbox
        self._definition = definition
        self._attributes = dict(attributes)
        self.info = info

    @property
    def is_replaying(self) -> bool:
        """True while the code does again what is recorded: for logs, never to decide anything by."""
        return self._loop.replaying

    @property
    def history_length(self) -> int:
        """How many events the run has, as far as the code has seen. The same on replay."""
        return self._loop.last_event_id

    @property
    def should_recur(self) -> bool:
        """Whether it is time for `return await ctx.recur(...)`: the service found that the history is long.

        It says so from 4,096 events or 4 MiB on, unless its limits are changed. The same on replay.
        """
        return self._loop.should_recur

    @property
    def cancellation(self) -> Cancellation | None:
        """Why and by whom the workflow is asked to stop; None: it is not. For clean-up code: it stays as it is."""
        asked = self._loop.cancellation
        return None if asked is None else Cancellation(asked.reason, asked.identity)

    async def shield(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run `work` to its end, whatever is cancelled around it: `await ctx.shield(hand_over(order))`.

        Its activities and children are not asked to stop either, which they are inside of a mere `asyncio.shield`. The
        cancellation is raised when `work` is done, and what it returned is dropped: put into it what belongs together.
        """
        inner = copy_context()
        inner.run(shielded.set, True)
        task = self._loop.create_task(work, context=inner)
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
        result: _T = task.result()
        if cancelled is not None:
            raise cancelled
        return result

    def now(self) -> datetime:
        """The time of the last thing that happened to the run, in UTC. The same on replay."""
        return from_ms(self._loop.now_ms)

    def random(self) -> Random:
        """The run's own generator of random numbers: `ctx.random().choice(...)`. The same on replay."""
        if self._loop.machine.reading:
            return Random(f"{self.info.run_id}/reading")  # a query leaves no trace, also not here
        return self._random

    def uuid4(self) -> uuid.UUID:
        """A new random id. The same on replay."""
        generator = self.random() if self._loop.machine.reading else self._uuids
        return uuid.UUID(int=generator.getrandbits(128), version=4)

    # One stream for each purpose: a change that draws once more from one does not shift the other.

    @cached_property
    def _random(self) -> Random:
        return Random(f"{self.info.run_id}/random")

    @cached_property
    def _uuids(self) -> Random:
        return Random(f"{self.info.run_id}/uuid4")

    def set_attributes(self, attributes: Mapping[Attribute[Any], Any]) -> None:
        """Change the workflow's attributes: `ctx.set_attributes({STAGE: "paid", TOTAL: 99.9})`. None takes one away.

        Those that are not named stay. Raises TypeError or ValueError for a value that is not of its key's type.
        """
        command = attributes_command(attributes)
        if command.set or command.unset:
            self._loop.machine.set_attributes(command)
        for name in command.unset:
            self._attributes.pop(name, None)
        self._attributes.update(command.set)

    def attribute(self, key: Attribute[_A]) -> _A | None:
        """The attribute as the code set it last, or as the workflow was started; None if there is none of the type."""
        return key.read(self._attributes)

    async def sleep(self, duration: Seconds) -> None:
        """Wait durably. A duration of zero or less is over at once, and recorded all the same."""
        await self._loop.run_timer(to_duration(duration))

    async def sleep_until(self, time: datetime) -> None:
        """Wait durably until a time, which must have a time zone. One in the past is reached at once."""
        if time.tzinfo is None:
            raise ValueError(f"{time!r} has no time zone; use ctx.now() or datetime(..., tzinfo=UTC)")
        await self._loop.run_timer(to_duration(time - self.now()))

    async def wait_condition(self, condition: Callable[[], bool], timeout: Seconds | None = None) -> None:
        """Wait until `condition()` is true. It is called after each thing that happened to the run: keep it cheap.

        Raises TimeoutError when that takes longer than `timeout`.
        """
        if inspect.iscoroutinefunction(condition):
            raise TypeError(f"the condition {condition!r} is async, but must be a plain function: wait before it")
        if timeout is None:
            await self._loop.run_condition(condition)
            return
        async with time_limit("wait_condition", timeout):
            await self._loop.run_condition(condition)

    def all_handlers_finished(self) -> bool:
        """Whether no handler of a signal or an update is half done: what waits in one is lost when the run ends.

        Before the workflow function returns or recurs: `await ctx.wait_condition(ctx.all_handlers_finished)`.
        """
        return not self._handlers.running

    @overload
    async def step(
        self,
        fn: Callable[[*_Args], Coroutine[Any, Any, _T]],
        *args: *_Args,
        name: str | None = None,
        raises: Sequence[type[BaseException]] = (),
    ) -> _T: ...
    @overload
    async def step(
        self,
        fn: Callable[[*_Args], _T],
        *args: *_Args,
        name: str | None = None,
        raises: Sequence[type[BaseException]] = (),
    ) -> _T: ...
    async def step(
        self,
        fn: Callable[[*_Args], Any],
        *args: *_Args,
        name: str | None = None,
        raises: Sequence[type[BaseException]] = (),
    ) -> Any:
        """Call `fn` here, in the worker, and record what it returned: on replay it is not called again.

        For what is cheap and quick, such as reading a file or a feature flag: all other runs of the worker wait
        meanwhile, nothing is retried, and nothing is undone. If the worker dies before the record is written, it is
        called again.
        Raises StepError, with the type and text of what `fn` raised, or that itself where its class is in `raises`.
        """
        signature = Signature(fn, name or str(getattr(fn, "__name__", "step")), names=local_names(fn))
        recorded = await self._loop.run_step(signature.name, lambda: self._make_step(signature, args, raises))
        if recorded.HasField("failure"):
            raise step_error(recorded.failure, raises)
        return signature.decode_result(recorded.result)

    def _make_step(
        self, signature: Signature, args: Sequence[Any], raises: Sequence[type[BaseException]]
    ) -> RecordStep:
        step = RecordStep()
        try:
            with self._loop.outside():
                value = signature.fn(*args)
                if inspect.iscoroutine(value):
                    value = asyncio.run(value)
            step.result.CopyFrom(signature.encode_result(value))
        except Exception as error:
            step.failure.CopyFrom(to_failure(error, raises))
        return step

    # Events -----------------------------------------------------------------------------------------------------------

    @overload
    async def wait_event(
        self,
        event_type: str,
        model: type[_T],
        *,
        timeout: Seconds | None = None,
        where: Mapping[str, Scalar] | None = None,
    ) -> Event[_T]: ...
    @overload
    async def wait_event(
        self,
        event_type: str,
        model: None = None,
        *,
        timeout: Seconds | None = None,
        where: Mapping[str, Scalar] | None = None,
    ) -> Event[Any]: ...
    async def wait_event(
        self,
        event_type: str,
        model: Any = None,
        *,
        timeout: Seconds | None = None,
        where: Mapping[str, Scalar] | None = None,
    ) -> Event[Any]:
        """Wait for one event: `await ctx.wait_event("payment.completed", Payment, where={"data.order_id": 7})`.

        It gets the first one that is published from now on, or one that was sent to this workflow and is not read yet.
        `where` names attributes ("subject", "source", extensions) or fields of JSON data ("data.order.id") with the
        values that they must have. Between two calls nobody listens: who wants all uses `subscribe_event`.
        Raises EventTimeout (a TimeoutError) when none came within `timeout`, and ConversionError when the event's data
        do not fit `model`.
        """
        check_name("event_type", event_type)
        listener = self._inbox.listen(event_type, check_where(where_of(where)), once=True)
        try:
            return await next_event(listener, timeout, model)
        finally:
            listener.close()

    @overload
    def subscribe_event(
        self, event_type: str, model: type[_T], *, where: Mapping[str, Scalar] | None = None
    ) -> EventStream[_T]: ...
    @overload
    def subscribe_event(
        self, event_type: str, model: None = None, *, where: Mapping[str, Scalar] | None = None
    ) -> EventStream[Any]: ...
    def subscribe_event(
        self, event_type: str, model: Any = None, *, where: Mapping[str, Scalar] | None = None
    ) -> EventStream[Any]:
        """Have all events of a type kept from now on: `with ctx.subscribe_event("bid.placed", Bid) as bids: ...`.

        Read them with `async for` or `receive`. What is not read when the workflow recurs goes to the next run, and so
        does the subscription: the next run takes it on by subscribing to the same again.
        """
        check_name("event_type", event_type)
        return EventStream(self._inbox.listen(event_type, check_where(where_of(where)), once=False), model)

    def send_event(self, event: Event[Any], sink: str = DEFAULT_SINK) -> None:
        """Have an event delivered outside: `ctx.send_event(Event("order.paid", {"order_id": 7}))`.

        It goes into the outbox together with all that this code asks for until it next waits, once, however often it is
        replayed; and from there to the sink of that name in the namespace, at least once, after what the workflow sent
        there before. Raises ConversionError when its data cannot be written.
        """
        self._loop.machine.send_event(outgoing(event, sink))

    # Channels ---------------------------------------------------------------------------------------------------------

    async def subscribe(self, channel: str, mode: ChannelMode = "broadcast") -> None:
        """Get messages of a channel from now on; `receive` gives them out, one at a time.

        "broadcast": every workflow that is subscribed gets every message. "competing": each message goes to one that
        receives. "direct": only what `send_to` sends to this workflow. What the next run gets when this one recurs goes
        on, if it subscribes to the same again. Raises ChannelModeConflict when others are subscribed in another mode.
        """
        check_name("channel", channel)
        check_choice("mode", mode, MODES)
        await self._inbox.join(channel, mode)

    def unsubscribe(self, channel: str) -> None:
        """Get no more messages of a channel. What came and was not received is dropped."""
        self._inbox.part(channel)

    @overload
    async def receive(self, channel: str, model: type[_T], *, timeout: Seconds | None = None) -> Message[_T]: ...
    @overload
    async def receive(self, channel: str, model: None = None, *, timeout: Seconds | None = None) -> Message[Any]: ...
    async def receive(self, channel: str, model: Any = None, *, timeout: Seconds | None = None) -> Message[Any]:
        """The next message of a channel that this workflow is subscribed to.

        Raises MessageTimeout (a TimeoutError) when none came within `timeout`, and ConversionError when its data do not
        fit `model`.
        """
        joined = self._inbox.channel(channel)
        competes = joined.command.channel_mode == MODE_NUMBERS["competing"]
        listener = self._inbox.compete(channel) if competes else joined
        try:
            arrival = await listener.next(timeout)
        except TimeoutError:
            raise MessageTimeout(f"no message of channel {channel!r} came within {timeout}") from None
        finally:
            if competes:
                listener.close()
        return to_message(arrival.event, arrival.delivery, model)

    async def publish(self, channel: str, data: Any, *, metadata: Mapping[str, str] | None = None) -> None:
        """Send a message to a channel, once, however often this code is replayed. It is stored when this returns.

        What one workflow sends to a channel arrives in the order in which it was sent. Raises SendError.
        """
        await self._send_message("", channel, data, metadata)

    async def send_to(
        self, workflow_id: str, channel: str, data: Any, *, metadata: Mapping[str, str] | None = None
    ) -> None:
        """Send a message to one workflow, which keeps it until it subscribes to the channel and receives.

        Raises SendError when no such workflow is open.
        """
        check_name("workflow_id", workflow_id)
        await self._send_message(workflow_id, channel, data, metadata)

    async def _send_message(
        self, workflow_id: str, channel: str, data: Any, metadata: Mapping[str, str] | None
    ) -> None:
        check_name("channel", channel)
        payload = codec(Any).encode(data, f"a message for channel {channel}")
        message = SendMessage(channel=channel, data=payload, metadata=check_metadata(metadata))
        sent = await self._loop.run_send(Send(workflow_id=workflow_id, channel_message=message))
        if sent.send_finished.HasField("failure"):
            raise from_failure(SendError, sent.send_finished.failure)

    # Other workflows --------------------------------------------------------------------------------------------------

    async def start_child(
        self,
        workflow: Callable[[WorkflowContext, *_Args], Coroutine[Any, Any, _T]],
        *args: *_Args,
        compensation: ActivityDefinition[..., Any] | None = None,
        **options: Unpack[ChildOptions],
    ) -> Child[_T]:
        """Start a workflow of its own as this one's child, and go on when it is open.

        `compensation` undoes it when it completed and this workflow is undone. It takes those of the child's arguments
        that its parameters name, and `result`. Raises ChildNotStarted.
        """
        child = self._child(workflow, args, compensation, options)
        await child.started()
        return child

    async def run_child(
        self,
        workflow: Callable[[WorkflowContext, *_Args], Coroutine[Any, Any, _T]],
        *args: *_Args,
        compensation: ActivityDefinition[..., Any] | None = None,
        **options: Unpack[ChildOptions],
    ) -> _T:
        """Start a child and wait for its result. When the waiting is cancelled, the child is asked to stop.

        Raises ChildNotStarted and ChildError.
        """
        child: Child[_T] = self._child(workflow, args, compensation, options)
        await child.started()
        try:
            return await child.result()
        except asyncio.CancelledError:
            child.request_cancel()
            raise

    def _child(
        self, workflow: Any, args: tuple[Any, ...], compensation: ActivityDefinition[..., Any] | None, options: Any
    ) -> Child[Any]:
        refuse_unknown("a child", options, ChildOptions.__annotations__)
        policy = options.get("when_parent_closes", "cancel")
        check_choice("when_parent_closes", policy, CLOSE_POLICIES)
        definition = getattr(workflow, "__romancy_workflow__", workflow)
        if not hasattr(definition, "encode_arguments"):
            raise TypeError(f"{workflow!r} is no workflow: decorate it with @workflow")
        if "id" in options:
            check_name("id", options["id"], may_be_empty=True)
        command = StartChild(
            workflow_id=options.get("id", ""),
            spec=self._child_spec(definition, args, options),
            parent_close_policy=CLOSE_POLICIES[policy],
            compensation=None if compensation is None else definition.undoing(compensation),
            shielded=shielded.get(),
        )
        child: Child[Any] = Child(self._loop, definition.decode_result)
        child.request(command)
        return child

    def _child_spec(self, definition: Any, args: tuple[Any, ...], options: Any) -> WorkflowSpec:
        spec = WorkflowSpec(
            workflow_type=definition.name,
            task_queue=options.get("task_queue") or self.info.task_queue,
            arguments=definition.encode_arguments(args, {}),
            priority=options.get("priority", self.info.priority),
            headers=self.info.headers,
            memo={name: codec(Any).encode(value, f"memo {name!r}") for name, value in options.get("memo", {}).items()},
            attributes=encode_attributes(options.get("attributes", {})),
        )
        for name in ("run_timeout", "execution_timeout", "start_delay"):
            check_seconds(name, options.get(name))
            if options.get(name) is not None:
                getattr(spec, name).CopyFrom(check_timer(to_duration(options[name])))
        return spec

    def workflow(self, workflow_id: str, run_id: str = "") -> OtherWorkflow:
        """Another workflow, to tell it something; its newest run, if no run is given."""
        check_name("workflow_id", workflow_id)
        return OtherWorkflow(self._loop, workflow_id, run_id)

    # Changing code ----------------------------------------------------------------------------------------------------

    def patched(self, patch_id: str) -> bool:
        """Whether this run takes the changed branch of a patch: `if ctx.patched("fraud-check"): ... else: (old code)`.

        Runs that passed this place before the change, and have asked for something since, take the old branch, for
        good; all others the new one, which is recorded. When no run is open that took the old branch, delete it
        together with this call.
        """
        check_name("patch_id", patch_id)
        return self._loop.machine.mark_patch(patch_id)

    async def recur(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Go on in a new run of the same workflow id, with new arguments and an empty history.

        Write `return await ctx.recur(...)`. Signals and updates that were not read go along; compensations and what
        is open do not, nor do handlers that are half done (`all_handlers_finished`). Only the workflow function can:
        in a handler it is a mistake of the code. Raises TypeError and ConversionError when the arguments do not fit.
        """
        if handler := handling.get():
            error = WorkflowTaskError(
                f"ctx.recur was called{user_place()} in the handler of {handler}, but only the workflow function can "
                "recur: set something there that the function waits for, and call ctx.recur in the function"
            )
            self._loop.machine.fail(error)
            raise error
        recurrence = Recurrence(self._definition.encode_arguments(args, kwargs))
        self._inbox.recurs = True
        raise recurrence

    # What others may say to the run: decorators for functions inside of a workflow function, as `workflow.signal` is
    # one for methods.

    def signal(self, fn: Callable[P, Any], /, *, name: str | None = None) -> Callable[P, Any]:
        """Have `fn` called with each signal of its name. It may be async, and run while the workflow goes on."""
        self._handlers.add(handler_of("signal", fn, name))
        return fn

    def query(self, fn: Callable[P, _T], /, *, name: str | None = None) -> Callable[P, _T]:
        """Have queries of its name answered by `fn`, which may only read."""
        self._handlers.add(handler_of("query", fn, name))
        return fn

    def update(
        self, fn: Callable[P, _T], /, *, name: str | None = None, validator: Callable[P, None] | None = None
    ) -> Callable[P, _T]:
        """Have updates of its name carried out by `fn`, unless `validator` raises. What `fn` raises is the answer."""
        self._handlers.add(handler_of("update", fn, name, validator))
        return fn

    def compensate_with(self, compensation: ActivityDefinition[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Register a compensation that belongs to no activity: it runs, in its turn, when the workflow is undone."""
        self._loop.machine.register_compensation(compensation.compensation_command(args, kwargs))

    async def compensate(self) -> None:
        """Undo now, newest first, what is registered, and go on when that is done.

        Raises CompensationError when a compensation failed for good; the others have run all the same.
        """
        finished = (await self._loop.run_compensate()).compensate_finished
        if finished.HasField("failure"):
            raise from_failure(CompensationError, finished.failure)
