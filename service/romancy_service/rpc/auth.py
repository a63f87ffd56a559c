"""Auth: who calls, and what they may. Decided from credentials alone, before anything of the request is used.

An access file has one line for each credential: `CREDENTIAL PRINCIPAL NAMESPACE[,NAMESPACE] RIGHT[,RIGHT]`.

- CREDENTIAL is `token:HEX`, the SHA-256 of a token, or `cert:NAME`, a name in a client's certificate.
- NAMESPACE may be `*`: all of them. RIGHT is `read`, `write` (implies read and complete), `admin` (implies write),
  `work` (implies complete) or `complete`.
- Empty lines and what follows a `#` at the beginning of a line do not count.

Without a file every certificate that the client CA signed may do everything.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Final

from romancy_service.config import InvalidConfig, Security
from romancy_service.errors import PermissionDenied, Unauthenticated

EVERYWHERE: Final = "*"


class Right(StrEnum):
    """What a principal may do in its namespaces."""

    READ = "read"
    """Look at workflows, histories, workers and queues."""
    WRITE = "write"
    """Start and change workflows."""
    ADMIN = "admin"
    """Delete workflows and dead letters, and say how long workflows are kept and where events go."""
    WORK = "work"
    """Run workflow code and activities."""
    COMPLETE = "complete"
    """End activities, and say how far they are, without being their worker."""


_WORKFLOWS = "/romancy.v1.WorkflowService"
_SCHEDULES = "/romancy.v1.ScheduleService"
_EVENTS = "/romancy.v1.EventService"
_CHANNELS = "/romancy.v1.ChannelService"
_ACTIVITIES = "/romancy.v1.ActivityService"
_OUTBOX = "/romancy.v1.OutboxService"
_ADMIN = "/romancy.v1.AdminService"
RIGHTS: Final[dict[str, Right]] = {
    f"{_WORKFLOWS}/StartWorkflow": Right.WRITE,
    f"{_EVENTS}/PublishEvent": Right.WRITE,
    f"{_EVENTS}/PublishEvents": Right.WRITE,
    f"{_EVENTS}/SetEventRule": Right.WRITE,
    f"{_EVENTS}/PauseEventRule": Right.WRITE,
    f"{_EVENTS}/ResumeEventRule": Right.WRITE,
    f"{_EVENTS}/DeleteEventRule": Right.WRITE,
    f"{_EVENTS}/GetEventRule": Right.READ,
    f"{_EVENTS}/ListEventRules": Right.READ,
    f"{_CHANNELS}/PublishMessage": Right.WRITE,
    f"{_CHANNELS}/GetChannel": Right.READ,
    f"{_CHANNELS}/ListChannels": Right.READ,
    f"{_WORKFLOWS}/StartWorkflows": Right.WRITE,
    f"{_WORKFLOWS}/SignalWorkflow": Right.WRITE,
    f"{_WORKFLOWS}/SignalWithStart": Right.WRITE,
    f"{_WORKFLOWS}/UpdateWorkflow": Right.WRITE,
    f"{_WORKFLOWS}/CancelWorkflow": Right.WRITE,
    f"{_WORKFLOWS}/TerminateWorkflow": Right.WRITE,
    f"{_WORKFLOWS}/ResolveCompensation": Right.WRITE,
    f"{_WORKFLOWS}/QueryWorkflow": Right.READ,
    f"{_WORKFLOWS}/DeleteWorkflow": Right.ADMIN,
    f"{_WORKFLOWS}/GetWorkflow": Right.READ,
    f"{_WORKFLOWS}/GetWorkflowResult": Right.READ,
    f"{_WORKFLOWS}/WaitResults": Right.READ,
    f"{_WORKFLOWS}/ListWorkflows": Right.READ,
    f"{_WORKFLOWS}/CountWorkflows": Right.READ,
    f"{_WORKFLOWS}/GetHistory": Right.READ,
    f"{_WORKFLOWS}/WatchHistory": Right.READ,
    f"{_SCHEDULES}/CreateSchedule": Right.WRITE,
    f"{_SCHEDULES}/UpdateSchedule": Right.WRITE,
    f"{_SCHEDULES}/PauseSchedule": Right.WRITE,
    f"{_SCHEDULES}/ResumeSchedule": Right.WRITE,
    f"{_SCHEDULES}/TriggerSchedule": Right.WRITE,
    f"{_SCHEDULES}/BackfillSchedule": Right.WRITE,
    f"{_SCHEDULES}/DeleteSchedule": Right.WRITE,
    f"{_SCHEDULES}/GetSchedule": Right.READ,
    f"{_SCHEDULES}/ListSchedules": Right.READ,
    f"{_OUTBOX}/SetSink": Right.ADMIN,
    f"{_OUTBOX}/ListSinks": Right.ADMIN,
    f"{_OUTBOX}/DeleteSink": Right.ADMIN,
    f"{_OUTBOX}/ListOutbox": Right.READ,
    f"{_OUTBOX}/RetryDeadLetters": Right.WRITE,
    f"{_OUTBOX}/DropDeadLetters": Right.ADMIN,
    f"{_ADMIN}/ListSessions": Right.READ,
    f"{_ADMIN}/DescribeTaskQueue": Right.READ,
    f"{_ADMIN}/ListNamespaces": Right.READ,
    f"{_ADMIN}/SetNamespace": Right.ADMIN,
    "/romancy.v1.WorkerService/Connect": Right.WORK,
    f"{_ACTIVITIES}/CompleteActivity": Right.COMPLETE,
    f"{_ACTIVITIES}/HeartbeatActivity": Right.COMPLETE,
}
"""The right that each method needs. A method that stands nowhere here is refused to everybody."""
ANY_RIGHT: Final = frozenset(
    {
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }
)
"""For all who have credentials: they show nothing of any namespace."""
PUBLIC: Final = frozenset({"/grpc.health.v1.Health/Check"})
"""For strangers too: load balancers have no credentials, and they learn only whether the service serves."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Who a credential stands for, and what it allows."""

    principal: str
    namespaces: frozenset[str]
    rights: frozenset[Right]

    def check_method(self, method: str) -> None:
        """Raise PermissionDenied unless the principal may call the method at all."""
        if method in ANY_RIGHT or method in PUBLIC:
            return
        needed = RIGHTS.get(method)
        if needed is None or needed not in self.rights:
            raise PermissionDenied(self.principal, f"call {method.rpartition('/')[2]}, which needs `{needed}`")

    def has(self, namespace: str) -> bool:
        """Whether the principal may act in the namespace."""
        return EVERYWHERE in self.namespaces or namespace in self.namespaces

    def check_namespace(self, namespace: str) -> None:
        """Raise PermissionDenied unless the principal may act in the namespace."""
        if not self.has(namespace):
            raise PermissionDenied(self.principal, f"act in namespace {namespace[:80]!r}")


class Access:
    """The credentials that are known. Read once: to take one away, change the file and restart the replicas."""

    def __init__(self, grants: Mapping[str, Grant], *, any_certificate: bool = False) -> None:
        self._tokens: list[tuple[str, Grant]] = []
        self._certificates: dict[str, Grant] = {}
        for credential, grant in grants.items():
            kind, _, value = credential.partition(":")
            if kind == "token":
                self._tokens.append((value, grant))
            else:
                self._certificates[value] = grant
        self._any_certificate = any_certificate

    def authenticate(
        self, metadata: Iterable[tuple[str, str | bytes]], auth_context: Mapping[str, Iterable[bytes]]
    ) -> Grant:
        """Whose call this is, by its certificate or else by its token. Raises Unauthenticated."""
        grant = self._by_certificate(auth_context) or self._by_token(metadata)
        if grant is None:
            raise Unauthenticated()
        return grant

    def _by_certificate(self, auth_context: Mapping[str, Iterable[bytes]]) -> Grant | None:
        names = [
            name.decode(errors="replace")
            for key in ("x509_subject_alternative_name", "x509_common_name")
            for name in auth_context.get(key, ())
        ]
        if self._any_certificate and names:
            return Grant(names[0], frozenset({EVERYWHERE}), frozenset(Right))
        return next((self._certificates[name] for name in names if name in self._certificates), None)

    def _by_token(self, metadata: Iterable[tuple[str, str | bytes]]) -> Grant | None:
        headers = [value for key, value in metadata if key == "authorization"]
        if len(headers) != 1 or not isinstance(headers[0], str):
            return None
        scheme, _, token = headers[0].partition(" ")
        if scheme.lower() != "bearer" or not token:
            return None
        digest = sha256(token.encode()).hexdigest()
        found = None
        for known, grant in self._tokens:  # all of them, so that the time tells nothing
            if hmac.compare_digest(known, digest):
                found = grant
        return found


def read_access(security: Security) -> Access | None:
    """The credentials that the configuration names; None when callers need none. Raises InvalidConfig."""
    if not security.authenticates:
        return None
    if security.token_file is None:
        return Access({}, any_certificate=True)
    try:
        lines = security.token_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"cannot read the token file {security.token_file}: {error}") from error
    return Access(_parse(security.token_file, lines))


def _parse(path: Path, lines: Sequence[str]) -> dict[str, Grant]:
    grants: dict[str, Grant] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        # The line itself is not shown: somebody may have put the token there.
        fault = f"{path} line {number}"
        if len(fields := line.split()) != 4:
            raise InvalidConfig(f"{fault} has {len(fields)} fields, not CREDENTIAL PRINCIPAL NAMESPACES RIGHTS")
        credential, principal, namespaces, rights = fields
        if not _is_credential(credential):
            raise InvalidConfig(f"{fault} does not begin with token:SHA256 (64 hex digits) or cert:NAME")
        if credential in grants:
            raise InvalidConfig(f"{fault} names a credential that an earlier line has")
        grants[credential] = Grant(principal, frozenset(namespaces.split(",")), _rights(fault, rights))
    if not grants:
        raise InvalidConfig(f"{path} names no credentials, so nobody could call")
    return grants


def _is_credential(text: str) -> bool:
    kind, _, value = text.partition(":")
    if kind == "token":
        return len(value) == 64 and all(character in "0123456789abcdef" for character in value)
    return kind == "cert" and bool(value)


def _rights(fault: str, text: str) -> frozenset[Right]:
    try:
        rights = {Right(right) for right in text.split(",")}
    except ValueError as error:
        raise InvalidConfig(
            f"{fault} has the rights {text!r}; allowed are read, write, admin, work and complete"
        ) from error
    if Right.ADMIN in rights:
        rights.add(Right.WRITE)
    if Right.WRITE in rights:
        rights.add(Right.READ)
    if rights & {Right.WRITE, Right.WORK}:
        rights.add(Right.COMPLETE)
    return frozenset(rights)


CALLER: Final[ContextVar[Grant | None]] = ContextVar("caller", default=None)
"""Who made the call that the current task serves; None when nobody is authenticated."""


def identity_of(given: str) -> str:
    """Who is recorded as having asked: whoever the credentials name, or else whoever the request says."""
    grant = CALLER.get()
    return grant.principal if grant is not None else given
