"""Strangers at the ports of a running network: bytes, floods and sockets that never finish.

The law: nothing of it stops a chain or the gateway, and each kind is counted under its reason.
"""

import asyncio
import contextlib
import random
import ssl
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.testnet import Network, whole_network

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(600, func_only=True),
    pytest.mark.usefixtures("whole_network"),
]
__all__ = ["whole_network"]

SMALL = "[devices]\nhouseholds = 2\nprofile_days = 1\n[public]\nslot_ms = 3000\n"
LOOPBACK = "127.0.0.1"
SLOW_SOCKETS = 64
HANDSHAKE_S = 5.0
"""After this long a node gives a handshake up (`LinkLimits.handshake_s`)."""
STRANGER_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
STRANGER_TLS.check_hostname = False
STRANGER_TLS.verify_mode = ssl.CERT_NONE


async def test_strangers_stop_nothing_and_are_counted(tmp_path: Path) -> None:
    network = Network(tmp_path, SMALL)
    with network.fresh() as process:
        await wait(network.wait_for, "three chains that finalise", network.finalises, 60)
        await wait(stays_alive, network, noise_at_a_node, "consortium-1", {"tls-failed"})
        await wait(stays_alive, network, noise_at_a_node, "oracle-1", {"tls-failed"})
        frames = {"frame-too-large", "bad-frame", "malformed"}
        await wait(stays_alive, network, frames_at_a_node, "public-1", frames)
        slow = {"timeout", "too-many-handshakes"}
        await wait(stays_alive, network, slow_sockets, "public-2", slow)
        await wait(stays_alive, network, slow_sockets, "consortium-2", slow)
        await noise_at_the_gateway(network)
        await slow_sockets_at_http(network)
        assert process.poll() is None
        process.terminate()
        assert network.stopped(process, 20) == 0, network.said()
    assert "restarting" not in network.said(), network.said()
    assert not network.tracebacks()
    await wait(network.verify)


async def wait(function, *arguments):
    """Run something that blocks, unless it is a coroutine function."""
    made = function(*arguments) if asyncio.iscoroutinefunction(function) else None
    return await made if made else await asyncio.to_thread(function, *arguments)


async def stays_alive(network: Network, attack, name: str, reasons: set[str]) -> None:
    """The node's chain grows through an attack, and the node counts each reason."""
    before, height = faults(network, name), final_blocks(network, name)
    await attack(network.layout.member(name).peer_port)

    def counted() -> bool:
        after = faults(network, name)
        return all(after[reason] > before[reason] for reason in reasons)

    await wait(network.wait_for, f"{reasons} counted by {name}", counted, 2 * HANDSHAKE_S)
    await wait(
        network.wait_for,
        f"{name} to finalise",
        lambda: final_blocks(network, name) > height + 1,
        30,
    )


def counters(network: Network, name: str, counter: str) -> Counter[str]:
    """A counter of a process, by reason (or the empty text)."""
    found: Counter[str] = Counter()
    _, body = network.get(name, "/metrics")
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            if sample.name == f"gtx_{counter}_total":
                found[sample.labels.get("reason", "")] += int(sample.value)
    return found


def faults(network: Network, name: str) -> Counter[str]:
    return counters(network, name, "remote_faults")


def final_blocks(network: Network, name: str) -> int:
    return counters(network, name, "blocks_final")[""]


# -- nodes -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def connection(
    port: int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(LOOPBACK, port, ssl=tls)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def say(port: int, data: bytes, tls: ssl.SSLContext | None = None) -> bytes:
    """Send bytes; returns the beginning of an answer that comes soon, even while we still send."""
    with contextlib.suppress(OSError, TimeoutError):
        async with connection(port, tls) as (reader, writer), asyncio.timeout(2):
            writer.write(data)
            return await reader.read(4096)
    return b""


async def noise_at_a_node(port: int) -> None:
    chance = random.Random(port)
    for size in (1, 5, 64, 1_000, 100_000):
        await say(port, chance.randbytes(size))
    await say(port, b"GET / HTTP/1.1\r\n\r\n")
    await say(port, b"", STRANGER_TLS)  # no certificate


async def frames_at_a_node(port: int) -> None:
    """Inside TLS, which the public chain offers to everyone."""
    chance = random.Random(port)
    control = struct.Struct(">IB")
    for frame in (
        control.pack(2**32 - 1, 0),
        control.pack(2**31, 0) + b"x" * 1_000,
        control.pack(1_000_000, 1),
        control.pack(0, 0),
        control.pack(5, 250) + b"xxxx",
        control.pack(101, 0) + chance.randbytes(100),
        control.pack(101, 1) + chance.randbytes(100),
        control.pack(1, 0),
        *(chance.randbytes(chance.randrange(1, 3_000)) for _ in range(20)),
    ):
        await say(port, frame, STRANGER_TLS)


async def slow_sockets(port: int) -> None:
    """More connections than handshakes may be unfinished; none of them ever says anything whole."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(SLOW_SOCKETS + 8):
            _, writer = await stack.enter_async_context(connection(port))
            writer.write(b"\x16")
        await asyncio.sleep(HANDSHAKE_S + 1)


# -- http ------------------------------------------------------------------------------------------


async def noise_at_the_gateway(network: Network) -> None:
    port = network.layout.member("gateway").http_port
    chance = random.Random(port)
    before = await asyncio.to_thread(counters, network, "gateway", "gateway_refused")
    for size in (1, 100, 20_000):
        await say(port, chance.randbytes(size) + b"\r\n\r\n")
    post = "POST /api/v1/transactions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n"
    large = post.format(8_000_000).encode() + b"x" * 8_000_000
    await check(port, large, b"413")
    await check(port, post.format(100).encode() + chance.randbytes(100), b"400")
    header = b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"
    await check(port, header, b"400")
    nested = b"[" * 5_000
    await check(port, post.format(len(nested)).encode() + nested, b"400")
    after = await asyncio.to_thread(counters, network, "gateway", "gateway_refused")
    assert sum((after - before).values()) >= 3, after
    assert (after - before)["http-413"] >= 1, after
    malformed = await asyncio.to_thread(counters, network, "gateway", "http_malformed")
    assert malformed["LineTooLong"] >= 1, malformed
    assert await asyncio.to_thread(network.is_ready, "gateway")


async def check(port: int, request: bytes, expected: bytes) -> None:
    answer = await say(port, request)
    assert answer.split(b" ")[1:2] == [expected], answer[:300]


async def slow_sockets_at_http(network: Network) -> None:
    """Requests that never end do not keep anyone else from an answer."""
    for name in ("gateway", "consortium-0"):
        port = network.layout.member(name).http_port
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(SLOW_SOCKETS):
                _, writer = await stack.enter_async_context(connection(port))
                writer.write(
                    b"POST /api/v1/transactions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
                )
            began = time.monotonic()
            assert await asyncio.to_thread(network.is_ready, name), name
            assert time.monotonic() - began < 5
