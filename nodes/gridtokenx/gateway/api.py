"""The endpoints.

===============================================  ==================================================
GET  /api/v1/status                              the network on one page
GET  /api/v1/chains/{chain}/headers              newest final headers
GET  /api/v1/markets                             markets, their next gate and last auction
GET  /api/v1/markets/{market}/price              indicative price, by proof, and recent signals
GET  /api/v1/markets/{market}/auctions           auctions, newest delivery first
GET  /api/v1/markets/{market}/book               depth of the next product to be cleared
GET  /api/v1/orders                              by account, market and status
POST /api/v1/orders                              forward a signed order
POST /api/v1/transactions                        forward any signed transaction
GET  /api/v1/transactions/{id}                   its receipt
GET  /api/v1/settlements                         settled delivery intervals
GET  /api/v1/intervals                           what the oracle chain closed
GET  /api/v1/feeds, /api/v1/feeds/{feed}         price feeds, and their rounds
GET  /api/v1/recs, /api/v1/recs/{id}             certificates of renewable energy
GET  /api/v1/packets                             packets between chains, by route
GET  /api/v1/events                              what happened, in words
GET  /api/v1/accounts/{address}                  balances on all chains, by proof
GET  /health  /ready  /metrics  /                for operators; the live page
===============================================  ==================================================

Lists take `limit`; amounts, energies, prices and times are integers with the unit in their names.
"""

import asyncio
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Final

from aiohttp import web

from gridtokenx.core.addresses import address
from gridtokenx.gateway import accounts
from gridtokenx.gateway.facts import CONSORTIUM, PUBLIC, ROUTES, NetworkFacts
from gridtokenx.gateway.ports import ChainSource
from gridtokenx.gateway.queries import Json, Queries
from gridtokenx.gateway.submission import Submissions
from gridtokenx.gateway.web import (
    MAX_BODY_BYTES,
    Guard,
    check_query,
    missing,
    read_account,
    read_chain,
    read_choice,
    read_flag,
    read_hash,
    read_limit,
    read_number,
    read_transaction_bytes,
    read_zone,
    reply,
)
from gridtokenx.host.logs import Logger
from gridtokenx.host.metrics import Metrics
from gridtokenx.ledger.transactions import Transaction

ORDER_STATUSES: Final = ("open", "filled", "partly_filled", "unfilled", "cancelled", "void")
PACKET_STATUSES: Final = ("sent", "delivered", "refused", "timed_out")
WAIT_S: Final = 25.0
"""The longest wait for a receipt; below what proxies and clients usually allow."""
STATE_READS: Final = 8
"""Requests that may be asking nodes for state at once; the others queue behind them."""
PAGE_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
)


class Api:
    """All handlers.

    Args:
        network: the chains.
        queries: reads the index.
        sources: the chains as followed, for state reads.
        submissions: the way in.
        metrics: what `/metrics` shows.
        now_ms: network time.
        troubles: why the gateway is not ready; empty when it is.
    """

    def __init__(
        self,
        network: NetworkFacts,
        queries: Queries,
        sources: Mapping[str, ChainSource],
        submissions: Submissions,
        metrics: Metrics,
        now_ms: Callable[[], int],
        troubles: Callable[[], list[str]],
    ) -> None:
        self._network: Final = network
        self._queries: Final = queries
        self._sources: Final = sources
        self._submissions: Final = submissions
        self._metrics: Final = metrics
        self._now_ms: Final = now_ms
        self._troubles: Final = troubles
        self._reads: Final = asyncio.Semaphore(STATE_READS)
        self._page: Final = resources.files("gridtokenx.gateway").joinpath("page.html").read_bytes()

    def application(self, logger: Logger) -> web.Application:
        """The application to serve."""
        guard = Guard(self._metrics, logger)
        self._metrics.gauge("ready", lambda: float(not self._troubles()))
        app = web.Application(middlewares=[guard.middleware()], client_max_size=MAX_BODY_BYTES)
        v1 = "/api/v1"
        app.add_routes(
            [
                web.get("/", self.page),
                web.get("/health", self.health),
                web.get("/ready", self.ready),
                web.get("/metrics", self.metrics),
                web.get(f"{v1}/status", self.status),
                web.get(f"{v1}/chains/{{chain}}/headers", self.headers),
                web.get(f"{v1}/markets", self.markets),
                web.get(f"{v1}/markets/{{market}}/price", self.price),
                web.get(f"{v1}/markets/{{market}}/auctions", self.auctions),
                web.get(f"{v1}/markets/{{market}}/book", self.book),
                web.get(f"{v1}/orders", self.orders),
                web.post(f"{v1}/orders", self.post_order),
                web.post(f"{v1}/transactions", self.post_transaction),
                web.get(f"{v1}/transactions/{{id}}", self.transaction),
                web.get(f"{v1}/settlements", self.settlements),
                web.get(f"{v1}/intervals", self.intervals),
                web.get(f"{v1}/feeds", self.feeds),
                web.get(f"{v1}/feeds/{{feed}}", self.feed),
                web.get(f"{v1}/recs", self.recs),
                web.get(f"{v1}/recs/{{id}}", self.rec),
                web.get(f"{v1}/packets", self.packets),
                web.get(f"{v1}/events", self.events),
                web.get(f"{v1}/accounts/{{address}}", self.account),
            ]
        )
        return app

    # -- operators ---------------------------------------------------------------------------------

    async def page(self, request: web.Request) -> web.Response:
        """The live page."""
        check_query(request)
        return web.Response(
            body=self._page,
            content_type="text/html",
            charset="utf-8",
            headers={
                "Content-Security-Policy": PAGE_POLICY,
                "X-Content-Type-Options": "nosniff",
                "Cache-Control": "no-cache",
            },
        )

    async def health(self, request: web.Request) -> web.Response:
        """The process answers."""
        check_query(request)
        return reply({"status": "ok"})

    async def ready(self, request: web.Request) -> web.Response:
        """Whether what is shown is verified and fresh."""
        check_query(request)
        troubles = self._troubles()
        return reply({"ready": not troubles, "reasons": troubles}, 503 if troubles else 200)

    async def metrics(self, request: web.Request) -> web.Response:
        """Prometheus."""
        check_query(request)
        return web.Response(
            body=self._metrics.render(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    # -- chains ------------------------------------------------------------------------------------

    async def status(self, request: web.Request) -> web.Response:
        """See `Queries.status`."""
        check_query(request)
        return reply(self._queries.status(self._now_ms()))

    async def headers(self, request: web.Request) -> web.Response:
        """Newest final headers."""
        check_query(request, "limit")
        chain = read_chain(request.match_info["chain"])
        limit = read_limit(request)
        return reply({"chain": chain, "headers": self._queries.headers(chain, limit)})

    async def events(self, request: web.Request) -> web.Response:
        """What happened, newest first."""
        check_query(request, "after", "limit")
        after = read_number(request, "after", 0)
        return reply({"events": self._queries.events(after, read_limit(request))})

    async def packets(self, request: web.Request) -> web.Response:
        """Packets of one route, or of all."""
        check_query(request, "route", "status", "limit")
        asked = read_choice(request, "route", ROUTES)
        status = read_choice(request, "status", PACKET_STATUSES)
        limit = read_limit(request)
        routes = ROUTES if asked is None else (asked,)
        found = {route: self._queries.packets(route, status, limit) for route in routes}
        return reply({"packets": found})

    # -- market ------------------------------------------------------------------------------------

    async def markets(self, request: web.Request) -> web.Response:
        """All markets."""
        check_query(request)
        return reply({"markets": self._queries.markets()})

    async def price(self, request: web.Request) -> web.Response:
        """The indicative price, read from state by proof."""
        check_query(request, "limit", "prove")
        zone = self._zone(request)
        limit, prove = read_limit(request), read_flag(request, "prove")
        async with self._reads:
            price, state, keys = await accounts.read_price(self._sources[CONSORTIUM], zone)
        answer: Json = {
            "market": request.match_info["market"],
            "price_uwatt_per_kwh": price,
            **accounts.where(state),
            "signals": self._queries.signals(zone, limit),
        }
        return reply(answer | (accounts.proofs(state, keys) if prove else {}))

    async def auctions(self, request: web.Request) -> web.Response:
        """Auctions of a market."""
        check_query(request, "limit")
        zone, limit = self._zone(request), read_limit(request)
        name = request.match_info["market"]
        return reply({"market": name, "auctions": self._queries.auctions(zone, limit)})

    async def book(self, request: web.Request) -> web.Response:
        """Depth of the next product to be cleared."""
        check_query(request)
        zone = self._zone(request)
        book = self._queries.book(zone)
        if book is None:
            raise missing("no-open-book", "no product of this market takes orders now")
        return reply(book)

    async def orders(self, request: web.Request) -> web.Response:
        """Orders by account, market and status."""
        check_query(request, "account", "market", "status", "limit")
        account, market = request.query.get("account"), request.query.get("market")
        found = self._queries.orders(
            None if account is None else read_account(account),
            None if market is None else read_zone(market, self._network),
            read_choice(request, "status", ORDER_STATUSES),
            read_limit(request),
        )
        return reply({"orders": found})

    async def settlements(self, request: web.Request) -> web.Response:
        """Settled delivery intervals."""
        check_query(request, "limit")
        return reply({"settlements": self._queries.settlements(read_limit(request))})

    # -- the way in --------------------------------------------------------------------------------

    async def post_order(self, request: web.Request) -> web.Response:
        """Forward a signed order."""
        check_query(request, "wait")
        wait = read_flag(request, "wait")
        raw = await read_transaction_bytes(request)
        return await self._forward(*self._submissions.read_order(raw), wait=wait)

    async def post_transaction(self, request: web.Request) -> web.Response:
        """Forward any signed transaction to its chain."""
        check_query(request, "wait")
        wait = read_flag(request, "wait")
        raw = await read_transaction_bytes(request)
        return await self._forward(*self._submissions.read(raw), wait=wait)

    async def transaction(self, request: web.Request) -> web.Response:
        """The receipt of a transaction."""
        check_query(request)
        transaction_id = read_hash(request.match_info["id"], "transaction-id")
        receipt = self._queries.receipt(transaction_id)
        if receipt is None:
            raise missing("no-receipt", "it is in none of the newest final blocks (yet)")
        return reply(receipt)

    async def _forward(self, chain: str, transaction: Transaction, *, wait: bool) -> web.Response:
        receipt = self._queries.receipt(transaction.id)
        if receipt is None:
            if wait:
                await self._submissions.submit_and_wait(chain, transaction, WAIT_S)
                receipt = self._queries.receipt(transaction.id)
            else:
                await self._submissions.submit(chain, transaction)
        if receipt is not None:
            return reply(receipt)
        pending = {"transaction_id": transaction.id.hex(), "chain": chain, "final": False}
        return reply(pending, 202)

    # -- oracle chain ------------------------------------------------------------------------------

    async def intervals(self, request: web.Request) -> web.Response:
        """Closed metering intervals."""
        check_query(request, "limit")
        return reply({"intervals": self._queries.intervals(read_limit(request))})

    async def feeds(self, request: web.Request) -> web.Response:
        """All feeds with their newest round."""
        check_query(request)
        names = self._queries.feeds()
        newest = [round_ for name in names for round_ in self._queries.rounds(name, 1)]
        return reply({"feeds": newest})

    async def feed(self, request: web.Request) -> web.Response:
        """Rounds of one feed."""
        check_query(request, "limit")
        name = request.match_info["feed"]
        rounds = self._queries.rounds(name, read_limit(request))
        if not rounds:
            raise missing("unknown-feed", f"no round of {name[:64]!r} has closed")
        return reply({"feed": name, "rounds": rounds})

    # -- certificates ------------------------------------------------------------------------------

    async def recs(self, request: web.Request) -> web.Response:
        """Certificates, of one holder or all."""
        check_query(request, "owner", "limit")
        owner = request.query.get("owner")
        holder = None if owner is None else read_account(owner)
        return reply({"recs": self._queries.certificates(holder, read_limit(request))})

    async def rec(self, request: web.Request) -> web.Response:
        """One certificate."""
        check_query(request, "prove")
        certificate_id, prove = (
            read_hash(request.match_info["id"], "rec"),
            read_flag(request, "prove"),
        )
        found = self._queries.certificate(certificate_id)
        if found is None:
            raise missing("unknown-rec", "no certificate has this id")
        if prove:
            async with self._reads:
                state, keys = await accounts.read_certificate(self._sources[PUBLIC], certificate_id)
            found |= {"state": accounts.where(state)} | accounts.proofs(state, keys)
        return reply(found)

    # -- accounts ----------------------------------------------------------------------------------

    async def account(self, request: web.Request) -> web.Response:
        """Balances on all chains, by proof."""
        check_query(request, "prove")
        account, prove = read_account(request.match_info["address"]), read_flag(request, "prove")
        found: Json = {"address": address(account), "public_key": account.hex(), "chains": {}}
        async with self._reads:
            for chain in (PUBLIC, CONSORTIUM):
                source = self._sources[chain]
                read = accounts.read_account_on(chain, source, account, prove=prove)
                found["chains"][chain] = await read
        found["recs"] = self._queries.certificates(account, 100)
        found["statement"] = self._queries.statement(account)
        return reply(found)

    def _zone(self, request: web.Request) -> int:
        return read_zone(request.match_info["market"], self._network)
