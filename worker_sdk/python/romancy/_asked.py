"""Asked: what workflow code asks for, checked where it asks, so that the code can catch it.

What the service alone finds wrong blocks the whole task. The numbers are those of the service's own limits.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Final

from google.protobuf.duration_pb2 import Duration

from romancy._checks import check_type
from romancy.errors import InvalidCall

NAME_BYTES: Final = 255
TIMER_S: Final = 10 * 365 * 86_400
"""The longest timer: ten years."""
VALUES: Final = 8
VALUE_BYTES: Final = 4 * 1024
_ATTRIBUTE: Final = re.compile(r"[a-z0-9]{1,20}")
_DATA: Final = "data."
_SHOWN: Final = 80


def check_name(what: str, name: object, *, may_be_empty: bool = False) -> None:
    """Raise TypeError or InvalidCall unless it may name something: 1 to 255 bytes without control characters."""
    check_type(what, name, str, "a text")
    assert isinstance(name, str)
    size = len(name.encode(errors="surrogatepass"))
    if not (size or may_be_empty) or size > NAME_BYTES:
        raise InvalidCall(f"{what} is {_shown(name)} with {size} bytes, but must have 1 to {NAME_BYTES}")
    for character in name if not name.isprintable() else "":
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise InvalidCall(f"{what} is {_shown(name)}: leave out the control character U+{ord(character):04X}")


def check_where(where: Mapping[str, str]) -> Mapping[str, str]:
    """The values that an event must have. Raises InvalidCall for those that none could have."""
    if len(where) > VALUES:
        raise InvalidCall(f"where has {len(where)} values, but may have {VALUES}")
    for path, value in where.items():
        check_name("a name in where", path)
        if path.startswith(_DATA):
            if not all(path.removeprefix(_DATA).split(".")):
                raise InvalidCall(
                    f"where has {path!r}, with an empty part: name fields of the data, as in data.order.id"
                )
        elif not _ATTRIBUTE.fullmatch(path):
            raise InvalidCall(
                f"where has {path!r}, which is no name of an attribute (1 to 20 of a-z and 0-9): "
                f"of a field of the data it is {_DATA + path!r}"
            )
        if (size := len(value.encode(errors="surrogatepass"))) > VALUE_BYTES:
            raise InvalidCall(f"where[{path!r}] has {size} bytes, but may have {VALUE_BYTES}")
    return where


def check_timer(duration: Duration) -> Duration:
    """The length of a timer. Raises InvalidCall for one that is longer than the service keeps time."""
    if duration.seconds > TIMER_S or (duration.seconds == TIMER_S and duration.nanos):
        raise InvalidCall(f"a time is {duration.seconds} seconds, but must be at most ten years ({TIMER_S} seconds)")
    return duration


def _shown(name: str) -> str:
    return repr(name if len(name) <= _SHOWN else f"{name[: _SHOWN - 1]}…")
