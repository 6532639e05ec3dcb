"""The market: order books per (zone, delivery interval), cleared by call auction.

Law of the file: **what a market commits an account to is locked before it is accepted.** An order
enters with collateral for its worst case, which shrinks to the contract's at clearing and is handed
to settlement with the position.

::

    state of a product    event of the chain                            what happens
    -                     block time within `open_ahead_intervals`      book opens, collar freezes
    open                  PlaceOrder / CancelOrder                      checked; collateral moves
    open                  first block after the gate                    cleared; positions open
    open                  no block between gate and delivery            voided; all released

The hooks touch only products that are due: the two cursors bound them by `open_ahead_intervals`,
however long the chain stood still.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final

from gridtokenx.consortium.custody import WATT_DENOM
from gridtokenx.consortium.market.auction import (
    AuctionOrder,
    Clearing,
    Collar,
    Side,
    attribute,
    clear,
    effective_ask_tick,
    effective_bid_tick,
)
from gridtokenx.consortium.market.indicative import indicative_price
from gridtokenx.consortium.market.messages import (
    EVENTS,
    AuctionCleared,
    AuctionVoided,
    BookOpened,
    CancelOrder,
    OrderCancelled,
    OrderClosed,
    OrderPlaced,
    PlaceOrder,
    PriceSignalUpdated,
    TradeMatched,
)
from gridtokenx.consortium.market.parameters import (
    IntervalPrices,
    MarketParameters,
    band_of,
    buy_collateral_uwatt,
    collar_of,
    interval_prices,
    margin_uwatt,
    sell_collateral_uwatt,
)
from gridtokenx.consortium.market.positions import NO_POSITION, Holder, Position, Positions
from gridtokenx.consortium.market.schedule import Schedule
from gridtokenx.consortium.participants import Participants
from gridtokenx.consortium.tariff import Tariff
from gridtokenx.core.codec import Wire
from gridtokenx.core.gridtime import GridClock
from gridtokenx.core.types import Index16, PublicKey, UInt63
from gridtokenx.ledger.runtime import CallFailed, Context, Module, handles
from gridtokenx.ledger.state import Cell, Log, Map, State
from gridtokenx.ledger.tokens import Tokens

COLLATERAL: Final = "energy"
"""Purpose of all locks of orders and positions."""
INTERVALS_PER_DAY: Final = 48


class Book(Wire, frozen=True):
    """An open product."""

    reference_tick: UInt63
    """Frozen at opening; also what rule 4 prefers."""
    floor_tick: UInt63
    cap_tick: UInt63
    buy_wh: UInt63
    """Open bids."""
    sell_wh: UInt63
    """Open offers."""

    @property
    def collar(self) -> Collar:
        """Where the price must lie."""
        return Collar(self.floor_tick, self.cap_tick)


class Order(Wire, frozen=True):
    """An open order."""

    order_id: UInt63
    account: PublicKey
    client_order_id: UInt63
    zone: Index16
    interval: UInt63
    side: Side
    price_tick: UInt63
    """Its limit less fees and network charge: what the auction works on."""
    energy_wh: UInt63
    locked_uwatt: UInt63


Desk = tuple[Order, ...]
"""All open orders of one account in one product, in order of arrival."""


class Market(Module):
    """See the head of the file.

    Args:
        tokens: holds the collateral.
        participants: says who may trade, and how much power their connections have.
        positions: where cleared contracts go.
        zones: the grid zones, each with its own books.
        clock: the map from block time to grid time.
        tariff: retail, buyback and network prices.
        parameters: the market's rules.
    """

    name = "market"
    events = EVENTS

    def __init__(
        self,
        tokens: Tokens,
        participants: Participants,
        positions: Positions,
        *,
        zones: Sequence[int],
        clock: GridClock,
        tariff: Tariff,
        parameters: MarketParameters,
    ) -> None:
        self._tokens: Final = tokens
        self._participants: Final = participants
        self._positions: Final = positions
        self._zones: Final = tuple(zones)
        self._tariff: Final = tariff
        self.parameters: Final = parameters
        self.schedule: Final = Schedule(clock, parameters, tariff)
        # Functions of a product or of block time, asked for by every order: each worked out once.
        self._retail: Final = lru_cache(maxsize=256)(tariff.retail_uwatt_per_kwh)
        self._closed_through: Final = lru_cache(maxsize=4)(self.schedule.closed_through)
        self.books: Final = Map("market.book", Book)
        self.desks: Final = Map("market.desk", Desk)
        self._accounts: Final = Log("market.account", bytes)
        self.results: Final = Map("market.result", int)
        self.last_prices: Final = Map("market.last_price", int)
        self.signals: Final = Map("market.signal", int)
        self._signal_slot: Final = Cell("market.signal_slot", int, 0)
        self._next_order: Final = Cell("market.next_order", int, 1)
        self._opened: Final = Cell("market.opened_through", int, 0)
        self._closed: Final = Cell("market.closed_through", int, 0)

    # -- reads -------------------------------------------------------------------------------------

    def prices(self, state: State, zone: int, interval: int) -> IntervalPrices:
        """All prices of a zone and interval whose auction is over."""
        price = self.results.get(state, zone, interval)
        return interval_prices(self.parameters, self._tariff, interval, price)

    def indicative(self, state: State, zone: int) -> int:
        """The last published indicative price."""
        default = self.parameters.indicative.balance_uwatt_per_kwh
        return self.signals.read(state, default, zone)

    # -- for settlement ----------------------------------------------------------------------------

    def forget_prices(self, state: State, interval: int) -> None:
        """Drop the results of an interval that nothing can change any more."""
        for zone in self._zones:
            self.results.delete(state, zone, interval)

    # -- hooks -------------------------------------------------------------------------------------

    def begin_block(self, ctx: Context) -> None:
        """Clear what is due, open what has come near, and publish the indicative price."""
        closed = self.schedule.closed_through(ctx.timestamp_ms)
        self._close_through(ctx, closed)
        self._open_through(ctx, self.schedule.open_through(ctx.timestamp_ms))
        self._publish_signals(ctx, closed + 1)

    def _close_through(self, ctx: Context, closed: int) -> None:
        before = self._closed.get(ctx.state)
        if closed == before:
            return
        self._closed.put(ctx.state, closed)
        started = self.schedule.current(ctx.timestamp_ms)
        for interval in range(before + 1, min(closed, self._opened.get(ctx.state)) + 1):
            for zone in self._zones:
                book = self.books.get(ctx.state, zone, interval)
                if book is None:
                    continue
                if interval > started:
                    self._clear(ctx, zone, interval, book)
                else:
                    self._void(ctx, zone, interval)

    def _open_through(self, ctx: Context, last: int) -> None:
        before, closed = self._opened.get(ctx.state), self._closed.get(ctx.state)
        if last == before:
            return
        self._opened.put(ctx.state, last)
        for interval in range(max(before, closed) + 1, last + 1):
            if self.schedule.has_market(interval):
                for zone in self._zones:
                    self._open_book(ctx, zone, interval)

    def _open_book(self, ctx: Context, zone: int, interval: int) -> None:
        """Freeze the collar; where no trade can pay there is no book."""
        band = band_of(self.parameters, self._tariff, interval)
        reference = self.last_prices.read(
            ctx.state, self.indicative(ctx.state, zone), zone, interval % INTERVALS_PER_DAY
        )
        collar, reference_tick = collar_of(self.parameters, band, reference)
        if collar.empty:
            return
        book = Book(
            reference_tick=reference_tick,
            floor_tick=collar.floor_tick,
            cap_tick=collar.cap_tick,
            buy_wh=0,
            sell_wh=0,
        )
        self.books.put(ctx.state, book, zone, interval)
        tick = self.parameters.tick_uwatt_per_kwh
        ctx.emit(
            BookOpened(
                zone=zone,
                interval=interval,
                gate_ms=self.schedule.gate_ms(interval),
                reference_uwatt_per_kwh=reference_tick * tick,
                floor_uwatt_per_kwh=collar.floor_tick * tick,
                cap_uwatt_per_kwh=collar.cap_tick * tick,
            )
        )

    def _publish_signals(self, ctx: Context, interval: int) -> None:
        """Every period of grid time, and only what changed."""
        slot = self.schedule.signal_slot(ctx.timestamp_ms)
        if slot == self._signal_slot.get(ctx.state):
            return
        self._signal_slot.put(ctx.state, slot)
        for zone in self._zones:
            book = self.books.get(ctx.state, zone, interval)
            supply_wh, demand_wh = (book.sell_wh, book.buy_wh) if book else (0, 0)
            price = indicative_price(self.parameters.indicative, supply_wh, demand_wh)
            if price == self.signals.get(ctx.state, zone):
                continue
            self.signals.put(ctx.state, price, zone)
            ctx.emit(
                PriceSignalUpdated(
                    zone=zone,
                    interval=interval,
                    grid_ms=slot * self.parameters.indicative.update_grid_ms,
                    price_uwatt_per_kwh=price,
                    supply_wh=supply_wh,
                    demand_wh=demand_wh,
                )
            )

    # -- orders ------------------------------------------------------------------------------------

    @handles(PlaceOrder, weight=30)
    def place_order(self, ctx: Context, call: PlaceOrder) -> None:
        """Check an order, lock its collateral and enter it."""
        self._participants.require_trader(ctx.state, ctx.sender, self.parameters.min_kyc_tier)
        self._check_form(call)
        book = self._open_product(ctx, call.zone, call.interval)
        price_tick = self._effective_tick(call)
        if not book.collar.admits(call.side, price_tick):
            raise CallFailed("outside-collar", self._collar_text(book, price_tick))
        desk_key = self.desks.key(ctx.sender, call.zone, call.interval)
        desk = self.desks.get_at(ctx.state, desk_key)
        self._check_desk(ctx, call, desk or ())
        locked_uwatt = self._worst_case_uwatt(call, book)
        self._tokens.lock(ctx.state, WATT_DENOM, ctx.sender, COLLATERAL, locked_uwatt)
        order = Order(
            order_id=self._next_order.get(ctx.state),
            account=ctx.sender,
            client_order_id=call.client_order_id,
            zone=call.zone,
            interval=call.interval,
            side=call.side,
            price_tick=price_tick,
            energy_wh=call.energy_wh,
            locked_uwatt=locked_uwatt,
        )
        self._enter(ctx.state, order, book, desk_key, desk)
        ctx.emit(
            OrderPlaced(
                order_id=order.order_id,
                account=order.account,
                client_order_id=order.client_order_id,
                zone=order.zone,
                interval=order.interval,
                side=order.side,
                limit_uwatt_per_kwh=call.limit_uwatt_per_kwh,
                energy_wh=order.energy_wh,
                locked_uwatt=order.locked_uwatt,
            )
        )

    @handles(CancelOrder, weight=20)
    def cancel_order(self, ctx: Context, call: CancelOrder) -> None:
        """Take back an open order before its gate closes."""
        key = (ctx.sender, call.zone, call.interval)
        desk = self.desks.read(ctx.state, (), *key)
        order = next((o for o in desk if o.client_order_id == call.client_order_id), None)
        if order is None:
            raise CallFailed("unknown-order", f"no open order of yours is {call.client_order_id}")
        book = self._open_product(ctx, call.zone, call.interval)
        # The desk stays, even if empty: its account is listed in the book once.
        self.desks.put(ctx.state, tuple(o for o in desk if o is not order), *key)
        book = _booked(book, order.side, -order.energy_wh)
        self.books.put_at(ctx.state, book, self.books.key(call.zone, call.interval))
        self._release(ctx.state, order.account, order.locked_uwatt)
        ctx.emit(_cancelled(order, "owner"))

    def _check_form(self, call: PlaceOrder) -> None:
        rules = self.parameters
        if not rules.min_order_wh <= call.energy_wh <= rules.max_order_wh:
            raise CallFailed(
                "order-size", f"{call.energy_wh} Wh; {rules.min_order_wh} to {rules.max_order_wh}"
            )
        if not 0 < call.limit_uwatt_per_kwh <= rules.max_limit_uwatt_per_kwh:
            raise CallFailed("limit-range", f"1 to {rules.max_limit_uwatt_per_kwh} uWATT/kWh")
        if call.limit_uwatt_per_kwh % rules.tick_uwatt_per_kwh:
            raise CallFailed("tick", f"limits are multiples of {rules.tick_uwatt_per_kwh}")

    def _open_product(self, ctx: Context, zone: int, interval: int) -> Book:
        """The book of a product that takes orders in this block."""
        if interval <= self._closed_through(ctx.timestamp_ms):
            raise CallFailed("gate-closed", f"interval {interval} takes no orders any more")
        book = self.books.get_at(ctx.state, self.books.key(zone, interval))
        if book is not None:
            return book
        if zone not in self._zones:
            raise CallFailed("unknown-zone", f"zone {zone} does not exist")
        if not self.schedule.has_market(interval):
            raise CallFailed("market-hours", "there is no auction for this time of day")
        if band_of(self.parameters, self._tariff, interval).empty:
            raise CallFailed("empty-band", "under the tariff no trade can pay in this interval")
        raise CallFailed("not-open", f"interval {interval} does not take orders yet")

    def _effective_tick(self, call: PlaceOrder) -> int:
        rules = self.parameters
        if call.side is Side.BUY:
            return effective_bid_tick(
                call.limit_uwatt_per_kwh,
                network_uwatt_per_kwh=self._tariff.network_uwatt_per_kwh,
                fee_bps=rules.fee_buy_bps,
                tick_uwatt_per_kwh=rules.tick_uwatt_per_kwh,
            )
        return effective_ask_tick(
            call.limit_uwatt_per_kwh,
            fee_bps=rules.fee_sell_bps,
            tick_uwatt_per_kwh=rules.tick_uwatt_per_kwh,
        )

    def _collar_text(self, book: Book, price_tick: int) -> str:
        tick = self.parameters.tick_uwatt_per_kwh
        return (
            f"the limit less fees and network charge is {price_tick * tick}, "
            f"the price will lie in {book.floor_tick * tick} to {book.cap_tick * tick}"
        )

    def _check_desk(self, ctx: Context, call: PlaceOrder, desk: Desk) -> None:
        """Whether number, side and energy of the account's orders with the new one are allowed."""
        if len(desk) >= self.parameters.max_orders_per_product:
            raise CallFailed("too-many-orders", f"{len(desk)} open in this product")
        if call.client_order_id in [order.client_order_id for order in desk]:
            raise CallFailed("client-order-id", f"{call.client_order_id} names an open order")
        # One desk is on one side: each order was checked so when it came.
        if desk and desk[0].side is not call.side:
            raise CallFailed("self-trade", "your open orders in this product are on the other side")
        total_wh = call.energy_wh + sum([order.energy_wh for order in desk])
        connection = self._participants.connection(ctx.state, ctx.sender, call.zone)
        limit_wh = connection.max_buy_wh if call.side is Side.BUY else connection.max_sell_wh
        if total_wh > limit_wh:
            code = "connection" if call.side is Side.BUY else "capacity"
            raise CallFailed(code, f"{total_wh} Wh; what is approved for you allows {limit_wh}")

    def _worst_case_uwatt(self, call: PlaceOrder, book: Book) -> int:
        """Buyer: the limit. Seller: to deliver nothing, at the dearest short price there can be."""
        retail = self._retail(call.interval)
        if call.side is Side.BUY:
            contract = buy_collateral_uwatt(call.limit_uwatt_per_kwh, call.energy_wh)
        else:
            short = max(retail, book.cap_tick * self.parameters.tick_uwatt_per_kwh)
            contract = sell_collateral_uwatt(short, call.limit_uwatt_per_kwh, call.energy_wh)
        return contract + margin_uwatt(self.parameters, retail, call.energy_wh)

    def _enter(
        self, state: State, order: Order, book: Book, desk_key: bytes, desk: Desk | None
    ) -> None:
        product = (order.zone, order.interval)
        self._next_order.put(state, order.order_id + 1)
        if desk is None:
            self._accounts.append(state, order.account, *product)
        self.desks.put_at(state, (*(desk or ()), order), desk_key)
        book = _booked(book, order.side, order.energy_wh)
        self.books.put_at(state, book, self.books.key(*product))

    # -- the auction -------------------------------------------------------------------------------

    def _clear(self, ctx: Context, zone: int, interval: int, book: Book) -> None:
        """Hold the auction of one product and hand its contracts to settlement."""
        orders = self._take_book(ctx, zone, interval)
        result = clear(
            (AuctionOrder(o.order_id, o.side, o.price_tick, o.energy_wh) for o in orders),
            book.collar,
            book.reference_tick,
        )
        price = None
        if result.price_tick is not None:
            price = result.price_tick * self.parameters.tick_uwatt_per_kwh
            self.results.put(ctx.state, price, zone, interval)
            self.last_prices.put(ctx.state, price, zone, interval % INTERVALS_PER_DAY)
        self._open_positions(ctx.state, zone, interval, orders, result)
        for order in orders:
            ctx.emit(_order_closed(order, result))
        trades = self._matched(zone, interval, orders, result, price or 0)
        for trade in trades:
            ctx.emit(trade)
        ctx.emit(
            AuctionCleared(
                zone=zone,
                interval=interval,
                price_uwatt_per_kwh=price,
                volume_wh=result.volume_wh,
                demand_wh=result.demand_wh,
                supply_wh=result.supply_wh,
                orders=len(orders),
                trades=len(trades),
                rule=result.rule,
            )
        )

    def _open_positions(
        self, state: State, zone: int, interval: int, orders: Iterable[Order], result: Clearing
    ) -> None:
        """Net each account's fills, and shrink its collateral to what they can come to owe."""
        prices = self.prices(state, zone, interval)
        before = self._positions.load(state, interval)
        opened: dict[Holder, Position] = {}
        held: dict[Holder, int] = {}
        for order in orders:
            holder = Holder(zone, order.account)
            held[holder] = held.get(holder, 0) + order.locked_uwatt
            fill_wh = result.fills.get(order.order_id, 0)
            if fill_wh:
                position = opened.get(holder, NO_POSITION)
                opened[holder] = self._with_fill(position, order.side, fill_wh, prices)
        for holder, locked_uwatt in held.items():
            still_uwatt = opened.get(holder, NO_POSITION).locked_uwatt
            self._release(state, holder.account, locked_uwatt - still_uwatt)
        self._positions.save(state, interval, before | opened)

    def _with_fill(
        self, position: Position, side: Side, fill_wh: int, prices: IntervalPrices
    ) -> Position:
        if side is Side.BUY:
            contract = buy_collateral_uwatt(prices.buyer_all_in, fill_wh)
        else:
            contract = sell_collateral_uwatt(prices.short, prices.seller_all_in, fill_wh)
        return Position(
            bought_wh=position.bought_wh + (fill_wh if side is Side.BUY else 0),
            sold_wh=position.sold_wh + (fill_wh if side is Side.SELL else 0),
            contract_uwatt=position.contract_uwatt + contract,
            margin_uwatt=position.margin_uwatt
            + margin_uwatt(self.parameters, prices.retail, fill_wh),
        )

    def _matched(
        self, zone: int, interval: int, orders: Sequence[Order], result: Clearing, price: int
    ) -> list[TradeMatched]:
        """Who supplied whom: best prices meet first. For people; money does not depend on it."""
        owners = {order.order_id: order.account for order in orders}
        buys = [o for o in orders if o.side is Side.BUY]
        sells = [o for o in orders if o.side is Side.SELL]
        buys.sort(key=lambda o: (-o.price_tick, o.order_id))
        sells.sort(key=lambda o: (o.price_tick, o.order_id))
        pairs = attribute(result.fills, [o.order_id for o in buys], [o.order_id for o in sells])
        return [
            TradeMatched(
                zone=zone,
                interval=interval,
                buy_order_id=pair.buy_order_id,
                sell_order_id=pair.sell_order_id,
                buyer=owners[pair.buy_order_id],
                seller=owners[pair.sell_order_id],
                energy_wh=pair.energy_wh,
                price_uwatt_per_kwh=price,
            )
            for pair in pairs
        ]

    def _void(self, ctx: Context, zone: int, interval: int) -> None:
        """Release everything: delivery began before there was a block to clear in."""
        orders = self._take_book(ctx, zone, interval)
        for order in orders:
            self._release(ctx.state, order.account, order.locked_uwatt)
            ctx.emit(_cancelled(order, "void"))
        ctx.emit(AuctionVoided(zone=zone, interval=interval, orders=len(orders)))

    # -- parts -------------------------------------------------------------------------------------

    def _take_book(self, ctx: Context, zone: int, interval: int) -> list[Order]:
        """Empty a product: its open orders, of which nothing remains in state."""
        orders: list[Order] = []
        for account in self._accounts.drain(ctx.state, zone, interval):
            at = self.desks.key(account, zone, interval)
            orders += self.desks.get_at(ctx.state, at) or ()
            self.desks.delete_at(ctx.state, at)
        self.books.delete(ctx.state, zone, interval)
        return sorted(orders, key=lambda order: order.order_id)

    def _release(self, state: State, account: bytes, amount_uwatt: int) -> None:
        if amount_uwatt:
            self._tokens.unlock(state, WATT_DENOM, account, COLLATERAL, amount_uwatt)

    # -- laws --------------------------------------------------------------------------------------

    def check_invariants(self, state: State) -> Iterator[str]:
        """Locked collateral = open obligations; each book = the sum of its orders."""
        obligations: Counter[bytes] = Counter()
        buys: Counter[bytes] = Counter()
        sells: Counter[bytes] = Counter()
        for order in (order for _, desk in self.desks.scan(state) for order in desk):
            obligations[order.account] += order.locked_uwatt
            side = buys if order.side is Side.BUY else sells
            side[self.books.key(order.zone, order.interval)] += order.energy_wh
        for holder, position in self._positions.scan(state):
            obligations[holder.account] += position.locked_uwatt
        yield from self._check_locks(state, obligations)
        books = {self.books.prefix + key: book for key, book in self.books.scan(state)}
        for key in books.keys() | buys.keys() | sells.keys():
            book = books.get(key)
            totals = (book.buy_wh, book.sell_wh) if book else (0, 0)
            if totals != (buys[key], sells[key]):
                yield f"a book holds {totals} Wh, its open orders {(buys[key], sells[key])} Wh"

    def _check_locks(self, state: State, obligations: Mapping[bytes, int]) -> Iterator[str]:
        locks = {
            key: amount
            for key, amount in self._tokens.locks.scan(state)
            if key.endswith(COLLATERAL.encode())
        }
        prefix = len(self._tokens.locks.prefix)
        wanted = {
            self._tokens.locks.key(WATT_DENOM, account, COLLATERAL)[prefix:]: amount
            for account, amount in obligations.items()
            if amount
        }
        for key in locks.keys() | wanted.keys():
            if locks.get(key, 0) != wanted.get(key, 0):
                yield (
                    f"account {key[-38:-30].hex()}..: {locks.get(key, 0)} uWATT locked, "
                    f"open obligations are {wanted.get(key, 0)}"
                )


def _booked(book: Book, side: Side, energy_wh: int) -> Book:
    buy_wh, sell_wh = (energy_wh, 0) if side is Side.BUY else (0, energy_wh)
    return Book(
        reference_tick=book.reference_tick,
        floor_tick=book.floor_tick,
        cap_tick=book.cap_tick,
        buy_wh=book.buy_wh + buy_wh,
        sell_wh=book.sell_wh + sell_wh,
    )


def _cancelled(order: Order, reason: str) -> OrderCancelled:
    return OrderCancelled(
        order_id=order.order_id,
        account=order.account,
        client_order_id=order.client_order_id,
        reason=reason,
    )


def _order_closed(order: Order, result: Clearing) -> OrderClosed:
    return OrderClosed(
        order_id=order.order_id,
        account=order.account,
        client_order_id=order.client_order_id,
        side=order.side,
        filled_wh=result.fills.get(order.order_id, 0),
    )
