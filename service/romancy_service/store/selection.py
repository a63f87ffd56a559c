"""Selection: the runs that a filter means, as SQL. Columns are ours, values are bound."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, assert_never

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    CompoundSelect,
    FromClause,
    Select,
    exists,
    literal,
    literal_column,
    select,
    text,
    tuple_,
    union_all,
)

from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPENSATING, AttributeValue
from romancy.v1.workflow_service_pb2 import AttributeFilter, WorkflowFilter

from romancy_service.core.attributes import AttributeType, Comparable, comparables
from romancy_service.core.run import OPEN_STATUSES
from romancy_service.core.task import TaskKind
from romancy_service.core.times import timestamp_ms
from romancy_service.store.tables import FAILING, OPEN, TEXT, attributes, runs, tasks

_Compare = Callable[[Any, Any], ColumnElement[bool]]
_ORDER: Final[dict[str, _Compare]] = {
    "less": operator.lt,
    "less_or_equal": operator.le,
    "greater": operator.gt,
    "greater_or_equal": operator.ge,
}

_WORK: Final = (int(TaskKind.WORKFLOW), int(TaskKind.ACTIVITY), int(TaskKind.CHILD))
"""What a run that is undone waits for, or does."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The runs of a namespace that a filter selects."""

    source: FromClause
    conditions: Sequence[ColumnElement[bool]]
    start_ms: ColumnElement[int]
    run_id: ColumnElement[str]
    """The columns by which lists are sorted: those of the index that gives the runs in this order."""

    def of(self, *columns: Column[Any]) -> Select[Any]:
        """These columns of the runs, in any order."""
        return select(*columns).select_from(self.source).where(*self.conditions)

    def newest_first(self, *columns: Column[Any], after: tuple[int, str] | None) -> Select[Any]:
        """These columns of the runs, newest first; with `after`, of those behind the run of that (start_ms, run id)."""
        statement = self.of(*columns)
        if after is not None:
            start_ms, run_id = literal(after[0], BigInteger), literal(after[1], TEXT)
            statement = statement.where(tuple_(self.start_ms, self.run_id) < tuple_(start_ms, run_id))
        return statement.order_by(self.start_ms.desc(), self.run_id.desc())


def select_runs(namespace: str, wanted: WorkflowFilter) -> Selection:
    """What a checked filter selects.

    The first attribute that must have one certain value is where the runs are looked for: the index gives those that
    have it in the order of the list. All others are conditions.
    """
    conditions = _conditions(namespace, wanted)
    sought = next((attribute for attribute in wanted.attributes if _certain_value(attribute) is not None), None)
    conditions += [_has(namespace, attribute) for attribute in wanted.attributes if attribute is not sought]
    if sought is None:
        return Selection(runs, conditions, runs.c.start_ms, runs.c.run_id)
    found = attributes.alias("sought")
    value = _certain_value(sought)
    assert value is not None
    conditions += [*_named(found, namespace, sought.name), *_is(found, comparables(value)[0])]
    joined = found.join(runs, runs.c.run_id == found.c.run_id)
    return Selection(joined, conditions, found.c.start_ms, found.c.run_id)


def _certain_value(wanted: AttributeFilter) -> AttributeValue | None:
    """The one value that the attribute must have, if it is one."""
    if wanted.WhichOneof("condition") == "equal":
        return wanted.equal
    return wanted.one_of.values[0] if len(wanted.one_of.values) == 1 else None


def _has(namespace: str, wanted: AttributeFilter) -> ColumnElement[bool]:
    """Whether a run's attribute is as wanted."""

    def runs_with(*conditions: ColumnElement[bool]) -> Select[tuple[str]]:
        return select(found.c.run_id).where(*_named(found, namespace, wanted.name), *conditions)

    found = attributes.alias()
    condition = wanted.WhichOneof("condition")
    match condition:
        case "equal":
            return runs.c.run_id.in_(runs_with(*_is(found, comparables(wanted.equal)[0])))
        case "not_equal":
            other = attributes.alias()
            same = [*_named(other, namespace, wanted.name), *_is(other, comparables(wanted.not_equal)[0])]
            equal = select(other.c.run_id).where(*same)
            return runs.c.run_id.in_(runs_with()) & runs.c.run_id.not_in(equal)
        case "less" | "less_or_equal" | "greater" | "greater_or_equal":
            bound = comparables(getattr(wanted, condition))[0]
            column = _column(found, bound[0])
            return runs.c.run_id.in_(
                runs_with(*_nothing_before(found, bound[0]), _ORDER[condition](column, bound[_place(bound[0])]))
            )
        case "one_of":
            values = [comparables(value)[0] for value in wanted.one_of.values]
            kind = values[0][0]
            column = _column(found, kind)
            alternatives = sorted({value[_place(kind)] for value in values})
            return runs.c.run_id.in_(runs_with(*_nothing_before(found, kind), column.in_(alternatives)))
        case "exists":
            there = runs_with()
            return runs.c.run_id.in_(there) if wanted.exists else runs.c.run_id.not_in(there)
        case None:
            raise AssertionError("a filter without a condition passed the check")
        case _:
            assert_never(condition)


def _named(found: FromClause, namespace: str, name: str) -> list[ColumnElement[bool]]:
    return [found.c.namespace == namespace, found.c.name == name]


def _is(found: FromClause, value: Comparable) -> list[ColumnElement[bool]]:
    """All columns of a value, so that what follows them in the index sorts the runs."""
    return [
        found.c.type == int(value[0]),
        found.c.text_value == value[1],
        found.c.integer_value == value[2],
        found.c.number_value == value[3],
    ]


_COLUMNS: Final = ("type", "text_value", "integer_value", "number_value")
_PLACES: Final = {AttributeType.TEXT: 1, AttributeType.NUMBER: 3}


def _place(kind: AttributeType) -> int:
    """Where a value of this type stands in its Comparable, and its column among those of the index."""
    return _PLACES.get(kind, 2)


def _column(found: FromClause, kind: AttributeType) -> ColumnElement[Any]:
    column: ColumnElement[Any] = found.c[_COLUMNS[_place(kind)]]
    return column


def _nothing_before(found: FromClause, kind: AttributeType) -> list[ColumnElement[bool]]:
    """The type, and the columns before its own in the index, so that a range of values is a range of the index."""
    empty = ("", 0)[: _place(kind) - 1]
    before = [found.c[name] == value for name, value in zip(_COLUMNS[1:], empty, strict=False)]
    return [found.c.type == int(kind), *before]


def _conditions(namespace: str, wanted: WorkflowFilter) -> list[ColumnElement[bool]]:
    """What a run must be to be selected."""
    # Blocked runs are few: without another condition that an index serves they are looked up one by one.
    conditions = [runs.c.run_id.in_(_blocked(namespace)) if wanted.blocked else runs.c.namespace == namespace]
    if wanted.statuses:
        conditions.append(runs.c.status.in_(sorted(set(wanted.statuses))))
        if set(wanted.statuses) <= set(OPEN_STATUSES):
            conditions.append(literal_column(OPEN))  # in the words of the index of open runs
    if wanted.workflow_type:
        conditions.append(runs.c.workflow_type == wanted.workflow_type)
    if wanted.workflow_id:
        conditions.append(runs.c.workflow_id == wanted.workflow_id)
    if prefix := wanted.workflow_id_prefix:
        conditions.append(runs.c.workflow_id >= prefix)
        if (end := _end_of_prefix(prefix)) is not None:
            conditions.append(runs.c.workflow_id < end)
    if wanted.HasField("started_from"):
        conditions.append(runs.c.start_ms >= timestamp_ms(wanted.started_from))
    if wanted.HasField("started_before"):
        conditions.append(runs.c.start_ms < timestamp_ms(wanted.started_before))
    if wanted.HasField("closed_from") or wanted.HasField("closed_before"):
        conditions.append(runs.c.close_ms > 0)
    if wanted.HasField("closed_from"):
        conditions.append(runs.c.close_ms >= timestamp_ms(wanted.closed_from))
    if wanted.HasField("closed_before"):
        conditions.append(runs.c.close_ms < timestamp_ms(wanted.closed_before))
    return conditions


def _blocked(namespace: str) -> CompoundSelect[str]:
    """Runs whose code fails, and those whose rollback goes on by nobody's work."""
    failing = select(tasks.c.run_id).where(text(FAILING), tasks.c.namespace == namespace)
    undone = runs.alias()
    held_up = select(undone.c.run_id).where(
        undone.c.namespace == namespace,
        undone.c.status == int(WORKFLOW_STATUS_COMPENSATING),
        ~exists().where(tasks.c.run_id == undone.c.run_id, tasks.c.kind.in_(_WORK)),
    )
    return union_all(failing, held_up)


def _end_of_prefix(prefix: str) -> str | None:
    """The first text after all that begin with `prefix`; None if there is none. UTF-8 sorts as code points do."""
    kept = prefix.rstrip(chr(sys.maxunicode))
    if not kept:
        return None
    following = ord(kept[-1]) + 1
    # Surrogates are no characters of their own.
    return kept[:-1] + chr(0xE000 if following == 0xD800 else following)
