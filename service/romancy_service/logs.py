"""Logs: one line for each thing that happened, JSON unless somebody watches. No payloads, no secrets."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final, TextIO

import structlog

FIELD_CHARACTERS: Final = 256
"""Longer values are cut: ids fit, and a log is no store."""
TRACE_CHARACTERS: Final = 16_384
"""The same for stack traces, which are several lines."""

_PASSWORD: Final = re.compile(r"(?<=://)([^:/@\s]*):[^@\s]*@")
_BEARER: Final = re.compile(r"(?i)(bearer\s+)\S+")


def configure(stream: TextIO = sys.stderr, *, level: int = logging.INFO) -> None:
    """Have everything that this process logs, libraries included, written to `stream`."""
    terminal = stream.isatty()
    render = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(ensure_ascii=True)
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            _add_logger,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _make_safe,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda name="romancy": _Writer(name, stream),
        cache_logger_on_first_use=False,
    )
    logging.getLogger("asyncpg").setLevel(logging.ERROR)  # the store says itself when the database is gone, in one line
    logging.basicConfig(handlers=[_Libraries()], level=max(level, logging.WARNING), force=True)


class _Writer:
    """Writes finished lines. Its name is that of the part which logs."""

    def __init__(self, name: str, stream: TextIO) -> None:
        self.name = name
        self._stream = stream

    def msg(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    debug = info = warning = error = critical = exception = msg


class _Libraries(logging.Handler):
    """Brings what libraries log into the same lines."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger(record.name).log(record.levelno, record.getMessage(), exc_info=record.exc_info)


def _add_logger(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event["logger"] = logger.name
    return event


def _make_safe(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if key == "exception":
            event[key] = without_secrets(str(value))[-TRACE_CHARACTERS:]
        elif not isinstance(value, bool | int | float | None):
            event[key] = safe_text(value)
    return event


def safe_text(value: object) -> str:
    """A value as it may be logged: short, without secrets, and unable to look like anything but text."""
    if not isinstance(value, str | BaseException | list | tuple | dict | set | frozenset):
        return f"<{type(value).__name__}>"  # a message may hold payloads
    text = without_secrets(str(value))
    if len(text) > FIELD_CHARACTERS:
        text = f"{text[:FIELD_CHARACTERS]}... ({len(text)} characters)"
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def without_secrets(text: str) -> str:
    """A text without the passwords of URLs and without tokens."""
    return _BEARER.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))
