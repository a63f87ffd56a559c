"""Random workflow programs: trees that one workflow interprets, and a trace of all that its code gets to see."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

from romancy import (
    ActivityError,
    Attribute,
    ChannelModeConflict,
    ChildError,
    ChildNotStarted,
    CompensationError,
    Event,
    EventTimeout,
    MessageTimeout,
    SendError,
    StepError,
    WorkflowContext,
    activity,
    compensation,
    workflow,
)
from romancy.channels import ChannelMode

Tree = list[Any]
"""`[operation, number, *children]`"""

trace: list[Any] = []
"""What the code of the run that is activated has seen; whoever activates one puts its own here."""


class Declined(Exception):
    """An error that comes back as itself."""


@compensation
async def undo(number: int, result: int | None) -> None:
    pass


@activity(compensation=undo, raises=[Declined])
async def work(number: int) -> int:
    return number


@activity
async def other(number: int, text: str = "x") -> int:
    return number


@workflow
async def kid(ctx: WorkflowContext, number: int) -> int:
    return number


def roll(number: int) -> float:
    """Another one at each call: whoever calls it again on replay is found out."""
    if number % 5 == 0:
        raise Declined(f"{random.random()}")
    if number % 7 == 0:
        raise ValueError(f"{random.random()}")
    return random.random()


class Interpreter:
    """Runs a tree."""

    def __init__(self, ctx: WorkflowContext) -> None:
        self.ctx = ctx
        self.gate = asyncio.Event()
        self.queue: asyncio.Queue[int] = asyncio.Queue()
        self.lock = asyncio.Lock()
        self.semaphore = asyncio.Semaphore(2)
        self.background: list[asyncio.Task[Any]] = []
        self.heard: list[Any] = []
        self.came: Counter[str] = Counter()
        """How many signals, and updates, came."""
        self._listen()

    def _listen(self) -> None:
        """What others may say. Handlers run beside the program, wait, and are waited for."""
        ctx, heard = self.ctx, self.heard

        def valid(number: int) -> None:
            if number % 4 == 0:
                raise Declined(f"not {number}")

        def change(number: int) -> Any:
            self.see("update", number)
            self.came["update"] += 1
            if number % 3 == 0:
                raise Declined(f"never {number}")
            heard.append(number)
            return self._later(number) if number % 2 else number

        @ctx.signal
        def poke(number: int) -> None:
            self.see("poke", number)
            self.came["signal"] += 1
            heard.append(number)

        @ctx.signal
        async def nudge(number: int) -> None:
            heard.append(await self._later(number))

        @ctx.query
        def state(number: int) -> list[Any]:
            return [*heard, ctx.now().timestamp(), ctx.random().random(), str(ctx.uuid4())]

        ctx.update(change, validator=valid)

    async def _later(self, number: int) -> str:
        self.see("later", number)
        await self.ctx.sleep(number % 3)
        return f"{number} {await other(number)} {self.ctx.random().random()}"

    def see(self, *what: Any) -> None:
        loop = asyncio.get_running_loop()
        trace.append((*what, self.ctx.now().timestamp(), round(loop.time(), 6)))

    def task(self, tree: Tree) -> asyncio.Task[Any]:
        return asyncio.create_task(self.run(tree))

    async def run(self, tree: Tree) -> Any:
        operation, number, *children = tree
        self.see("begin", operation, number)
        try:
            result = await getattr(self, operation)(number, *children)
        except BaseException as error:
            if not isinstance(error, GeneratorExit):
                self.see("raise", number, type(error).__name__, str(error))
            raise
        self.see("end", number, repr(result))
        return result

    async def call(self, number: int) -> Any:
        return await (work(number) if number % 2 else other.options(timeout=30)(number))

    async def careful(self, number: int) -> Any:
        try:
            return await work(number)
        except (ActivityError, Declined) as error:
            return f"{type(error).__name__}: {error}"

    async def stubborn(self, number: int, child: Tree) -> Any:
        """Cleans up when cancelled, and then goes on as if nothing had been."""
        try:
            return await self.run(child)
        except asyncio.CancelledError:
            await other(number)
            return "swallowed"

    async def tidy(self, number: int, child: Tree) -> Any:
        try:
            return await self.run(child)
        finally:
            await self.ctx.sleep(0.5)

    async def sleep(self, number: int) -> None:
        await asyncio.sleep(number % 5)

    async def nap(self, number: int) -> None:
        await self.ctx.sleep(number % 3 - 1)

    async def pause(self, number: int) -> None:
        for _ in range(number % 3):
            await asyncio.sleep(0)

    async def draw(self, number: int) -> str:
        return f"{self.ctx.random().random()} {self.ctx.uuid4()}"

    async def named(self, number: int) -> str:
        task = asyncio.current_task()
        assert task is not None
        return task.get_name()

    async def seq(self, number: int, *children: Tree) -> list[Any]:
        return [await self.run(child) for child in children]

    async def gather(self, number: int, *children: Tree) -> Any:
        return await asyncio.gather(*map(self.run, children), return_exceptions=bool(number % 2))

    async def group(self, number: int, *children: Tree) -> Any:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.run(child)) for child in children]
        return [task.result() for task in tasks]

    async def first(self, number: int, *children: Tree) -> Any:
        done, pending = await asyncio.wait(map(self.task, children), return_when=asyncio.FIRST_COMPLETED)
        for task in pending:  # in the order of the set
            task.cancel()
            self.see("cancelled", task.get_name())
        if pending and number % 2:
            await asyncio.wait(pending)
        return sorted(task.get_name() for task in done)

    async def among(self, number: int, *children: Tree) -> Any:
        """Futures of gather, in sets."""
        gathers = {asyncio.gather(self.run(child), self.run(["pause", number])) for child in children}
        order = []
        for gathered in gathers:
            try:
                order.append(str(await gathered))
            except (ActivityError, Declined, TimeoutError, ExceptionGroup) as error:
                order.append(type(error).__name__)
        return order

    async def each(self, number: int, *children: Tree) -> Any:
        order = []
        for result in asyncio.as_completed([self.run(child) for child in children], timeout=number % 7 or None):
            try:
                order.append(str(await result))
            except (ActivityError, Declined, TimeoutError, ExceptionGroup) as error:
                order.append(type(error).__name__)
        return order

    async def timeout(self, number: int, child: Tree) -> Any:
        try:
            async with asyncio.timeout(number % 4):
                return await self.run(child)
        except TimeoutError:
            return "late"

    async def wait_for(self, number: int, child: Tree) -> Any:
        return await asyncio.wait_for(self.run(child), number % 4 + 1)

    async def shield(self, number: int, child: Tree) -> Any:
        return await asyncio.shield(self.task(child))

    async def spawn(self, number: int, child: Tree) -> None:
        self.background.append(self.task(child))

    async def orphan(self, number: int) -> None:
        """A task that nobody holds and nobody wakes."""

        async def wait() -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                trace.append(("the orphan was found", number))

        asyncio.create_task(wait())  # noqa: RUF006 - that nobody holds it is the point

    async def generate(self, number: int) -> int:
        """An async generator that is left half read."""

        async def numbers(itself: list[Any]) -> AsyncIterator[int]:
            try:
                yield number
                yield len(itself)
            finally:
                trace.append(("closed", number))

        itself: list[Any] = []
        itself.append(numbers(itself))  # in a cycle, so that only the collector finds it
        async for found in itself[0]:
            return int(found)
        return 0

    async def open_gate(self, number: int) -> None:
        self.gate.set()

    async def wait_gate(self, number: int) -> None:
        await asyncio.wait_for(self.gate.wait(), 9)

    async def put(self, number: int) -> None:
        self.queue.put_nowait(number)

    async def get(self, number: int) -> int:
        async with asyncio.timeout(9):
            return await self.queue.get()

    async def locked(self, number: int, child: Tree) -> Any:
        async with self.lock if number % 2 and not self.lock.locked() else self.semaphore:
            return await self.run(child)

    async def listen(self, number: int) -> None:
        """Take signals that may have waited for long; once."""
        if ("signal", "late") not in self.ctx._handlers._handlers:
            self.ctx.signal(lambda number: self.see("late", number), name="late")

    async def step(self, number: int) -> str:
        try:
            return str(await self.ctx.step(roll, number, name=f"roll{number % 2}", raises=[Declined]))
        except (Declined, StepError) as error:
            return f"{type(error).__name__}: {error}"

    async def condition(self, number: int) -> str:
        try:
            await self.ctx.wait_condition(lambda: len(self.heard) > number % 3, timeout=number % 8)
        except TimeoutError:
            return "nobody spoke"
        return str(self.heard[-1])

    async def take(self, number: int) -> str:
        """Two that wait for the same thing do not both get it."""
        try:
            await self.ctx.wait_condition(lambda: bool(self.heard), timeout=9)
        except TimeoutError:
            return "nothing"
        return str(self.heard.pop(0))

    async def signalled(self, number: int) -> int:
        await self.ctx.wait_condition(lambda: self.came["signal"] > 0)
        return self.came["signal"]

    async def updated(self, number: int) -> int:
        await self.ctx.wait_condition(lambda: self.came["update"] > 0)
        return self.came["update"]

    async def event(self, number: int) -> str:
        where = {"data.number": number % 2} if number % 3 else None
        try:
            event = await self.ctx.wait_event("paid" if number % 4 else "bid", where=where, timeout=number % 9)
        except EventTimeout:
            return "nothing happened"
        return f"{event.id} {event.data}"

    async def stream(self, number: int) -> list[str]:
        came: list[str] = []
        with self.ctx.subscribe_event("bid") as bids:
            await self.ctx.sleep(number % 4)
            while len(came) < number % 3:
                try:
                    came.append((await bids.receive(timeout=number % 7)).id)
                except EventTimeout:
                    break
        return came

    async def shared(self, number: int) -> list[str]:
        """Several receive from one stream, and some of them give up."""
        with self.ctx.subscribe_event("bid") as bids:

            async def receive(place: int) -> str:
                try:
                    came = await bids.receive(timeout=(number + 2 * place) % 7)
                except EventTimeout:
                    return f"{place} nothing"
                self.see("received", number, place, came.id)
                return f"{place} {came.id}"

            receivers = [asyncio.create_task(receive(place)) for place in range(2 + number % 3)]
            if number % 4 == 0:
                await asyncio.wait(receivers, return_when=asyncio.FIRST_COMPLETED)
                receivers.pop(number % len(receivers)).cancel()
            return list(await asyncio.gather(*receivers))

    async def message(self, number: int) -> str:
        channel = f"channel {number % 2}"
        try:
            await self.ctx.subscribe(channel, mode=MODES[number % 3])
            # Two at once, every other time, of which one has less patience.
            receivers = [
                self.ctx.receive(channel, int, timeout=each % 7) for each in range(number, number + 1 + number % 2)
            ]
            message, *more = await asyncio.gather(*receivers, return_exceptions=bool(number % 2))
            self.see("received", number, [str(each) for each in more])
            if isinstance(message, BaseException):
                raise message
        except (ChannelModeConflict, MessageTimeout, ValueError) as error:
            return type(error).__name__
        if number % 5 == 0:
            self.ctx.unsubscribe(channel)
        return f"{message.channel} {message.data} {message.deliveries}"

    async def publish(self, number: int) -> str:
        try:
            await self.ctx.publish(f"channel {number % 2}", number, metadata={"by": "me"})
        except SendError:
            return "refused"
        return "published"

    async def event_out(self, number: int) -> None:
        self.ctx.send_event(Event(f"done.{number % 3}", {"number": number}), sink="shop" if number % 2 else "default")

    async def patch(self, number: int) -> bool:
        return self.ctx.patched(f"patch {number % 4}")

    async def child(self, number: int) -> str:
        try:
            return str(await self.ctx.run_child(kid, number))
        except (ChildError, ChildNotStarted) as error:
            return f"{type(error).__name__}: {error}"

    async def stop_child(self, number: int) -> str:
        try:
            started = await self.ctx.start_child(kid, number)
            await self.ctx.sleep(number % 3)
            started.request_cancel()
            return str(await started.result())
        except (ChildError, ChildNotStarted) as error:
            return f"{type(error).__name__}: {error}"

    async def tell(self, number: int) -> str:
        other_workflow = self.ctx.workflow(f"w{number % 2}")
        try:
            await (other_workflow.signal("poke", number) if number % 3 else other_workflow.cancel("enough"))
        except SendError as error:
            return f"{error.type}: {error}"
        return "told"

    async def again(self, number: int) -> None:
        if number % 5 == 0:
            await self.ctx.recur(["nap", number])

    async def register(self, number: int) -> None:
        self.ctx.compensate_with(undo, number, None)

    async def mark(self, number: int) -> int | None:
        key = Attribute(f"mark {number % 3}", int)
        self.ctx.set_attributes({key: number if number % 4 else None})
        return self.ctx.attribute(key)

    async def undo_all(self, number: int) -> None:
        try:
            await self.ctx.compensate()
        except CompensationError as error:
            self.see("not undone", str(error))


MODES: Sequence[ChannelMode] = ("broadcast", "competing", "direct")
WAITS = (
    "sleep",
    "event",
    "call",
    "signalled",
    "message",
    "child",
    "updated",
    "condition",
    "step",
    "publish",
    "undo_all",
)
"""One of each kind of what code can wait for: a timer, an event, an activity, a signal, a message, a child, an update,
a condition, a step, a message on its way, a compensation."""
LEAVES = ["call", "careful", "sleep", "nap", "pause", "draw", "named", "orphan", "generate", "open_gate", "wait_gate",
          "put", "get", "register", "undo_all", "listen", "step", "condition", "take", "patch", "child", "stop_child",
          "tell", "again", "mark", "event", "event", "stream", "shared", "message",
          "message", "publish", "event_out", "event_out"]  # fmt: skip
WRAPPERS = ["stubborn", "tidy", "timeout", "wait_for", "shield", "spawn", "locked"]
BRANCHES = ["seq", "gather", "group", "first", "among", "each"]


def random_tree(rng: random.Random, size: int) -> Tree:
    """A program of about `size` operations."""
    number = rng.randrange(1000)
    if size <= 1:
        return [rng.choice(["call", "call", "careful", "sleep", *LEAVES]), number]
    if rng.random() < 0.3:
        return [rng.choice(WRAPPERS), number, random_tree(rng, size - 1)]
    parts = rng.randint(2, min(4, size))
    return [rng.choice(BRANCHES), number, *(random_tree(rng, size // parts) for _ in range(parts))]


def race(rng: random.Random, one: str, other: str) -> Tree:
    """A program in which two waits race against each other; the code goes on from who came first, and then ends."""
    left, right = [one, 1 + 2 * rng.randrange(500)], [other, 2 + 2 * rng.randrange(500)]
    if rng.random() < 0.5:
        left, right = right, left
    kind = rng.choice(["first", "first", "each", "timeout"])
    raced = [kind, rng.randrange(1000), *([["gather", 1, left, right]] if kind == "timeout" else [left, right])]
    return ["seq", 0, raced, ["call", rng.randrange(1000)]]


@workflow
async def program(ctx: WorkflowContext, tree: Tree) -> str:
    result = await Interpreter(ctx).run(tree)
    return str(result)
