"""docs/why.md: every kind and state of what a run can wait for is explained there, and the limits are as it says."""

from __future__ import annotations

import re
from pathlib import Path

from romancy.v1.wait_pb2 import WaitKind, WaitState

from romancy_service.core.limits import MIB, Limits

PAGE = (Path(__file__).parents[2] / "docs/why.md").read_text()


def named_in_tables() -> set[str]:
    """What the first columns of the tables name."""
    cells = (line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `"))
    return {name for cell in cells for name in re.findall(r"`([A-Z_]+)`", cell)}


def test_every_kind_and_state_is_explained_and_nothing_else() -> None:
    kinds = {name.removeprefix("WAIT_KIND_") for name in WaitKind.keys()[1:]}
    states = {name.removeprefix("WAIT_STATE_") for name in WaitState.keys()[1:]}
    assert named_in_tables() == kinds | states


def test_the_limits_of_histories_are_as_told() -> None:
    limits = Limits()
    told = re.findall(r"^\| ([\d,]+) \| (\d+) MiB \|", PAGE, re.MULTILINE)
    assert [(int(events.replace(",", "")), int(size) * MIB) for events, size in told] == [
        (limits.history_recur_events, limits.history_recur_bytes),
        (limits.history_warn_events, limits.history_warn_bytes),
        (limits.history_events, limits.history_bytes),
    ]
