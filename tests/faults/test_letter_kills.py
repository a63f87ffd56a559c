"""The service dies at each step of sending dead letters again, one or all of a sink, and of dropping them: each that was to
be sent again is delivered, in its order, none is in the outbox twice, and none that was dropped is ever sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest

from romancy import Client
from romancy_service.faults import LETTER_POINTS
from romancy_service.rpc.outbox_service import AT_A_TIME
from tests.faults.scene import Scene, until
from tests.faults.senders import caller
from tests.service.sink import Sink, sink

SETTINGS = {"ROMANCY_SINK_ALLOW": "127.0.0.0/8", "ROMANCY_LIMIT": "sink_answer_ms=1000 sink_connect_ms=500"}
LETTER_DEATHS = tuple(f"{point}:1" for point in LETTER_POINTS)
"""It is asked for, and nothing is stored; it is stored, and nobody is told."""
DEATHS = (
    *LETTER_DEATHS,
    "outbox.claimed:1",  # it is lined up, and not sent
    "outbox.answered:1",  # the sink has it, and nobody else knows
    "outbox.delivered:1",
)
CALLERS = 2
CALLS = 3

pytestmark = pytest.mark.timeout(240)
Letter = tuple[str, int]
"""Which workflow sent it, and its number there."""


def test_every_point_of_dead_letters_is_died_at() -> None:
    assert {death.partition(":")[0] for death in DEATHS} >= set(LETTER_POINTS)


def callers_of(sink_name: str, callers: int = CALLERS) -> list[str]:
    return [f"{sink_name}/{number}" for number in range(callers)]


def letters_of(sink_name: str, callers: int = CALLERS, calls: int = CALLS) -> list[Letter]:
    return [(name, number) for name in callers_of(sink_name, callers) for number in range(calls)]


def came(server: Sink) -> list[Letter]:
    """What was taken, in order."""
    return [(each.data[0], each.data[1]) for each in server.taken]


async def make_letters(
    stage: Scene, client: Client, server: Sink, sinks: Sequence[str], callers: int = CALLERS, calls: int = CALLS
) -> None:
    """Have workflows send events that their sinks refuse; then have these take everything."""
    server.script = lambda _: 400
    await stage.service(**SETTINGS)
    worker = stage.start("worker", "tests.faults.senders", f"127.0.0.1:{stage.port}", "worker")
    for name in sinks:
        await client.outbox.set_sink(server.url, name=name)
        sending = (client.execute_workflow(caller, each, name, calls, id=each) for each in callers_of(name, callers))
        await asyncio.gather(*sending)

    async def all_are_dead() -> bool:
        shown = await client.outbox.list_sinks()
        return sum(each.dead for each in shown) == len(sinks) * callers * calls

    await until(all_are_dead, "all are dead letters", worker)
    server.received.clear()
    server.script = lambda _: 204


async def kept(client: Client, *, dead: bool, sink_name: str = "") -> dict[Letter, int]:
    """What is in the outbox, each with its position."""
    found = [each async for each in client.outbox.list_events(dead=dead, sink=sink_name)]
    letters = [((each.event.data[0], each.event.data[1]), each.position) for each in found]
    assert len(letters) == len(dict(letters)), "none is there twice"
    return dict(letters)


async def check(client: Client, server: Sink, wanted: Sequence[Letter], dead: Sequence[Letter]) -> None:
    """These come, each workflow's in their order, and nothing else; these are dead letters still."""

    async def all_came() -> bool:
        waiting, letters = await kept(client, dead=False), await kept(client, dead=True)
        assert not waiting.keys() & letters.keys(), "none is there twice"
        assert waiting.keys() | letters.keys() | {*came(server)} >= {*wanted, *dead}, "none is lost"
        return not waiting and {*came(server)} >= {*wanted}

    await until(all_came, "every one arrived")
    first = list(dict.fromkeys(came(server)))
    assert sorted(first) == sorted(wanted), "nothing else came"
    for name in {name for name, _ in wanted}:
        numbers = [number for other, number in first if other == name]
        assert numbers == sorted(numbers), "in their order"
    assert sorted(await kept(client, dead=True)) == sorted(dead)


async def settled(client: Client, sink_name: str) -> bool:
    """Whether nothing waits for it. What is under way when a service is killed may come twice."""
    return not await kept(client, dead=False, sink_name=sink_name)


async def test_wherever_the_service_dies_each_dead_letter_that_is_retried_arrives(stage: Scene) -> None:
    untouched = "untouched"
    ones, alls = [[f"{kind} {death}" for death in DEATHS] for kind in ("one", "all")]
    retried: dict[str, list[Letter]] = {}
    async with sink() as server, stage.client() as client:
        await make_letters(stage, client, server, [*ones, *alls, untouched])
        for name in (*ones, *alls):
            death = name[4:]
            letters = await kept(client, dead=True, sink_name=name)
            retried[name] = letters_of(name) if name in alls else letters_of(name)[CALLS - 1 : CALLS]
            which = {"sink": name} if name in alls else {"position": letters[retried[name][0]]}
            count = await stage.outlive(death, partial(client.outbox.retry, **which), **SETTINGS)
            # What became of a whole sink is remembered at its end; asked again, there is nothing left to do.
            told = 0 if name in alls and death == LETTER_DEATHS[1] else len(retried[name])
            assert count == told, "so many are sent again"
            if death in LETTER_DEATHS:
                await until(lambda: settled(client, name), "it arrived")  # noqa: B023
                assert [came(server).count(letter) for letter in retried[name]] == [1] * len(retried[name]), (
                    "nobody died while it was sent"
                )
        wanted = [letter for letters in retried.values() for letter in letters]
        others = [letter for name in ones for letter in letters_of(name) if letter not in wanted]
        await check(client, server, wanted, dead=[*others, *letters_of(untouched)])
    await stage.finish()


async def test_wherever_the_service_dies_dead_letters_that_were_dropped_are_never_sent(stage: Scene) -> None:
    ones, alls = [[f"{kind} {death}" for death in LETTER_DEATHS] for kind in ("one", "all")]
    async with sink() as server, stage.client() as client:
        await make_letters(stage, client, server, [*ones, *alls])
        dropped: list[Letter] = []
        for death, one, all_ in zip(LETTER_DEATHS, ones, alls, strict=True):
            answered = death == LETTER_DEATHS[0]
            letters = await kept(client, dead=True, sink_name=one)
            first = letters_of(one)[0]
            count = await stage.outlive(death, partial(client.outbox.drop, position=letters[first]), **SETTINGS)
            assert count == 1
            count = await stage.outlive(death, partial(client.outbox.drop, sink=all_), **SETTINGS)
            assert count == len(letters_of(all_)) * answered
            assert await kept(client, dead=True, sink_name=all_) == {}
            dropped += [first, *letters_of(all_)]
        retried = [await client.outbox.retry(sink=name) for name in [*ones, *alls]]
        assert retried == [len(letters_of("")) - 1] * len(ones) + [0] * len(alls)
        wanted = [letter for name in ones for letter in letters_of(name) if letter not in dropped]
        await check(client, server, wanted, dead=[])
    await stage.finish()


@pytest.mark.parametrize("more", [20, pytest.param(4 * AT_A_TIME, marks=pytest.mark.slow)])
async def test_a_death_between_two_pages_of_dead_letters_is_outlived_by_whoever_asks(stage: Scene, more: int) -> None:
    callers, names = 20, ("retried", "dropped")
    calls = (AT_A_TIME + more) // callers
    async with sink() as server, stage.client() as client:
        await make_letters(stage, client, server, names, callers, calls)
        for name, call in zip(names, (client.outbox.retry, client.outbox.drop), strict=True):
            count = await stage.outlive("letters.before:2", partial(call, sink=name), **SETTINGS)
            assert count == callers * calls
        await check(client, server, letters_of("retried", callers, calls), dead=[])
    await stage.finish()
