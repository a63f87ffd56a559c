"""Arrays: how many rows travel to Postgres in one statement: a column each, put together again by `unnest`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final

from sqlalchemy import BigInteger, Boolean, Integer, LargeBinary, Table, Text

_TYPES: Final = {Text: "text", BigInteger: "bigint", Integer: "int", Boolean: "bool", LargeBinary: "bytea"}

Columns = tuple[tuple[str, str], ...]
"""Names and Postgres types."""


def columns_of(table: Table) -> Columns:
    """The columns of a table, in their order."""
    return tuple((column.name, _TYPES[type(column.type)]) for column in table.columns)


class Arrays:
    """The parameters of one statement: so many lists of rows, each of them named."""

    def __init__(self, **lists: Columns) -> None:
        self._lists = lists
        self._first = {}
        position = 1
        for name, columns in lists.items():
            self._first[name] = position
            position += len(columns)
        self.next_parameter = position

    def rows(self, name: str) -> str:
        """SQL: the list as a table."""
        first = self._first[name]
        arrays = (f"${first + n}::{kind}[]" for n, (_, kind) in enumerate(self._lists[name]))
        return f"unnest({', '.join(arrays)}) as {name}({', '.join(column for column, _ in self._lists[name])})"

    def column(self, name: str, column: str) -> str:
        """SQL: one column of the list as an array."""
        position = [known for known, _ in self._lists[name]].index(column)
        return f"${self._first[name] + position}::{self._lists[name][position][1]}[]"

    def values(self, **lists: Sequence[tuple[Any, ...]]) -> Iterable[Sequence[Any]]:
        """The values of all parameters, from the rows of all lists."""
        return chain.from_iterable(
            zip(*lists[name], strict=True) if lists[name] else ((),) * len(columns)
            for name, columns in self._lists.items()
        )
