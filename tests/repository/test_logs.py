"""What the service logs: one line each, and nothing that it must not say."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from romancy.v1.payload_pb2 import Payload

from romancy_service import logs


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    stream = io.StringIO()
    logs.configure(stream)
    yield stream
    structlog.reset_defaults()
    root.handlers[:], root.level = before


def line(output: io.StringIO) -> dict[str, Any]:
    text = output.getvalue()
    assert text.count("\n") == 1, "one line for each thing that happened"
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def test_a_line_is_json_with_time_level_and_part(output: io.StringIO) -> None:
    structlog.get_logger("romancy.engine").info("committed", runs=3, late=False)
    logged = line(output)
    assert logged.pop("timestamp").endswith("Z")
    assert logged == {"event": "committed", "level": "info", "logger": "romancy.engine", "runs": 3, "late": False}


def test_a_forged_line_stays_inside_its_field(output: io.StringIO) -> None:
    structlog.get_logger().info("started", workflow_id='a"}\n{"event": "forged"}\x1b]52;c;x\x07\u202e')
    assert line(output)["workflow_id"] == 'a"}\\n{"event": "forged"}\\x1b]52;c;x\\x07\\u202e'


def test_long_values_are_cut(output: io.StringIO) -> None:
    structlog.get_logger().info("x" * 1_000_000, error=ValueError("y" * 10_000))
    logged = line(output)
    assert len(logged["event"]) < 300
    assert "10000 characters" in logged["error"]


def test_payloads_and_other_objects_are_named_but_not_shown(output: io.StringIO) -> None:
    structlog.get_logger().info("took", result=Payload(json="secret"), data=b"secret")
    assert line(output)["result"] == "<Payload>"
    assert "secret" not in output.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "cannot reach postgresql://romancy:hunter2@db:5432/romancy",
        "cannot reach postgresql://:hunter2@db/romancy",
        "authorization: Bearer hunter2",
        "authorization=bearer  hunter2.hunter2",
    ],
)
def test_passwords_and_tokens_are_taken_out(output: io.StringIO, text: str) -> None:
    try:
        raise ConnectionError(text)
    except ConnectionError as error:
        structlog.get_logger().exception(text, error=error, seen=[text])
    assert "hunter2" not in output.getvalue()
    assert "***" in line(output)["exception"]


def test_libraries_log_into_the_same_lines(output: io.StringIO) -> None:
    logging.getLogger("grpc").warning("odd: %s", "a\nb")
    logging.getLogger("grpc").info("not worth a line")
    logged = line(output)
    assert (logged["logger"], logged["level"], logged["event"]) == ("grpc", "warning", "odd: a\\nb")
