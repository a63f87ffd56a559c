"""What all commands have in common: how the service is reached, and what an error's exit code is."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Concatenate, Final, ParamSpec

import click
import grpc

from romancy._channel import DEFAULT_TARGET
from romancy.cli.output import Output
from romancy.cli.span import seconds
from romancy.client import Client
from romancy.errors import ConversionError
from romancy.refusals import RequestRefused, ServiceUnavailable

EXIT_NO_RESULT: Final = 1
EXIT_USAGE: Final = 2
EXIT_NOT_FOUND: Final = 3
EXIT_UNAVAILABLE: Final = 4
EXIT_REFUSED: Final = 5
EXIT_TIMEOUT: Final = 6
EXIT_UNEXPECTED: Final = 7
EXIT_INTERRUPTED: Final = 130

P = ParamSpec("P")
_Command = Callable[Concatenate[Client, Output, P], Coroutine[Any, Any, int | None]]

_OPTIONS: Final = (
    click.option("--address", envvar="ROMANCY_ADDRESS", default=DEFAULT_TARGET, show_default=True, help="HOST:PORT."),
    click.option("--namespace", envvar="ROMANCY_NAMESPACE", default="default", show_default=True, help="Tenant."),
    click.option("--token", envvar="ROMANCY_TOKEN", help="Proves who you are; ROMANCY_TOKEN keeps it out of `ps`."),
    click.option("--tls", is_flag=True, envvar="ROMANCY_TLS", help="Use TLS, trusting the system's authorities."),
    click.option("--tls-ca", envvar="ROMANCY_TLS_CA", type=click.Path(exists=True), help="Trust these instead."),
    click.option("--tls-cert", envvar="ROMANCY_TLS_CERT", type=click.Path(exists=True), help="Your certificate."),
    click.option("--tls-key", envvar="ROMANCY_TLS_KEY", type=click.Path(exists=True), help="Its key."),
    click.option(
        "--patience",
        callback=seconds,
        default=10.0,
        show_default=True,
        metavar="SECONDS",
        help="How long to try to reach the service.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Output for programs."),
)


class Failed(click.ClickException):
    """Ends the command with a message and an exit code; `reason` and `metadata` are for programs."""

    def __init__(self, message: str, code: int, reason: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.metadata: Mapping[str, str] = metadata or {}


def connected(command: _Command[P]) -> Callable[..., int | None]:
    """A command that gets a client and an output, and the options for them. Use below `@group.command()`."""

    @functools.wraps(command)
    def run(
        *args: Any,
        address: str,
        namespace: str,
        token: str | None,
        tls: bool,
        tls_ca: str | None,
        tls_cert: str | None,
        tls_key: str | None,
        patience: float,
        as_json: bool,
        **options: Any,
    ) -> int | None:
        async def call() -> int | None:
            client = Client(
                address,
                namespace=namespace,
                token=token,
                tls=tls,
                tls_ca=tls_ca,
                tls_cert=tls_cert,
                tls_key=tls_key,
                patience=patience,
            )
            async with client:
                return await command(client, Output(as_json=as_json), *args, **options)

        try:
            return asyncio.run(call())
        except RequestRefused as error:
            reason = error.reason or error.code.name
            raise Failed(_text(error, address), _exit_code(error), reason, error.metadata) from error
        except (ConversionError, ValueError, FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise Failed(str(error), EXIT_USAGE, "USAGE") from error

    for option in reversed(_OPTIONS):
        run = option(run)
    return run


def _text(error: RequestRefused, address: str) -> str:
    return f"{address}: {error}" if isinstance(error, ServiceUnavailable) else str(error)


def _exit_code(error: RequestRefused) -> int:
    if isinstance(error, ServiceUnavailable):
        return EXIT_UNAVAILABLE
    return EXIT_NOT_FOUND if error.code is grpc.StatusCode.NOT_FOUND else EXIT_REFUSED
