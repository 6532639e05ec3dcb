"""`gtx market-data`: four sources of one price, as different as real ones.

=============  ====================  ==========  ==========================  ==================
path           format                unit        cadence (grid time)         credential
=============  ====================  ==========  ==========================  ==================
/v1/ticker     JSON, nested          THB/kWh     a trade a minute            X-Api-Key
/dayahead.csv  CSV, semicolons       THB/MWh     half hours of today         none
/settled.xml   XML, several areas    satang/kWh  five minutes, with losses   Basic
/index.txt     plain text            THB/kWh     quarter hours               Bearer
=============  ====================  ==========  ==========================  ==================

Each oracle polls one of them, with its own mapping, so no value is shared. `default_sources` are the
settings with which the local testnet's oracles do.
"""

import asyncio
import base64
import hmac
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Final

from aiohttp import web

from gridtokenx.core.gridtime import (
    BANGKOK_UTC_OFFSET_MS,
    DAY_MS,
    INTERVAL_MS,
    local_day,
)
from gridtokenx.host.addresses import HostPort
from gridtokenx.host.config import Setting
from gridtokenx.host.http import HttpServer, add_health
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.readiness import READY
from gridtokenx.host.role import open_role
from gridtokenx.host.settings import GridTimeSettings
from gridtokenx.oracle.feeds.market import MICRO, Market
from gridtokenx.oracle.feeds.source import SourceSettings

ENERGY_PRICE: Final = "energy-price"
BANGKOK: Final = timezone(timedelta(milliseconds=BANGKOK_UTC_OFFSET_MS))
MAX_REQUEST_BYTES: Final = 1024


class MarketDataSettings(GridTimeSettings, frozen=True, kw_only=True):
    """Settings of `gtx market-data`."""

    listen: Annotated[str, Setting("Address (host:port) that serves the sources.")]
    seed: Annotated[int, Setting("Decides the price.", minimum=0)] = 1
    credential: Annotated[
        str, Setting("Key, token and password that three of the sources ask for.", secret=True)
    ] = "local-testnet"


def default_sources(base_url: str, credential: str) -> tuple[SourceSettings, ...]:
    """How the four oracles of a local testnet read the four sources; the feed is micro-WATT/kWh."""
    basic = base64.b64encode(f"oracle:{credential}".encode()).decode()
    return (
        SourceSettings(
            name="exchange ticker",
            url=f"{base_url}/v1/ticker",
            format="json",
            value="data.0.last",
            units="1000000",
            auth_header="X-Api-Key",
            auth_value=credential,
        ),
        SourceSettings(
            name="day-ahead auction",
            url=f"{base_url}/dayahead.csv",
            format="csv",
            value="price_thb_per_mwh",
            time="start",
            delimiter=";",
            units="1000",
            poll_ms=5_000,
        ),
        SourceSettings(
            name="utility settlement",
            url=f"{base_url}/settled.xml",
            format="xml",
            value="area[@id='TH-C']/interval/price",
            units="10000",
            auth_header="Authorization",
            auth_value=f"Basic {basic}",
            poll_ms=2_000,
        ),
        SourceSettings(
            name="spot index",
            url=f"{base_url}/index.txt",
            format="text",
            value=r"GTX-SPOT\s+([0-9.]+)\s+THB/kWh",
            units="1000000",
            auth_header="Authorization",
            auth_value=f"Bearer {credential}",
            poll_ms=5_000,
        ),
    )


# -- the four documents ----------------------------------------------------------------------------


def ticker_json(market: Market, grid_ms: int) -> str:
    """An exchange's ticker: the last trade and a spread around it."""
    traded_ms, price = market.last_trade(grid_ms)
    bid, ask = price - price // 500, price + price // 500
    return (
        '{"status":"ok","data":[{"symbol":"ENERGY-THB",'
        f'"last":{_decimal(price, 6)},"bid":"{_decimal(bid, 6)}","ask":"{_decimal(ask, 6)}",'
        f'"unit":"THB/kWh","time":{traded_ms}'
        "}]}"
    )


def day_ahead_csv(market: Market, grid_ms: int) -> str:
    """A table of today's half hours, as it was auctioned the day before."""
    day_start_ms = local_day(grid_ms) * DAY_MS - BANGKOK_UTC_OFFSET_MS
    first = day_start_ms // INTERVAL_MS
    rows = [
        f"{_iso(interval * INTERVAL_MS)};{_decimal(market.day_ahead(interval) * 1_000, 2)}"
        for interval in range(first, first + DAY_MS // INTERVAL_MS)
    ]
    return "start;price_thb_per_mwh\r\n" + "\r\n".join(rows) + "\r\n"


def settled_xml(market: Market, grid_ms: int) -> str:
    """A utility's settlement prices, for the area that we want among others."""
    start_ms, price = market.settled(grid_ms)
    areas = (("TH-N", price + 21_000), ("TH-C", price), ("TH-S", price + 48_000))
    body = "".join(
        f'<area id="{area}"><interval start="{_iso(start_ms)}" minutes="5">'
        f'<price unit="satang/kWh">{_decimal(value * 100, 3)}</price></interval></area>'
        for area, value in areas
    )
    return f'<?xml version="1.0" encoding="UTF-8"?><settlement currency="THB">{body}</settlement>'


def index_txt(market: Market, grid_ms: int) -> str:
    """An index provider's page for machines."""
    at_ms, price = market.index(grid_ms)
    return (
        "# quarter-hourly index of trades; no warranty\n"
        f"{_iso(at_ms)}  GTX-SPOT  {_decimal(price, 4)}  THB/kWh\n"
    )


def _decimal(micro: int, places: int) -> str:
    """Millionths as a decimal text with so many places, rounded half up."""
    scaled = (micro * 10**places + MICRO // 2) // MICRO
    whole, rest = divmod(scaled, 10**places)
    return f"{whole}.{rest:0{places}d}"


def _iso(grid_ms: int) -> str:
    return datetime.fromtimestamp(grid_ms / 1000, UTC).astimezone(BANGKOK).isoformat()


# -- the server ------------------------------------------------------------------------------------

Document = Callable[[Market, int], str]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(
    settings: MarketDataSettings, clock: Callable[[], int], metrics: Metrics
) -> web.Application:
    """The server as an aiohttp application."""
    market, grid = Market(settings.seed), settings.grid_clock
    key = settings.credential
    basic = base64.b64encode(f"oracle:{key}".encode()).decode()

    def serve(name: str, kind: str, document: Document, header: str, wanted: str) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            given = request.headers.get(header, "") if header else ""
            if header and not hmac.compare_digest(given.encode(), wanted.encode()):
                metrics.count("market_data_requests", source=name, status="401")
                return web.Response(status=401, text=f"give the credential in {header}\n")
            metrics.count("market_data_requests", source=name, status="200")
            return web.Response(text=document(market, grid.grid_ms(clock())), content_type=kind)

        return handle

    app = web.Application(client_max_size=MAX_REQUEST_BYTES)
    app.router.add_get(
        "/v1/ticker", serve("exchange", "application/json", ticker_json, "X-Api-Key", key)
    )
    app.router.add_get("/dayahead.csv", serve("day-ahead", "text/csv", day_ahead_csv, "", ""))
    app.router.add_get(
        "/settled.xml",
        serve("utility", "application/xml", settled_xml, "Authorization", f"Basic {basic}"),
    )
    app.router.add_get(
        "/index.txt", serve("index", "text/plain", index_txt, "Authorization", f"Bearer {key}")
    )
    return app


async def run_market_data(
    settings: MarketDataSettings, started: "asyncio.Future[int] | None" = None
) -> None:
    """Serve until cancelled; also `/health`, `/ready` and `/metrics`.

    Args:
        settings: of the process.
        started: gets the port once it listens.

    Raises:
        LocalFault: the address cannot be listened on.
    """
    role = open_role(settings, "market-data")
    app = make_app(settings, role.clock.now_ms, role.metrics)
    add_health(app, role.metrics, lambda: READY)
    server = HttpServer(app, HostPort.parse(settings.listen), role.metrics)
    async with role.serving(lambda: READY):
        await server.start()
        role.log.info("listening", port=server.port)
        if started is not None:
            started.set_result(server.port)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await server.close()
