"""The service is frozen or started again while a hundred activities run. The workers are alive all the time: none runs
twice, all finish, nothing that was reported is lost.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import pytest

from tests.faults.crowd import running
from tests.faults.scene import Scene


@pytest.mark.timeout(240)
async def test_while_the_service_is_frozen_or_started_again(stages: Callable[[], Scene], lease_s: float) -> None:
    await asyncio.gather(
        _freeze(stages(), lease_s),
        _restart(stages(), lease_s, signal.SIGTERM),
        _restart(stages(), lease_s, signal.SIGKILL),
    )


async def _freeze(stage: Scene, lease_s: float) -> None:
    service = await stage.service()
    async with running(stage, lease_s, service) as end_some:
        service.signal(signal.SIGSTOP)
        await end_some()
        await asyncio.sleep(1.5 * lease_s)
        service.signal(signal.SIGCONT)
    await stage.finish(losses=False)


async def _restart(stage: Scene, lease_s: float, how: signal.Signals) -> None:
    service = await stage.service()
    async with running(stage, lease_s, service) as end_some:
        service.signal(how)
        assert await asyncio.to_thread(service.wait) == (0 if how == signal.SIGTERM else -how)
        await end_some()
        # Longer than anybody's lease, so that only what the new one knows of itself counts.
        await asyncio.sleep(1.5 * lease_s)
        await stage.service()
    await stage.finish(losses=False)
