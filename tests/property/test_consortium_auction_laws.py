"""Laws of the call auction, against the four rules taken literally and against a linear program."""

from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from tests.stages import examples

from gridtokenx.consortium.market.auction import (
    AuctionOrder,
    Clearing,
    Collar,
    Side,
    attribute,
    clear,
    effective_ask_tick,
    effective_bid_tick,
    fee_uwatt_per_kwh,
)

TICKS = st.integers(0, 12)
ENERGIES_WH = st.integers(1, 9)
SIDES = st.sampled_from(Side)
REFERENCES = st.none() | st.integers(-2, 14)


@st.composite
def books(draw: st.DrawFn, max_size: int = 10) -> list[AuctionOrder]:
    lines = draw(st.lists(st.tuples(SIDES, TICKS, ENERGIES_WH), max_size=max_size))
    return [AuctionOrder(n, *line) for n, line in enumerate(lines)]


@st.composite
def collars(draw: st.DrawFn) -> Collar | None:
    ends = draw(st.none() | st.tuples(TICKS, TICKS))
    return None if ends is None else Collar(*ends)


def energy_wh(book: list[AuctionOrder], side: Side) -> int:
    return sum(order.energy_wh for order in book if order.side is side)


def demand_wh(book: list[AuctionOrder], tick: int) -> int:
    return energy_wh([order for order in book if order.price_tick >= tick], Side.BUY)


def supply_wh(book: list[AuctionOrder], tick: int) -> int:
    return energy_wh([order for order in book if order.price_tick <= tick], Side.SELL)


def price_by_the_rules(
    book: list[AuctionOrder], collar: Collar, reference: int | None
) -> tuple[int | None, int]:
    """Every tick, each rule in turn, as the head of auction.py says them."""
    ticks = range(collar.floor_tick, collar.cap_tick + 1)
    volume = {p: min(demand_wh(book, p), supply_wh(book, p)) for p in ticks}
    surplus = {p: demand_wh(book, p) - supply_wh(book, p) for p in ticks}
    if not ticks or max(volume.values()) == 0:
        return None, 0
    best = max(volume.values())
    left = [p for p in ticks if volume[p] == best]
    left = [p for p in left if abs(surplus[p]) == min(abs(surplus[q]) for q in left)]
    if all(surplus[p] > 0 for p in left):
        return max(left), best
    if all(surplus[p] < 0 for p in left):
        return min(left), best
    if any(surplus[p] for p in left):  # both sides press: the two ticks between which it turns
        left = [max(p for p in left if surplus[p] > 0), min(p for p in left if surplus[p] < 0)]
    lo, hi = min(left), max(left)
    assert left == list(range(lo, hi + 1)), "what the rules leave is contiguous"
    return (lo + hi) // 2 if reference is None else max(lo, min(hi, reference)), best


@given(books(), collars(), REFERENCES)
@settings(max_examples=examples(400))
def test_it_is_the_four_rules(
    book: list[AuctionOrder], collar: Collar | None, reference: int | None
) -> None:
    result = clear(book, collar, reference)
    expected = price_by_the_rules(book, collar or Collar(-1, 13), reference)
    assert (result.price_tick, result.volume_wh) == expected


@given(books(), collars(), REFERENCES)
def test_individual_rationality_balance_and_no_better_order_waits(
    book: list[AuctionOrder], collar: Collar | None, reference: int | None
) -> None:
    result = clear(book, collar, reference)
    filled = dict.fromkeys(Side, 0)
    for order in book:
        fill = result.fills.get(order.order_id, 0)
        assert 0 <= fill <= order.energy_wh
        filled[order.side] += fill
        if fill:
            assert satisfied(order, result)
    assert filled[Side.BUY] == filled[Side.SELL] == result.volume_wh
    assert_no_strictly_better_order_waits(book, collar or Collar(0, 12), result)


def satisfied(order: AuctionOrder, result: Clearing) -> bool:
    assert result.price_tick is not None
    if order.side is Side.BUY:
        return order.price_tick >= result.price_tick
    return order.price_tick <= result.price_tick


def assert_no_strictly_better_order_waits(
    book: list[AuctionOrder], collar: Collar, result: Clearing
) -> None:
    """Better than the price or than another that trades; limits compete inside the collar."""
    for order in book:
        waits = result.fills.get(order.order_id, 0) < order.energy_wh
        if not waits or not collar.admits(order.side, order.price_tick):
            continue
        served = [
            collar.clamp(other.price_tick)
            for other in book
            if other.side is order.side and other.order_id in result.fills
        ]
        served += [] if result.price_tick is None else [result.price_tick]
        tick = collar.clamp(order.price_tick)
        if order.side is Side.BUY:
            assert all(tick <= other for other in served)
        else:
            assert all(tick >= other for other in served)


@given(st.data(), books(), collars(), REFERENCES)
def test_the_order_of_arrival_does_not_matter(
    data: st.DataObject, book: list[AuctionOrder], collar: Collar | None, reference: int | None
) -> None:
    shuffled = data.draw(st.permutations(book))
    assert clear(shuffled, collar, reference) == clear(book, collar, reference)


@given(books(), st.integers(2, 1_000), REFERENCES)
def test_scaling_energy_scales_the_volume_and_keeps_the_price(
    book: list[AuctionOrder], factor: int, reference: int | None
) -> None:
    scaled = [AuctionOrder(o.order_id, o.side, o.price_tick, o.energy_wh * factor) for o in book]
    one, many = clear(book, None, reference), clear(scaled, None, reference)
    assert (many.price_tick, many.volume_wh) == (one.price_tick, one.volume_wh * factor)


@given(books(), collars(), SIDES, TICKS, ENERGIES_WH, REFERENCES)
@settings(max_examples=examples(300))
def test_a_buy_never_lowers_the_price_and_a_sell_never_raises_it(
    book: list[AuctionOrder],
    collar: Collar | None,
    side: Side,
    tick: int,
    wh: int,
    reference: int | None,
) -> None:
    collar = collar or Collar(0, 12)  # the same range of candidates before and after
    before = clear(book, collar, reference).price_tick
    after = clear([*book, AuctionOrder(len(book), side, tick, wh)], collar, reference).price_tick
    if before is None:
        return
    assert after is not None, "a further order never stops a book that trades"
    assert after >= before if side is Side.BUY else after <= before


@given(books(), collars())
@settings(max_examples=examples(100))
def test_welfare_is_the_optimum_of_the_linear_program(
    book: list[AuctionOrder], collar: Collar | None
) -> None:
    """Of what the collar admits, limits clamped into it, no other matching is worth more."""
    bounds = collar or Collar(0, 12)
    orders = [o for o in book if bounds.admits(o.side, o.price_tick)]
    worth = [bounds.clamp(o.price_tick) * (1 if o.side is Side.BUY else -1) for o in orders]
    result = clear(book, collar)
    ours = sum(w * result.fills.get(o.order_id, 0) for w, o in zip(worth, orders, strict=True))
    if not orders:
        assert ours == 0
        return
    best = linprog(
        c=[-w for w in worth],
        A_eq=[[1 if o.side is Side.BUY else -1 for o in orders]],
        b_eq=[0],
        bounds=[(0, o.energy_wh) for o in orders],
    )
    assert best.status == 0
    assert ours == round(-best.fun)


@given(books(), collars())
def test_attribution_meets_every_fill(book: list[AuctionOrder], collar: Collar | None) -> None:
    result = clear(book, collar)
    ids = {side: [o.order_id for o in book if o.side is side] for side in Side}
    given_out: dict[int, int] = {}
    for trade in attribute(result.fills, ids[Side.BUY], ids[Side.SELL]):
        assert trade.energy_wh > 0
        for order_id in (trade.buy_order_id, trade.sell_order_id):
            given_out[order_id] = given_out.get(order_id, 0) + trade.energy_wh
    assert given_out == dict(result.fills)


@given(
    st.integers(0, 10_000_000),
    st.integers(0, 2_000_000),
    st.integers(0, 2_000),
    st.sampled_from([1, 10, 1_000, 10_000]),
)
def test_effective_ticks_are_the_last_that_keep_the_all_in_limit(
    limit: int, network: int, fee_bps: int, tick: int
) -> None:
    bid = effective_bid_tick(
        limit, network_uwatt_per_kwh=network, fee_bps=fee_bps, tick_uwatt_per_kwh=tick
    )
    if bid >= 0:
        assert bid * tick + fee_uwatt_per_kwh(bid * tick, fee_bps) + network <= limit
        above = (bid + 1) * tick
        assert above + fee_uwatt_per_kwh(above, fee_bps) + network > limit
    ask = effective_ask_tick(limit, fee_bps=fee_bps, tick_uwatt_per_kwh=tick)
    assert ask * tick - fee_uwatt_per_kwh(ask * tick, fee_bps) >= limit
    if ask > 0:
        below = (ask - 1) * tick
        assert below - fee_uwatt_per_kwh(below, fee_bps) < limit
