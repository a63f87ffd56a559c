"""The example programs run as they are, against the real service."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

import romancy
from romancy import testing

EXAMPLES = Path(romancy.__file__).parents[1] / "examples"
PRINTED = {
    "approval": ["Ann approved: paid lunch", "Ann said no"],
    "basket": ["90", "110", "we have no yacht", "110", "charged 1.10", "110"],
    "family": [
        "['ticket to Rome', 'ticket to Bern']",
        "stayed at home: TerminalError",
        "cancelled the leg to Bern",
        "cancelled the leg to Rome",
        "no trip: TerminalError",
    ],
    "cancellation": [
        "Bern is too far",
        "Bob: called off: snow, says Ann",
        "Bob: we come to an end",
        "Bob: your bill is paid",
        "room 7: given back",
        "the journey ended: cancelled by Ann: snow",
        "asked by Ann, because of snow",
    ],
    "channels": ["Book for Cem; Flyer for Bob; Poster for Ann; close the shop", "111 pages"],
    "counter": ["55"],
    "elsewhere": [
        "book: signed by Ann",
        "vase: broken on the way",
        "sofa: nothing to take back",
    ],
    "events": ["order 3: nobody paid", "order 1: 10.00 by Ann", "order 2: 20.00 by Bob", "30.00 in all"],
    "event_rule": [
        "order 1, paid by Ann, goes by train",
        "order 3, paid by Ann, goes by train",
        "2 started",
    ],
    "http_events": [
        '202 {"duplicate": false}',
        '202 {"duplicate": true}',
        '202 {"duplicates": [false, false]}',
        "400 event.id: Attribute 'id' must not be None or empty",
        "order 1: tea",
        "order 2: cup, pot",
    ],
    "timers": [
        "ready, and not too early",
        "nobody came",
        "begins later: 1 event",
        "ready, and not too early",
        "cup put away",
        "the run passed its run timeout",
        "cup put away",
        "the workflow passed its execution timeout",
        "the workflow passed its execution timeout",
    ],
    "patch": ["shipped the old one, not checked", "shipped the new one, checked"],
    "step": ["invoice over 120.00"],
}


@pytest.mark.parametrize("name", PRINTED)
async def test_an_example_prints_what_it_promises(name: str) -> None:
    async with asyncio.timeout(60), testing.service() as service:
        addresses = [service.address, service.http_address] if name.startswith("http") else [service.address]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(EXAMPLES / f"{name}.py"), *addresses),
            env={"PYTHONPATH": ":".join(sys.path)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
    assert out.decode().splitlines() == PRINTED[name], err.decode()
    assert process.returncode == 0, err.decode()
