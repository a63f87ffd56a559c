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
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPENSATING, AttributeValue, WorkflowStatus
from romancy.v1.workflow_service_pb2 import AttributeFilter, WorkflowFilter

from romancy_service.core.attributes import AttributeType, Comparable, comparables
from romancy_service.core.task import TaskKind
from romancy_service.core.times import timestamp_ms
from romancy_service.store.tables import CLOSED, FAILING, TEXT, attributes, runs, tasks

Place = tuple[int, str]
"""Where a run stands in lists: start_ms and run id."""
_Named = Callable[[ColumnElement[Any]], ColumnElement[Any]]
"""How a condition names a column: `_sought` or `_Unsought`."""
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
    statuses: Sequence[int] = ()
    """If any: an index gives the runs of each of these in the order of lists, and they are merged."""
    before_ms: int = sys.maxsize
    """All were started before this, as follows from the conditions: a list begins there."""

    def of(self, *columns: Column[Any]) -> Select[Any]:
        """These columns of the runs, in any order."""
        selected = select(*columns).select_from(self.source).where(*self.conditions)
        return selected.where(runs.c.status.in_(self.statuses)) if self.statuses else selected

    def newest_first(
        self, *columns: Column[Any], after: Place | None, limit: int, down_to: Place | None = None
    ) -> Select[Any]:
        """These columns of so many runs, newest first; with `after` of those behind it, with `down_to` until there."""
        if not self.statuses:
            return self._in_order(*columns, after=after, down_to=down_to).limit(limit)
        places = self.places(after=after, limit=limit, down_to=down_to).subquery()
        shown = select(*columns).where(runs.c.run_id.in_(select(places.c.run_id)))
        return shown.order_by(runs.c.start_ms.desc(), runs.c.run_id.desc())

    def places(
        self, *, after: Place | None, limit: int, offset: int = 0, down_to: Place | None = None
    ) -> Select[tuple[int, str]]:
        """Where these runs stand in lists, in their order."""
        one = self._in_order(self.start_ms, self.run_id, after=after, down_to=down_to)
        if not self.statuses:
            return one.limit(limit).offset(offset)
        # Each with the limit: so it is taken from the index in its order, whatever a database makes of the union.
        each = [one.where(runs.c.status == status).limit(limit + offset).subquery() for status in self.statuses]
        merged = union_all(*(select(of_status) for of_status in each)).subquery()
        in_order = select(merged).order_by(merged.c.start_ms.desc(), merged.c.run_id.desc())
        return in_order.limit(limit).offset(offset)

    def _in_order(self, *columns: ColumnElement[Any], after: Place | None, down_to: Place | None) -> Select[Any]:
        selected = select(*columns).select_from(self.source).where(*self.conditions)
        if self.before_ms < sys.maxsize:
            selected = selected.where(self.start_ms < self.before_ms)
        if after is not None:
            selected = selected.where(tuple_(self.start_ms, self.run_id) < _bound(after))
        if down_to is not None:
            selected = selected.where(tuple_(self.start_ms, self.run_id) >= _bound(down_to))
        return selected.order_by(self.start_ms.desc(), self.run_id.desc())


@dataclass(frozen=True, slots=True)
class Scattered:
    """The same runs by the index of what they have in common, which has them in another order than lists."""

    conditions: Sequence[ColumnElement[bool]]
    around: Selection
    """All among which they are, in the order of lists: without what those have in common."""

    def of(self, *columns: Column[Any]) -> Select[Any]:
        """These columns of the runs, in any order."""
        return select(*columns).where(*self.conditions)

    def newest_first(self, *columns: Column[Any], after: Place, limit: int) -> Select[Any]:
        """These columns of at most so many runs behind that one, newest first. All are found before they are sorted."""
        sorted_by = ((runs.c.start_ms + 0).desc(), runs.c.run_id.desc())  # no index is in this order
        behind = tuple_(_Unsought(runs.c.start_ms), runs.c.run_id) < _bound(after)
        found = self.of(runs.c.run_id).where(behind).order_by(*sorted_by).limit(limit)
        # What they are sorted by is in the index; only what is shown is looked up.
        shown = select(*columns).where(runs.c.run_id.in_(found))
        return shown.order_by(runs.c.start_ms.desc(), runs.c.run_id.desc())


def _bound(place: Place) -> ColumnElement[Any]:
    return tuple_(literal(place[0], BigInteger), literal(place[1], TEXT))


class _Unsought(FunctionElement[Any]):
    """A column by which SQLite is not to look for rows. It has no statistics; Postgres has, and looks as it likes."""

    inherit_cache = True

    def __init__(self, column: ColumnElement[Any]) -> None:
        super().__init__(column)
        self.type = column.type


@compiles(_Unsought)
def _as_it_is(unsought: _Unsought, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(unsought.clauses, **options)


@compiles(_Unsought, "sqlite")
def _in_words_of_no_index(unsought: _Unsought, compiler: SQLCompiler, **options: Any) -> str:
    return f"+{compiler.process(unsought.clauses, **options)}"


def _sought(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return column


def select_runs(namespace: str, wanted: WorkflowFilter) -> Selection:
    """What a checked filter selects.

    The first attribute that must have one certain value is where the runs are looked for: the index gives those that
    have it in the order of the list. All others are conditions.
    """
    looked_up = _is_looked_up(wanted)
    common = _common(namespace, wanted, _sought if looked_up else _Unsought)
    conditions = [*common, *_ordered(wanted, _sought)]
    sought = next((attribute for attribute in wanted.attributes if _certain_value(attribute) is not None), None)
    conditions += [_has(namespace, attribute) for attribute in wanted.attributes if attribute is not sought]
    if not looked_up:
        return _merged(conditions, wanted)
    if wanted.statuses:
        conditions.append(runs.c.status.in_(_statuses(wanted)))
    if sought is None:
        return Selection(runs, conditions, runs.c.start_ms, runs.c.run_id)
    found = attributes.alias("sought")
    value = _certain_value(sought)
    assert value is not None
    conditions += [*_named(found, namespace, sought.name), *_is(found, comparables(value)[0])]
    joined = found.join(runs, runs.c.run_id == found.c.run_id)
    return Selection(joined, conditions, found.c.start_ms, found.c.run_id)


def select_scattered(namespace: str, wanted: WorkflowFilter) -> Scattered | None:
    """What a checked filter selects, if those runs may be anywhere in the order of lists and an index has them all."""
    if _is_looked_up(wanted) or not (wanted.workflow_id_prefix or _asks_when_closed(wanted)):
        return None
    conditions = [*_common(namespace, wanted, _sought), *_ordered(wanted, _Unsought)]
    if wanted.statuses:
        conditions.append(_Unsought(runs.c.status).in_(_statuses(wanted)))
    if _asks_when_closed(wanted):
        conditions.append(literal_column(CLOSED))  # in the words of the index of closed runs
    around = [runs.c.namespace == namespace, *_ordered(wanted, _sought)]
    return Scattered(conditions, _merged(around, wanted))


def _merged(conditions: Sequence[ColumnElement[bool]], wanted: WorkflowFilter) -> Selection:
    statuses = _statuses(wanted)
    if len(statuses) == 1:
        conditions, statuses = [*conditions, runs.c.status == statuses[0]], []
    # What was closed by then was started before.
    before_ms = timestamp_ms(wanted.closed_before) if wanted.HasField("closed_before") else sys.maxsize
    return Selection(runs, conditions, runs.c.start_ms, runs.c.run_id, statuses, before_ms)


def _is_looked_up(wanted: WorkflowFilter) -> bool:
    """Whether the runs are found one by one, not in the order of an index of `runs`."""
    return bool(wanted.blocked or wanted.workflow_id or wanted.attributes)


def _statuses(wanted: WorkflowFilter) -> list[int]:
    """Those that are asked for; with a type all, since the index of types has the status before the start."""
    if wanted.statuses:
        return sorted(set(wanted.statuses))
    return [status for status in WorkflowStatus.values() if status] if wanted.workflow_type else []


def _asks_when_closed(wanted: WorkflowFilter) -> bool:
    return wanted.HasField("closed_from") or wanted.HasField("closed_before")


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


def _common(namespace: str, wanted: WorkflowFilter, named: _Named) -> list[ColumnElement[bool]]:
    """What runs have in common that may have been started at any time."""
    # Blocked runs are few: without another condition that an index serves they are looked up one by one.
    conditions = [runs.c.run_id.in_(_blocked(namespace)) if wanted.blocked else runs.c.namespace == namespace]
    if wanted.workflow_id:
        conditions.append(runs.c.workflow_id == wanted.workflow_id)
    if prefix := wanted.workflow_id_prefix:
        conditions.append(named(runs.c.workflow_id) >= prefix)
        if (end := _end_of_prefix(prefix)) is not None:
            conditions.append(named(runs.c.workflow_id) < end)
    if _asks_when_closed(wanted):  # what is not closed has zero
        from_ms = timestamp_ms(wanted.closed_from) if wanted.HasField("closed_from") else 0
        conditions.append(named(runs.c.close_ms) >= max(from_ms, 1))
    if wanted.HasField("closed_before"):
        conditions.append(named(runs.c.close_ms) < timestamp_ms(wanted.closed_before))
    return conditions


def _ordered(wanted: WorkflowFilter, named: _Named) -> list[ColumnElement[bool]]:
    """What, besides the status, is asked of columns that indexes in the order of lists have."""
    conditions = []
    if wanted.workflow_type:
        conditions.append(named(runs.c.workflow_type) == wanted.workflow_type)
    if wanted.HasField("started_from"):
        conditions.append(named(runs.c.start_ms) >= timestamp_ms(wanted.started_from))
    if wanted.HasField("started_before"):
        conditions.append(named(runs.c.start_ms) < timestamp_ms(wanted.started_before))
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
