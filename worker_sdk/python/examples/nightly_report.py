"""A report that the service has made every working day at 22:30 in Berlin, whatever happens to those who make it.

romancy-service dev
python -m examples.nightly_report work       # a worker
python -m examples.nightly_report arrange    # makes the schedule, or finds it
romancy schedule describe nightly-report
romancy schedule trigger nightly-report
"""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime, timedelta

from romancy import Client, Cron, ScheduleExists, Worker, WorkflowContext, activity, workflow

SCHEDULE = "nightly-report"


@activity
async def count_sales(day: str) -> int:
    return len(day) * 7


@activity
async def send(text: str) -> None:
    print(text)


@workflow
async def sales_report(ctx: WorkflowContext, title: str) -> None:
    # The workflow id ends with the time that the run is meant for: also when it runs late, or long after.
    day = ctx.info.workflow_id.removeprefix(f"{SCHEDULE}-")[:10]
    await send(f"{title} of {day}: {await count_sales(day)} sold")


async def arrange(client: Client) -> None:
    try:
        await client.create_schedule(
            SCHEDULE,
            Cron("30 22 * * MON-FRI", "Europe/Berlin"),
            sales_report,
            "sales report",
            overlap="buffer_one",
            catch_up=timedelta(hours=6),
            pause_on_failure=True,
        )
    except ScheduleExists:
        pass  # it was arranged before


async def catch_up(client: Client, start: datetime, end: datetime) -> None:
    """Make the reports of days on which there was no schedule yet."""
    await client.get_schedule_handle(SCHEDULE).backfill(start, end)


async def main() -> None:
    async with Client("127.0.0.1:7233") as client:
        await arrange(client)


if __name__ == "__main__":
    if sys.argv[1:] == ["work"]:
        Worker("127.0.0.1:7233", workflows=[sales_report], activities=[count_sales, send]).run()
    else:
        asyncio.run(main())
