"""Sink: where events are delivered to: which URLs there may be, by which secrets is signed, what an answer means."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence
from enum import Enum
from typing import Final
from urllib.parse import SplitResult, urlsplit

from yarl import URL

from romancy_service.core.limits import Limits
from romancy_service.errors import InvalidField

PORTS: Final = {"http": 80, "https": 443}
_PLAIN: Final = re.compile(r"[\x21-\x7e]+")
_SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - how secrets begin, none of them
_SECRET_BYTES: Final = (24, 64)
"""What Standard Webhooks asks for."""
_TIMEOUT, _TOO_MANY, _LOWEST_FAULT_OF_THEIRS = 408, 429, 500


def check_url(field: str, url: str, limits: Limits) -> SplitResult:
    """Raise InvalidField, which does not show it, unless events can be sent there. It may be a secret itself.

    Whether they may be sent there, the service's options say.
    """
    if not url:
        raise InvalidField(field, "is empty", "give the URL of what takes the events")
    if len(url) > limits.sink_url_bytes:
        problem = f"has {len(url)} characters, at most {limits.sink_url_bytes} are allowed"
        raise InvalidField(field, problem, limit=limits.sink_url_bytes)
    if not _PLAIN.fullmatch(url) or "\\" in url:
        raise InvalidField(field, "has characters that URLs have not", "encode them (%20, and xn-- in names of hosts)")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = URL(url).host or ""
    except ValueError as error:  # also of the name: it may say by xn-- what is no name
        raise InvalidField(field, f"is no URL: {error}") from None
    if parts.scheme not in PORTS:
        raise InvalidField(field, "is not of http or https", "give one that begins with https://")
    if "@" in parts.netloc:
        raise InvalidField(field, "names a user", "leave it out; give a secret, by which what is sent is signed")
    if parts.fragment or "#" in url:
        raise InvalidField(field, "has a fragment, which is never sent", "leave it out")
    if not parts.hostname or not host or port == 0:
        raise InvalidField(field, "names no host and port", "give https://HOST/PATH")
    return parts


def read_secret(field: str, text: str) -> bytes:
    """The key of a secret as Standard Webhooks writes it. Raises InvalidField, which does not show it."""
    try:
        key = base64.b64decode(text.removeprefix(_SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    least, most = _SECRET_BYTES
    if not text.startswith(_SECRET_PREFIX) or not least <= len(key) <= most:
        problem = f"is not 'whsec_' and {least} to {most} bytes in base64"
        raise InvalidField(field, problem, "`romancy outbox set-sink --new-secret` makes one")
    return key


def signatures(keys: Sequence[bytes], message_id: str, at_s: int, body: bytes) -> str:
    """The header `webhook-signature` of Standard Webhooks: one signature by each key."""
    signed = f"{message_id}.{at_s}.".encode() + body
    made = (base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode() for key in keys)
    return " ".join(f"v1,{each}" for each in made)


def message_id(source: str, event_id: str) -> str:
    """The header `webhook-id`: the same for what is the same event, and of plain characters."""
    return f"msg_{hashlib.sha256(f'{source} {event_id}'.encode()).hexdigest()[:32]}"


class Verdict(Enum):
    """What becomes of an event."""

    DELIVERED = "delivered"
    LATER = "later"
    """It is tried again."""
    DEAD = "dead"
    """No further try is of any use."""


def verdict(status: int) -> Verdict:
    """What the status of an answer means. Redirects are not followed: where they lead, nobody allowed."""
    if 200 <= status < 300:
        return Verdict.DELIVERED
    if status in (_TIMEOUT, _TOO_MANY) or status >= _LOWEST_FAULT_OF_THEIRS:
        return Verdict.LATER
    return Verdict.DEAD
