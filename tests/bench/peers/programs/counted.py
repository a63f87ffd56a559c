"""Counts what a program of ours sends and gets over gRPC.

`python -m tests.bench.peers.programs.counted FILE MODULE ARGUMENTS...` runs the module, and leaves the counts in the
file as JSON when it ends.
"""

from __future__ import annotations

import atexit
import json
import runpy
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

_counts: Counter[str] = Counter()


def count(kind: str, message: Message) -> None:
    """One more message of this kind: how many, how many items are in it, how many bytes."""
    _counts[kind] += 1
    _counts[f"{kind}_bytes"] += message.ByteSize()
    _counts[f"{kind}_items"] += sum(
        len(value) for field, value in message.ListFields() if field.is_repeated and field.message_type is not None
    )


class CountingChannel:
    """A channel that counts messages on their way through it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        made = getattr(self._channel, name)
        if name not in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            return made
        sent, got = name.split("_")

        def counting(method: str, request_serializer: Any, response_deserializer: Any, **options: Any) -> Any:
            kinds = ("call", "reply") if (sent, got) == ("unary", "unary") else ("up", "down")
            return made(
                method, _before(request_serializer, kinds[0]), _after(response_deserializer, kinds[1]), **options
            )

        return counting

    async def __aenter__(self) -> CountingChannel:
        await self._channel.__aenter__()
        return self

    async def __aexit__(self, *of: Any) -> None:
        await self._channel.__aexit__(*of)


def _before(serialize: Callable[[Any], bytes], kind: str) -> Callable[[Any], bytes]:
    def counting(message: Any) -> bytes:
        count(kind, message)
        return serialize(message)

    return counting


def _after(parse: Callable[[bytes], Any], kind: str) -> Callable[[bytes], Any]:
    def counting(data: bytes) -> Any:
        message = parse(data)
        count(kind, message)
        return message

    return counting


def main() -> None:
    """Run the module with channels that count."""
    file, module, *arguments = sys.argv[1:]
    opened = grpc.aio.insecure_channel

    def open_counting(*words: Any, **options: Any) -> Any:
        return CountingChannel(opened(*words, **options))

    grpc.aio.insecure_channel = open_counting
    atexit.register(lambda: Path(file).write_text(json.dumps(_counts)))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    main()
