"""Chunks: large frames travel in pieces, so that small ones are not held up behind them."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import DecodeError

from romancy.v1.worker_service_pb2 import Chunk, ConnectRequest, ConnectResponse

from romancy_service.errors import InvalidField


class Chunker:
    """Cuts the frames of one stream."""

    def __init__(self, piece_bytes: int) -> None:
        self._piece_bytes = piece_bytes
        self._frame_id = 0

    def split(self, frame: ConnectResponse) -> Iterator[Chunk]:
        """The pieces of `frame`, in order."""
        self._frame_id += 1
        data = frame.SerializeToString()
        for start in range(0, len(data), self._piece_bytes):
            end = start + self._piece_bytes
            yield Chunk(frame_id=self._frame_id, data=data[start:end], last=end >= len(data))


class Joiner:
    """Joins the frames of one stream."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._frame_id = 0
        self._pieces: list[bytes] = []
        self._size = 0

    def join(self, frame: ConnectRequest) -> ConnectRequest | None:
        """The frame itself, or the one that its chunk completes; None while pieces are missing."""
        if not frame.HasField("chunk"):
            return frame
        chunk = frame.chunk
        if chunk.frame_id != self._frame_id:
            if self._pieces:
                raise InvalidField(
                    "chunk.frame_id", f"frame {self._frame_id} is not complete yet", value=chunk.frame_id
                )
            self._frame_id = chunk.frame_id
        self._size += len(chunk.data)
        if self._size > self._most_bytes:
            problem = f"the frame has {self._size} bytes"
            raise InvalidField("chunk", problem, limit=self._most_bytes, reason="FRAME_TOO_LARGE")
        self._pieces.append(chunk.data)
        if not chunk.last:
            return None
        data, self._pieces, self._size = b"".join(self._pieces), [], 0
        try:
            return ConnectRequest.FromString(data)
        except DecodeError as error:
            raise InvalidField("chunk", "the joined pieces are no frame", "send the pieces in order") from error
