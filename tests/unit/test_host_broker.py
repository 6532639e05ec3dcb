"""A client's link to a broker ends when it is told to, and closes its socket without a word."""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable

import aiomqtt
import pytest
import uvloop

from gridtokenx.core.keys import Ed25519Signer, sha256
from gridtokenx.host.broker import BrokerAddress, broker_client, keep_connected, until_first

CONNACK = bytes((0x20, 2, 0, 0))


@contextlib.asynccontextmanager
async def deaf_broker() -> AsyncIterator[BrokerAddress]:
    """Accepts connections, and says nothing more; it does not even hang up."""
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        writer.write(CONNACK)
        await over.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield BrokerAddress("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()
        over.set()
        await asyncio.sleep(0.05)


async def stop_in_the_middle() -> None:
    async with deaf_broker() as address:
        signer = Ed25519Signer(sha256(b"broker test"))
        connected = asyncio.Event()
        losses: list[str] = []

        async def connection() -> None:
            client = broker_client(address, signer, "a", keepalive_s=15, queued_messages=9)
            async with client:
                connected.set()
                async for _ in client.messages:
                    pass

        task = asyncio.create_task(keep_connected(connection, losses.append, 10, "a"))
        await connected.wait()
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - started < 1
        assert losses == []


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_link_ends_within_a_second_though_the_broker_is_deaf(
    new_loop: Callable[[], asyncio.AbstractEventLoop], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(stop_in_the_middle())
    assert [record.message for record in caplog.records] == []


async def test_a_link_whose_library_swallows_cancellation_does_not_connect_again() -> None:
    """It turned the cancellation into an error, and a loop that then connects again never ends."""
    attempts = 0

    async def connection() -> None:
        nonlocal attempts
        attempts += 1
        task = asyncio.current_task()
        assert task is not None
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            task.uncancel()  # what the library's own timeouts do
            raise aiomqtt.MqttError("Disconnected during message iteration") from None

    task = asyncio.create_task(keep_connected(connection, lambda _reason: None, 10, "a"))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait({task}, timeout=1)
    assert task.cancelled()
    assert attempts == 1


async def test_a_cancellation_while_the_others_are_ended_leaves_none_of_them() -> None:
    ended = False

    async def stubborn() -> None:
        nonlocal ended
        for _ in range(3):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
        ended = True

    task = asyncio.create_task(until_first(stubborn(), asyncio.sleep(0)))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait({task}, timeout=2)
    assert task.cancelled()
    assert ended


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_socket_that_closes_before_it_is_watched_is_not_reported(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """uvloop printed "Bad file descriptor" for each, at every stop and every loss of the broker."""
    reported: list[object] = []

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: reported.append(context))
        address = BrokerAddress("127.0.0.1", 1)
        signer = Ed25519Signer(sha256(b"broker test"))
        client = broker_client(address, signer, "a", keepalive_s=15, queued_messages=9)
        near, far = socket.socketpair()
        client._on_socket_register_write(client._client, None, near)
        near.close()
        await asyncio.sleep(0.01)
        client._on_socket_unregister_write(client._client, None, near)
        far.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scene())
    assert reported == []


async def test_a_socket_that_the_loop_has_given_up_is_a_lost_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """uvloop closes its watcher when the peer resets; the next one asked for was a traceback."""

    def given_up(*_: object) -> None:
        raise RuntimeError("unable to perform operation on <UVPoll closed=True>")

    signer = Ed25519Signer(sha256(b"broker test"))
    address = BrokerAddress("127.0.0.1", 1)
    client = broker_client(address, signer, "a", keepalive_s=15, queued_messages=9)
    monkeypatch.setattr(client._loop, "add_writer", given_up)
    reported: list[object] = []
    client._loop.set_exception_handler(lambda _loop, context: reported.append(context))
    near, far = socket.socketpair()
    with near, far:
        client._on_socket_register_write(client._client, None, near)
        await asyncio.sleep(0.01)
    assert reported == []
    assert isinstance(client._disconnected.exception(), RuntimeError)
