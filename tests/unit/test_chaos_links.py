"""Relays between real replicas: what a pulled cable does to a stream, and nothing else."""

import asyncio
import contextlib
import random
import resource
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from gridtokenx.core.errors import LocalFault
from gridtokenx.lab.chaos.links import Relays
from gridtokenx.lab.faults import Bandwidth, Delay

QUICK_S = 5.0


class Ends:
    """A dialer and what the listener behind the relay got."""

    def __init__(self) -> None:
        self.accepted: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.dialed: list[asyncio.StreamWriter] = []
        self.relays: Relays
        self.port = 0

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.dialed.append(writer)
        return reader, writer

    async def pair(self) -> tuple[asyncio.StreamWriter, asyncio.StreamReader]:
        """One connection: where the dialer writes, where the listener reads."""
        count = len(self.accepted)
        _, writer = await self.dial()
        await until(lambda: len(self.accepted) > count)
        return writer, self.accepted[-1][0]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(QUICK_S):
        while not condition():  # noqa: ASYNC110 - a test looks at foreign state
            await asyncio.sleep(0.005)


@asynccontextmanager
async def two() -> AsyncIterator[Ends]:
    """Replica 0 dials, replica 1 listens."""
    ends = Ends()

    def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.accepted.append((reader, writer))

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    port = int(server.sockets[0].getsockname()[1])
    ends.relays = Relays([1, port], random.Random(0))
    ends.port = (await ends.relays.start())[0, 1]
    try:
        yield ends
    finally:
        await ends.relays.close()
        server.close()
        for writer in (*ends.dialed, *(writer for _, writer in ends.accepted)):
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def test_bytes_pass_both_ways() -> None:
    async with two() as ends:
        reader, writer = await ends.dial()
        writer.write(b"to")
        await until(lambda: ends.accepted)
        there, back = ends.accepted[0]
        assert await there.readexactly(2) == b"to"
        back.write(b"fro")
        assert await reader.readexactly(3) == b"fro"


async def test_a_cut_holds_what_is_sent_and_loses_nothing() -> None:
    async with two() as ends:
        writer, there = await ends.pair()
        ends.relays.cut(1, [(0, 1)])
        sent = random.Random(1).randbytes(3_000_000)
        writer.write(sent)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(there.read(1), 0.1)
        ends.relays.end(1)
        assert await asyncio.wait_for(there.readexactly(len(sent)), QUICK_S) == sent


async def test_one_way_is_one_way() -> None:
    async with two() as ends:
        reader, writer = await ends.dial()
        await until(lambda: ends.accepted)
        there, back = ends.accepted[0]
        ends.relays.cut(1, [(0, 1)])
        writer.write(b"x")
        back.write(b"heard")
        assert await asyncio.wait_for(reader.readexactly(5), QUICK_S) == b"heard"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(there.read(1), 0.1)


async def test_two_cuts_hold_until_both_are_over() -> None:
    async with two() as ends:
        writer, there = await ends.pair()
        ends.relays.cut(1, [(0, 1)])
        ends.relays.cut(2, [(0, 1)])
        writer.write(b"x")
        ends.relays.end(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(there.read(1), 0.1)
        ends.relays.end(2)
        assert await asyncio.wait_for(there.read(1), QUICK_S) == b"x"


async def test_no_connection_comes_about_through_a_cut_and_one_waits_for_its_end() -> None:
    async with two() as ends:
        ends.relays.cut(1, [(1, 0)])
        _, given_up = await ends.dial()
        given_up.close()
        await asyncio.sleep(0.05)
        _, patient = await ends.dial()
        patient.write(b"hello")
        await asyncio.sleep(0.1)
        assert not ends.accepted
        ends.relays.end(1)
        await until(lambda: ends.accepted)
        assert await asyncio.wait_for(ends.accepted[0][0].readexactly(5), QUICK_S) == b"hello"
        assert len(ends.accepted) == 1


async def test_the_end_of_a_connection_does_not_pass_a_cut() -> None:
    async with two() as ends:
        writer, there = await ends.pair()
        ends.relays.cut(1, [(0, 1)])
        writer.write(b"last")
        writer.close()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(there.read(), 0.1)
        ends.relays.end(1)
        assert await asyncio.wait_for(there.read(), QUICK_S) == b"last"


async def test_what_waits_for_one_who_has_left_is_forgotten() -> None:
    async with two() as ends:
        reader, writer = await ends.dial()
        await until(lambda: ends.accepted)
        ends.relays.cut(1, [(0, 1), (1, 0)])
        writer.write(b"too late")
        await asyncio.sleep(0.02)
        ends.accepted[0][1].transport.abort()
        await asyncio.sleep(0.02)
        ends.relays.end(1)
        assert await asyncio.wait_for(reader.read(), QUICK_S) == b""


async def test_nobody_there_is_an_end_at_once() -> None:
    relays = Relays([1, 1], random.Random(0))
    ports = await relays.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", ports[0, 1])
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), QUICK_S)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    await relays.close()


async def test_delay_keeps_the_order() -> None:
    async with two() as ends:
        writer, there = await ends.pair()
        ends.relays.slow(1, Delay(delay_ms=100, jitter_ms=50), [(0, 1)])
        began = time.monotonic()
        sent = bytes(range(100))
        for byte in sent:
            writer.write(bytes((byte,)))
            await asyncio.sleep(0)
        assert await asyncio.wait_for(there.readexactly(100), QUICK_S) == sent
        assert time.monotonic() - began >= 0.1


async def test_bandwidth_takes_its_time() -> None:
    async with two() as ends:
        writer, there = await ends.pair()
        ends.relays.slow(1, Bandwidth(bytes_per_s=100_000), [(0, 1)])
        began = time.monotonic()
        writer.write(bytes(30_000))
        await asyncio.wait_for(there.readexactly(30_000), QUICK_S)
        assert time.monotonic() - began >= 0.29


async def test_too_few_open_files_are_told_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 600))
    with pytest.raises(LocalFault, match=r"1772 open files are needed .* allows 600"):
        await Relays(range(1, 22), random.Random(0)).start()
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4_096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
    relays = Relays([1, 1], random.Random(0))
    await relays.start()
    await relays.close()
    assert raised == [(518, 4_096)]
