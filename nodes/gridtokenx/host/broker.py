"""A client's connection to the MQTT broker: where it is, who logs in, and coming back after a loss.

Law of the file: **cancellation ends it**, whatever the library underneath swallows, and a loss
never does. aiomqtt stands on Python 3.11's `asyncio.wait_for`, which swallows a cancellation that
coincides with an answer; and leaving a connection waits ten seconds for a broker that is gone. So no
connection runs in the task that decides to connect again: `until_first` cancels it from outside,
again and again.
"""

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import aiomqtt

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import Signer
from gridtokenx.ledger.broker_access import connect_password

FIRST_BACKOFF_S: Final = 0.25
CANCEL_AGAIN_S: Final = 0.25
_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker is, and how to log in where its own scheme is not ours."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    username: str | None = None
    password: str | None = None


def parse_broker(url: str, ca_file: Path | None = None) -> BrokerAddress:
    """A broker's address from ``mqtt[s]://[user:password@]host[:port]``.

    Raises:
        LocalFault: it is no such address, or the CA file cannot be used.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError):
        raise _no_broker(url) from None
    if not parts.hostname:
        raise _no_broker(url)
    return BrokerAddress(
        parts.hostname,
        port,
        _tls(ca_file) if parts.scheme == "mqtts" else None,
        None if parts.username is None else unquote(parts.username),
        None if parts.password is None else unquote(parts.password),
    )


def _no_broker(url: str) -> LocalFault:
    return LocalFault(f"broker {url!r} is not mqtt[s]://[user:password@]host[:port]")


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise LocalFault(f"{ca_file}: cannot be used as CA file: {error}") from None


class BrokerClient(aiomqtt.Client):
    """aiomqtt's client, which does not watch a socket that was closed meanwhile.

    paho asks for a socket to be watched, aiomqtt does it at the loop's next turn, and the socket may
    be closed by then: uvloop reports "Bad file descriptor" for each.
    """

    def _on_socket_register_write(
        self,
        client: Any,
        userdata: Any,  # noqa: ARG002 - paho's
        sock: Any,
    ) -> None:
        def write() -> None:
            try:
                client.loop_write()
            except Exception as error:  # noqa: BLE001 - whatever it is, the connection is broken
                if not self._disconnected.done():
                    self._disconnected.set_exception(error)

        def watch() -> None:
            if sock.fileno() > -1:
                self._loop.add_writer(sock.fileno(), write)

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
    """A client that logs in with a key (`ledger.broker_access`), or as the address says.

    Args:
        address: of the broker.
        signer: the key.
        identifier: the client's name, which is also whom it logs in as.
        keepalive_s: after so long without a word a connection is dead.
        queued_messages: what comes beyond these is dropped.
        will: what the broker publishes for a client that is lost.
    """
    username, password = address.username, address.password
    if username is None:
        username = identifier
        password = connect_password(signer, time.time_ns() // 1_000_000)
    return BrokerClient(
        address.host,
        address.port,
        identifier=identifier,
        username=username,
        password=password,
        tls_context=address.tls,
        clean_session=True,
        keepalive=keepalive_s,
        max_queued_incoming_messages=queued_messages,
        will=will,
    )


async def keep_connected(
    connection: Callable[[], Coroutine[None, None, None]],
    on_loss: Callable[[str], None],
    last_backoff_s: float,
) -> None:
    """Connect, and connect again after every loss, until cancelled.

    Args:
        connection: lives as long as one connection.
        on_loss: gets the reason.
        last_backoff_s: the longest wait between attempts; a connection that lasted longer was good.
    """
    backoff_s = FIRST_BACKOFF_S
    while True:
        started = time.monotonic()
        try:
            await until_first(connection())
        except (aiomqtt.MqttError, OSError) as error:
            on_loss(str(error))
        if time.monotonic() - started > last_backoff_s:
            backoff_s = FIRST_BACKOFF_S
        # Many clients must not come back in the same instant.
        await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
        backoff_s = min(2 * backoff_s, last_backoff_s)


async def until_first(*works: Coroutine[None, None, None]) -> None:
    """Run all until one ends, with that one's error if it has one; none outlives this call.

    A cancellation of this call is never swallowed: `asyncio.wait` raises it, whatever the works make
    of theirs. Ours differs: no `TaskGroup`, which in Python 3.11 leaves its own cancel request on a
    task that goes on after the group failed, as a reconnecting one does.
    """
    tasks = {asyncio.ensure_future(work) for work in works}
    cancelled = False
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        while pending := {task for task in tasks if not task.done()}:
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
    for task in done:
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
