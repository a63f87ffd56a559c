"""The domain errors: one class for each thing that a caller can do next. rpc/errors.py gives each its gRPC status.

`reason` is for programs and stands in the contract; the text is for people: what is wrong, the value, the remedy.
"""

from __future__ import annotations

SHOWN_CHARACTERS = 80
"""So much of a bad value is shown: it may be megabytes, or a secret in the wrong field."""


def shown(value: object) -> str:
    """A value as errors show it: control characters escaped, cut."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}... ({len(text)} characters)"


class RomancyError(Exception):
    """The base of all domain errors. Never raised itself."""

    reason: str

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.metadata: dict[str, str] = metadata


# The request is wrong: mend it. -----------------------------------------------------------------------------------


class InvalidField(RomancyError):
    """A field has a value that is not allowed. `reason` is more exact where the contract has a name for it."""

    def __init__(
        self,
        field: str,
        problem: str,
        remedy: str = "",
        *,
        value: object = None,
        limit: int | None = None,
        reason: str = "INVALID_FIELD",
    ) -> None:
        super().__init__("; ".join(filter(None, (f"{field}: {problem}", remedy))), field=field)
        self.reason = reason
        self.field, self.problem, self.remedy, self.value, self.limit = field, problem, remedy, value, limit
        if value is not None:
            self.metadata["value"] = shown(value)
        if limit is not None:
            self.metadata["limit"] = str(limit)

    def inside(self, outer: str) -> InvalidField:
        """The same error, for a field that lies inside `outer`."""
        return InvalidField(
            f"{outer}.{self.field}",
            self.problem,
            self.remedy,
            value=self.value,
            limit=self.limit,
            reason=self.reason,
        )


class RequestIdReused(RomancyError):
    """The request id was used before, for something else."""

    reason = "REQUEST_ID_REUSED"

    def __init__(self, request_id: str, used_for: str) -> None:
        """`used_for` begins with the rpc."""
        text = f"request id {shown(request_id)} was used for {used_for} before; give each request an id of its own"
        super().__init__(text, request_id=request_id, method=used_for.partition(" ")[0])


# The thing is not there, or not in the state for this: look again. --------------------------------------------------


class WorkflowNotFound(RomancyError):
    """No run of that name is kept."""

    reason = "WORKFLOW_NOT_FOUND"

    def __init__(self, name: str) -> None:
        text = f"no workflow or run {shown(name)} in this namespace; it may never have started, or be purged"
        super().__init__(text, workflow=name)


class CompensationNotFound(RomancyError):
    """The run has no compensation of that id that failed for good."""

    reason = "COMPENSATION_NOT_FOUND"

    def __init__(self, compensation_id: str) -> None:
        text = f"the run has no failed compensation {shown(compensation_id)}; GetWorkflow lists those that wait"
        super().__init__(text, compensation_id=compensation_id)


class WorkflowAlreadyOpen(RomancyError):
    """A run of the workflow id is open, and the request does not say what to do then."""

    reason = "WORKFLOW_ALREADY_OPEN"

    def __init__(self, workflow_id: str, run_id: str) -> None:
        text = (
            f"workflow {shown(workflow_id)} is open as run {run_id}; choose another id, or say what then (id_conflict)"
        )
        super().__init__(text, workflow_id=workflow_id, run_id=run_id)


class WorkflowIdUsed(RomancyError):
    """A run of the workflow id was there before, and the request's policy forbids another."""

    reason = "WORKFLOW_ID_USED"

    def __init__(self, workflow_id: str, run_id: str) -> None:
        text = f"workflow {shown(workflow_id)} ran before as run {run_id}; choose another id or an id_reuse_policy"
        super().__init__(text, workflow_id=workflow_id, run_id=run_id)


class WorkflowClosed(RomancyError):
    """The run is closed for ever."""

    reason = "WORKFLOW_CLOSED"

    def __init__(self, workflow_id: str, run_id: str, *, undoing: bool = False) -> None:
        how = "is undoing what it did; its code has ended, nothing" if undoing else "is closed; nothing"
        text = f"run {run_id} of workflow {shown(workflow_id)} {how} can be asked of it any more"
        super().__init__(text, workflow_id=workflow_id, run_id=run_id)


class TooManyUpdates(RomancyError):
    """The run has as many updates that it has not answered as it may: try again later."""

    reason = "TOO_MANY_UPDATES"

    def __init__(self, workflow_id: str, run_id: str, limit: int) -> None:
        text = f"run {run_id} of workflow {shown(workflow_id)} has {limit} unanswered updates; wait for some of them"
        super().__init__(text, workflow_id=workflow_id, run_id=run_id, limit=str(limit))


class TooManyQueries(RomancyError):
    """This replica has as many queries under way as it takes: try again later."""

    reason = "TOO_MANY_QUERIES"

    def __init__(self, limit: int) -> None:
        text = f"{limit} queries are under way here, which is all that this replica takes; wait for some of them"
        super().__init__(text, limit=str(limit))


class ChannelNotFound(RomancyError):
    """Nobody uses a channel of that name."""

    reason = "CHANNEL_NOT_FOUND"

    def __init__(self, channel: str) -> None:
        text = f"channel {shown(channel)} is not there: nobody sent to it or subscribed to it lately; check the name"
        super().__init__(text, channel=channel)


class ChannelModeConflict(RomancyError):
    """Others take the channel for something else."""

    reason = "CHANNEL_MODE_CONFLICT"

    def __init__(self, channel: str, mode: str, wanted: str) -> None:
        text = (
            f"channel {shown(channel)} is {mode} for those that are subscribed to it, not {wanted}; subscribe to it as "
            f"{mode}, or use another channel"
        )
        super().__init__(text, channel=channel, mode=mode)


class SinkNotFound(RomancyError):
    """The namespace has no sink of that name."""

    reason = "SINK_NOT_FOUND"

    def __init__(self, sink: str) -> None:
        super().__init__(f"no sink {shown(sink)} in this namespace; ListSinks lists them", sink=sink)


class DeadLetterNotFound(RomancyError):
    """There is no dead letter at that position, or not any more."""

    reason = "DEAD_LETTER_NOT_FOUND"

    def __init__(self, position: int) -> None:
        text = f"no dead letter {position} in this namespace; it may be sent again, dropped or past its retention"
        super().__init__(text, position=str(position))


class TooManySinks(RomancyError):
    """The namespace has as many sinks as it may."""

    reason = "TOO_MANY_SINKS"

    def __init__(self, limit: int) -> None:
        super().__init__(f"the namespace has {limit} sinks, and more may not be; delete one", limit=str(limit))


class UpdateAborted(RomancyError):
    """The run ended before it answered the update."""

    reason = "UPDATE_ABORTED"

    def __init__(self, run_id: str) -> None:
        text = f"run {run_id} ended, or began to undo itself, before it answered the update"
        super().__init__(text, run_id=run_id)


class QueryTimeout(RomancyError):
    """No worker answered the query in time."""

    reason = "QUERY_TIMEOUT"

    def __init__(self, run_id: str, waited_for: str) -> None:
        super().__init__(f"the query of run {run_id} was not answered in time: {waited_for}", run_id=run_id)


class ScheduleNotFound(RomancyError):
    """There is no schedule of that id."""

    reason = "SCHEDULE_NOT_FOUND"

    def __init__(self, schedule_id: str) -> None:
        text = f"no schedule {shown(schedule_id)} in this namespace; it was never made, or is deleted"
        super().__init__(text, schedule_id=schedule_id)


class ScheduleExists(RomancyError):
    """There is a schedule of that id already."""

    reason = "SCHEDULE_EXISTS"

    def __init__(self, schedule_id: str) -> None:
        text = f"schedule {shown(schedule_id)} is there already; choose another id, or change it with UpdateSchedule"
        super().__init__(text, schedule_id=schedule_id)


class ScheduleChanged(RomancyError):
    """The schedule has another revision than the one that the change rests on."""

    reason = "SCHEDULE_CHANGED"

    def __init__(self, schedule_id: str, expected: int, revision: int) -> None:
        text = f"schedule {shown(schedule_id)} has revision {revision}, not {expected}; read it again and decide anew"
        super().__init__(text, schedule_id=schedule_id, revision=str(revision))


class ScheduleBusy(RomancyError):
    """As many starts of the schedule wait as may."""

    reason = "SCHEDULE_BUSY"

    def __init__(self, schedule_id: str, limit: int) -> None:
        text = f"{limit} starts of schedule {shown(schedule_id)} would wait, and more may not; ask when they are made"
        super().__init__(text, schedule_id=schedule_id, limit=str(limit))


class EventRuleNotFound(RomancyError):
    """There is no event rule of that id."""

    reason = "EVENT_RULE_NOT_FOUND"

    def __init__(self, rule_id: str) -> None:
        text = f"no event rule {shown(rule_id)} in this namespace; it was never made, or is deleted"
        super().__init__(text, rule_id=rule_id)


class TooManyEventRules(RomancyError):
    """As many rules are for events of a type as may."""

    reason = "TOO_MANY_EVENT_RULES"

    def __init__(self, event_type: str, limit: int) -> None:
        text = f"{limit} rules are for events of type {shown(event_type)}, and more may not; delete one"
        super().__init__(text, event_type=event_type, limit=str(limit))


class WorkflowOpen(RomancyError):
    """The run is open: what is asked can be done only with a closed one."""

    reason = "WORKFLOW_OPEN"

    def __init__(self, run_id: str) -> None:
        super().__init__(f"run {run_id} is open; cancel or terminate it first", run_id=run_id)


class WorkflowUnsettled(RomancyError):
    """The run is closed, and others are still to hear of it: what is asked can be done only when they have."""

    reason = "WORKFLOW_UNSETTLED"

    def __init__(self, run_id: str) -> None:
        text = (
            f"run {run_id} is closed, but what it has to tell others (its parent, its children, those it sent messages"
            " to) is not delivered yet; ask again in some seconds"
        )
        super().__init__(text, run_id=run_id)


class StaleTask(RomancyError):
    """The task is done, or another attempt or worker has it: drop its result."""

    reason = "STALE_TASK"

    def __init__(self, task_id: str, why: str) -> None:
        super().__init__(f"task {shown(task_id)} is stale: {why}", task_id=task_id)


# Who asks may not: other credentials. -------------------------------------------------------------------------------


class Unauthenticated(RomancyError):
    """The caller did not prove who it is. Says no more: a stranger learns nothing from it."""

    reason = "UNAUTHENTICATED"

    def __init__(self) -> None:
        super().__init__(
            "no valid credentials; send `authorization: Bearer TOKEN`, or connect with a client certificate"
        )


class PermissionDenied(RomancyError):
    """The caller is known, but may not do this."""

    reason = "PERMISSION_DENIED"

    def __init__(self, principal: str, what: str) -> None:
        super().__init__(f"{shown(principal)} may not {what}; ask an operator for the right", principal=principal)


# The stream must end. -----------------------------------------------------------------------------------------------


class TooManySessions(RomancyError):
    """This replica has as many workers as it takes: try again later, or elsewhere."""

    reason = "TOO_MANY_SESSIONS"

    def __init__(self, limit: int) -> None:
        text = f"{limit} workers are connected to this replica, which is all that it takes; add a replica"
        super().__init__(text, limit=str(limit))


class SessionSuperseded(RomancyError):
    """A newer stream of the same session is connected: do not reconnect."""

    reason = "SESSION_SUPERSEDED"

    def __init__(self) -> None:
        super().__init__("a newer stream of this session is connected; only one may be")


class SessionGone(RomancyError):
    """The session is no longer this replica's: it was declared lost, or is connected elsewhere. Reconnect."""

    reason = "SESSION_GONE"

    def __init__(self) -> None:
        super().__init__("the session is no longer kept by this replica; connect again")


class AnswersUnread(RomancyError):
    """The worker sends and does not read: reconnect, and read."""

    reason = "ANSWERS_UNREAD"

    def __init__(self, limit: int) -> None:
        text = f"{limit} answers wait to be read; read the stream while you write to it"
        super().__init__(text, limit=str(limit))


class PeerSilent(RomancyError):
    """Nothing was heard of the worker for several intervals: reconnect."""

    reason = "PEER_SILENT"

    def __init__(self, silent_s: float) -> None:
        text = f"nothing was heard for {silent_s:g} s; send a frame at least every heartbeat_interval"
        super().__init__(text, silent_s=f"{silent_s:g}")


# Not now: try again with the same request id. -----------------------------------------------------------------------


class Draining(RomancyError):
    """This replica stops: reconnect."""

    reason = "DRAINING"

    def __init__(self) -> None:
        super().__init__("this replica of the service stops; connect again")


class StoreUnavailable(RomancyError):
    """The database does not answer. Whether what was sent to it is carried out is not known."""

    reason = "STORE_UNAVAILABLE"


class QueryTooSlow(StoreUnavailable):
    """What a client asked for takes the database longer than one client may keep it busy. Nothing was to be written."""

    reason = "QUERY_TOO_SLOW"

    def __init__(self, limit_s: float) -> None:
        text = f"the database took longer than {limit_s:g} s and was stopped; narrow the filter, or ask again later"
        super().__init__(text, limit_s=f"{limit_s:g}")


class TooMuchContention(RomancyError):
    """Others changed the run, or the schedule, each time this was decided."""

    reason = "TOO_MUCH_CONTENTION"

    def __init__(self, name: str) -> None:
        super().__init__(f"{shown(name)} changes faster than this can be recorded; try again", name=name)


# The service is at fault: tell its operators. -----------------------------------------------------------------------


class BatchRejected(RomancyError):
    """The database refused a batch because of what is in it; nothing of it is written. The engine finds the culprit."""

    reason = "BATCH_REJECTED"

    def __init__(self, message: str, *, conflict: bool = False) -> None:
        super().__init__(message)
        self.conflict = conflict
        """True when a unique key was taken meanwhile: deciding it again may help."""


class InternalError(RomancyError):
    """Something that cannot be. The log says more."""

    reason = "INTERNAL"
