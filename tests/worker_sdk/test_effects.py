"""Effects in a database of the user's happen exactly once, whatever stops, fails or comes late."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import re
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, assert_type

import pytest
from pydantic import Field
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.schema import CreateTable

from romancy.v1.command_pb2 import COMPENSATE_WHEN_ALWAYS

from romancy import (
    ConversionError,
    DefinitionError,
    OutsideActivity,
    TerminalError,
    Worker,
    WorkflowContext,
    WorkflowHandle,
    activity,
    compensation,
    testing,
    workflow,
)
from romancy.sqlalchemy import AttemptReplaced, create_table, effects, transactional, undoing
from romancy_service.core.limits import Limits
from tests.worker_sdk.bank import SCHEDULED, STEPS, Bank, Posting, Receipt, an_info, doomed_worker, stopped_at

DRIVERS = {"sqlite": "pysqlite", "sqlite-async": "aiosqlite", "postgres": "psycopg", "postgres-async": "asyncpg"}
on_postgres = pytest.mark.parametrize("kind", ["postgres", "postgres-async"], indirect=True)
on_async = pytest.mark.parametrize("kind", ["sqlite-async", "postgres-async"], indirect=True)


@pytest.fixture(params=DRIVERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def postgres(empty_postgres: Callable[[], str]) -> str:
    """One for all of these tests, since making one takes longer than a test."""
    return empty_postgres()


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables."""
    if kind.startswith("sqlite"):
        return f"sqlite+{DRIVERS[kind]}:///{tmp_path / 'bank.db'}"
    postgres: str = request.getfixturevalue("postgres")
    url = postgres.replace("postgresql:", f"postgresql+{DRIVERS[kind]}:")
    Bank(url).clear()
    return url


@pytest.fixture
def bank(url: str) -> Bank:
    bank = Bank(url)
    bank.set_up()
    return bank


async def test_a_repeated_attempt_returns_what_the_first_returned_and_repeats_nothing(bank: Bank) -> None:
    assert await bank.attempt(1) == Receipt(30, attempt=1)
    assert await bank.attempt(2) == Receipt(30, attempt=1)
    assert bank.postings() == [30]


@pytest.mark.parametrize("step", STEPS)
async def test_an_attempt_that_is_killed_is_followed_by_one_that_makes_it_happen_once(bank: Bank, step: str) -> None:
    with stopped_at(bank, step, signal.SIGKILL):
        happened = step == "committed"
        assert bank.postings() == ([30] if happened else [])
        assert await bank.attempt(2) == Receipt(30, attempt=1 if happened else 2)
        assert bank.postings() == [30]


async def test_of_attempts_that_race_one_has_its_effect_and_all_that_return_return_its_result(bank: Bank) -> None:
    outcomes = await asyncio.gather(*(bank.attempt(number) for number in (3, 1, 4, 2, 4)), return_exceptions=True)
    outcomes.append(await bank.attempt(5))
    assert bank.postings() == [30]
    assert len({outcome for outcome in outcomes if isinstance(outcome, Receipt)}) == 1
    assert all(isinstance(outcome, Receipt | AttemptReplaced | OperationalError) for outcome in outcomes), outcomes


async def test_an_attempt_that_slept_through_its_successor_cannot_commit(bank: Bank) -> None:
    with stopped_at(bank, "fenced", signal.SIGSTOP) as first:
        assert await bank.attempt(2) == Receipt(30, attempt=2)
        assert first.outcome_after_waking() == "AttemptReplaced"
    assert bank.postings() == [30]


@on_postgres
async def test_an_attempt_that_slept_in_its_work_neither_holds_up_its_successor_nor_commits(bank: Bank) -> None:
    with stopped_at(bank, "working", signal.SIGSTOP) as first:
        assert await bank.attempt(2) == Receipt(30, attempt=2)
        assert first.outcome_after_waking() == "AttemptReplaced"
    assert bank.postings() == [30]


@on_postgres
async def test_postgres_ends_what_sleeps_with_locks_so_that_its_successor_goes_on(bank: Bank) -> None:
    with stopped_at(bank, "committing", signal.SIGSTOP, timeout=timedelta(seconds=2)) as first:
        assert await bank.attempt(2) == Receipt(30, attempt=2)
        assert first.outcome_after_waking() == Receipt(30, attempt=2)  # it asks what became of its commit
    assert bank.postings() == [30]


async def test_an_attempt_that_slept_through_its_compensation_cannot_commit(bank: Bank) -> None:
    with stopped_at(bank, "fenced", signal.SIGSTOP) as first:
        await bank.undo()
        assert first.outcome_after_waking() == "AttemptReplaced"
    assert bank.postings() == []


async def test_a_compensation_undoes_what_was_done_once_and_knows_its_result(bank: Bank) -> None:
    await bank.attempt(1, amount=40)
    await bank.undo(1, result=None)  # the service never heard of it
    await bank.undo(2, result=None)
    assert bank.postings() == [40, -40]


async def test_a_compensation_does_nothing_where_nothing_was_done_and_nothing_is_done_after_it(bank: Bank) -> None:
    await bank.undo()
    for number in (1, 2):
        with pytest.raises(AttemptReplaced, match="its compensation has begun"):
            await bank.attempt(number)
    assert bank.postings() == []


async def test_a_compensation_whose_effect_has_no_record_says_so_and_does_nothing(bank: Bank) -> None:
    with pytest.raises(TerminalError, match=r"r/pay:1 returned a result, but .* has no record") as missing:
        await bank.undo(result=Receipt(30, attempt=1))
    assert missing.value.type == "EffectNotRecorded"
    assert bank.postings() == []


async def test_a_compensation_that_belongs_to_no_activity_acts(bank: Bank) -> None:
    for number in (1, 2):
        await bank.undo(number, result=Receipt(5, attempt=1), activity_id="undo/#7")
    assert bank.postings() == [-5]


async def test_the_first_attempt_after_an_operator_asked_for_another_try_follows_those_before(bank: Bank) -> None:
    bank.answer = _refuse
    with pytest.raises(ZeroDivisionError):
        await bank.attempt(7)
    bank.answer = lambda receipt: receipt
    with pytest.raises(AttemptReplaced, match="attempt 7 has begun"):
        await bank.attempt(6)
    later = SCHEDULED + timedelta(milliseconds=1)
    assert await bank.attempt(1, scheduled_time=later) == Receipt(30, attempt=1)


def _refuse(receipt: Receipt) -> Receipt:
    raise ZeroDivisionError


async def test_what_raises_has_no_effect_and_the_next_attempt_has(bank: Bank) -> None:
    bank.answer = _refuse
    with pytest.raises(ZeroDivisionError):
        await bank.attempt(1)
    assert bank.postings() == []
    bank.answer = lambda receipt: receipt
    assert await bank.attempt(2) == Receipt(30, attempt=2)


async def test_a_result_that_cannot_be_encoded_is_an_effect_that_did_not_happen(bank: Bank) -> None:
    bank.answer = lambda receipt: object()
    with pytest.raises(ConversionError, match="the result of pay cannot be encoded"):
        await bank.attempt()
    assert bank.postings() == []


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_a_result_that_nobody_could_read_is_an_effect_that_did_not_happen(bank: Bank) -> None:
    @transactional(sessionmaker(bank.engine))
    def pay(session: Session, amount: int) -> Annotated[int, Field(ge=0)]:
        session.add(Posting(amount))
        return -amount

    with pytest.raises(ConversionError, match="the result of pay cannot be decoded"):
        await bank.call(pay, an_info(1), 30)
    assert bank.postings() == []


async def test_a_function_that_commits_is_refused_before_anything_is_committed(bank: Bank) -> None:
    bank.meanwhile = _sync(lambda session: session.commit())
    with pytest.raises(DefinitionError, match="must not commit"):
        await bank.attempt()
    assert bank.postings() == []


def _sync(use: Callable[[Any], object]) -> Callable[[Any], object]:
    """Use the session that is below an async one; it is the same transaction."""
    return lambda session: use(getattr(session, "sync_session", session))


@pytest.mark.parametrize("kind", ["sqlite", "postgres"], indirect=True)
async def test_a_function_may_use_savepoints_and_may_roll_back_and_go_on(bank: Bank) -> None:
    def use(session: Any) -> None:
        session.rollback()
        with session.begin_nested():
            session.add(Posting(1))
        kept = session.begin_nested()
        session.add(Posting(2))
        kept.rollback()
        session.add(Posting(3))

    bank.meanwhile = use
    await bank.attempt()
    assert bank.postings() == [1, 3]


async def test_an_engine_without_transactions_is_refused_before_the_work(bank: Bank) -> None:
    careless = Bank(bank.url, engine_options={"isolation_level": "AUTOCOMMIT"})
    with pytest.raises(DefinitionError, match="AUTOCOMMIT"):
        await careless.attempt()
    assert bank.postings() == []


@pytest.mark.parametrize("answered", [True, False], ids=["after", "before"])
async def test_an_attempt_whose_connection_breaks_at_the_commit_finds_out_whether_it_happened(
    bank: Bank, answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = bank.engine.dialect.do_commit
    commits: list[None] = []

    def break_second(connection: Any) -> None:
        commits.append(None)
        if len(commits) != 2:
            commit(connection)
            return
        if answered:
            commit(connection)
        raise OperationalError("COMMIT", {}, Exception("connection lost"))

    monkeypatch.setattr(bank.engine.dialect, "do_commit", break_second)
    if answered:
        assert await bank.attempt(1) == Receipt(30, attempt=1)
    else:
        with pytest.raises(OperationalError, match="connection lost"):
            await bank.attempt(1)
        assert bank.postings() == []
        assert await bank.attempt(2) == Receipt(30, attempt=2)
    assert bank.postings() == [30]


async def test_an_attempt_that_cannot_find_out_leaves_it_to_the_next(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = bank.engine.dialect.do_commit
    commits: list[None] = []

    def break_from_second(connection: Any) -> None:
        commits.append(None)
        if len(commits) < 3:
            commit(connection)
        if len(commits) > 1:
            raise OperationalError("COMMIT", {}, Exception("connection lost"))

    with monkeypatch.context() as patched:
        patched.setattr(bank.engine.dialect, "do_commit", break_from_second)
        patched.setattr("romancy.sqlalchemy.decorators.begin", _fail_second_time())
        with pytest.raises(OperationalError, match="connection lost") as unknown:
            await bank.attempt(1)
    assert "could not be found out" in unknown.value.__notes__[0]
    assert await bank.attempt(2) == Receipt(30, attempt=1)
    assert bank.postings() == [30]


def _fail_second_time() -> Callable[..., Any]:
    from romancy.sqlalchemy.ledger import begin

    begun: list[None] = []

    def begin_once(*args: Any, **options: Any) -> Any:
        begun.append(None)
        if len(begun) > 1:
            raise ConnectionRefusedError("no database")
        return begin(*args, **options)

    return begin_once


@on_async
async def test_an_attempt_that_is_asked_to_stop_while_it_commits_tells_what_it_committed(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = bank.engine.dialect.do_commit
    commits: list[None] = []
    attempt = asyncio.create_task(bank.call(lambda amount: paying(amount), an_info(1), 30))
    tasks: list[asyncio.Task[Any]] = []

    async def paying(amount: int) -> Any:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        return await bank.pay.fn(amount)

    def stop_at_second(connection: Any) -> None:
        commits.append(None)
        if len(commits) == 2:
            assert tasks[0].cancel()
        commit(connection)

    monkeypatch.setattr(bank.engine.dialect, "do_commit", stop_at_second)
    assert await attempt == Receipt(30, attempt=1)
    assert bank.postings() == [30]


@on_async
async def test_an_attempt_that_is_asked_to_stop_in_its_work_has_no_effect(bank: Bank) -> None:
    def meanwhile(session: Any) -> None:
        loop.call_soon_threadsafe(attempt.cancel)

    loop = asyncio.get_running_loop()
    bank.meanwhile = meanwhile
    attempt = asyncio.create_task(bank.attempt())
    with pytest.raises(asyncio.CancelledError):
        await attempt
    assert bank.postings() == []


async def test_a_second_function_in_one_activity_is_refused(bank: Bank) -> None:
    async def twice_async(amount: int) -> None:
        await bank.pay.fn(amount)
        await bank.pay.fn(amount)

    def twice_sync(amount: int) -> None:
        bank.pay.fn(amount)
        bank.pay.fn(amount)

    with pytest.raises(DefinitionError, match="its second function"):
        await bank.call(twice_async if bank.is_async else twice_sync, an_info(1), 30)
    assert bank.postings() == [30]


async def test_an_activity_that_could_pass_for_a_compensation_is_refused(bank: Bank) -> None:
    with pytest.raises(DefinitionError, match="must not begin with 'undo/'"):
        await bank.attempt(activity_id="undo/pay:1", activity_type="undo/pay")


async def test_without_the_table_the_error_says_what_makes_it(url: str) -> None:
    with pytest.raises(DBAPIError) as missing:
        await Bank(url).attempt()
    assert "create_table makes it" in missing.value.__notes__[0]


async def test_the_table_can_be_created_by_many_at_once_and_again(url: str) -> None:
    bank = Bank(url)

    def create() -> None:
        with bank.books.begin() as connection:
            create_table(connection)

    await asyncio.gather(*(asyncio.to_thread(create) for _ in range(8)))
    assert bank.fences() == 0


def test_an_activity_is_undone_also_after_it_failed_since_its_compensation_knows_better(bank: Bank) -> None:
    command = bank.pay.schedule_command([bank.pay.encode_result(Receipt(1, 1))])
    assert command.compensation.when == COMPENSATE_WHEN_ALWAYS


# Decoration -----------------------------------------------------------------------------------------------------------

HERE, THERE, ASYNC = sessionmaker(), sessionmaker(), async_sessionmaker()


@transactional(HERE)
def keep(session: Session, name: str, *, loud: bool = False) -> Receipt:
    return Receipt(len(name), 0)


@compensation
@undoing(HERE)
def undo_here(session: Session, name: str) -> None:
    pass


@compensation
@undoing(THERE)
def undo_there(session: Session, name: str) -> None:
    pass


@compensation
@transactional(HERE)
def undo_always(session: Session, name: str) -> None:
    pass


@compensation
def undo_elsewhere(name: str) -> None:
    pass


def plain(name: str) -> None:
    assert name


@transactional(HERE)
def implemented_elsewhere(session: Session, name: str) -> Receipt:
    raise NotImplementedError


def test_a_decorated_function_is_seen_without_its_session() -> None:
    assert list(inspect.signature(keep).parameters) == ["name", "loud"]
    assert activity(keep).name == "keep"
    activity(keep).check()
    with pytest.raises(OutsideActivity):
        keep("ann")


async def test_types_are_kept_but_for_the_session() -> None:
    @transactional(ASYNC)
    async def asks(session: AsyncSession, name: str) -> Receipt:
        return Receipt(len(name), 0)

    kept = activity(asks)
    kept.check()

    if TYPE_CHECKING:
        assert_type(await kept("ann"), Receipt)
        assert_type(await activity(keep)("ann", loud=True), Receipt)
    with pytest.raises(OutsideActivity):
        await asks("ann")


@pytest.mark.parametrize(
    ("fn", "undo", "wrong"),
    [
        (keep, undo_here, ""),
        (keep, undo_elsewhere, ""),
        (plain, undo_always, ""),
        (implemented_elsewhere, undo_there, ""),
        (keep, undo_there, "looks for the effect of keep in another database"),
        (keep, undo_always, "would undo keep also when keep had no effect: decorate undo_always with @undoing"),
        (plain, undo_here, "plain records nothing: decorate plain with @transactional as well"),
    ],
)
def test_a_compensation_that_would_look_in_the_wrong_place_is_refused(fn: Any, undo: Any, wrong: str) -> None:
    if not wrong:
        activity(compensation=undo)(fn)
        return
    with pytest.raises(DefinitionError, match=wrong):
        activity(compensation=undo)(fn)


async def waits(session: Any) -> None:
    pass


def does_not_wait(session: Any) -> None:
    pass


def has_no_session() -> None:
    pass


class Teller:
    def pay(self, session: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("sessions", "fn", "wrong"),
    [
        (HERE, waits, "waits does not fit its sessionmaker"),
        (ASYNC, does_not_wait, "does_not_wait does not fit its sessionmaker"),
        (does_not_wait, does_not_wait, "take a sessionmaker or an async_sessionmaker, and not <function"),
        (HERE, activity(does_not_wait), "put @transactional and @undoing below @activity"),
        (HERE, has_no_session, "must take a session first"),
        (HERE, Teller.pay, "must take a session first"),
    ],
)
def test_what_cannot_be_used_is_refused_where_it_is_decorated(sessions: Any, fn: Any, wrong: str) -> None:
    for decorator in (transactional, undoing):
        with pytest.raises(DefinitionError, match=wrong):
            decorator(sessions)(fn)


def test_a_bound_method_can_be_decorated() -> None:
    assert list(inspect.signature(transactional(HERE)(Teller().pay)).parameters) == []


def test_without_sqlalchemy_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy.ext.asyncio", None)
    monkeypatch.delitem(sys.modules, "romancy.sqlalchemy")
    with pytest.raises(ImportError, match=r"pip install 'romancy\[sqlalchemy\]'"):
        importlib.import_module("romancy.sqlalchemy")


@pytest.mark.parametrize("name", ["postgresql", "sqlite"])
def test_the_sql_in_the_document_is_what_creates_the_table(name: str) -> None:
    dialect = URL.create(name).get_dialect()()
    document = Path(__file__).parents[2] / "docs" / "effects.md"
    statement = str(CreateTable(effects).compile(dialect=dialect))
    assert " ".join(statement.split()).lower() in " ".join(document.read_text().split()).lower()


def test_the_program_in_the_document_can_be_defined() -> None:
    text = (Path(__file__).parents[2] / "docs" / "effects.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {"Posting": Posting, "Receipt": Receipt}
    exec(block, names)  # noqa: S102 - it is ours
    names["charge"].check()


# With the service -----------------------------------------------------------------------------------------------------

LIMITS = Limits(reconnect_grace_ms=100, session_lease_ms=5_000, heartbeat_interval_ms=1_000)


@pytest.mark.parametrize("kind", ["sqlite-async", "postgres"], indirect=True)
@pytest.mark.parametrize("step", ["committing", "committed"])
async def test_a_worker_that_dies_around_its_commit_is_followed_by_one_that_finds_out(bank: Bank, step: str) -> None:
    @workflow
    async def buy(ctx: WorkflowContext) -> Receipt:
        receipt: Receipt = await bank.pay(30)
        return receipt

    async with testing.service(limits=LIMITS) as service, Worker(service.address, workflows=[buy]):
        handle = await service.client.start_workflow(buy)
        with doomed_worker(bank, step, service.address):
            await until(handle, "activity_attempt_failed")
        async with Worker(service.address, activities=[bank.pay]):
            assert await handle.result() == Receipt(30, attempt=1 if step == "committed" else 2)
    assert bank.postings() == [30]


@pytest.mark.parametrize("kind", ["sqlite", "postgres-async"], indirect=True)
@pytest.mark.parametrize("step", ["committing", "committed"])
async def test_what_a_lost_worker_did_is_undone_and_what_it_did_not_is_not(bank: Bank, step: str) -> None:
    @workflow
    async def buy(ctx: WorkflowContext) -> None:
        await bank.pay.options(at_most_once=True)(30)

    async with testing.service(limits=LIMITS) as service, Worker(service.address, workflows=[buy]):
        handle = await service.client.start_workflow(buy)
        with doomed_worker(bank, step, service.address):
            await until(handle, "rollback_started")
        async with Worker(service.address, activities=[bank.refund]):
            await until(handle, "compensation_completed")
    assert bank.postings() == ([30, -30] if step == "committed" else [])


async def until(handle: WorkflowHandle[Any], event: str) -> None:
    """Wait for an event in the history."""
    async for recorded in handle.watch():
        if recorded.WhichOneof("attributes") == event:
            return
