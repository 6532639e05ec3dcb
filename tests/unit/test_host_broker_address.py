"""Where a broker is, who may tell its password, and what is said when it cannot be reached."""

import ssl
from pathlib import Path

import pytest

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.broker import BrokerState, open_broker, parse_broker
from gridtokenx.host.broker_address import PASSWORD_VARIABLE, explain


class Lines:
    """Keeps what would be written."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def debug(self, event: str, **_fields: object) -> None:
        pass

    def info(self, event: str, **_fields: object) -> None:
        self.written.append(event)

    def warning(self, event: str, **fields: object) -> None:
        self.written.append(f"{event}: {fields.get('why')}")

    def error(self, event: str, **_fields: object) -> None:
        raise AssertionError(event)


class Settings:
    """What every schema of a process with a broker has."""

    def __init__(self, broker: str, password_file: Path | None = None) -> None:
        self.broker = broker
        self.broker_protocol = "5"
        self.broker_authority = None
        self.broker_password_file = password_file


def test_a_password_comes_from_file_environment_or_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "of the environment")
    path = tmp_path / "password"
    path.write_text("of the file\n")
    for settings, expected in (
        (Settings("mqtt://me:inside@host", path), "of the file"),
        (Settings("mqtt://me:inside@host"), "inside"),
        (Settings("mqtt://me@host"), "of the environment"),
        (Settings("mqtt://host"), None),
    ):
        assert open_broker(settings).password == expected  # type: ignore[arg-type]  # a test's stand-in
    with pytest.raises(LocalFault, match="names no user"):
        open_broker(Settings("mqtt://host", path))  # type: ignore[arg-type]  # a test's stand-in
    path.write_text("two\nlines\n")
    with pytest.raises(LocalFault, match="in one line"):
        open_broker(Settings("mqtt://me@host", path))  # type: ignore[arg-type]  # a test's stand-in


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (ConnectionRefusedError(), "nobody listens at host:1883"),
        (TimeoutError(), "no answer from host:1883"),
        ("[SSL: SSLV3_ALERT_CERTIFICATE_REVOKED] sslv3 alert", "revoked"),
        ("[SSL: SSLV3_ALERT_CERTIFICATE_EXPIRED] sslv3 alert", "expired"),
        ("[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert", "another authority"),
        ("[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] alert", "set broker_certificate"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong"), "does not speak TLS"),
        ("something else", "something else"),
        (OSError(), "OSError"),
    ],
)
def test_failures_are_explained(error: BaseException | str, meaning: str) -> None:
    assert meaning in explain(error, parse_broker("mqtt://host"))


def test_the_log_tells_of_changes_not_of_attempts() -> None:
    lines = Lines()
    state = BrokerState(lines, clients=2)
    assert "not connected yet" in str(state.reason)
    for _ in range(5):
        for client in ("a", "b"):
            state.down(client, "nobody listens")
    assert str(state.reason).startswith("broker unreachable since 20")
    state.up("a")
    assert "1 of 2 clients" in str(state.reason)
    state.up("b")
    assert (state.reason, state.connected) == (None, 2)
    state.down("b", "it refuses the login")
    assert "it refuses the login" in str(state.reason)
    assert lines.written == [
        "broker unreachable: nobody listens",
        "broker connected",
        "broker unreachable: it refuses the login",
    ]
