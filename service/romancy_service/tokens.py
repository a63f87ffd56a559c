"""Tokens: opaque names of task attempts, which workers get and give back. Signed, since workers are not trusted."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_MAC_BYTES: Final = 16
_FIRST: Final = "t"
"""Of each token: one that began with a hyphen would be taken for an option on a command line."""
_SEPARATOR: Final = "\x00"
"""In no id: ids have no control characters."""


@dataclass(frozen=True, slots=True)
class TaskRef:
    """One attempt of one task of one run."""

    namespace: str
    run_id: str
    task_id: str
    attempt: int
    scheduled_ms: int = 0
    """Tells apart tasks that have the same name: all workflow tasks of a run do."""


class InvalidToken(Exception):
    """Not a token that this service made."""


class Tokens:
    """Makes and reads tokens. They carry no rights: the row's lease decides whether a session may use one."""

    def __init__(self, keys: Mapping[str, bytes], newest: str) -> None:
        self._keys = dict(keys)
        self._newest = newest

    def sign(self, ref: TaskRef) -> str:
        """The token of `ref`, the same at every call."""
        parts = (self._newest, ref.namespace, ref.run_id, str(ref.attempt), str(ref.scheduled_ms), ref.task_id)
        text = _SEPARATOR.join(parts).encode()
        return _as_text(_mac(self._keys[self._newest], text) + text)

    def read(self, token: str) -> TaskRef:
        """What `token` names. Raises InvalidToken when it was not made with one of the keys."""
        try:
            encoded = token.removeprefix(_FIRST)
            data = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
            mac, text = data[:_MAC_BYTES], data[_MAC_BYTES:]
            key_id, namespace, run_id, attempt, scheduled_ms, task_id = text.decode().split(_SEPARATOR, 5)
            key = self._keys[key_id]
        except (ValueError, KeyError) as error:
            raise InvalidToken(
                "the token was not made by this service, or with a key that is no longer kept"
            ) from error
        if _as_text(data) != token:  # base64 has several spellings; sessions know tasks by the one that was sent
            raise InvalidToken("the token is not as it was sent: give tokens back as they came")
        if not hmac.compare_digest(mac, _mac(key, text)):
            raise InvalidToken("the token's signature does not match: give tokens back as they came")
        return TaskRef(namespace, run_id, task_id, int(attempt), int(scheduled_ms))


def _as_text(data: bytes) -> str:
    return _FIRST + base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _mac(key: bytes, text: bytes) -> bytes:
    # A keyed hash by itself, at a third of the cost of an HMAC.
    return hashlib.blake2b(text, digest_size=_MAC_BYTES, key=key).digest()
