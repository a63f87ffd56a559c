"""Output: readable tables for people, JSON for programs. What comes from elsewhere is escaped in both.

On a terminal a value of the user's has one line, and is cut where that ends; --json, files and pipes get all of it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
"""What would move the cursor, change the terminal, or make text look like other text."""
_WIDTH: Final = 160
"""Of tables that go to a file or another program."""


def escape(text: str) -> str:
    """The text, with everything that a terminal would act on written out."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def compact(value: Any) -> str:
    """A value as JSON in one line."""
    return _UNSAFE.sub(_json_escape, json.dumps(value, ensure_ascii=False, separators=(", ", ": ")))


def _json_escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


class Output:
    """Where a command's answer goes: standard output, as tables or as JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._on_terminal = sys.stdout.isatty()
        width = None if self._on_terminal else _WIDTH
        self._console = Console(highlight=False, soft_wrap=False, width=width, emoji=False)

    def complain(self, message: str, reason: str = "", metadata: Mapping[str, str] | None = None) -> None:
        """Say on standard error what went wrong; to programs with the reason, as the contract lists it."""
        if self.as_json:
            text = compact({"error": message, "reason": reason, "metadata": dict(metadata or {})})
        else:
            text = f"romancy: {escape(message)}"
        print(text, file=sys.stderr)  # noqa: T201 - this is the place that prints

    def json(self, value: Any) -> None:
        """One line of JSON."""
        self.line(compact(value), raw=True)

    def line(self, text: str, *, raw: bool = False) -> None:
        """One line of text, as it is."""
        sys.stdout.write(f"{text if raw else escape(text)}\n")
        sys.stdout.flush()

    def short_line(self, text: str) -> None:
        """One line of text, cut where the terminal's line ends."""
        shown = Text(escape(text))
        if self._on_terminal:
            shown.truncate(self._console.width, overflow="ellipsis")
        self.line(shown.plain, raw=True)

    def value(self, value: Any) -> None:
        """A value of the user's, as indented JSON."""
        text = json.dumps(value, ensure_ascii=False, indent=2)
        self.line(re.sub(r"[^\n]+", lambda line: _UNSAFE.sub(_json_escape, line[0]), text), raw=True)

    def fields(self, fields: Iterable[tuple[str, Any]]) -> None:
        """Names and values, one pair a line; empty ones are left out."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in fields:
            if value not in (None, "", [], {}):
                table.add_row(name, self._cell(value))
        self._console.print(table)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "") -> None:
        """A table; with a title, nothing at all when there are no rows."""
        cells = [[self._cell(value) for value in row] for row in rows]
        if title:
            if not cells:
                return
            self._console.print(Text(f"\n{title}", style="bold"))
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in cells:
            table.add_row(*row)
        self._console.print(table)

    def _cell(self, value: Any) -> Text:
        if value is None or isinstance(value, str):
            return Text(escape(value or ""))
        if self._on_terminal:
            return Text(compact(value), no_wrap=True, overflow="ellipsis")
        return Text(compact(value))
