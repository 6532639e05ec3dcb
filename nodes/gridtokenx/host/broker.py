"""A client's connection to the MQTT broker: logging in, coming back after a loss, and telling of it.

Law of the file: **cancellation ends it**, whatever the library underneath swallows, and a loss
never does. aiomqtt stands on Python 3.11's `asyncio.wait_for`, which swallows a cancellation that
coincides with an answer; and leaving a connection waits ten seconds for a broker that is gone. So no
connection runs in the task that decides to connect again: `until_first` cancels it from outside,
again and again.

Sessions are persistent (clean start false, `SESSION_EXPIRY_S`), subscriptions and messages QoS 1: what
is published while a client is away waits at the broker, and survives its restart where the broker
keeps it on disk. Nothing depends on that: what no watermark covers is sent again by its meter.
"""

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, Final

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gridtokenx.core.keys import Signer, sha256
from gridtokenx.host.broker_address import BrokerAddress, explain, open_broker, parse_broker
from gridtokenx.host.logs import Logger
from gridtokenx.ledger.broker_access import connect_password

__all__ = [
    "BrokerAddress",
    "BrokerClient",
    "BrokerState",
    "broker_client",
    "heed_cancellation",
    "keep_connected",
    "open_broker",
    "parse_broker",
    "until_first",
]

FIRST_BACKOFF_S: Final = 0.25
CANCEL_AGAIN_S: Final = 0.25
HANDSHAKE_S: Final = 10.0
SESSION_EXPIRY_S: Final = 3_600
"""How long a broker keeps what came for a client that is away."""
_UNSUPPORTED: Final = "Unsupported protocol version"


class BrokerState:
    """Whether a broker can be reached; since when not, and why.

    It tells the log when that changes, not at each attempt: the first connection that is lost, each
    reason that was not known yet, and the return of the last one.

    Args:
        log: of the process.
        clients: how many connections there are.
    """

    def __init__(self, log: Logger, clients: int = 1) -> None:
        self._log: Final = log
        self._clients: Final = clients
        self._since_s = time.time()
        self._up: set[str] = set()
        self._whys: dict[str, str] = {}

    @property
    def connected(self) -> int:
        """Connections at present."""
        return len(self._up)

    def up(self, client: str) -> None:
        """A connection is made."""
        self._up.add(client)
        self._whys.pop(client, None)
        if len(self._up) == self._clients:
            self._log.info("broker connected", connections=self._clients)

    def closed(self, client: str) -> None:
        """A connection has ended; if it was not wanted, `down` says why."""
        if len(self._up) == self._clients:
            self._since_s = time.time()
        self._up.discard(client)

    def down(self, client: str, why: str) -> None:
        """A connection, or an attempt to make one, has failed."""
        if len(self._up) == self._clients:
            self._since_s = time.time()
        known = why in self._whys.values()
        self._up.discard(client)
        self._whys[client] = why
        if not known:
            self._log.warning("broker unreachable", why=why, client=client[:16])

    @property
    def reason(self) -> str | None:
        """Why this process is not ready, as far as the broker is concerned; None if it is."""
        if len(self._up) == self._clients:
            return None
        since = datetime.fromtimestamp(self._since_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        why = next(iter(self._whys.values()), "not connected yet")
        if not self._up:
            return f"broker unreachable since {since}: {why}"
        lost = self._clients - len(self._up)
        return f"broker unreachable for {lost} of {self._clients} clients since {since}: {why}"


class _LastWords(logging.Logger):
    """What paho logs instead of raising: the reason that a connection broke."""

    def __init__(self) -> None:
        super().__init__("gridtokenx.mqtt", logging.ERROR)
        self.text = ""

    def log(self, level: int, msg: object, *args: object, **_more: Any) -> None:
        """Keep the last error."""
        if level >= logging.ERROR:
            self.text = str(msg) % args


class BrokerClient(aiomqtt.Client):
    """aiomqtt's client, which says why, and does not watch a socket that was closed meanwhile.

    paho asks for a socket to be watched, aiomqtt does it at the loop's next turn, and the socket may
    be closed by then: uvloop reports "Bad file descriptor" for each. A connection that ends before
    the broker has answered ends the attempt at once; aiomqtt would wait for its timeout.
    """

    def __init__(self, address: BrokerAddress, **arguments: Any) -> None:
        self._address = address
        self._words = _LastWords()
        super().__init__(
            address.host, address.port, tls_context=address.tls, logger=self._words, **arguments
        )
        self._client._ssl_wrap_socket = self._secured  # type: ignore[method-assign, assignment]  # noqa: SLF001 - see there
        for future in (self._connected, self._disconnected):
            # Looked at, so that asyncio does not report one for which nobody waits any more.
            future.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _secured(self, plain: socket.socket) -> ssl.SSLSocket:
        """What paho does too, but a socket whose handshake fails is closed, not left behind."""
        assert self._address.tls is not None, "paho asks for it only where there is TLS"
        secured = self._address.tls.wrap_socket(
            plain, server_hostname=self._address.host, do_handshake_on_connect=False
        )
        try:
            secured.settimeout(HANDSHAKE_S)
            secured.do_handshake()
        except BaseException:
            secured.close()
            raise
        return secured

    def _client_connect(self) -> None:
        try:
            super()._client_connect()
        except OSError as error:
            raise OSError(explain(error, self._address)) from None

    def _on_connect(
        self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None
    ) -> None:
        if reason_code.is_failure and not self._connected.done():
            self._connected.set_exception(aiomqtt.MqttError(self._refused(str(reason_code))))
            return
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_disconnect(
        self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None
    ) -> None:
        if not self._lock.locked():
            return  # nobody waits any more
        if not self._connected.done():
            self._connected.set_exception(aiomqtt.MqttError(self._broken(str(reason_code))))
            return
        if self._words.text and not self._disconnected.done():
            self._disconnected.set_exception(aiomqtt.MqttError(self._broken("")))
            return
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _refused(self, reason: str) -> str:
        if reason == _UNSUPPORTED:
            other = "3.1.1" if self._address.version == "5" else "5"
            return (
                f'it does not speak MQTT {self._address.version}: set broker_protocol = "{other}"'
            )
        return f"it refuses the login: {reason}"

    def _broken(self, reason: str) -> str:
        if self._connected.done() or "[SSL: " in self._words.text:
            return explain(self._words.text, self._address)
        reason = self._words.text or reason
        hint = "is broker_protocol right?" if self._address.version == "5" else "is it a broker?"
        return f"it closed the connection without answering the login ({reason}): {hint}"

    def _on_socket_register_write(
        self,
        client: Any,
        userdata: Any,  # noqa: ARG002 - paho's
        sock: Any,
    ) -> None:
        def broken(error: Exception) -> None:
            if not self._disconnected.done():
                self._disconnected.set_exception(error)

        def write() -> None:
            try:
                client.loop_write()
            except Exception as error:  # noqa: BLE001 - whatever it is, the connection is broken
                broken(error)

        def watch() -> None:
            if sock.fileno() == -1:
                return
            try:
                self._loop.add_writer(sock.fileno(), write)
            except RuntimeError as error:  # uvloop gave the socket up at an error of its own
                broken(error)

        self._loop.call_soon_threadsafe(watch)

    def _on_socket_unregister_write(
        self,
        client: Any,  # noqa: ARG002 - paho's
        userdata: Any,  # noqa: ARG002 - paho's
        sock: Any,
    ) -> None:
        if sock.fileno() > -1:
            self._loop.remove_writer(sock.fileno())


def broker_client(
    address: BrokerAddress,
    signer: Signer,
    identifier: str,
    *,
    keepalive_s: int,
    queued_messages: int,
    will: aiomqtt.Will | None = None,
) -> aiomqtt.Client:
    """A client that logs in as the address says, else with a key (`ledger.broker_access`).

    Args:
        address: of the broker.
        signer: the key.
        identifier: the client's name, which is also whom it logs in as.
        keepalive_s: after so long without a word a connection is dead.
        queued_messages: what comes beyond these is dropped.
        will: what the broker publishes for a client that is lost.
    """
    if address.opener is not None:
        return address.opener(identifier, queued_messages, will)
    username, password = address.username, address.password
    if username is None and not address.certified:
        username = identifier
        password = connect_password(signer, time.time_ns() // 1_000_000)
    return BrokerClient(
        address,
        identifier=identifier,
        username=username,
        password=password,
        keepalive=keepalive_s,
        max_queued_incoming_messages=queued_messages,
        will=will,
        **_session(address),
    )


def _session(address: BrokerAddress) -> dict[str, Any]:
    """A persistent session, as each version of the protocol says it."""
    if address.version == "3.1.1":
        return {"protocol": aiomqtt.ProtocolVersion.V311, "clean_session": False}
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's
    properties.SessionExpiryInterval = SESSION_EXPIRY_S
    return {
        "protocol": aiomqtt.ProtocolVersion.V5,
        "clean_start": False,
        "properties": properties,
    }


async def keep_connected(
    connection: Callable[[], Coroutine[None, None, None]],
    on_loss: Callable[[str], None],
    last_backoff_s: float,
    name: str,
) -> None:
    """Connect, and connect again after every loss, until cancelled.

    Args:
        connection: lives as long as one connection.
        on_loss: gets the reason.
        last_backoff_s: the longest wait between attempts; a connection that lasted longer was good.
        name: of the client: no two wait equally long, so many do not come back in the same instant.
    """
    backoff_s, attempts = FIRST_BACKOFF_S, 0
    loop = asyncio.get_running_loop()
    while True:
        started_s = loop.time()
        try:
            await until_first(connection())
        except (aiomqtt.MqttError, OSError) as error:
            on_loss(str(error))
        if loop.time() - started_s > last_backoff_s:
            backoff_s = FIRST_BACKOFF_S
        attempts += 1
        await asyncio.sleep(backoff_s * _share(name, attempts))
        backoff_s = min(2 * backoff_s, last_backoff_s)


def _share(name: str, attempt: int) -> float:
    """Between a half and all: which part of its pause a client makes."""
    own = sha256(b"pause before connecting", b"%d" % attempt, name.encode())
    return 0.5 + int.from_bytes(own[:2], "big") / 131_072


async def until_first(*works: Coroutine[None, None, None]) -> None:
    """Run all until one ends, with that one's error if it has one; none outlives this call.

    A cancellation of this call is never swallowed: `asyncio.wait` raises it, whatever the works make
    of theirs. Ours differs: no `TaskGroup`, which in Python 3.11 leaves its own cancel request on a
    task that goes on after the group failed, as a reconnecting one does.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    cancelled = False
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        while pending := [task for task in tasks if not task.done()]:
            for task in pending:
                task.cancel()
            try:
                await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
            except asyncio.CancelledError:
                cancelled = True
        for task in tasks:
            # Looked at, so that asyncio does not report the error that came second.
            _ = task.cancelled() or task.exception()
    if cancelled:
        raise asyncio.CancelledError
    for task in tasks:
        if task in done:
            task.result()


def heed_cancellation() -> None:
    """Be cancelled, if that was asked.

    Python 3.11's `asyncio.wait_for`, on which aiomqtt stands, swallows a cancellation that
    coincides with an answer, and leaving a broken connection turns one into an `MqttError`; a loop
    that then connects again would never end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
