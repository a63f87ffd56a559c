"""Channels: how this SDK reaches the service, and what the service's errors say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

import grpc
import grpc.aio
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

DEFAULT_TARGET: Final = "localhost:7233"
_STATUS_DETAILS: Final = "grpc-status-details-bin"
_MAX_MESSAGE_BYTES: Final = 33 * 1024 * 1024
"""A little above what the service sends at most, so that it and not the transport decides what is too large."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the service is and what it is shown. Files are read when a channel is opened, so they may be renewed."""

    target: str = DEFAULT_TARGET
    token: str | None = field(default=None, repr=False)
    """Sent as `authorization: Bearer ...`."""
    tls: bool = False
    tls_ca: str | Path | None = None
    """Certificates of the authorities to trust instead of the system's; implies `tls`."""
    tls_cert: str | Path | None = None
    """Our own certificate, with `tls_key`; implies `tls`."""
    tls_key: str | Path | None = None

    def __post_init__(self) -> None:
        if not self.target:
            raise ValueError("the service's address is empty: give HOST:PORT")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert and tls_key belong together: give both or none")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def open(self) -> grpc.aio.Channel:
        """A channel of its own: it shares no connection with others, so a dead one is left behind by opening anew."""
        options = (
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1_000),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.enable_retries", 0),
        )
        if not (self.tls or self.tls_ca or self.tls_cert):
            return grpc.aio.insecure_channel(self.target, options)
        credentials = grpc.ssl_channel_credentials(_read(self.tls_ca), _read(self.tls_key), _read(self.tls_cert))
        return grpc.aio.secure_channel(self.target, credentials, options)


def _read(path: str | Path | None) -> bytes | None:
    return Path(path).read_bytes() if path else None


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What the service says of an error beside its status: the reason for programs, and field, value, limit."""

    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


def error_details(error: grpc.aio.AioRpcError) -> ErrorDetails:
    """The ErrorInfo of a failed call; empty where the error is not the service's own."""
    trailing = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    details = next((value for key, value in trailing if key == _STATUS_DETAILS), None)
    if isinstance(details, bytes):
        info = ErrorInfo()
        for detail in Status.FromString(details).details:
            if detail.Unpack(info):
                return ErrorDetails(info.reason, dict(info.metadata))
    return ErrorDetails()
