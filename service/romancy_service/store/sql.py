"""Statements that both databases run, compiled once for each: SQLAlchemy Core without its engines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import BigInteger, ColumnElement, Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import BindParameter, ClauseElement, Executable, bindparam
from sqlalchemy.types import Boolean

from romancy_service.store.rows import Row

CLIENT_READ_S: Final = 5.0
"""What a client reads is stopped after this, and is answered QueryTooSlow."""


class among(ColumnElement[bool]):  # noqa: N801 - reads like the SQL that it is
    """Whether a column has one of the values in the list parameter `name`. One plan, however many there are."""

    inherit_cache = False
    type = Boolean()

    def __init__(self, column: ColumnElement[str] | ColumnElement[int], name: str) -> None:
        self.column = column
        self.values: BindParameter[Any] = bindparam(name)
        self.array = "bigint[]" if isinstance(column.type, BigInteger) else "text[]"


@compiles(among, "postgresql")
def _any(element: among, compiler: SQLCompiler, **options: Any) -> str:
    column, values = compiler.process(element.column, **options), compiler.process(element.values, **options)
    return f"{column} = any({values}::{element.array})"


@compiles(among, "sqlite")
def _json(element: among, compiler: SQLCompiler, **options: Any) -> str:
    column, values = compiler.process(element.column, **options), compiler.process(element.values, **options)
    return f"{column} in (select value from json_each({values}))"


_Compiled = tuple[str, tuple[str, ...], dict[str, Any]]
_COMPILED: Final[WeakKeyDictionary[Executable, dict[Dialect, _Compiled]]] = WeakKeyDictionary()
"""For as long as the statement is there: most stay, but those of lists are made for one call."""


def compiled(statement: Executable, dialect: Dialect, values: dict[str, Any]) -> tuple[str, list[Any]]:
    """SQL, and its arguments in their order."""
    known = _COMPILED.setdefault(statement, {})
    if dialect not in known:
        known[dialect] = _compile(statement, dialect)
    sql, names, given = known[dialect]
    return sql, [values[name] if name in values else given[name] for name in names]


def _compile(statement: Executable, dialect: Dialect) -> _Compiled:
    """SQL, the names of its parameters in their order, and the values that the statement brings itself."""
    assert isinstance(statement, ClauseElement)
    made = statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
    assert isinstance(made, SQLCompiler)
    return made.string, tuple(made.positiontup or ()), dict(made.params)


class Statements(ABC):
    """Runs statements on a database. Each is a transaction of its own."""

    @abstractmethod
    async def _read(self, statement: Executable, **values: Any) -> Sequence[Row]:
        """The rows that a query finds."""

    @abstractmethod
    async def _show(self, statement: Executable, **values: Any) -> Sequence[Row]:
        """As `_read`, for a client, by key. Clients have connections of their own, and CLIENT_READ_S for an answer."""

    @abstractmethod
    async def _search(self, statement: Executable, **values: Any) -> Sequence[Row]:
        """As `_show`, for what may walk over many rows before it finds something, on connections of its own again."""

    @abstractmethod
    async def _write(self, statement: Executable, **values: Any) -> Sequence[Row]:
        """Carry out a statement; the rows that it returns."""

    @abstractmethod
    async def _write_apart(self, statement: Executable, **values: Any) -> Sequence[Row]:
        """As `_write`, on a connection that nothing else keeps busy."""

    @abstractmethod
    async def _sweep(self, statement: Executable, **values: Any) -> Sequence[Row]:
        """As `_write`, for what deletes old rows in the order of an index, on a connection of its own."""

    @abstractmethod
    async def _write_together(self, first: Executable, *others: Executable, **values: Any) -> Sequence[Row]:
        """Carry out statements in one transaction, the others if the first one returns rows; these rows.

        The others know the first column of these as the list parameter `found`.

        Raises BatchRejected, and writes nothing, when the database refuses what is to be written.
        """
