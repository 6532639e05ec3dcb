"""Laws of a settlement batch: money adds up, and energy that is not there never pays."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gridtokenx.consortium.market.parameters import IntervalPrices
from gridtokenx.consortium.market.positions import NO_POSITION, Position
from gridtokenx.consortium.settlement.statement import (
    Batch,
    Item,
    contract_lines,
    dust_nwatt,
    imbalance,
    imbalance_lines,
    share_losses,
    share_receipts,
)

UTILITY = b"utility"
PRICES_UWATT = st.integers(0, 20_000_000)
ENERGIES_WH = st.integers(0, 50_000)
NETS_WH = st.integers(-50_000, 50_000)


@st.composite
def prices(draw: st.DrawFn) -> IntervalPrices:
    price = draw(st.none() | PRICES_UWATT)
    fee = draw(st.integers(0, price or 0))
    return IntervalPrices(
        price=price,
        fee_buy=draw(st.integers(0, price or 0)),
        fee_sell=fee,
        network=draw(PRICES_UWATT),
        retail=draw(PRICES_UWATT),
        buyback=draw(PRICES_UWATT),
    )


def bought(energy_wh: int) -> Position:
    return Position(energy_wh, 0, 0, 0)


def sold(energy_wh: int) -> Position:
    return Position(0, energy_wh, 0, 0)


@st.composite
def balanced_positions(draw: st.DrawFn) -> list[Position]:
    """As an auction leaves them: what is bought is sold."""
    buys = draw(st.lists(st.integers(1, 9_999), min_size=1, max_size=5))
    cuts = sorted(draw(st.lists(st.integers(0, sum(buys)), max_size=4)))
    sells = [b - a for a, b in zip([0, *cuts], [*cuts, sum(buys)], strict=True)]
    idle = [NO_POSITION] * draw(st.integers(0, 2))
    return [bought(wh) for wh in buys] + [sold(wh) for wh in sells if wh] + idle


@given(st.data(), prices(), balanced_positions())
def test_a_batch_adds_up_to_the_nano_watt_and_then_to_the_micro_watt(
    data: st.DataObject, at: IntervalPrices, positions: list[Position]
) -> None:
    if at.price is None:
        positions = [NO_POSITION] * len(positions)
    batch = Batch()
    for n, position in enumerate(positions):
        account = bytes([n])
        metered_wh = data.draw(NETS_WH)
        batch.add(account, contract_lines(7, 0, position, at))
        batch.add(account, imbalance_lines(7, 0, imbalance(metered_wh, position.net_wh), at))
    batch.add_utility(UTILITY)
    exact = sum(line.amount_nwatt for lines in batch.lines.values() for line in lines)
    assert exact == -batch.fees_nwatt(), "all but the fees has another side"
    nets = batch.nets()
    pool_uwatt = -sum(nets.values())
    assert 0 <= dust_nwatt(pool_uwatt, batch.fees_nwatt()) < 1_000 * len(nets)
    for account, lines in batch.lines.items():
        off_nwatt = sum(line.amount_nwatt for line in lines) - nets[account] * 1_000
        assert 0 <= off_nwatt < 1_000, "one rounding, against the account"


def amount(position: Position, metered_wh: int, at: IntervalPrices) -> int:
    """What the account nets, in nano-WATT."""
    lines = contract_lines(7, 0, position, at)
    lines += imbalance_lines(7, 0, imbalance(metered_wh, position.net_wh), at)
    return sum(line.amount_nwatt for line in lines)


@given(prices(), st.integers(1, 9_999), NETS_WH)
def test_selling_energy_that_is_not_there_never_pays(
    at: IntervalPrices, energy_wh: int, metered_wh: int
) -> None:
    """However little is metered, to have sold more than that never earns more."""
    if at.price is None:
        return
    real_wh = max(0, min(metered_wh, energy_wh))
    assert amount(sold(energy_wh), metered_wh, at) <= amount(sold(real_wh), metered_wh, at)


@given(prices(), st.integers(1, 9_999), NETS_WH)
def test_buying_energy_that_is_not_drawn_never_pays(
    at: IntervalPrices, energy_wh: int, metered_wh: int
) -> None:
    if at.price is None:
        return
    real_wh = max(0, min(-metered_wh, energy_wh))
    assert amount(bought(energy_wh), metered_wh, at) <= amount(bought(real_wh), metered_wh, at)


@given(prices(), NETS_WH, st.lists(NETS_WH, min_size=1, max_size=4))
def test_corrections_lead_to_the_amount_of_the_last_value(
    at: IntervalPrices, contracted_wh: int, values: list[int]
) -> None:
    """Each correction books new less old; the first value was booked whole."""
    lines = imbalance_lines(7, 0, imbalance(values[0], contracted_wh), at)
    for old, new in itertools.pairwise(values):
        change = imbalance(new, contracted_wh).minus(imbalance(old, contracted_wh))
        lines += imbalance_lines(7, 0, change, at)
    at_once = imbalance_lines(7, 0, imbalance(values[-1], contracted_wh), at)
    for item in (Item.SHORT, Item.LONG):
        energies = [sum(x.energy_wh for x in some if x.item is item) for some in (lines, at_once)]
        assert energies[0] == energies[1]
    assert sum(x.amount_nwatt for x in lines) == sum(x.amount_nwatt for x in at_once)


@given(
    st.dictionaries(st.binary(max_size=2), st.integers(1, 10**9), max_size=6),
    st.integers(0, 10**6),
    st.integers(0, 1_000),
)
def test_a_shortfall_is_borne_pro_rata(
    claims: dict[bytes, int], pool_uwatt: int, received_permille: int
) -> None:
    due = sum(claims.values()) + pool_uwatt
    received = due * received_permille // 1_000
    paid, to_pool = share_receipts(claims, pool_uwatt, received)
    assert sum(paid.values()) + to_pool == received
    for account, claim in claims.items():
        assert paid[account] <= claim
        if due:
            assert abs(paid[account] - claim * received / due) <= 1 + 1e-6 * claim
    assert to_pool <= pool_uwatt


@given(
    st.dictionaries(st.binary(min_size=1, max_size=2), st.integers(0, 10**7), max_size=6),
    st.integers(0, 10**5),
    st.integers(0, 10**8),
)
def test_unpaid_contracts_are_borne_by_contract_claims_up_to_each_and_then_by_the_utility(
    claims: dict[bytes, int], pool: int, unpaid: int
) -> None:
    losses = share_losses(claims, pool, unpaid)
    assert sum(losses.by_account.values()) + losses.pool + losses.utility == unpaid
    assert all(0 < loss <= claims[account] for account, loss in losses.by_account.items())
    assert 0 <= losses.pool <= pool
    whole = sum(claims.values()) + pool
    assert losses.utility == max(0, unpaid - whole)
    for account, claim in claims.items():
        if unpaid < whole:
            assert abs(losses.by_account.get(account, 0) * whole - claim * unpaid) < whole
