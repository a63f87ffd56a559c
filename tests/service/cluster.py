"""Cluster: the real service in process, one replica or two behind a proxy; and a Tenant, one test's own namespace on it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from romancy.v1.admin_service_pb2_grpc import AdminServiceStub
from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.outbox_service_pb2_grpc import OutboxServiceStub
from romancy.v1.payload_pb2 import Payload
from romancy.v1.schedule_service_pb2_grpc import ScheduleServiceStub
from romancy.v1.worker_service_pb2 import Hello
from romancy.v1.workflow_pb2 import Signal, WorkflowOutcome, WorkflowSpec
from romancy.v1.workflow_service_pb2 import (
    CancelWorkflowRequest,
    CancelWorkflowResponse,
    GetHistoryRequest,
    GetWorkflowRequest,
    GetWorkflowResponse,
    GetWorkflowResultRequest,
    QueryWorkflowRequest,
    QueryWorkflowResponse,
    SignalWorkflowRequest,
    StartWorkflowRequest,
    StartWorkflowResponse,
    TerminateWorkflowRequest,
    TerminateWorkflowResponse,
    UpdateWorkflowRequest,
    UpdateWorkflowResponse,
    WorkflowRef,
)
from romancy.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from romancy_service.clock import DatabaseClock
from romancy_service.config import Address, Config
from romancy_service.core.destinations import LOOPBACK, Destinations
from romancy_service.core.limits import Limits
from romancy_service.core.task import NEVER_MS, TaskKind
from romancy_service.server import Running, running
from romancy_service.store.store import Store
from tests.service.proxy import Proxy, proxy
from tests.service.scripted_worker import PATIENCE_S, ScriptedWorker
from tests.service.stored import assert_stored_is_folded

HERE = Destinations.parse(LOOPBACK)
QUICK = replace(
    Limits(),
    session_lease_ms=5_000,
    heartbeat_interval_ms=1_000,
    reconnect_grace_ms=500,
    drain_ms=1_000,
    hello_ms=2_000,
    sink_requests=4,
)
"""The usual limits, but for what would make tests wait."""
_numbers = itertools.count(1)
_MESSAGE_BYTES = 64 << 20


class ShiftedClock(DatabaseClock):
    """The database's clock, which a test may move ahead for all replicas alike."""

    shift_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + ShiftedClock.shift_ms

    def earliest_ms(self) -> int:
        return super().earliest_ms() + ShiftedClock.shift_ms

    def latest_ms(self) -> int:
        return super().latest_ms() + ShiftedClock.shift_ms


@dataclass
class Cluster:
    """Replicas on one database, reached through a proxy."""

    database: str
    replicas: list[Running]
    proxy: Proxy

    @property
    def store(self) -> Store:
        """What the first replica uses."""
        return self.replicas[0].node.store

    async def pass_ms(self, ms: int) -> None:
        """Let so much time pass, for all replicas alike. Who is connected keeps its lease: it was renewed on the way."""
        for replica in self.replicas:
            node = replica.node
            held = [(session.session_id, session.epoch) for session in node.dispatch.sessions.values()]
            if held:
                await node.store.renew_sessions(held, node.clock.now_ms() + ms + node.limits.session_lease_ms)
        ShiftedClock.shift_ms += ms
        await asyncio.gather(*(replica.time_moved() for replica in self.replicas))

    @asynccontextmanager
    async def tenant(self) -> AsyncIterator[Tenant]:
        """A namespace of its own; what is stored in it is checked at the end."""
        tenant = Tenant(self, f"tenant-{next(_numbers)}")
        try:
            yield tenant
            await assert_stored_is_folded(self.store, tenant.namespace)
        finally:
            await tenant.close()


@asynccontextmanager
async def cluster(database: str, *, replicas: int = 1, limits: Limits = QUICK) -> AsyncIterator[Cluster]:
    """A service that is up inside the block. Each new connection goes to the next replica."""
    async with AsyncExitStack() as stack:
        anywhere = Address("127.0.0.1", 0)
        config = Config(database=database, listen=anywhere, http=anywhere, limits=limits, destinations=HERE)
        up = [await stack.enter_async_context(running(config, ShiftedClock)) for _ in range(replicas)]
        if replicas > 1:
            await until(_all_know_each_other(up), "the replicas know each other")
        between = await stack.enter_async_context(proxy([("127.0.0.1", r.port) for r in up], alternate=True))
        yield Cluster(database, up, between)


@dataclass
class Tenant:
    """One test's own namespace, with its clients and workers."""

    cluster: Cluster
    namespace: str
    channels: list[grpc.aio.Channel] = field(default_factory=list)
    workers: list[ScriptedWorker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.channel = self.open_channel()
        self.workflows = WorkflowServiceStub(self.channel)
        self.schedules = ScheduleServiceStub(self.channel)
        self.admin = AdminServiceStub(self.channel)
        self.outbox = OutboxServiceStub(self.channel)

    def open_channel(self, port: int | None = None) -> grpc.aio.Channel:
        """A connection of its own, through the proxy or to one replica."""
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", _MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MESSAGE_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 500),
        ]
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port or self.cluster.proxy.port}", options=options)
        self.channels.append(channel)
        return channel

    def hello(
        self,
        *,
        workflows: Sequence[str] = ("order",),
        activities: Sequence[str] = ("reserve", "pay", "ship", "cancel", "refund", "unship"),
        workflow_slots: int = 10,
        activity_slots: int = 100,
        worker_id: str = "worker",
        queue: str = "queue",
        **more: object,
    ) -> Hello:
        """What a worker says first."""
        return Hello(
            namespace=self.namespace,
            worker_id=worker_id,
            task_queues=[queue],
            workflow_types=workflows,
            activity_types=activities,
            workflow_slots=workflow_slots if workflows else 0,
            activity_slots=activity_slots if activities else 0,
            **more,  # type: ignore[arg-type]
        )

    def new_worker(self, hello: Hello | None = None, port: int | None = None, **said: object) -> ScriptedWorker:
        """A worker that has not connected yet."""
        worker = ScriptedWorker(self.open_channel(port), hello or self.hello(**said))  # type: ignore[arg-type]
        self.workers.append(worker)
        return worker

    async def worker(self, **said: object) -> ScriptedWorker:
        """A worker that is connected."""
        worker = self.new_worker(**said)  # type: ignore[arg-type]
        await worker.connect()
        return worker

    async def close(self) -> None:
        """Nothing of it stays open."""
        for worker in self.workers:
            await worker.close()
        for channel in self.channels:
            await channel.close()

    # Client ---------------------------------------------------------------------------------------------------------

    def start_request(self, workflow_id: str = "", **fields: object) -> StartWorkflowRequest:
        """A start of an `order` on `queue`; fields of the spec and of the request may be given."""
        spec_fields = {
            name: fields.pop(name) for name in list(fields) if name in WorkflowSpec.DESCRIPTOR.fields_by_name
        }
        spec = WorkflowSpec(**{"workflow_type": "order", "task_queue": "queue", **spec_fields})  # type: ignore[arg-type]
        return StartWorkflowRequest(namespace=self.namespace, workflow_id=workflow_id, spec=spec, **fields)  # type: ignore[arg-type]

    async def start(self, workflow_id: str = "", **fields: object) -> StartWorkflowResponse:
        """Start a run."""
        return await self.workflows.StartWorkflow(self.start_request(workflow_id, **fields), wait_for_ready=True)

    def ref(self, run_id: str = "", workflow_id: str = "") -> WorkflowRef:
        """The name of a run."""
        return WorkflowRef(namespace=self.namespace, workflow_id=workflow_id, run_id=run_id)

    async def get(self, run_id: str) -> GetWorkflowResponse:
        """The run as people see it."""
        return await self.workflows.GetWorkflow(GetWorkflowRequest(workflow=self.ref(run_id)))

    async def result(self, run_id: str, wait_s: int = int(PATIENCE_S)) -> WorkflowOutcome | None:
        """The run's outcome, if it has one in time."""
        request = GetWorkflowResultRequest(workflow=self.ref(run_id), wait=Duration(seconds=wait_s))
        response = await self.workflows.GetWorkflowResult(request)
        return response.outcome if response.HasField("outcome") else None

    async def history(self, run_id: str) -> list[HistoryEvent]:
        """The whole history."""
        events: list[HistoryEvent] = []
        while True:
            after = events[-1].event_id if events else 0
            request = GetHistoryRequest(workflow=self.ref(run_id), after_event_id=after, page_size=1_000)
            page = await self.workflows.GetHistory(request)
            events += page.events
            if not page.more:
                return events

    async def kinds(self, run_id: str) -> list[str]:
        """The kinds of all its events."""
        return [str(event.WhichOneof("attributes")) for event in await self.history(run_id)]

    async def cancel(self, run_id: str, **fields: object) -> CancelWorkflowResponse:
        """Ask a run to stop."""
        return await self.workflows.CancelWorkflow(CancelWorkflowRequest(workflow=self.ref(run_id), **fields))  # type: ignore[arg-type]

    async def signal(self, run_id: str, name: str = "hello", *, workflow_id: str = "", **fields: object) -> str:
        """Tell a run's code something. Returns which run got it."""
        signal = Signal(name=name, arguments=fields.pop("arguments", ()))  # type: ignore[arg-type]
        request = SignalWorkflowRequest(workflow=self.ref(run_id, workflow_id), signal=signal, **fields)  # type: ignore[arg-type]
        return (await self.workflows.SignalWorkflow(request)).run_id

    async def update(self, run_id: str, update_id: str = "", **fields: object) -> UpdateWorkflowResponse:
        """Ask a run's code to change something, and wait for the answer."""
        fields = {"name": "change", "workflow": self.ref(run_id), **fields}
        return await self.workflows.UpdateWorkflow(UpdateWorkflowRequest(request_id=update_id, **fields))  # type: ignore[arg-type]

    async def query(self, run_id: str, name: str = "state", wait_s: float = PATIENCE_S) -> QueryWorkflowResponse:
        """Ask a run's code something."""
        request = QueryWorkflowRequest(workflow=self.ref(run_id), name=name, wait=seconds(wait_s))
        return await self.workflows.QueryWorkflow(request)

    async def signals(self, run_id: str) -> list[str]:
        """The names of the signals that a run got, in order."""
        events = await self.history(run_id)
        return [event.signal_received.signal.name for event in events if event.HasField("signal_received")]

    async def newest(self, workflow_id: str) -> GetWorkflowResponse:
        """The newest run of a workflow id."""
        return await self.workflows.GetWorkflow(GetWorkflowRequest(workflow=self.ref(workflow_id=workflow_id)))

    async def errands_done(self, *run_ids: str) -> None:
        """Nothing that these runs wanted brought about elsewhere is left to be done."""

        async def done() -> bool:
            runs = await self.cluster.store.load(run_ids)
            return not any(
                task.kind >= TaskKind.CHILD and task.due_ms < NEVER_MS
                for run in runs.values()
                for task in run.tasks.values()
            )

        await until(done, "the errands are done")

    async def terminate(self, run_id: str, **fields: object) -> TerminateWorkflowResponse:
        """End a run at once."""
        return await self.workflows.TerminateWorkflow(TerminateWorkflowRequest(workflow=self.ref(run_id), **fields))  # type: ignore[arg-type]


def _all_know_each_other(up: list[Running]) -> Callable[[], Awaitable[bool]]:
    async def known() -> bool:
        return all(replica.node.dispatch.has_peers for replica in up)

    return known


async def until(condition: Callable[[], Awaitable[object]], what: str, patience_s: float = PATIENCE_S) -> None:
    """Ask again and again until the answer is true."""
    try:
        async with asyncio.timeout(patience_s):
            while not await condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {patience_s:g} s") from None


def json(text: str) -> Payload:
    """A value."""
    return Payload(json=text)


def seconds(number: float) -> Duration:
    """A length of time."""
    length = Duration()
    length.FromMilliseconds(int(number * 1000))
    return length


@dataclass(frozen=True)
class Refusal:
    """How a call was refused."""

    code: grpc.StatusCode
    reason: str
    metadata: dict[str, str]
    message: str

    @property
    def field(self) -> str:
        """Which field is at fault."""
        return self.metadata.get("field", "")


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """Read the ErrorInfo that every error of the service carries."""
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    assert isinstance(details, bytes), f"{error.code()} without ErrorInfo: {error.details()}"
    info = ErrorInfo()
    assert Status.FromString(details).details[0].Unpack(info)
    assert info.domain == "romancy"
    return Refusal(error.code(), info.reason, dict(info.metadata), error.details() or "")


async def refused(call: Awaitable[object]) -> Refusal:
    """The refusal of a call that must be refused."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return refusal_of(error)
    raise AssertionError(f"was not refused, but answered {answer}")
