"""Effect: what a function says of itself that keeps its effect in a database of the user's, and what may undo it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from romancy.errors import DefinitionError

_ATTRIBUTE: Final = "__romancy_effect__"


@dataclass(frozen=True, slots=True)
class Effect:
    """Where a function's effect and the record of it are committed together."""

    place: object
    """Functions whose places are the same object have their records in one database."""
    undoes: bool
    """It undoes another effect in the same place, and does nothing where there is none."""


def mark(fn: Callable[..., Any], effect: Effect) -> None:
    """Let `fn` say that it has this effect."""
    setattr(fn, _ATTRIBUTE, effect)


def knows_whether_done(undo: Callable[..., Any]) -> bool:
    """Whether a compensation finds out by itself if there is anything to undo."""
    effect = _effect(undo)
    return effect is not None and effect.undoes


def check_undo(name: str, fn: Callable[..., Any], undo_name: str, undo: Callable[..., Any]) -> None:
    """Raise DefinitionError when `undo` would look for the effect of `fn` where it is not, or not look for it."""
    done, undone = _effect(fn), _effect(undo)
    if undone is not None and undone.undoes:
        if done is None:
            raise DefinitionError(
                f"{undo_name} undoes what is recorded in its database, but {name} records nothing: decorate {name} "
                f"with @transactional as well, or {undo_name} with @transactional instead of @undoing"
            )
        if done.place is not undone.place:
            raise DefinitionError(
                f"{undo_name} looks for the effect of {name} in another database: give both the same sessionmaker"
            )
    elif undone is not None and done is not None and done.place is undone.place:
        raise DefinitionError(
            f"{undo_name} would undo {name} also when {name} had no effect: decorate {undo_name} with @undoing instead "
            "of @transactional"
        )


def _effect(fn: Callable[..., Any]) -> Effect | None:
    effect = getattr(fn, _ATTRIBUTE, None)
    return effect if isinstance(effect, Effect) else None
