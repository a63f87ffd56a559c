"""Spans of time on the command line, in seconds. Each is the callback of an option of type float."""

from __future__ import annotations

import math

import click


def seconds(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Refuse what is no span of time."""
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise click.BadParameter(f"{value} is not possible: give zero or more seconds")
    return value


def some_seconds(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Refuse zero as well."""
    if value == 0:
        raise click.BadParameter(f"{value} is not possible: give more than zero seconds, or leave it out for no limit")
    return seconds(context, parameter, value)
