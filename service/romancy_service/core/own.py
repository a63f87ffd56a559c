"""Own: request ids and sources that the service makes, and that nobody else can take.

What it does in the name of a run, an event or a schedule is known by them when it is done again: whoever could use one
before the service did could have it left out.
"""

from __future__ import annotations

from typing import Final

from romancy_service.errors import InvalidField

_MARK: Final = "\x01"
"""Before each request id of the service. In no id from outside: these have no control characters."""
_SOURCES: Final = ("/runs", "/clients")


def own_request_id(*parts: object) -> str:
    """The request id of something that the service does by itself: the same for the same parts."""
    return _MARK + "/".join(map(str, parts))


def source_of_run(run_id: str) -> str:
    """The source of what a run sends into channels."""
    return f"/runs/{run_id}"


def source_of_client(identity: str) -> str:
    """The source of what a client sends into channels; its identity is empty where nobody is told apart."""
    return f"/clients/{identity}".rstrip("/")


def check_source(field: str, source: str) -> None:
    """Raise InvalidField for the source of an event from outside that says it is a run's, or a client's message."""
    for own in _SOURCES:
        if source == own or source.startswith(f"{own}/"):
            problem, remedy = f"is below {own}, where the service names senders itself", "give another source"
            raise InvalidField(field, problem, remedy, value=source)
