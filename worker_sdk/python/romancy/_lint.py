"""Lint: finds in a workflow's source what would be another one on replay. Names are resolved: aliases hide nothing."""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from romancy._as_completed import as_completed

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


@dataclass(frozen=True, slots=True)
class Finding:
    """One place in a workflow's source."""

    filename: str
    line: int
    text: str


def lint(fn: Callable[..., Any]) -> list[Finding]:
    """What is found in the source of `fn`; nothing when there is no source, as in a shell."""
    try:
        lines, first = inspect.getsourcelines(fn)
        tree = ast.parse(textwrap.dedent("".join(lines)))
        filename = inspect.getsourcefile(fn) or "<unknown>"
    except (OSError, TypeError, SyntaxError):
        return []
    names = {**vars(builtins), **getattr(fn, "__globals__", {}), **_closure(fn)}
    return [Finding(filename, first + line - 1, text) for line, text in _findings(tree, names)]


def _closure(fn: Callable[..., Any]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            names[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return names


def _findings(tree: ast.AST, names: dict[str, Any]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found = _resolve(node.func, names)
            for name in _full_names(node.func, found, names):
                remedy = _remedy(name, found)
                if remedy:
                    yield node.lineno, f"{name} gives something else on replay: {remedy}"
                    break
        elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension) and _is_set(node.iter):
            yield node.iter.lineno, "the order of a set differs between processes: iterate over sorted(...)"


def _remedy(name: str, found: Any) -> str | None:
    if name == "random.Random" or found is as_completed:
        return None  # seeded, it is deterministic; as_completed is ours
    return REMEDIES.get(name) or next((text for prefix, text in _PREFIXES.items() if name.startswith(prefix)), None)


def _resolve(node: ast.expr, names: dict[str, Any]) -> Any:
    """What an expression names before the code runs; None when that cannot be known."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _resolve(node.value, names)
        return getattr(owner, node.attr, None) if isinstance(owner, ModuleType | type) else None
    return None


def _full_names(node: ast.expr, found: Any, names: dict[str, Any]) -> Iterator[str]:
    """The names under which it may be listed: by way of its owner, and its own."""
    if found is None:
        return
    if isinstance(node, ast.Attribute):
        owner = _resolve(node.value, names)
        prefix = owner.__name__ if isinstance(owner, ModuleType) else f"{owner.__module__}.{owner.__qualname__}"
        yield f"{prefix}.{node.attr}"
    name = getattr(found, "__qualname__", "")
    # Bound methods of built-in classes, such as random.random, know their module by their object.
    module = getattr(found, "__module__", None) or type(getattr(found, "__self__", None)).__module__
    yield f"{'builtins' if module == 'io' else module}.{name}"


def _is_set(node: ast.expr) -> bool:
    if isinstance(node, ast.Set | ast.SetComp):
        return True
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("set", "frozenset")
