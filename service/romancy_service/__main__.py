"""The `romancy-service` command: arguments and environment become a Config, and the service runs by it."""

from __future__ import annotations

import os

# A frame that arrives goes through four threads of gRPC's newer event engine, and through two of its older poller: for
# these wake-ups a lone workflow waits. Read when gRPC is loaded.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener,-event_engine_client")

import argparse
import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Final, NoReturn

from romancy_service import logs
from romancy_service.config import (
    DEFAULT_DATABASE,
    DEFAULT_HTTP,
    DEFAULT_LISTEN,
    NO_HTTP,
    Address,
    CannotListen,
    Config,
    InvalidConfig,
    Security,
)
from romancy_service.core.destinations import LOOPBACK, Destinations
from romancy_service.core.limits import Limits
from romancy_service.errors import RomancyError
from romancy_service.probe import is_serving

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0 done, 1 failed, 2 the options cannot be used."""
    options = parser(os.environ).parse_args(arguments)
    logs.configure()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(options.run(options))
    except InvalidConfig as error:
        _exit(EXIT_USAGE, error)
    except (RomancyError, CannotListen) as error:
        _exit(EXIT_FAILED, error)


def _exit(code: int, why: object) -> NoReturn:
    print(f"romancy-service: {logs.without_secrets(str(why))}", file=sys.stderr)  # noqa: T201 - for whoever started it
    sys.exit(code)


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop  # not there on Windows

    return uvloop.Loop


# Commands -------------------------------------------------------------------------------------------------------------


# Each imports what it needs by itself: `health` runs every few seconds, and the whole service takes a second to import.


async def _serve(options: argparse.Namespace) -> None:
    from romancy_service.server import PartFailed, serve

    with _refusals():
        try:
            await serve(config_of(options))
        except PartFailed as error:
            _exit(EXIT_FAILED, f"{error} failed, which the log explains; start the service again")


async def _migrate(options: argparse.Namespace) -> None:
    from romancy_service.store.store import open_store

    with _refusals():
        store = open_store(options.database)
        try:
            await store.migrate()
        finally:
            await store.close()


async def _health(options: argparse.Namespace) -> None:
    address = Address.parse(options.address)
    if not await is_serving(address, options.tls_ca):
        _exit(EXIT_FAILED, f"{address} is not serving")


@contextmanager
def _refusals() -> Iterator[None]:
    """Exit with what the database's operator must do, if there is something."""
    from romancy_service.store.store import StoreRefused

    try:
        yield
    except StoreRefused as error:
        _exit(EXIT_FAILED, error)


# Options --------------------------------------------------------------------------------------------------------------


def parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    """Reads the arguments; what they do not say is taken from the environment."""
    result = argparse.ArgumentParser(
        prog="romancy-service",
        description="The Romancy orchestrator. Each option --SOME-NAME may also be given as ROMANCY_SOME_NAME.",
    )
    commands = result.add_subparsers(required=True, metavar="COMMAND")

    dev = commands.add_parser("dev", help="serve this machine from a SQLite file")
    dev.set_defaults(run=_serve, usual_http=DEFAULT_HTTP)
    _add_database(dev, environment, DEFAULT_DATABASE)
    _add_serving(dev, environment)

    serving = commands.add_parser("serve", help="serve others too, from Postgres or a SQLite file")
    serving.set_defaults(run=_serve, usual_http=NO_HTTP)
    _add_database(serving, environment, None)
    _add_serving(serving, environment)
    _add_security(serving, environment)
    allowed = environment.get("ROMANCY_SINK_ALLOW", "").split()
    for command in (dev, serving):
        command.add_argument(
            "--sink-allow",
            action="append",
            default=[*LOOPBACK, *allowed] if command is dev else allowed,
            metavar="HOST[:PORT]|NETWORK",
            help="where events that workflows send may be delivered to: hook.example.com, *.example.com:443, "
            "10.1.0.0/16; may be repeated. Usually " + ("this machine" if command is dev else "nowhere"),
        )

    migrate = commands.add_parser("migrate", help="bring the database's tables up to date, and exit")
    migrate.set_defaults(run=_migrate)
    _add_database(migrate, environment, None)

    health = commands.add_parser("health", help="exit with 0 if a service takes calls, else with 1")
    health.set_defaults(run=_health)
    address, authorities = environment.get("ROMANCY_ADDRESS", DEFAULT_LISTEN), environment.get("ROMANCY_TLS_CA")
    health.add_argument("--address", default=address, metavar="HOST:PORT", help=f"usually {DEFAULT_LISTEN}")
    health.add_argument(
        "--tls-ca", type=Path, default=authorities, metavar="FILE", help="authorities that signed its certificate, PEM"
    )
    return result


def _add_database(command: argparse.ArgumentParser, environment: Mapping[str, str], usual: str | None) -> None:
    default = environment.get("ROMANCY_DATABASE", usual)
    command.add_argument(
        "--database", default=default, required=default is None, help="name of a SQLite file, or a postgresql:// URL"
    )


def _add_serving(command: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    command.add_argument(
        "--listen",
        default=environment.get("ROMANCY_LISTEN", DEFAULT_LISTEN),
        metavar="HOST:PORT",
        help=f"usually {DEFAULT_LISTEN}",
    )
    command.add_argument(
        "--http",
        default=environment.get("ROMANCY_HTTP"),
        metavar="HOST:PORT",
        help=f"take CloudEvents in by HTTP there; {NO_HTTP}: nowhere, which is usual but for dev without --listen",
    )
    command.add_argument(
        "--limit",
        action="append",
        default=environment.get("ROMANCY_LIMIT", "").split(),
        metavar="NAME=NUMBER",
        help="change a limit, for example session_lease_ms=30000; may be repeated",
    )


def _add_security(command: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    for name, text in (
        ("tls-cert", "certificate chain, PEM"),
        ("tls-key", "private key, PEM"),
        ("tls-client-ca", "callers present certificates signed by these, PEM"),
        ("token-file", "who may call: credentials, principals, namespaces, rights"),
    ):
        default = environment.get(f"ROMANCY_{name.upper().replace('-', '_')}")
        command.add_argument(f"--{name}", type=Path, default=default, metavar="FILE", help=text)
    command.add_argument(
        "--insecure-i-know-what-i-am-doing",
        dest="insecure",
        action="store_true",
        default=environment.get("ROMANCY_INSECURE_I_KNOW_WHAT_I_AM_DOING") == "1",
        help="let others than this machine connect without TLS or authentication",
    )


def config_of(options: argparse.Namespace) -> Config:
    """What was chosen for `dev` or `serve`. Raises InvalidConfig."""
    chosen = {field.name: getattr(options, field.name) for field in fields(Security) if hasattr(options, field.name)}
    try:
        destinations = Destinations.parse(options.sink_allow)
    except ValueError as error:
        raise InvalidConfig(f"--sink-allow: {error}") from error
    listen, http, limits = Address.parse(options.listen), _http(options), _limits(options.limit)
    return Config(options.database, listen, http, Security(**chosen), limits, destinations)


def _http(options: argparse.Namespace) -> Address | None:
    """Where HTTP is to be. Who moves a `dev` to another port may have two: so only the usual one has it unasked."""
    usual = options.usual_http if options.listen == DEFAULT_LISTEN else NO_HTTP
    text = options.http or usual
    return None if text == NO_HTTP else Address.parse(text)


def _limits(assignments: Sequence[str]) -> Limits:
    known = {field.name for field in fields(Limits)}
    changed: dict[str, int] = {}
    for assignment in assignments:
        name, _, number = assignment.partition("=")
        if name not in known or not number.isdecimal():
            names = ", ".join(sorted(known))
            raise InvalidConfig(f"cannot read the limit {assignment!r}: give NAME=NUMBER with one of {names}")
        changed[name] = int(number)
    try:
        return replace(Limits(), **changed)
    except ValueError as error:
        raise InvalidConfig(str(error)) from error


if __name__ == "__main__":
    main()
