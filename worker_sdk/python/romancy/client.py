"""Client: starts workflows, and looks at workflows, workers and queues."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, TypeVar, TypeVarTuple, Unpack, overload

from romancy.v1.activity_service_pb2 import ActivityRef as Ref
from romancy.v1.activity_service_pb2 import CompleteActivityRequest, HeartbeatActivityRequest
from romancy.v1.admin_service_pb2 import (
    DescribeTaskQueueRequest,
    DescribeTaskQueueResponse,
    ListNamespacesRequest,
    ListSessionsRequest,
    Namespace,
    Session,
    SetNamespaceRequest,
)
from romancy.v1.channel_service_pb2 import GetChannelRequest, ListChannelsRequest, PublishMessageRequest
from romancy.v1.event_rule_pb2 import EventRuleInfo
from romancy.v1.event_service_pb2 import (
    DeleteEventRuleRequest,
    GetEventRuleRequest,
    ListEventRulesRequest,
    PauseEventRuleRequest,
    PublishEventRequest,
    PublishEventsRequest,
    ResumeEventRuleRequest,
    SetEventRuleRequest,
)
from romancy.v1.schedule_pb2 import ScheduleInfo
from romancy.v1.schedule_service_pb2 import ListSchedulesRequest
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_COMPLETED,
    Signal,
    WorkflowInfo,
    WorkflowOutcome,
)
from romancy.v1.workflow_service_pb2 import (
    ID_CONFLICT_POLICY_FAIL,
    ID_CONFLICT_POLICY_TERMINATE_EXISTING,
    ID_CONFLICT_POLICY_USE_EXISTING,
    ID_REUSE_POLICY_ALLOW,
    ID_REUSE_POLICY_ALLOW_IF_FAILED,
    ID_REUSE_POLICY_REJECT,
    CountWorkflowsRequest,
    CountWorkflowsResponse,
    IdConflictPolicy,
    IdReusePolicy,
    ListWorkflowsRequest,
    SignalWithStartRequest,
    StartWorkflowRequest,
    WorkflowFilter,
    WorkflowRef,
)

from romancy import elsewhere
from romancy._calls import Calls
from romancy._calls_by_name import encode_call
from romancy._channel import DEFAULT_TARGET, Endpoint
from romancy._checks import check_choice, check_type, refuse_unknown
from romancy._failure import outcome_error
from romancy._methods import HandlerMethod
from romancy._results import Results
from romancy._spec import SpecOptions, check_spec, to_spec
from romancy._starts import Starts
from romancy.channels import ChannelInfo, check_metadata, to_channel_info
from romancy.context import WorkflowContext
from romancy.converter import codec
from romancy.elsewhere import ActivityRef
from romancy.event_rules import EventRuleOptions, to_event_rule
from romancy.events import Event, to_published
from romancy.handle import WorkflowHandle, new_id
from romancy.options import Seconds, check_seconds, in_seconds, to_duration
from romancy.outbox import Outbox
from romancy.schedules import CreateScheduleOptions, ScheduleHandle, Times, to_schedule
from romancy.workflow import WorkflowDefinition, definition_of

_R = TypeVar("_R")
_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")

_REUSE: Final[Mapping[str, IdReusePolicy.ValueType]] = {
    "allow": ID_REUSE_POLICY_ALLOW,
    "allow_if_failed": ID_REUSE_POLICY_ALLOW_IF_FAILED,
    "reject": ID_REUSE_POLICY_REJECT,
}
_CONFLICT: Final[Mapping[str, IdConflictPolicy.ValueType]] = {
    "fail": ID_CONFLICT_POLICY_FAIL,
    "use_existing": ID_CONFLICT_POLICY_USE_EXISTING,
    "terminate_existing": ID_CONFLICT_POLICY_TERMINATE_EXISTING,
}
_PAGE: Final = 256


class StartOptions(SpecOptions, total=False):
    """How a workflow is started, and how it runs."""

    id: str | None
    """The name of the workflow; without one the service makes it."""
    id_reuse: Literal["allow", "allow_if_failed", "reject"]
    """Whether an id may be used again after its last run closed; "allow" unless said."""
    id_conflict: Literal["fail", "use_existing", "terminate_existing"]
    """What happens when a run of the id is open; "fail" unless said."""
    request_id: str
    """The same one never starts twice; without one, each call has its own."""


class Client:
    """A connection to the service, for one event loop. Calls outlive restarts of the service.

    async with Client("localhost:7233") as client:
        handle = await client.start_workflow(order_processing, order, id=f"order-{order.order_id}")
        result = await handle.result()
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        namespace: str = "default",
        token: str | None = None,
        tls: bool = False,
        tls_ca: str | Path | None = None,
        tls_cert: str | Path | None = None,
        tls_key: str | Path | None = None,
        identity: str | None = None,
        patience: Seconds = 60.0,
    ) -> None:
        """`token` and the `tls` files prove who we are; `identity` says it for people, where neither is given.

        `patience` is how long a call is tried again while the service cannot be reached; then it raises
        ServiceUnavailable.
        """
        check_seconds("patience", patience)
        endpoint = Endpoint(target, token, tls, tls_ca, tls_cert, tls_key)
        patience_s = in_seconds(patience)
        self.namespace = namespace
        self.identity = identity or f"{socket.gethostname()}-{os.getpid()}"
        self.calls: Final = Calls(endpoint, patience_s)
        self.results: Final = Results(self.calls, namespace, patience_s)
        self._starts = Starts(self.calls, patience_s)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Whoever still waits for something is cancelled."""
        await self.results.close()
        await self._starts.close()
        await self.calls.close()

    def ref(self, workflow_id: str, run_id: str | None = None) -> WorkflowRef:
        """The name of a run in this client's namespace."""
        return WorkflowRef(namespace=self.namespace, workflow_id=workflow_id, run_id=run_id or "")

    # Starting -------------------------------------------------------------------------------------------------------

    @overload
    async def start_workflow(
        self,
        workflow: Callable[[WorkflowContext, *_Args], Coroutine[Any, Any, _R]],
        *args: *_Args,
        **options: Unpack[StartOptions],
    ) -> WorkflowHandle[_R]: ...
    @overload
    async def start_workflow(
        self, workflow: str, *args: Any, **options: Unpack[StartOptions]
    ) -> WorkflowHandle[Any]: ...
    async def start_workflow(  # type: ignore[misc]  # mypy takes `*args: Any` for less than `*args: *_Args`
        self, workflow: Any, *args: Any, **options: Unpack[StartOptions]
    ) -> WorkflowHandle[Any]:
        """Start a workflow, by its definition or its name; durable when this returns. Arguments go by position.

        Raises WorkflowAlreadyOpen, WorkflowIdUsed, ConversionError, and RequestRefused for what else is wrong.
        """
        started = await self._starts.start(self._start_request(workflow, args, options))
        return WorkflowHandle(self, started.workflow_id, started.run_id, _decoder(definition_of(workflow)))

    def _start_request(self, workflow: Any, args: tuple[Any, ...], options: StartOptions) -> StartWorkflowRequest:
        _check(options)
        return StartWorkflowRequest(
            namespace=self.namespace,
            workflow_id=options.get("id") or "",
            spec=to_spec(workflow, args, options),
            request_id=options.get("request_id") or new_id(),
            id_reuse_policy=_REUSE[options.get("id_reuse", "allow")],
            id_conflict_policy=_CONFLICT[options.get("id_conflict", "fail")],
            identity=self.identity,
        )

    async def signal_with_start(
        self,
        workflow: Callable[[WorkflowContext, *_Args], Coroutine[Any, Any, _R]] | str,
        *args: *_Args,
        signal: str | HandlerMethod[..., Any],
        signal_args: Sequence[Any] = (),
        **options: Unpack[StartOptions],
    ) -> WorkflowHandle[_R]:
        """Send a signal to the open run of a workflow id, or start one that gets it first.

        Raises as `start_workflow` does, and TypeError without an id.
        """
        if not options.get("id"):
            raise TypeError("signal_with_start needs the id of the workflow that is to get the signal: give id=...")
        name, arguments = encode_call("signal", signal, tuple(signal_args), {})
        start = self._start_request(workflow, args, options)
        request = SignalWithStartRequest(start=start, signal=Signal(name=name, arguments=arguments))
        told = await self.calls.call(lambda calls: calls.workflows.SignalWithStart, request)
        return WorkflowHandle(self, told.workflow_id, told.run_id, _decoder(definition_of(workflow)))

    @overload
    async def execute_workflow(
        self,
        workflow: Callable[[WorkflowContext, *_Args], Coroutine[Any, Any, _R]],
        *args: *_Args,
        **options: Unpack[StartOptions],
    ) -> _R: ...
    @overload
    async def execute_workflow(self, workflow: str, *args: Any, **options: Unpack[StartOptions]) -> Any: ...
    async def execute_workflow(  # type: ignore[misc]  # as start_workflow
        self, workflow: Any, *args: Any, **options: Unpack[StartOptions]
    ) -> Any:
        """Start a workflow and wait for its result; see `start_workflow` and `WorkflowHandle.result`."""
        handle: WorkflowHandle[Any] = await self.start_workflow(workflow, *args, **options)
        return await handle.result()

    @overload
    def get_handle(
        self,
        workflow_id: str,
        run_id: str | None = None,
        *,
        workflow: Callable[[WorkflowContext, *tuple[Any, ...]], Coroutine[Any, Any, _R]],
    ) -> WorkflowHandle[_R]: ...
    @overload
    def get_handle(self, workflow_id: str, run_id: str | None = None) -> WorkflowHandle[Any]: ...
    def get_handle(self, workflow_id: str, run_id: str | None = None, *, workflow: Any = "") -> WorkflowHandle[Any]:
        """A workflow that was started before, here or elsewhere; nothing is asked of the service yet.

        With its definition, results come as its annotation says.
        """
        return WorkflowHandle(self, workflow_id, run_id, _decoder(definition_of(workflow)))

    @property
    def outbox(self) -> Outbox:
        """Where events that workflows send are delivered to, and what could not be."""
        return Outbox(self)

    # Events -----------------------------------------------------------------------------------------------------------

    async def publish_event(self, event: Event[Any]) -> bool:
        """Tell the workflows that wait for it of something that happened. Durable when this returns.

        Returns whether the service did not know the event: one with the same source and id happens once.
        Raises WorkflowNotFound or WorkflowClosed for an event that is for one workflow, ConversionError, and
        RequestRefused for what else is wrong.
        """
        request = PublishEventRequest(namespace=self.namespace, event=to_published(event))
        return not (await self.calls.call(lambda calls: calls.events.PublishEvent, request)).duplicate

    async def publish_events(self, events: Sequence[Event[Any]]) -> list[bool]:
        """Publish up to 1,000 events in this order, all or none; for each what `publish_event` returns."""
        if not events:
            return []
        sent = [to_published(event) for event in events]
        request = PublishEventsRequest(namespace=self.namespace, events=sent)
        response = await self.calls.call(lambda calls: calls.events.PublishEvents, request)
        return [not duplicate for duplicate in response.duplicates]

    @overload
    async def set_event_rule(
        self,
        rule_id: str,
        event_type: str,
        workflow: Callable[[WorkflowContext, Event[_T], *_Args], Coroutine[Any, Any, Any]],
        *args: *_Args,
        **options: Unpack[EventRuleOptions],
    ) -> bool: ...
    @overload
    async def set_event_rule(
        self, rule_id: str, event_type: str, workflow: str, *args: Any, **options: Unpack[EventRuleOptions]
    ) -> bool: ...
    async def set_event_rule(  # type: ignore[misc]  # as start_workflow
        self, rule_id: str, event_type: str, workflow: Any, *args: Any, **options: Unpack[EventRuleOptions]
    ) -> bool:
        """Have each event of a type that is published from now on start a workflow, once; durable when this returns.

        The workflow gets the event as its first argument, and `args` after it. Replaces what a rule of that id said.
        Returns whether there was none. Raises TypeError, ConversionError, and RequestRefused for what else is wrong.
        """
        request = SetEventRuleRequest(
            namespace=self.namespace,
            rule_id=rule_id,
            rule=to_event_rule(event_type, workflow, args, options),
            request_id=options.get("request_id") or new_id(),
        )
        return (await self.calls.call(lambda calls: calls.events.SetEventRule, request)).created

    async def describe_event_rule(self, rule_id: str) -> EventRuleInfo:
        """A rule, how many workflows it started, and what went wrong last. Raises EventRuleNotFound."""
        request = GetEventRuleRequest(namespace=self.namespace, rule_id=rule_id)
        return (await self.calls.call(lambda calls: calls.events.GetEventRule, request)).rule

    async def list_event_rules(self) -> AsyncIterator[EventRuleInfo]:
        """The namespace's rules, by their ids."""
        request = ListEventRulesRequest(namespace=self.namespace)
        while True:
            page = await self.calls.call(lambda calls: calls.events.ListEventRules, request)
            for rule in page.rules:
                yield rule
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def pause_event_rule(self, rule_id: str, note: str = "", *, request_id: str | None = None) -> None:
        """Have it start nothing until it is resumed. Raises EventRuleNotFound."""
        request = PauseEventRuleRequest(
            namespace=self.namespace, rule_id=rule_id, note=note, request_id=request_id or new_id()
        )
        await self.calls.call(lambda calls: calls.events.PauseEventRule, request)

    async def resume_event_rule(self, rule_id: str, note: str = "", *, request_id: str | None = None) -> None:
        """End a pause. Events that came meanwhile start nothing any more. Raises EventRuleNotFound."""
        request = ResumeEventRuleRequest(
            namespace=self.namespace, rule_id=rule_id, note=note, request_id=request_id or new_id()
        )
        await self.calls.call(lambda calls: calls.events.ResumeEventRule, request)

    async def delete_event_rule(self, rule_id: str, *, request_id: str | None = None) -> None:
        """Forget a rule. Workflows that it started go on. Raises EventRuleNotFound."""
        request = DeleteEventRuleRequest(namespace=self.namespace, rule_id=rule_id, request_id=request_id or new_id())
        await self.calls.call(lambda calls: calls.events.DeleteEventRule, request)

    # Channels ---------------------------------------------------------------------------------------------------------

    async def publish(
        self,
        channel: str,
        data: Any,
        *,
        metadata: Mapping[str, str] | None = None,
        workflow_id: str = "",
        request_id: str | None = None,
    ) -> bool:
        """Send a message to a channel, or to one workflow that has subscribed to it. It is stored when this returns.

        `request_id` makes it happen once, however often it is called with it within a day; a new one unless given.
        Returns whether the service did not know the message. Raises WorkflowNotFound and WorkflowClosed for a message
        to one workflow, ConversionError, and RequestRefused for what else is wrong.
        """
        request = PublishMessageRequest(
            namespace=self.namespace,
            channel=channel,
            data=codec(Any).encode(data, f"a message for channel {channel}"),
            metadata=check_metadata(metadata),
            workflow_id=workflow_id,
            request_id=request_id or new_id(),
        )
        return not (await self.calls.call(lambda calls: calls.channels.PublishMessage, request)).duplicate

    async def list_channels(self) -> AsyncIterator[ChannelInfo]:
        """The namespace's channels, by name."""
        token = ""
        while True:
            request = ListChannelsRequest(namespace=self.namespace, page_token=token)
            page = await self.calls.call(lambda calls: calls.channels.ListChannels, request)
            for channel in page.channels:
                yield to_channel_info(channel)
            token = page.next_page_token
            if not token:
                return

    async def describe_channel(self, channel: str) -> ChannelInfo:
        """One channel. Raises ChannelNotFound."""
        request = GetChannelRequest(namespace=self.namespace, channel=channel)
        return to_channel_info((await self.calls.call(lambda calls: calls.channels.GetChannel, request)).channel)

    # Activities -------------------------------------------------------------------------------------------------------

    async def complete_activity(
        self, activity: str | ActivityRef, result: Any = None, *, request_id: str | None = None
    ) -> bool:
        """End an attempt with a result, instead of its worker: by `activity_info().token`, or by an ActivityRef.

        Durable when this returns. Returns whether this call ended it: one that had ended before keeps its outcome.
        Raises ActivityStale when the attempt timed out, was replaced by another one, or its workflow is closed;
        WorkflowNotFound, ConversionError, and RequestRefused for what else is wrong.
        """
        return await self._end_activity(elsewhere.completed(self._activity(activity), result), request_id)

    async def fail_activity(
        self, activity: str | ActivityRef, error: BaseException, *, request_id: str | None = None
    ) -> bool:
        """End an attempt with an error, as if its function had raised it: it is retried, unless its policy or the error
        (a TerminalError) says otherwise. See `complete_activity`.
        """
        return await self._end_activity(elsewhere.failed(self._activity(activity), error), request_id)

    async def cancel_activity(
        self, activity: str | ActivityRef, *, nothing_done: bool = False, request_id: str | None = None
    ) -> bool:
        """End an attempt that is asked to stop. See `complete_activity`.

        `nothing_done`: it surely had no effect, or took it back, and is not undone.
        """
        request = elsewhere.cancelled(self._activity(activity), nothing_done=nothing_done)
        return await self._end_activity(request, request_id)

    async def heartbeat_activity(self, activity: str | ActivityRef, details: Any = None) -> bool:
        """Say that an attempt goes on, and how far it is. Returns whether it is asked to stop. Raises ActivityStale."""
        request = HeartbeatActivityRequest(activity=self._activity(activity))
        if details is not None:
            request.details.CopyFrom(codec(Any).encode(details, "heartbeat details"))
        return (await self.calls.call(lambda calls: calls.activities.HeartbeatActivity, request)).cancel_requested

    async def _end_activity(self, request: CompleteActivityRequest, request_id: str | None) -> bool:
        request.request_id = request_id or new_id()
        request.identity = self.identity
        return not (await self.calls.call(lambda calls: calls.activities.CompleteActivity, request)).duplicate

    def _activity(self, activity: str | ActivityRef) -> Ref:
        return elsewhere.to_ref(self.namespace, activity)

    # Schedules ------------------------------------------------------------------------------------------------------

    @overload
    async def create_schedule(
        self,
        schedule_id: str,
        times: Times,
        workflow: Callable[[WorkflowContext, *_Args], Coroutine[Any, Any, _R]],
        *args: *_Args,
        **options: Unpack[CreateScheduleOptions],
    ) -> ScheduleHandle[_R]: ...
    @overload
    async def create_schedule(
        self, schedule_id: str, times: Times, workflow: str, *args: Any, **options: Unpack[CreateScheduleOptions]
    ) -> ScheduleHandle[Any]: ...
    async def create_schedule(  # type: ignore[misc]  # as start_workflow
        self, schedule_id: str, times: Times, workflow: Any, *args: Any, **options: Unpack[CreateScheduleOptions]
    ) -> ScheduleHandle[Any]:
        """Have the service start a workflow with these arguments at given times; durable when this returns.

        Raises ScheduleExists, ConversionError, and RequestRefused for what else is wrong.
        """
        handle = ScheduleHandle[Any](self, schedule_id, workflow)
        await handle.create(
            to_schedule(times, workflow, args, options),
            paused=options.get("paused", False),
            note=options.get("note", ""),
            request_id=options.get("request_id", ""),
        )
        return handle

    @overload
    def get_schedule_handle(
        self, schedule_id: str, *, workflow: Callable[[WorkflowContext, *tuple[Any, ...]], Coroutine[Any, Any, _R]]
    ) -> ScheduleHandle[_R]: ...
    @overload
    def get_schedule_handle(self, schedule_id: str) -> ScheduleHandle[Any]: ...
    def get_schedule_handle(self, schedule_id: str, *, workflow: Any = "") -> ScheduleHandle[Any]:
        """A schedule that was made before, here or elsewhere; nothing is asked of the service yet."""
        return ScheduleHandle(self, schedule_id, workflow)

    async def list_schedules(self, *, limit: int | None = None) -> AsyncIterator[ScheduleInfo]:
        """Schedules, by their ids; all of them, or `limit`."""
        request = ListSchedulesRequest(namespace=self.namespace, page_size=min(limit or _PAGE, _PAGE))
        left = limit
        while True:
            page = await self.calls.call(lambda calls: calls.schedules.ListSchedules, request)
            for info in page.schedules[:left]:
                yield info
            left = None if left is None else left - len(page.schedules)
            if not page.next_page_token or (left is not None and left <= 0):
                return
            request.page_token = page.next_page_token

    # Looking --------------------------------------------------------------------------------------------------------

    async def list_workflows(
        self, where: WorkflowFilter | None = None, *, limit: int | None = None
    ) -> AsyncIterator[WorkflowInfo]:
        """Workflows, newest first; all of them, or `limit`."""
        request = ListWorkflowsRequest(namespace=self.namespace, filter=where, page_size=min(limit or _PAGE, _PAGE))
        left = limit
        while True:
            page = await self.calls.call(lambda calls: calls.workflows.ListWorkflows, request)
            for info in page.workflows[:left]:
                yield info
            left = None if left is None else left - len(page.workflows)
            if not page.next_page_token or (left is not None and left <= 0):
                return
            request.page_token = page.next_page_token

    async def count_workflows(self, where: WorkflowFilter | None = None) -> CountWorkflowsResponse:
        """How many there are: exactly up to 10,000, above that an estimate."""
        request = CountWorkflowsRequest(namespace=self.namespace, filter=where)
        return await self.calls.call(lambda calls: calls.workflows.CountWorkflows, request)

    async def list_workers(self, task_queue: str = "") -> Sequence[Session]:
        """The workers' sessions, of all queues or of one."""
        request = ListSessionsRequest(namespace=self.namespace, task_queue=task_queue)
        return (await self.calls.call(lambda calls: calls.admin.ListSessions, request)).sessions

    async def list_namespaces(self) -> AsyncIterator[Namespace]:
        """The namespaces that were set or are used, by name; of these, the ones that our credentials allow."""
        request = ListNamespacesRequest(page_size=_PAGE)
        while True:
            page = await self.calls.call(lambda calls: calls.admin.ListNamespaces, request)
            for namespace in page.namespaces:
                yield namespace
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def set_namespace(self, retention: Seconds, *, request_id: str | None = None) -> Namespace:
        """Say how long this client's namespace keeps closed workflows. What is older is deleted within minutes."""
        check_seconds("retention", retention)
        request = SetNamespaceRequest(
            namespace=self.namespace,
            retention=to_duration(retention),
            request_id=request_id or new_id(),
            identity=self.identity,
        )
        return (await self.calls.call(lambda calls: calls.admin.SetNamespace, request)).namespace

    async def describe_task_queue(self, task_queue: str = "") -> DescribeTaskQueueResponse:
        """What waits in a queue ("default" unless said), and who serves it."""
        request = DescribeTaskQueueRequest(namespace=self.namespace, task_queue=task_queue)
        return await self.calls.call(lambda calls: calls.admin.DescribeTaskQueue, request)


def _check(options: StartOptions) -> None:
    """Raise TypeError or ValueError for what is no option, or not of its type, before anything is sent."""
    refuse_unknown("start_workflow", options, StartOptions.__annotations__)
    check_choice("id_reuse", options.get("id_reuse", "allow"), _REUSE)
    check_choice("id_conflict", options.get("id_conflict", "fail"), _CONFLICT)
    check_type("id", options.get("id") or "", str, "a text")
    check_spec(options)


def _decoder(workflow: Any) -> Callable[[WorkflowOutcome], Any]:
    def decode(outcome: WorkflowOutcome) -> Any:
        if outcome.status != WORKFLOW_STATUS_COMPLETED:
            raise outcome_error(outcome)
        if isinstance(workflow, WorkflowDefinition):
            return workflow.decode_result(outcome.result)
        return codec(Any).decode(outcome.result, f"the result of {workflow or 'the workflow'}")

    return decode
