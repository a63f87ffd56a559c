"""Remedies: what gives something else on replay, by its full name, and what workflow code uses instead."""

from __future__ import annotations

from typing import Final

REMEDIES: Final = {
    "time.time": "use ctx.now().timestamp()",
    "time.time_ns": "use ctx.now()",
    "time.monotonic": "use ctx.now()",
    "time.monotonic_ns": "use ctx.now()",
    "time.sleep": "use await ctx.sleep(...)",
    "datetime.datetime.now": "use ctx.now()",
    "datetime.datetime.utcnow": "use ctx.now()",
    "datetime.datetime.today": "use ctx.now()",
    "datetime.date.today": "use ctx.now().date()",
    "uuid.uuid1": "use ctx.uuid4()",
    "uuid.uuid4": "use ctx.uuid4()",
    "os.urandom": "use ctx.random().randbytes(...)",
    "os.getenv": "pass it to the workflow as an argument, or read it in an activity",
    "builtins.open": "files belong into an activity",
    "builtins.input": "input belongs into an activity",
    "asyncio.tasks.as_completed": "import romancy before asyncio.as_completed, or call it as asyncio.as_completed",
    "asyncio.threads.to_thread": "threads belong into an activity",
    "asyncio.runners.run": "workflow code runs on a loop already",
    "threading.Thread": "threads belong into an activity",
    "threading.Thread.start": "threads belong into an activity",
}
_PREFIXES: Final = {
    "random.": "use ctx.random()",
    "secrets.": "use ctx.random(), or make secrets in an activity",
    "subprocess.": "processes belong into an activity",
    "socket.": "sockets belong into an activity",
    "requests.": "requests belong into an activity",
    "httpx.": "requests belong into an activity",
    "urllib.request.": "requests belong into an activity",
}


def remedy(name: str) -> str:
    """What to use instead of the function of that name; empty if it may be called."""
    if name == "random.Random":
        return ""  # seeded, it is deterministic
    return REMEDIES.get(name) or next((text for prefix, text in _PREFIXES.items() if name.startswith(prefix)), "")
