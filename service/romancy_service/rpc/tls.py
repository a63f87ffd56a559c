"""TLS: what the service shows to callers, and what it asks of them. The same on every port."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc

from romancy_service.config import InvalidConfig, Security


def grpc_credentials(security: Security) -> grpc.ServerCredentials | None:
    """What the gRPC server shows and asks for; None without TLS. Raises InvalidConfig."""
    if security.tls_cert is None or security.tls_key is None:
        return None
    ssl_context(security)  # gRPC would take them, and then refuse every caller
    pair = (_read(security.tls_key), _read(security.tls_cert))
    if security.tls_client_ca is None:
        return grpc.ssl_server_credentials([pair])
    return grpc.ssl_server_credentials([pair], _read(security.tls_client_ca), require_client_auth=True)


def ssl_context(security: Security) -> ssl.SSLContext:
    """The same for everything else. Raises InvalidConfig."""
    for path in (security.tls_key, security.tls_cert, security.tls_client_ca):
        if path is not None:
            _read(path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tried = f"--tls-cert {security.tls_cert} with --tls-key {security.tls_key}"
    try:
        context.load_cert_chain(str(security.tls_cert), security.tls_key, password=lambda: "")
        if security.tls_client_ca is not None:
            tried = f"--tls-client-ca {security.tls_client_ca}"
            context.load_verify_locations(security.tls_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except ssl.SSLError as error:
        raise InvalidConfig(
            f"cannot use {tried}: {error.reason or error}; give PEM files, the key without a password and of this "
            "certificate"
        ) from error
    return context


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidConfig(
            f"cannot read {path}: {error.strerror}; give the name of a PEM file that this user may read"
        ) from error
