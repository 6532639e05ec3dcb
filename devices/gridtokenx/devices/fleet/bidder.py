"""One household's agent: an order for every product that opens, from what it expects.

What it has bid already it reads from the chain, with proof, so it keeps no file and a restart
changes nothing. Its expectation is its forecast run through its own model; it never sees a meter.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from gridtokenx.consortium.market.messages import PlaceOrder
from gridtokenx.consortium.market.module import Market
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.gridtime import interval_start_ms
from gridtokenx.core.keys import sha256
from gridtokenx.devices.models.bidding import Rules, Temper, order_for
from gridtokenx.devices.models.forecast import Outlook
from gridtokenx.host.chains import Account, ChainAccess
from gridtokenx.host.clock import NetworkClock
from gridtokenx.host.logs import Logger
from gridtokenx.host.metrics import Metrics

GATE_MARGIN_MS: Final = 2_000
"""An order needs about this long to be committed; later than that before the gate none is sent."""
VALID_MS: Final = 15_000
RETRY_S: Final = 3.0
CLIENT_ORDER_ID: Final = 1
"""One order per product is enough for one household."""


class Bidder:
    """Bids for one household until cancelled.

    Args:
        name: of the household.
        zone: of its connection.
        chain: the consortium chain.
        account: its owner's.
        market: the market's stores and timetable, from genesis.
        rules: of the market.
        temper: of the household.
        outlook: its plan.
        ahead: how many intervals from now it bids for.
        clock: network time.
        metrics: counts ``orders_placed``, ``orders_refused`` by reason, and ``bidding_faults``.
        log: of the process.
    """

    def __init__(
        self,
        name: str,
        zone: int,
        chain: ChainAccess,
        account: Account,
        market: Market,
        rules: Rules,
        temper: Temper,
        outlook: Outlook,
        ahead: int,
        clock: NetworkClock,
        metrics: Metrics,
        log: Logger,
    ) -> None:
        self._name: Final = name
        self._zone: Final = zone
        self._chain: Final = chain
        self._account: Final = account
        self._market: Final = market
        self._rules: Final = rules
        self._temper: Final = temper
        self._outlook: Final = outlook
        self._ahead: Final = ahead
        self._clock: Final = clock
        self._metrics: Final = metrics
        self._log: Final = log
        self._settled: set[int] = set()
        """Intervals for which nothing is left to do."""

    async def run(self) -> None:
        """Bid for what is open, then whenever another product opens."""
        while True:
            try:
                complete = await self.bid()
            except RemoteFault as fault:
                self._metrics.count("bidding_faults", reason=fault.reason)
                self._log.debug("not bid", household=self._name, why=str(fault))
                complete = False
            await asyncio.sleep(self._pause_s() if complete else RETRY_S)

    async def bid(self) -> bool:
        """Place what is missing; whether every book that should be open was.

        Raises:
            RemoteFault: the chain cannot be read, or the orders could not be included.
        """
        wanted = self._wanted()
        keys = [self._market.books.key(self._zone, interval) for interval in wanted]
        desks = [
            self._market.desks.key(self._account.public_key, self._zone, interval)
            for interval in wanted
        ]
        state = await self._chain.read([*keys, *desks]) if wanted else {}
        orders: list[PlaceOrder] = []
        complete = True
        for interval, key, desk in zip(wanted, keys, desks, strict=True):
            book = state[key]
            if book is None:
                complete = False
                continue
            self._settled.add(interval)
            if not self._has_order(state[desk]):
                orders += self._order(interval, book)
        if orders:
            await self._place(orders)
        return complete

    def _wanted(self) -> list[int]:
        """Intervals whose gate is far enough, for which nothing was decided yet."""
        schedule, now_ms = self._market.schedule, self._clock.now_ms()
        first = schedule.closed_through(now_ms + GATE_MARGIN_MS) + 1
        last = min(schedule.open_through(now_ms), schedule.current(now_ms) + self._ahead)
        self._settled = {interval for interval in self._settled if interval >= first}
        return [
            interval
            for interval in range(first, last + 1)
            if interval not in self._settled and self._has_book(interval)
        ]

    def _has_book(self, interval: int) -> bool:
        return self._market.schedule.has_market(interval) and self._rules.can_trade(interval)

    def _has_order(self, desk: bytes | None) -> bool:
        return desk is not None and bool(self._market.desks.decode(desk))

    def _order(self, interval: int, book: bytes) -> list[PlaceOrder]:
        collar = self._market.books.decode(book).collar
        net_wh = self._outlook.net_wh(interval)
        order = order_for(
            self._rules, self._temper, self._zone, interval, net_wh, collar, CLIENT_ORDER_ID
        )
        return [] if order is None else [order]

    async def _place(self, orders: Sequence[PlaceOrder]) -> None:
        try:
            inclusion = await self._account.call(orders, VALID_MS)
        except RemoteFault:
            self._settled -= {order.interval for order in orders}
            raise
        for order, result in zip(orders, inclusion.results, strict=True):
            if result.code == "ok":
                self._metrics.count("orders_placed", side=order.side.name.lower())
            else:
                # The same order would be refused again; the next product is another chance.
                self._metrics.count("orders_refused", reason=result.code)
                self._log.info(
                    "order refused",
                    household=self._name,
                    interval=order.interval,
                    code=result.code,
                    why=result.message,
                )

    def _pause_s(self) -> float:
        """Until a little after the next product opens, a different while for each household."""
        schedule, now_ms = self._market.schedule, self._clock.now_ms()
        clock = schedule.clock
        opens_ms = clock.network_ms(interval_start_ms(schedule.current(now_ms) + 1))
        length_ms = opens_ms - clock.network_ms(interval_start_ms(schedule.current(now_ms)))
        own = int.from_bytes(sha256(b"pace", self._name.encode())[:4], "big")
        return (opens_ms - now_ms + length_ms // 30 + own % max(1, length_ms // 5)) / 1000
