"""The `romancy` command: starts workflows, looks at them and stops them, from a shell or a script."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Final, NoReturn

import click

from romancy.cli import look, talk, why  # noqa: F401 - add their commands to `workflow`
from romancy.cli.activity import activity
from romancy.cli.channel import channel
from romancy.cli.connection import EXIT_INTERRUPTED, EXIT_UNEXPECTED, EXIT_USAGE, Failed
from romancy.cli.event import event
from romancy.cli.namespace import namespace
from romancy.cli.outbox import outbox
from romancy.cli.output import Output
from romancy.cli.queue import queue
from romancy.cli.rule import rule
from romancy.cli.schedule import schedule
from romancy.cli.worker import worker
from romancy.cli.workflow import workflow

EXIT_CODES: Final = """\b
Exit codes:
  0  done
  1  the workflow ended without a result
  2  the command line is wrong
  3  not found
  4  the service cannot be reached, or does not answer
  5  the service refused the request
  6  --timeout passed
  7  something unexpected went wrong in this command itself
With --json, errors are on standard error as {"error", "reason", "metadata"}.
"""


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="romancy")
def romancy() -> None:
    """Start workflows, look at them and stop them.

    Every command takes --json for output that programs can read: one document, or one line for each item of a list.
    The service is at ROMANCY_ADDRESS, or where --address behind a command says, as in `romancy workflow list --address
    HOST:PORT`; at localhost:7233 unless said.
    """


romancy.add_command(workflow)
romancy.add_command(activity)
romancy.add_command(event)
romancy.add_command(rule)
romancy.add_command(channel)
romancy.add_command(outbox)
romancy.add_command(schedule)
romancy.add_command(worker)
romancy.add_command(queue)
romancy.add_command(namespace)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with one of the codes that `romancy --help` lists."""
    # Whatever goes wrong is said as it was asked for, also where the command line itself is wrong.
    output = Output(as_json="--json" in (sys.argv[1:] if arguments is None else arguments))
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(EXIT_USAGE)
    except Failed as error:
        output.complain(error.message, error.reason, error.metadata)
        sys.exit(error.code)
    except click.ClickException as error:
        if output.as_json:
            output.complain(error.format_message(), "USAGE")
        else:
            error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has seen enough. What is still buffered must not be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(place.filename)}:{place.lineno}"
        output.complain(f"unexpected {type(error).__name__} at {where}: {error}", "UNEXPECTED")
        sys.exit(EXIT_UNEXPECTED)


def _run(arguments: list[str]) -> object:
    # Not by `romancy.main`, which turns a broken pipe into an exit code that says something else here.
    try:
        with romancy.make_context("romancy", list(arguments)) as context:
            return romancy.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
