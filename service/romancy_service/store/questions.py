"""Questions: queries that wait for a replica whose workers can answer them. One replica alone never needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import bindparam, delete, insert, select, update

from romancy_service.store.sql import Statements
from romancy_service.store.tables import queries


@dataclass(frozen=True, slots=True)
class Question:
    """One query, as one replica leaves it for the others."""

    query_id: str
    until_ms: int
    """Nobody waits for the answer after that."""
    task: bytes
    """A `QueryTask` without events."""


_LEAVE: Final = insert(queries).values({name: bindparam(name) for name in Question.__slots__})
_OPEN: Final = select(queries).where(queries.c.answer.is_(None), queries.c.until_ms > bindparam("now_ms"))
_ANSWER: Final = (
    update(queries)
    .where(queries.c.query_id == bindparam("id"), queries.c.answer.is_(None))
    .values(answer=bindparam("first_answer"))
)
_ANSWERED: Final = select(queries.c.answer).where(queries.c.query_id == bindparam("id"), queries.c.answer.is_not(None))
_DROP: Final = delete(queries).where(queries.c.query_id == bindparam("id"))
_EXPIRE: Final = delete(queries).where(queries.c.until_ms < bindparam("before_ms"))


class Questions(Statements):
    """Keeps them for as long as somebody waits."""

    async def leave_question(self, question: Question) -> None:
        """Another replica is to answer it."""
        await self._write(_LEAVE, **{name: getattr(question, name) for name in Question.__slots__})

    async def open_questions(self, now_ms: int) -> list[Question]:
        """Those that nobody has answered."""
        rows = await self._read(_OPEN, now_ms=now_ms)
        return [Question(row["query_id"], row["until_ms"], row["task"]) for row in rows]

    async def answer_question(self, query_id: str, answer: bytes) -> None:
        """The first answer counts."""
        await self._write(_ANSWER, id=query_id, first_answer=answer)

    async def answer_to(self, query_id: str) -> bytes | None:
        """The answer, if there is one."""
        rows = await self._read(_ANSWERED, id=query_id)
        return bytes(rows[0]["answer"]) if rows else None

    async def drop_question(self, query_id: str) -> None:
        """Nobody waits for it any more."""
        await self._write(_DROP, id=query_id)

    async def expire_questions(self, before_ms: int) -> None:
        """Drop what replicas that are gone have left."""
        await self._write(_EXPIRE, before_ms=before_ms)
