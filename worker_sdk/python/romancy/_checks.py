"""Checks of what users give: each raises one sentence that names what was given and what is taken."""

from __future__ import annotations

from collections.abc import Collection, Iterable


def refuse_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError for an option that `what` does not have: a slip of the pen must not go by in silence."""
    names = list(known)
    for name in given:
        if name not in names:
            raise TypeError(f"{what} has no option {name!r}; it has {', '.join(names)}")


def check_choice(name: str, value: object, choices: Collection[str], error: type[Exception] = TypeError) -> None:
    """Raise `error` unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise error(f"{name} is {value!r}, but must be {' or '.join(map(repr, choices))}")


def check_text(name: str, value: str) -> None:
    """Raise ValueError for a text that cannot be sent: half of a character is none."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        problem = f"holds U+{ord(value[error.start]):04X}, half of a character"
        raise ValueError(f"{name} is {value!r}, but {problem}: leave it out") from None


def check_type(
    name: str, value: object, kinds: type | tuple[type, ...], expected: str, error: type[Exception] = TypeError
) -> None:
    """Raise `error` unless `value` is of one of `kinds`, which `expected` says in words; True is no number."""
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise error(f"{name} is {value!r}, but must be {expected}")
