"""Config: what an operator chooses. Made from arguments and environment by __main__, then never changed."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from romancy_service.core.destinations import Destinations
from romancy_service.core.limits import Limits

DEFAULT_LISTEN: Final = "127.0.0.1:7233"
DEFAULT_HTTP: Final = "127.0.0.1:7280"
"""Where `dev` takes events in by HTTP."""
NO_HTTP: Final = "off"
DEFAULT_DATABASE: Final = "romancy.db"


class InvalidConfig(Exception):
    """The options do not fit together. The process says so and exits with code 2."""


class CannotListen(Exception):
    """The address is taken, or is none of this machine's. The process says so and exits with code 1."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a host (a name, or an IP address without brackets) and a port, 0 for any free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `HOST:PORT` or `[IPv6]:PORT`."""
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if bracketed else host
        if not (colon and host and port.isdecimal() and int(port) < 65_536) or (":" in host and not bracketed):
            raise InvalidConfig(f"cannot listen on {text!r}: give HOST:PORT, for example {DEFAULT_LISTEN}")
        return cls(host, int(port))

    @property
    def loopback(self) -> bool:
        """Whether only programs on this machine can connect. No name but `localhost` is trusted to mean it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Security:
    """How callers are known and the wire is kept private. See auth.py."""

    tls_cert: Path | None = None
    """The service's certificate chain, PEM."""
    tls_key: Path | None = None
    """Its private key, PEM."""
    tls_client_ca: Path | None = None
    """Certificates that callers present are signed by one of these, PEM."""
    token_file: Path | None = None
    """Who may call: tokens as hashes, principals, namespaces, role."""
    insecure: bool = False
    """The operator means it: no TLS, or nobody authenticated, although others than this machine can connect."""

    @property
    def authenticates(self) -> bool:
        """Whether callers must say who they are."""
        return self.token_file is not None or self.tls_client_ca is not None

    @property
    def encrypts(self) -> bool:
        """Whether the wire is TLS."""
        return self.tls_cert is not None


@dataclass(frozen=True, slots=True)
class Config:
    """All that the service is told."""

    database: str = field(default=DEFAULT_DATABASE, repr=False)
    """A SQLite file, or a postgresql:// URL. The URL may hold a password: it is never logged or shown."""
    listen: Address = field(default_factory=lambda: Address.parse(DEFAULT_LISTEN))
    http: Address | None = None
    """Where events come in by HTTP; None: nowhere."""
    security: Security = field(default_factory=Security, repr=False)
    limits: Limits = field(default_factory=Limits)
    destinations: Destinations = field(default_factory=Destinations)
    """Where events may be delivered to."""

    def __post_init__(self) -> None:
        """Refuse what is contradictory, or open to strangers without being meant so. Raises InvalidConfig."""
        security = self.security
        if (security.tls_cert is None) != (security.tls_key is None):
            raise InvalidConfig("--tls-cert and --tls-key belong together: give both, or neither")
        if security.tls_client_ca is not None and not security.encrypts:
            raise InvalidConfig("--tls-client-ca needs TLS: give --tls-cert and --tls-key too")
        self._check_open_to("--listen", self.listen)
        if self.http is not None:
            self._check_open_to("--http", self.http)
            if self.http == self.listen and self.http.port:
                raise InvalidConfig(f"--http and --listen are both {self.http}: give each a port of its own")

    def _check_open_to(self, option: str, address: Address) -> None:
        """Raise InvalidConfig when strangers could connect to the address."""
        security = self.security
        if address.loopback or security.insecure or (security.encrypts and security.authenticates):
            return
        missing = []
        if not security.encrypts:
            missing.append("TLS (--tls-cert and --tls-key)")
        if not security.authenticates:
            missing.append("authentication (--token-file or --tls-client-ca)")
        raise InvalidConfig(
            f"others than this machine can connect to {address}, so {option} needs {' and '.join(missing)}; "
            f"give {option} 127.0.0.1:{address.port}, or say --insecure-i-know-what-i-am-doing if a private network "
            "protects it"
        )
