"""Postgres: where the tests' server listens, and how its databases are reached over a proxy."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit


def socket_of(url: str) -> str:
    """The Unix socket behind a URL of the tests' server."""
    return f"{parse_qs(urlsplit(url).query)['host'][0]}/.s.PGSQL.5432"


def through(url: str, port: int) -> str:
    """The same database, reached over a proxy on this port."""
    return f"postgresql://postgres@127.0.0.1:{port}/{urlsplit(url).path.lstrip('/')}?sslmode=disable"
