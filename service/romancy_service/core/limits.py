"""Limits: how much of everything is allowed, and why that much. All in one place, the same on both databases.

Sizes are in bytes, times in milliseconds (`_ms`). They are an argument wherever they matter, so tests can shrink them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

LONGEST_DURATION_MS: Final = 10 * 365 * 86_400_000
"""Ten years: a longer wait is more often a mistake in units than meant, and sums of two stay far from overflow."""

WORKFLOW_TASK_MS: Final = 10_000
"""So long may a worker take for one workflow task, whose code waits for nothing; then another one gets it."""
COUNTED: Final = 10_000
"""Counting stops here and an estimate is given: counting a million rows takes a second of the database."""
PAGES_AHEAD: Final = 8
"""So many workflow tasks, or pages of one, may wait to be sent when another page of a history is read: about 8 MiB. So
many histories are read at a time for a worker, too."""
CLAIM_BYTES: Final = 4 * MIB
"""So many bytes of tasks are claimed at once, and the last task besides; a worker that has so many unsent gets no more.
With more, none gets cheaper, and a thousand slots times the largest arguments are gigabytes."""
ANSWERS_AHEAD: Final = 50_000
"""Answers and cancellations that a worker may leave unread: more than twice as many as it can have tasks."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Every limit of the service. What breaks one is refused at the edge, with the field, the value and the limit."""

    # What clients and workers may send.
    id_bytes: int = 255
    """Ids and names. Postgres refuses index rows above 2,704 bytes, and a key holds up to three of them."""
    payload_bytes: int = 2 * MIB
    """One value of the user's: history is read, sent and replayed whole; larger values belong into a store of files."""
    payloads_bytes: int = 3 * MIB
    """All values of one start, failure or command, its compensation included: they are one event, which must fit into a
    client's message."""
    client_message_bytes: int = 4 * MIB
    """One message to or from a client, as in gRPC's own default, so that clients need not be told: room for the largest
    event, and for many small starts."""
    connect_message_bytes: int = 32 * MIB
    """One frame of a worker. Far above `payload_bytes`: too large values are answered INVALID and end no stream."""
    frame_bytes: int = 1 * MIB
    """So large are the frames that the service writes: a heartbeat behind one waits 100 ms at 10 MB/s."""
    chunk_bytes: int = 256 * KIB
    """Larger frames go in chunks of this size to workers that join them, so that heartbeats pass between."""
    starts_per_request: int = 1_000
    """Starts in one StartWorkflows: eight commits' worth; beyond, a call only waits longer."""
    headers: int = 64
    """Entries of headers: every task of a run carries them."""
    headers_bytes: int = 8 * KIB
    """All headers together, as gRPC allows for its metadata."""
    memo_bytes: int = 32 * KIB
    """All of a memo: each row of a list carries it, and a page has 1,000."""
    attributes: int = 32
    """Typed attributes of a run: each is a row, in an index."""
    attributes_bytes: int = 16 * KIB
    """All attributes together."""
    attribute_texts: int = 32
    """Texts in one attribute: each is a row of its own."""
    attribute_filters: int = 10
    """Attributes that one list is filtered on: each is a look into an index for each run."""
    attribute_values: int = 100
    """Alternatives for one attribute that a list is filtered on."""
    token_bytes: int = 2 * KIB
    """A token that somebody gives back: it names a namespace, a run and an activity, each of at most 255 bytes."""
    reason_bytes: int = 4 * KIB
    """Why somebody cancels, terminates or resolves: a text for people."""
    failure_message_bytes: int = 4 * KIB
    """A failure's message; longer ones are cut, since a failure must not fail."""
    failure_stack_bytes: int = 16 * KIB
    """A failure's stack trace; longer ones are cut."""
    failure_depth: int = 20
    """Causes of causes; deeper ones are cut."""
    priority: int = 1_000_000
    """Priorities lie between minus and plus this."""
    crons: int = 16
    """Cron expressions of a schedule: each is searched for its next time, which takes up to 20 ms for rare ones."""
    intervals: int = 16
    """Intervals of a schedule, as many as crons."""
    jitter_ms: int = 86_400_000
    """A schedule's jitter: what is spread over more than a day is not meant for a time any more."""
    least_catch_up_ms: int = 10_000
    """The shortest catch-up window: a restart takes some seconds, and must not lose a start."""
    waiting_starts: int = 1_000
    """Starts of a schedule that wait, and times of a backfill: they are written anew with each change of its state."""
    non_retryable_types: int = 100
    """Failure types in one retry policy: they are gone through for each failure."""

    # What a run may have.
    commands_per_task: int = 10_000
    """Commands in one workflow task: one commit, one lock, one history row."""
    open_activities: int = 10_000
    """Open activities and timers of a run: all are read when it is loaded (about 20 ms)."""
    open_updates: int = 1_000
    """Updates of a run that it has not answered: their ids are stored with the run at each commit."""
    subscription_values: int = 8
    """Values that an event must have: each is looked up in the event.

    The topics of a type, which are the sets of paths that its subscriptions name, have no limit. Paths stand in code,
    so there are as many as ways to ask in the code that is deployed. Each costs one look into an index for a batch of
    events, and one for an event that has the paths; code that makes paths out of data slows down the events of its
    type, in its namespace, and no others. A limit would have to be looked up whenever a run subscribes, and fail runs
    whose own code is fine."""
    subscription_value_bytes: int = 4 * KIB
    """One of them."""
    event_bytes: int = MIB
    """An event: it is recorded in each run that gets it."""
    events_per_call: int = 1_000
    """Events in one call: one transaction."""
    event_rules_per_type: int = 100
    """Rules for one type of events: each is compared with every event of it."""
    event_attributes: int = 64
    """Attributes and extensions of an event."""
    event_attribute_bytes: int = 4 * KIB
    """One of them."""
    json_depth: int = 100
    """Lists and objects within each other in an event's data: readers of JSON stop at 128 or so, and what no worker can
    read fails each run that gets it."""
    metadata_name_bytes: int = 128
    """A name in a message's metadata."""
    message_retention_ms: int = 7 * 86_400_000
    """So long a channel keeps a message that nobody takes."""
    aside_ms: int = 60_000
    """So long rests an event that a run failed to take until it is brought to that run again: its cause must be mended
    first, and all others whom it reached are asked once more."""
    event_window_ms: int = 86_400_000
    """So long is an event known that is sent again: senders that were cut off come back within a day."""
    sent_events: int = 100
    """Events that one attempt of an activity sends: all are recorded in one event, and sent to workers on replay."""
    sinks: int = 100
    """Sinks of a namespace: all are listed on one page, with what waits for each."""
    sink_url_bytes: int = 2 * KIB
    """What usual servers and proxies take."""
    kept_secret_ms: int = 30 * 86_400_000
    """So long may everything be signed with a sink's old secret too: whoever has not changed his by then forgot it."""
    sink_connect_ms: int = 5_000
    """So long may it take to connect to a sink."""
    sink_answer_ms: int = 15_000
    """So long may a sink take to answer, its connection included: what takes longer it should do after its answer."""
    sink_requests: int = 16
    """Requests to one sink at a time, of a replica: a slow sink holds so many events in memory."""
    sink_lanes: int = 64
    """Sinks that a replica delivers to at a time: each may have `sink_requests` under way, a thousand together."""
    sink_lanes_of_namespace: int = 32
    """Of these so many for one namespace: one whose sinks are all slow leaves the others half of them."""
    sink_turn: int = 64
    """Events that a sink is sent before others that wait for a lane have theirs: some rounds of requests, so that going
    from one sink to the next costs little, and yet a sink that was idle gets what is new within seconds."""
    due_sinks: int = 1_000
    """Sinks for which something is due that one look finds, those first that wait longest: far more than there are
    lanes, and each is a look into an index."""
    buried_events: int = 1_000
    """Events that become dead letters in one transaction, when their sink was away for too long: it takes a tenth of a
    second."""
    retry_after_ms: int = 3_600_000
    """No sink puts an event off for longer by `Retry-After`: a mistake in it would be as good as a lost event."""
    outbox_ms: int = 86_400_000
    """So long is it tried to deliver an event: who is away for longer than a day has people who look after it.

    This and the retention of dead letters bound how much waits. There is no other limit of it: an event is recorded
    with the step that sent it, which has happened, so to refuse the one would be to lose the other."""
    patches: int = 1_000
    """Patches that a run has marked: their names are stored with the run at each commit."""
    history_recur_events: int = 4_096
    """From so many events on the code of a run is told that it is time to recur: replaying them takes a tenth of a
    second, and each worker that does not hold the run does so."""
    history_recur_bytes: int = 4 * MIB
    """The same for all events together: reading and sending them takes half a second."""
    history_warn_events: int = 10_240
    """A run with so many is warned of: a fifth of what it may have, so that there is time to do something."""
    history_warn_bytes: int = 10 * MIB
    """The same for all events together."""
    history_events: int = 51_200
    """Events of a run: a worker that does not hold it replays them all (some seconds) within a workflow task's time."""

    history_bytes: int = 50 * MIB
    """All events of a run: read, sent and replayed within a workflow task's time, at some 10 MB/s."""

    # What is kept.
    retention_ms: int = 30 * 86_400_000
    """How long closed runs are kept in namespaces that do not say: a month's questions can be answered."""
    shortest_retention_ms: int = 3_600_000
    """The least that a namespace may say: clients that were cut off come back for their results."""
    deleted_history_kept_ms: int = 60_000
    """So long is the history of a deleted run left alone: whoever found the run before may be reading it."""

    # What is answered.
    page_runs: int = 100
    """Runs on a page of a list that names no size."""
    max_page_runs: int = 1_000
    """The most runs on a page."""
    page_outbox: int = 100
    """Undelivered events on a page: two of the largest fill it already."""
    page_events: int = 256
    """Events on a page of a history that names no size."""
    max_page_events: int = 1_000
    """The most events on a page."""
    page_bytes: int = 2 * MIB
    """A page of a history ends here, or after its first event: it must fit into a client's message."""
    query_wait_ms: int = 10_000
    """How long a query that does not say so waits for its answer."""
    open_queries: int = 2_000
    """Queries under way on one replica: each holds its arguments, and perhaps a worker that does not answer."""
    query_histories: int = 4
    """Histories that are read and sent for queries at a time, on one replica: each may have `history_bytes`."""
    shown_tasks: int = 100
    """Open activities, and timers, that are shown of a run; of the others the number. There may be 10,000."""
    shown_value_bytes: int = 64 * KIB
    """Larger progress and failures of open activities are not shown: a hundred of them must fit into a message."""
    shown_children: int = 20
    """Open children of which the status is shown: each is a look-up."""
    shown_command_bytes: int = 4 * KIB
    """What was asked for of children, messages and events is shown in full when it is no larger."""
    shown_saga_bytes: int = 8 * MIB
    """The history of a run that undoes itself is read to tell what is left to undo, unless it is longer."""
    shown_sessions: int = 1_000
    """So many workers are looked at to tell whether one could take what a run waits for."""
    result_wait_ms: int = 60_000
    """The longest wait for a result in one call: below the idle time of usual proxies. Clients ask again."""

    offer_kept_ms: int = 30 * 86_400_000
    """So long is known when a type was last served: whoever comes back to a run after a month must look elsewhere."""
    shown_offers: int = 200
    """Sets of types, of which workers once served one, that are looked at for one that is not served any more."""

    # Workers.
    session_lease_ms: int = 20_000
    """How long the tasks of a session that nobody hears are kept: longer than a restart or a short outage takes."""
    heartbeat_interval_ms: int = 4_000
    """How often each side sends a frame. Three in silence are 12 s, so a worker comes back well within its lease."""
    missed_heartbeats: int = 3
    """So many intervals of silence end a stream: within the lease, so that there is time to reconnect."""
    reconnect_grace_ms: int = 3_000
    """A single stream that ended without goodbye has this long to come back before its tasks are given to others."""
    hello_ms: int = 5_000
    """A stream that has not said hello by then is ended: it takes a place and does nothing."""
    sessions: int = 2_000
    """Workers on one replica: each costs a stream, its buffers and a row that is renewed."""
    task_queues_per_session: int = 100
    """Queues that one worker serves: each is walked over by every claim."""
    types_per_session: int = 1_000
    """Workflow types, and activity types, of one worker."""
    slots_per_session: int = 10_000
    """Tasks that one worker takes at a time, of each kind."""

    # This process.
    cached_bytes: int = 64 * MIB
    """Runs kept in memory: some 10,000 whose values are small. One that is not kept is read again, which costs 1 ms."""
    page_subscriptions: int = 1_000
    """Subscriptions of one topic that are held in memory, and runs that are told before more are read: an event may
    have a hundred thousand of them."""
    concurrent_calls: int = 10_000
    """Calls and streams open at a time; waiting for a result is one. Each costs some 20 KiB."""
    http_connections: int = 500
    """Connections that speak HTTP: the head of a request may take 640 KiB on each, before anybody knows whose it is."""
    http_head_ms: int = 30_000
    """A connection that brought no whole head of a request for so long is closed: it idles, or is slow on purpose."""
    http_body_ms: int = 30_000
    """So long may a body take: `client_message_bytes` at 1 Mbit/s."""
    http_bodies_bytes: int = 64 * MIB
    """All bodies that are being read or stored: 16 of the largest, or thousands of the usual ones."""
    drain_ms: int = 10_000
    """How long a stopping process waits for calls in flight; orchestrators kill after 30 s."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming both, when one limit makes another one meaningless."""
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"the limit {name} is {value}, but must be at least 1")
        for inner, outer in _WITHIN:
            if getattr(self, inner) > getattr(self, outer):
                raise ValueError(
                    f"the limit {inner} is {getattr(self, inner)}, which is above {outer}, {getattr(self, outer)}: "
                    "change one of them"
                )
        silence_ms = self.missed_heartbeats * self.heartbeat_interval_ms
        if silence_ms >= self.session_lease_ms:
            raise ValueError(
                f"the limit session_lease_ms is {self.session_lease_ms}, but a worker reconnects only after "
                f"{self.missed_heartbeats} heartbeats were missed, {silence_ms} ms: give a longer lease, or make "
                "heartbeat_interval_ms smaller"
            )


_WITHIN: Final = (
    ("history_recur_events", "history_warn_events"),
    ("history_warn_events", "history_events"),
    ("history_recur_bytes", "history_warn_bytes"),
    ("history_warn_bytes", "history_bytes"),
    ("payload_bytes", "payloads_bytes"),
    ("payloads_bytes", "connect_message_bytes"),
    ("client_message_bytes", "connect_message_bytes"),
    ("client_message_bytes", "http_bodies_bytes"),
    ("chunk_bytes", "connect_message_bytes"),
    ("frame_bytes", "connect_message_bytes"),
    ("shortest_retention_ms", "retention_ms"),
    ("page_runs", "max_page_runs"),
    ("page_events", "max_page_events"),
    ("reconnect_grace_ms", "session_lease_ms"),
    ("sink_connect_ms", "sink_answer_ms"),
    ("sink_lanes_of_namespace", "sink_lanes"),
)
"""Limits, and those that they lie within."""
