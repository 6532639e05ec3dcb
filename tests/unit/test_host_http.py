"""Slow and silent HTTP clients: bounded, and never in the way of `/health`."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from tests.unit.host_network import until
from tests.unit.test_gateway_api import World

from gridtokenx.host.addresses import HostPort
from gridtokenx.host.http import REQUEST_S, HttpServer, add_health, new_application
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.readiness import READY

LOOPBACK = HostPort("127.0.0.1", 0)
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def serving(application: web.Application, metrics: Metrics) -> AsyncIterator[int]:
    server = HttpServer(application, LOOPBACK, metrics)
    await server.start()
    try:
        yield server.port
    finally:
        await server.close()


@asynccontextmanager
async def connections(port: int, count: int, first_words: bytes) -> AsyncIterator[list[Streams]]:
    made = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    try:
        for _, writer in made:
            writer.write(first_words)
        yield made
    finally:
        for _, writer in made:
            writer.close()
        await asyncio.gather(*(w.wait_closed() for _, w in made), return_exceptions=True)


async def is_healthy(port: int) -> None:
    """Assert that `/health`, `/ready` and `/metrics` answer before anything slow has been given up."""
    host = f"http://127.0.0.1:{port}"
    async with asyncio.timeout(REQUEST_S / 2), aiohttp.ClientSession(host) as session:
        for path in ("/health", "/ready", "/metrics"):
            async with session.get(path) as response:
                assert response.status == 200
                await response.read()


async def test_two_hundred_slow_posts_leave_health_and_the_api_alone(tmp_path: Path) -> None:
    world = World(tmp_path)
    words = b"POST /api/v1/transactions HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n{"
    async with (
        serving(world.api.application(NullLogger()), world.metrics) as port,
        connections(port, 200, words) as slow,
    ):
        await asyncio.sleep(0.2)
        await is_healthy(port)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}/api/v1/") as session:
            async with session.get("status") as response:
                assert response.status == 200
            async with session.post("transactions", json={"transaction": "00"}) as response:
                assert response.status == 400  # read, and judged
                assert (await response.json())["error"]["code"] != "slow-body"
        answer = await asyncio.wait_for(slow[0][0].readuntil(b"}}"), 5)  # the oldest made way
        assert b"slow-body" in answer
    world.index.close()


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with serving(world.api.application(NullLogger()), world.metrics) as port:
        session = aiohttp.ClientSession(f"http://127.0.0.1:{port}")
        async with (
            session,
            session.post("/api/v1/orders", data=io.BytesIO(bytes(4_000_000))) as response,
        ):
            assert response.status == 413
            assert (await response.json())["error"]["code"] == "body-too-large"
    world.index.close()


async def test_connections_are_bounded_and_the_newest_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gridtokenx.host.http.MAX_CONNECTIONS", 8)
    metrics, application = Metrics(), new_application()
    add_health(application, metrics, lambda: READY)
    async with (
        serving(application, metrics) as port,
        connections(port, 20, b"GET /health HTTP/1.1\r\nX-Slow: ") as slow,
    ):
        await is_healthy(port)
        assert metrics.by_label("http_turned_out", "reason")["too-many"] >= 12
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await slow[0][0].readexactly(1)


async def test_headers_must_arrive_in_time_on_a_kept_connection_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hurry() -> dict[str, object]:
        """From the first answer on, nobody has much time."""
        monkeypatch.setattr("gridtokenx.host.http.REQUEST_S", 0.3)
        return {}

    metrics, application = Metrics(), new_application()
    add_health(application, metrics, lambda: READY, hurry)
    whole = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving(application, metrics) as port, connections(port, 1, whole) as (talker,):
        await talker[0].readuntil(b"}")
        talker[1].write(b"GET /hea")
        async with connections(port, 1, b"") as (silent,):
            for reader, _ in (talker, silent):
                await until(lambda reader=reader: reader.at_eof() or reader.exception())
        assert metrics.by_label("http_turned_out", "reason") == {"too-slow": 2}


async def test_a_long_answer_is_not_cut_while_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gridtokenx.host.http.REQUEST_S", 0.2)

    async def slow(_: web.Request) -> web.Response:
        await asyncio.sleep(0.6)
        return web.Response(text="done")

    application = new_application()
    application.router.add_get("/slow", slow)
    async with serving(application, Metrics()) as port:
        session = aiohttp.ClientSession(f"http://127.0.0.1:{port}")
        async with session, session.get("/slow") as response:
            assert await response.text() == "done"


def test_readiness_is_a_number_too() -> None:
    metrics = Metrics(role="test")
    add_health(new_application(), metrics, lambda: READY)
    assert b'gtx_ready{role="test"} 1.0' in metrics.render()
