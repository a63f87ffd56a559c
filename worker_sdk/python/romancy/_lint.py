"""Lint: finds in a workflow's source what would be another one on replay, and calls that are never awaited.

Names are resolved, so aliases hide nothing. Functions and methods of the workflow's own module are followed; what those
of other modules do is seen by the guard, when it happens.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import _lru_cache_wrapper
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

from romancy._as_completed import as_completed
from romancy._remedies import remedy
from romancy.activity import ActivityDefinition

_ENVIRONMENT: Final = (
    "os.environ gives something else on replay: pass it to the workflow as an argument, or read it in an activity"
)
_UNGUARDED: Final = "romancy.workflow.unguarded"
_STEP: Final = "WorkflowContext.step"
_SET: Final = "the order of a set differs between processes: iterate over sorted(...)"


@dataclass(frozen=True, slots=True)
class Finding:
    """One place in the source of a workflow, or of a function that it uses."""

    filename: str
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class _Instance:
    """Stands for a value of which only the class is known."""

    kind: type


def lint(fn: Callable[..., Any]) -> list[Finding]:
    """What is found in the source of `fn` and of the functions of its module that it uses.

    Where there is no source, as in a shell, nothing is found.
    """
    findings: list[Finding] = []
    waiting: list[tuple[Any, Any]] = [(fn, getattr(fn, "__self__", None))]
    read: set[FunctionType] = set()
    while waiting:
        used, owner = waiting.pop(0)
        function = _function(used)
        if function is None or function.__module__ != fn.__module__ or function in read:
            continue
        by_way = f" (in {function.__qualname__}, which {fn.__qualname__} uses)" if read else ""
        read.add(function)
        try:
            source = _Source(function, owner)
        except (OSError, TypeError, SyntaxError):
            continue
        findings += [Finding(source.filename, line, text + by_way) for line, text in sorted(source.findings())]
        waiting += source.used()
    return findings


class _Source:
    """The source of one function, and what the names in it stand for before it runs."""

    def __init__(self, function: FunctionType, owner: Any) -> None:
        """`owner` is what the function is a method of, or None. Raises OSError and others when there is no source."""
        lines, first = inspect.getsourcelines(function)
        self._tree = ast.parse(textwrap.dedent("".join(lines)))
        self._before = first - 1
        self.filename = inspect.getsourcefile(function) or "<unknown>"
        self._names = {**vars(builtins), **function.__globals__, **_closure(function)}
        self._names.update(self._own_names())
        if owner is not None and function.__code__.co_argcount:
            self._names[function.__code__.co_varnames[0]] = owner
        for node in ast.walk(self._tree):
            self._names.update(self._known(node))
        self._steps = self._only_steps()

    def _own_names(self) -> Iterator[tuple[str, Any]]:
        """Names that the function gives to something; they hide those around it."""
        for node in ast.walk(self._tree):
            match node:
                case ast.Name(id=name, ctx=ast.Store()):
                    yield name, None
                case ast.arg(arg=name, annotation=annotation):
                    yield name, None if annotation is None else self._instance(annotation)

    def _known(self, node: ast.AST) -> Iterator[tuple[str, Any]]:
        """Those of them of which more is known."""
        match node:
            case ast.Import(names=names):
                for alias in names:
                    module = alias.name if alias.asname else alias.name.partition(".")[0]
                    yield alias.asname or module, sys.modules.get(module)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                for alias in names:
                    yield alias.asname or alias.name, getattr(sys.modules.get(module), alias.name, None)
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, self._resolve(value)
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                yield name, self._instance(annotation)

    def findings(self) -> Iterator[tuple[int, str]]:
        """Line and text of each place."""
        for node in self._nodes():
            match node:
                case ast.Call(func=func) if text := self._differs(func):
                    yield self._before + node.lineno, text
                case ast.Expr(value=ast.Call(func=func)) if self._is_awaitable(func):
                    name = ast.unparse(func)
                    yield self._before + node.lineno, f"{name}(...) is not awaited, so it never runs: write await"
                case ast.Attribute() | ast.Name() if self._resolve(node) is os.environ:
                    yield self._before + node.lineno, _ENVIRONMENT
                case ast.For() | ast.AsyncFor() | ast.comprehension() if _is_set(node.iter):
                    yield self._before + node.iter.lineno, _SET

    def used(self) -> Iterator[tuple[Any, Any]]:
        """What may be a function that runs, because it is called or handed on, and what it is a method of."""
        for node in self._nodes():
            match node:
                case ast.Call(func=func) if isinstance(kind := self._resolve(func), type):
                    for name in ("__init__", "__post_init__"):
                        yield getattr(kind, name, None), _Instance(kind)
                case ast.Attribute(value=value):
                    found = self._resolve(node)
                    yield found.fget if isinstance(found, property) else found, self._resolve(value)
                case ast.Name():
                    yield self._resolve(node), None

    def _nodes(self) -> Iterator[ast.AST]:
        """All but what the user vouches for."""
        waiting: list[ast.AST] = [self._tree]
        while waiting:
            node = waiting.pop()
            if isinstance(node, ast.With) and any(self._vouches(item.context_expr) for item in node.items):
                continue
            waiting += self._parts(node)
            yield node

    def _parts(self, node: ast.AST) -> Iterator[ast.AST]:
        """What belongs to it, but what only steps call: that is not called again on replay."""
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if name in self._steps:
                yield from (node.args, *node.decorator_list)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Name() | ast.Lambda()) if name in self._steps:
                yield from (node.value.args,) if isinstance(node.value, ast.Lambda) else ()
            case _:
                step = self._step_function(node)
                yield from (child for child in ast.iter_child_nodes(node) if child is not step)

    def _only_steps(self) -> set[str]:
        """The names that are used for what steps call, and for nothing else."""
        nodes = list(ast.walk(self._tree))
        steps = [step for node in nodes if isinstance(step := self._step_function(node), ast.Name)]
        others = {
            node.id
            for node in nodes
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and not any(node is step for step in steps)
        }
        return {step.id for step in steps} - others

    def _step_function(self, node: ast.AST) -> ast.expr | None:
        """What `ctx.step(...)` calls."""
        match node:
            case ast.Call(func=ast.Attribute(attr="step") as func, args=[function, *_]):
                found = self._resolve(func)
                return function if found is None or getattr(found, "__qualname__", "") == _STEP else None
        return None

    def _vouches(self, node: ast.expr) -> bool:
        found = self._resolve(node.func) if isinstance(node, ast.Call) else None
        return isinstance(found, FunctionType) and f"{found.__module__}.{found.__name__}" == _UNGUARDED

    def _differs(self, func: ast.expr) -> str:
        found = self._resolve(func)
        names = self._full_names(func, found) if found is not as_completed else ()
        return next((f"{name} gives something else on replay: {text}" for name in names if (text := remedy(name))), "")

    def _is_awaitable(self, func: ast.expr) -> bool:
        found = self._resolve(func)
        return isinstance(found, ActivityDefinition) or inspect.iscoroutinefunction(found)

    def _instance(self, annotation: ast.expr) -> _Instance | None:
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.Name(annotation.value)
        kind = self._resolve(annotation)
        return _Instance(kind) if isinstance(kind, type) else None

    def _resolve(self, node: ast.expr) -> Any:
        """What an expression stands for before the code runs; None when that cannot be known."""
        match node:
            case ast.Name(id=name):
                return self._names.get(name)
            case ast.Attribute(value=value, attr=attr):
                owner = self._resolve(value)
                if owner is None or isinstance(owner, ModuleType | type):
                    return getattr(owner, attr, None)
                return getattr(owner.kind if isinstance(owner, _Instance) else type(owner), attr, None)
            case ast.Call(func=func):
                return self._instance(func)
        return None

    def _full_names(self, node: ast.expr, found: Any) -> Iterator[str]:
        """The names under which it may be listed: by way of its owner, and its own."""
        if found is None or isinstance(found, _Instance):
            return
        if isinstance(node, ast.Attribute):
            owner = self._resolve(node.value)
            if isinstance(owner, ModuleType):
                yield f"{owner.__name__}.{node.attr}"
            elif isinstance(owner, type):
                yield f"{owner.__module__}.{owner.__qualname__}.{node.attr}"
        name = getattr(found, "__qualname__", "")
        # Bound methods of built-in classes, such as random.random, know their module by their object.
        module = getattr(found, "__module__", None) or type(getattr(found, "__self__", None)).__module__
        yield f"{'builtins' if module == 'io' else module}.{name}"


def _function(used: Any) -> FunctionType | None:
    """The function that runs when it is called, if it is one."""
    if isinstance(used, MethodType):
        used = used.__func__
    if isinstance(used, FunctionType | _lru_cache_wrapper):
        used = inspect.unwrap(used)
    return used if isinstance(used, FunctionType) else None


def _closure(function: FunctionType) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            names[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return names


def _is_set(node: ast.expr) -> bool:
    if isinstance(node, ast.Set | ast.SetComp):
        return True
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("set", "frozenset")
