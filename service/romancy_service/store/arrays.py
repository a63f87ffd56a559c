"""Arrays: how many rows travel to Postgres in one statement: a column each, put together again by `unnest`.

Where there is one row of each kind its values travel as they are: the plan of a statement without `unnest` is set up in
half the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import BigInteger, Boolean, Double, Integer, LargeBinary, Table, Text

_TYPES: Final = {
    Text: "text",
    BigInteger: "bigint",
    Integer: "int",
    Double: "float8",
    Boolean: "bool",
    LargeBinary: "bytea",
}

# The driver looks at each element of an array, which costs three times as much as all the rest of sending it; into a
# text it does not look. So arrays travel as texts where that can be told apart again.
_AS_LITERAL: Final = frozenset({"bigint", "int", "bool"})
_SEPARATOR: Final = "\x1f"
"""Between texts, and before the first one, so that one empty text is not none. Ids have no control characters."""
ANY_TEXT: Final = "text with control characters"
"""The type of a column of texts that users may choose as they like."""

Columns = tuple[tuple[str, str], ...]
"""Names and Postgres types."""


def columns_of(table: Table) -> Columns:
    """The columns of a table, in their order."""
    return tuple((column.name, _TYPES[type(column.type)]) for column in table.columns)


class Arrays:
    """The parameters of one statement: so many lists of rows, each of them named."""

    def __init__(self, *, single: bool = False, **lists: Columns) -> None:
        """`single`: each list has exactly one row."""
        self._single = single
        self._lists = lists
        self._first = {}
        position = 1
        for name, columns in lists.items():
            self._first[name] = position
            position += len(columns)
        self.next_parameter = position

    def rows(self, name: str) -> str:
        """SQL: the list as a table."""
        made = _value if self._single else _array
        values = ", ".join(made(n, kind) for n, (_, kind) in enumerate(self._lists[name], self._first[name]))
        table = f"(values ({values}))" if self._single else f"unnest({values})"
        return f"{table} as {name}({', '.join(column for column, _ in self._lists[name])})"

    def column(self, name: str, column: str) -> str:
        """SQL: one column of the list as an array."""
        position = [known for known, _ in self._lists[name]].index(column)
        parameter, kind = self._first[name] + position, self._lists[name][position][1]
        return f"array[{_value(parameter, kind)}]" if self._single else _array(parameter, kind)

    def values(self, **lists: Sequence[tuple[Any, ...]]) -> Iterable[Sequence[Any]]:
        """The values of all parameters, from the rows of all lists. Raises ValueError for what is no id."""
        values: list[Any] = []
        for name, columns in self._lists.items():
            rows = lists[name]
            if self._single:
                values += rows[0]
                continue
            arrays = zip(*rows, strict=True) if rows else ((),) * len(columns)
            for (column, kind), array in zip(columns, arrays, strict=True):
                if kind in _AS_LITERAL:
                    values.append(f"{{{','.join(map(str, array))}}}")
                elif kind == "text":
                    values.append(_joined(f"{name}.{column}", array))
                else:
                    values.append(array)
        return values


def _joined(column: str, texts: Sequence[str]) -> str:
    joined = _SEPARATOR.join(("", *texts))
    if joined.count(_SEPARATOR) != len(texts):
        raise ValueError(f"a text of {column} has the control character {_SEPARATOR!r}, as no id may")
    return joined


def _value(parameter: int, kind: str) -> str:
    return f"${parameter}::{'text' if kind == ANY_TEXT else kind}"


def _array(parameter: int, kind: str) -> str:
    if kind in _AS_LITERAL:
        return f"(${parameter}::text)::{kind}[]"
    if kind == "text":
        return f"(string_to_array(${parameter}::text, chr({ord(_SEPARATOR)})))[2:]"
    return f"${parameter}::{'text' if kind == ANY_TEXT else kind}[]"
