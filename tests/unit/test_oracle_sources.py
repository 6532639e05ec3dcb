"""HTTP sources: declarative mappings, and that a bad server costs one observation and no more."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.gridtime import INTERVAL_MS
from gridtokenx.host.clock import wall_ms
from gridtokenx.oracle.feeds.mapping import MAX_DOCUMENT_BYTES, Mapping, NoValue, extract
from gridtokenx.oracle.feeds.market import Market
from gridtokenx.oracle.feeds.market_data import (
    MarketDataSettings,
    day_ahead_csv,
    default_sources,
    index_txt,
    run_market_data,
    settled_xml,
    ticker_json,
)
from gridtokenx.oracle.feeds.source import HttpSource, SourceSettings

NOON_MS = 1_776_834_000_000
JSON = Mapping(format="json", value="data.0.last", units="1000000")


# -- mappings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mapping", "document", "value"),
    [
        (JSON, '{"data":[{"last":3.9512}]}', 3_951_200),
        (JSON, '{"data":[{"last":"3.9512"}]}', 3_951_200),
        (JSON, '{"data":[{"last":4}]}', 4_000_000),
        (JSON, '{"data":[{"last":0.1234565}]}', 123_456),
        (
            Mapping(format="xml", value="a[@id='2']/p", units="10"),
            "<r><a id='2'><p>1.5</p></a></r>",
            15,
        ),
        (Mapping(format="xml", value="p/@thb"), "<r><p thb='-7'/></r>", -7),
        (Mapping(format="text", value=r"IDX (\S+)"), "IDX 12", 12),
    ],
)
def test_a_mapping_finds_the_number(mapping: Mapping, document: str, value: int) -> None:
    mapping.check()
    assert extract(mapping, document.encode(), NOON_MS) == value


def test_a_table_gives_the_row_that_has_started_last() -> None:
    mapping = Mapping(format="csv", value="p", time="t", delimiter=";")
    rows = "t;p\n1970-01-01T00:00:01+00:00;1\n1970-01-01T07:00:02+07:00;2\n1970-01-01T00:00:03Z;3\n"
    assert [extract(mapping, rows.encode(), ms) for ms in (1_000, 2_999, 9_000)] == [1, 2, 3]
    with pytest.raises(NoValue, match="no row has started"):
        extract(mapping, rows.encode(), 999)


@pytest.mark.parametrize(
    ("mapping", "document"),
    [
        (JSON, b"not json"),
        (JSON, b'{"data":[]}'),
        (JSON, b'{"data":[{"last":null}]}'),
        (JSON, b'{"data":[{"last":true}]}'),
        (JSON, b'{"data":[{"last":"NaN"}]}'),
        (JSON, b'{"data":[{"last":"1e999999"}]}'),
        (JSON, b'{"data":[{"last":"' + b"9" * 25 + b'"}]}'),
        (JSON, b'{"data":' + b"[" * 100_000),
        (JSON, b"\xff\xfe"),
        (JSON, bytes(MAX_DOCUMENT_BYTES + 1)),
        (Mapping(format="csv", value="p", time="t"), b"t,p\nyesterday,1\n"),
        (Mapping(format="csv", value="p", time="t"), b"t,p\n2026-01-01T00:00:00,1\n"),
        (Mapping(format="csv", value="p", time="t"), b"t,q\n2026-01-01T00:00:00Z,1\n"),
        (Mapping(format="csv", value="p", time="t"), b""),
        (Mapping(format="xml", value="p"), b"<r><q/></r>"),
        (Mapping(format="xml", value="p["), b"<r/>"),
        (Mapping(format="xml", value="p"), b'<!DOCTYPE r [<!ENTITY a "1">]><r><p>&a;</p></r>'),
        (Mapping(format="text", value="(x)?y"), b"y"),
    ],
)
def test_other_documents_are_refused(mapping: Mapping, document: bytes) -> None:
    with pytest.raises(NoValue):
        extract(mapping, document, NOON_MS)


@given(st.binary(max_size=200), st.sampled_from(["json", "csv", "xml", "text"]))
def test_no_document_raises_anything_else(document: bytes, format_: str) -> None:
    mapping = Mapping(format=format_, value="a" if format_ != "text" else "(.+)", time="t")  # type: ignore[arg-type]
    try:
        extract(mapping, document, NOON_MS)
    except NoValue:
        return


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "ftp://x/", "name": "n", "value": "a"},
        {"url": "http://x/", "name": "", "value": "a"},
        {"url": "http://x/", "name": "n", "value": ""},
        {"url": "http://x/", "name": "n", "value": "a", "units": "none"},
        {"url": "http://x/", "name": "n", "value": "a", "auth_header": "A"},
        {"url": "http://x/", "name": "n", "value": "a", "format": "csv"},
        {"url": "http://x/", "name": "n", "value": "no group", "format": "text"},
        {"url": "http://x/", "name": "n", "value": "(", "format": "text"},
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, str]) -> None:
    with pytest.raises(LocalFault):
        HttpSource(SourceSettings(**settings), lambda: NOON_MS)  # type: ignore[arg-type]


# -- servers ---------------------------------------------------------------------------------------


@asynccontextmanager
async def server(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


def source(url: str, **changes: object) -> HttpSource:
    settings = {"name": "s", "url": url, "value": "v", "timeout_ms": 200, "poll_ms": 0, **changes}
    return HttpSource(SourceSettings(**settings), lambda: NOON_MS)  # type: ignore[arg-type]


async def reason_of(reading: Awaitable[int]) -> str:
    with pytest.raises(RemoteFault) as caught:
        await reading
    return caught.value.reason


async def test_credentials_go_in_their_header() -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(text='{"v":1}' if request.headers.get("X-Key") == "k" else "{}")

    async with server(handle) as url, source(url, auth_header="X-Key", auth_value="k") as opened:
        assert await opened.read() == 1


async def test_a_server_that_misbehaves_is_a_counted_fault() -> None:
    async def slow(_request: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response(text='{"v":1}')

    async def huge(_request: web.Request) -> web.Response:
        return web.Response(body=bytes(MAX_DOCUMENT_BYTES + 1))

    async def broken(_request: web.Request) -> web.Response:
        return web.Response(status=500)

    async def elsewhere(_request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"})

    for handler, reason in (
        (slow, "source-timeout"),
        (huge, "source-too-large"),
        (broken, "source-status"),
        (elsewhere, "source-status"),
    ):
        async with server(handler) as url, source(url) as opened:
            assert await reason_of(opened.read()) == reason
    async with source("http://127.0.0.1:1/") as opened:
        assert await reason_of(opened.read()) == "source-unreachable"


async def test_polls_are_limited_and_the_last_value_holds_for_a_while() -> None:
    asked = 0

    async def handle(_request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(text=f'{{"v":{asked}}}')

    async with server(handle) as url:
        async with source(url, poll_ms=60_000) as opened:
            assert [await opened.read() for _ in range(3)] == [1, 1, 1]
        async with source(url, poll_ms=60_000, max_age_ms=1) as opened:
            await opened.read()
            await asyncio.sleep(0.01)
            assert await reason_of(opened.read()) == "source-stale"
    assert asked == 2


async def test_a_server_that_asks_for_patience_gets_it() -> None:
    asked = 0

    async def handle(_request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=429, headers={"Retry-After": "30"})

    async with server(handle) as url, source(url) as opened:
        assert await reason_of(opened.read()) == "source-status"
        assert await reason_of(opened.read()) == "source-stale"
    assert asked == 1


# -- the market-data server ------------------------------------------------------------------------


def market_settings(**changes: object) -> MarketDataSettings:
    settings = {
        "listen": "127.0.0.1:0",
        "network_genesis_ms": wall_ms(),
        "grid_epoch_ms": NOON_MS,
        **changes,
    }
    return MarketDataSettings(**settings)  # type: ignore[arg-type]


async def test_four_oracles_read_four_different_values_of_one_price() -> None:
    """Whole way: server, credentials, formats, units; all near the price, no two the same."""
    settings = market_settings()
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(run_market_data(settings, started))
    async with asyncio.timeout(10):
        base = f"http://127.0.0.1:{await started}"
    values = []
    for each in default_sources(base, settings.credential):
        async with HttpSource(each, lambda: NOON_MS) as opened:
            values.append(await opened.read())
    wrong = default_sources(base, "guess")[0]
    async with HttpSource(wrong, lambda: NOON_MS) as opened:
        assert await reason_of(opened.read()) == "source-status"
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    price = Market(settings.seed).price(NOON_MS)
    assert len(set(values)) == 4
    assert all(abs(value - price) < price // 20 for value in values)


def test_sources_differ_in_cadence() -> None:
    """Over two hours of grid time the exchange moves most often, the auction least."""
    market = Market(1)
    seconds = [NOON_MS + 20_000 * i for i in range(360)]
    sources = default_sources("http://x", "k")
    documents = (ticker_json, day_ahead_csv, settled_xml, index_txt)
    changes = []
    for settings, document in zip(sources, documents, strict=True):
        seen = [extract(settings.mapping, document(market, t).encode(), t) for t in seconds]
        changes.append(sum(a != b for a, b in itertools.pairwise(seen)))
    assert changes[0] > 100
    assert changes[1] == 3
    assert 20 <= changes[2] <= 24
    assert 6 <= changes[3] <= 8


def test_the_seed_decides_the_price() -> None:
    assert Market(1).price(NOON_MS) == Market(1).price(NOON_MS)
    assert Market(1).price(NOON_MS) != Market(2).price(NOON_MS)


def test_prices_stay_plausible_for_a_week() -> None:
    market = Market(1)
    prices = [market.price(NOON_MS + i * INTERVAL_MS) for i in range(7 * 48)]
    assert 2_400_000 < min(prices) < max(prices) < 5_000_000


async def test_an_address_in_use_is_refused_in_one_line() -> None:
    async def handle(_request: web.Request) -> web.Response:
        return web.Response()

    async with server(handle) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        with pytest.raises(LocalFault, match="cannot listen on"):
            await run_market_data(market_settings(listen=f"127.0.0.1:{port}"))
