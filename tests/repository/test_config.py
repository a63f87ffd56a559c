"""The options of `romancy-service`: what they mean, and which the service refuses to start with."""

from __future__ import annotations

from pathlib import Path

import pytest

from romancy_service.__main__ import config_of, parser
from romancy_service.config import Address, Config, InvalidConfig, Security
from romancy_service.core.destinations import LOOPBACK, Destinations


def read_config(arguments: list[str], environment: dict[str, str]) -> Config:
    return config_of(parser(environment).parse_args(arguments))


TLS = Security(tls_cert=Path("c"), tls_key=Path("k"))


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("127.0.0.1:7233", "127.0.0.1", 7233, True),
        ("127.8.9.1:0", "127.8.9.1", 0, True),
        ("localhost:1", "localhost", 1, True),
        ("[::1]:7233", "::1", 7233, True),
        ("0.0.0.0:7233", "0.0.0.0", 7233, False),
        ("[::]:7233", "::", 7233, False),
        ("192.168.0.1:7233", "192.168.0.1", 7233, False),
        ("localhost.example:7233", "localhost.example", 7233, False),
    ],
)
def test_an_address_is_read_and_known_as_loopback_or_not(text: str, host: str, port: int, loopback: bool) -> None:
    address = Address.parse(text)
    assert (address.host, address.port, address.loopback) == (host, port, loopback)
    assert str(address) == text


@pytest.mark.parametrize("text", ["", "7233", ":7233", "localhost", "localhost:", "localhost:x", "h:65536", "::1:7233"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidConfig, match="HOST:PORT"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("security", "missing"),
    [
        (Security(), "TLS .* and authentication"),
        (TLS, "authentication"),
        (Security(token_file=Path("t")), "TLS"),
    ],
)
def test_the_service_does_not_start_open_to_strangers(security: Security, missing: str) -> None:
    with pytest.raises(InvalidConfig, match=f"--listen needs {missing}"):
        Config(listen=Address("0.0.0.0", 7233), security=security)


@pytest.mark.parametrize(
    ("host", "security"),
    [
        ("127.0.0.1", Security()),
        ("0.0.0.0", Security(insecure=True)),
        ("0.0.0.0", Security(tls_cert=Path("c"), tls_key=Path("k"), token_file=Path("t"))),
        ("0.0.0.0", Security(tls_cert=Path("c"), tls_key=Path("k"), tls_client_ca=Path("a"))),
    ],
)
def test_the_service_starts_where_only_those_who_may_can_connect(host: str, security: Security) -> None:
    Config(listen=Address(host, 7233), security=security)


@pytest.mark.parametrize(
    "security",
    [Security(tls_cert=Path("c")), Security(tls_key=Path("k")), Security(tls_client_ca=Path("a"))],
)
def test_tls_options_that_do_not_fit_together_are_refused(security: Security) -> None:
    with pytest.raises(InvalidConfig, match="tls"):
        Config(security=security)


def test_dev_needs_no_options() -> None:
    config = read_config(["dev"], {})
    assert (config.database, str(config.listen)) == ("romancy.db", "127.0.0.1:7233")
    assert not config.security.authenticates


@pytest.mark.parametrize(
    ("arguments", "http"),
    [
        (["dev"], "127.0.0.1:7280"),
        (["dev", "--listen", "127.0.0.1:1"], "None"),
        (["dev", "--http", "off"], "None"),
        (["dev", "--http", "[::1]:5"], "[::1]:5"),
        (["serve", "--database", "d"], "None"),
        (["serve", "--database", "d", "--http", "127.0.0.1:5"], "127.0.0.1:5"),
    ],
)
def test_http_is_there_where_it_is_asked_for_and_in_a_dev_that_says_nothing(arguments: list[str], http: str) -> None:
    assert str(read_config(arguments, {}).http) == http


def test_http_can_come_from_the_environment_and_has_a_port_of_its_own() -> None:
    assert str(read_config(["serve", "--database", "d"], {"ROMANCY_HTTP": "127.0.0.1:5"}).http) == "127.0.0.1:5"
    with pytest.raises(InvalidConfig, match="a port of its own"):
        read_config(["dev", "--listen", "127.0.0.1:5", "--http", "127.0.0.1:5"], {})
    with pytest.raises(InvalidConfig, match="HOST:PORT"):
        read_config(["dev", "--http", "7280"], {})


def test_every_option_can_come_from_the_environment_and_arguments_win() -> None:
    environment = {
        "ROMANCY_DATABASE": "postgresql://db/romancy",
        "ROMANCY_LISTEN": "0.0.0.0:1",
        "ROMANCY_TLS_CERT": "c.pem",
        "ROMANCY_TLS_KEY": "k.pem",
        "ROMANCY_TLS_CLIENT_CA": "a.pem",
        "ROMANCY_TOKEN_FILE": "t.txt",
        "ROMANCY_LIMIT": "session_lease_ms=30000 payload_bytes=5",
    }
    config = read_config(["serve"], environment)
    assert config.database == "postgresql://db/romancy"
    assert config.security == Security(Path("c.pem"), Path("k.pem"), Path("a.pem"), Path("t.txt"))
    assert (config.limits.session_lease_ms, config.limits.payload_bytes) == (30_000, 5)
    config = read_config(["serve", "--listen", "0.0.0.0:2", "--limit", "payload_bytes=6"], environment)
    assert (config.listen.port, config.limits.payload_bytes, config.limits.session_lease_ms) == (2, 6, 30_000)


def test_the_flag_that_says_it_is_meant_is_needed_and_enough() -> None:
    arguments = ["serve", "--database", "d", "--listen", "0.0.0.0:1"]
    with pytest.raises(InvalidConfig):
        read_config(arguments, {})
    assert read_config([*arguments, "--insecure-i-know-what-i-am-doing"], {}).security.insecure
    assert read_config(arguments, {"ROMANCY_INSECURE_I_KNOW_WHAT_I_AM_DOING": "1"}).security.insecure


@pytest.mark.parametrize("limit", ["payload_bytes", "payload_bytes=x", "payload_bytes=-1", "no_such_limit=1", "=1"])
def test_a_limit_that_cannot_be_read_is_refused(limit: str) -> None:
    with pytest.raises(InvalidConfig, match="NAME=NUMBER"):
        read_config(["dev", "--limit", limit], {})


def test_events_go_nowhere_unless_it_is_said_and_with_dev_to_this_machine() -> None:
    serve = ["serve", "--database", "d"]
    assert read_config(serve, {}).destinations == Destinations()
    assert read_config(["dev"], {}).destinations == Destinations.parse(LOOPBACK)
    environment = {"ROMANCY_SINK_ALLOW": "hooks.example.com 10.0.0.0/8"}
    said = Destinations.parse(["hooks.example.com", "10.0.0.0/8", "*.example.org:443"])
    assert read_config([*serve, "--sink-allow", "*.example.org:443"], environment).destinations == said
    more = Destinations.parse([*LOOPBACK, "hooks.example.com", "10.0.0.0/8"])
    assert read_config(["dev"], environment).destinations == more


@pytest.mark.parametrize("destination", ["https://example.com", "*", "2130706433", "10.0.0.1/8"])
def test_what_is_no_destination_is_refused(destination: str) -> None:
    with pytest.raises(InvalidConfig, match="--sink-allow: "):
        read_config(["dev", "--sink-allow", destination], {})


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="give a longer lease, or make heartbeat_interval_ms smaller"):
        read_config(["dev", "--limit", "session_lease_ms=9000"], {})


def test_a_password_is_never_part_of_what_a_config_shows() -> None:
    assert "hunter2" not in repr(Config(database="postgresql://romancy:hunter2@db/romancy"))
