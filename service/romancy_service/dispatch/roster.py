"""Roster: the sessions that are connected here, by what they take."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

from romancy_service.core.run import Run
from romancy_service.core.task import Task, TaskKind, TypeKey
from romancy_service.sessions import InHand, Session


class Roster:
    """Knows who could have a task, and who has one."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self._by_type: dict[TypeKey, deque[Session]] = defaultdict(deque)

    def add(self, session: Session) -> None:
        """A worker is there."""
        self.sessions[session.session_id] = session
        for key in session.type_keys():
            self._by_type[key].append(session)

    def remove(self, session: Session) -> None:
        """Its stream is over; a newer one of the same session stays."""
        if self.sessions.get(session.session_id) is session:
            del self.sessions[session.session_id]
        for key in session.type_keys():
            self._by_type[key].remove(session)
            if not self._by_type[key]:
                del self._by_type[key]

    def types(self) -> list[TypeKey]:
        """All that somebody here takes."""
        return list(self._by_type)

    def serving(self, key: TypeKey) -> Sequence[Session]:
        """Who takes such tasks, free or not."""
        return self._by_type.get(key, ())

    def has_room(self, key: TypeKey) -> bool:
        """Whether somebody could have such a task now."""
        return any(session.takes(key[2]) for session in self.serving(key))

    def current(self, session_id: str, epoch: int) -> Session | None:
        """The session, if that epoch of it is connected here."""
        session = self.sessions.get(session_id)
        return session if session is not None and session.epoch == epoch else None

    def choose(self, run: Run, task: Task, key: TypeKey) -> Session | None:
        """Who gets a task: for workflow tasks the one that holds the run, else all that have a free slot in turn."""
        serving = self._by_type.get(key)
        if not serving:
            return None
        if task.kind is TaskKind.WORKFLOW and run.sticky_session:
            sticky = self.sessions.get(run.sticky_session)
            if sticky is not None and sticky in serving and sticky.takes(task.kind):
                return sticky
        for _ in range(len(serving)):
            session = serving[0]
            serving.rotate(-1)
            if session.takes(task.kind):
                return session
        return None

    def able(self, run: Run) -> Session | None:
        """Who could run the run's code, whether a slot is free or not: who holds it in memory, else all in turn."""
        sticky = self.sessions.get(run.sticky_session)
        if sticky is not None and not sticky.closed:
            return sticky
        serving = self._by_type.get((run.namespace, run.task_queue, TaskKind.WORKFLOW, run.workflow_type))
        if not serving:
            return None
        serving.rotate(-1)
        return serving[0]

    def holder(self, run_id: str, task_id: str, attempt: int) -> tuple[Session, InHand] | None:
        """Who has that attempt of an activity here; attempt 0: any."""
        for session in self.sessions.values():
            held = session.find(run_id, task_id)
            if held is not None and held.kind is TaskKind.ACTIVITY and attempt in (0, held.attempt):
                return session, held
        return None
