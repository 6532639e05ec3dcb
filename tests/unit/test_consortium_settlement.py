"""Settlement of delivery intervals: reports, imbalance, corrections, defaults, deadlines."""

import pytest
from msgspec.structs import replace
from tests import oracle_world
from tests.consortium_world import (
    CHAIN_ID,
    FIRST,
    WATT,
    ConsortiumWorld,
    Deliver,
    entry,
    genesis_of,
    key,
    order,
    reports,
)

from gridtokenx.consortium.chain import ConsortiumGenesis
from gridtokenx.consortium.market.auction import Side
from gridtokenx.consortium.market.messages import AuctionCleared
from gridtokenx.consortium.participants import Reinstate
from gridtokenx.consortium.settlement.messages import (
    AccountDefaulted,
    CorrectionsMissed,
    EntryLimited,
    IntervalSettled,
    Statement,
    WindowClosed,
)
from gridtokenx.consortium.settlement.module import (
    DEFAULT_FUND,
    Missed,
    SettlementParameters,
    _Draft,
)
from gridtokenx.consortium.settlement.reports import MAX_ENTRY_WH
from gridtokenx.consortium.settlement.statement import Imbalance, Item, imbalance_lines
from gridtokenx.core.errors import LocalFault
from gridtokenx.interchain.apps.meter_report import MeterEntry, Quality
from gridtokenx.lab.testnet.genesis import check_windows
from gridtokenx.ledger.runtime import Context
from gridtokenx.ledger.state import State

NEXT = FIRST + 1
PRICE = 3_340_000
HOUSES = ("b0", "b1", "s0", "s1")


def idle() -> list[MeterEntry]:
    return [entry(name) for name in HOUSES]


def traded(genesis: ConsortiumGenesis | None = None) -> ConsortiumWorld:
    """b0 bought 1 kWh of s0 for NEXT at 3.340; FIRST is settled; NEXT is over."""
    world = ConsortiumWorld(genesis)
    world.block()
    world.submit("b0", order(1, NEXT, Side.BUY, 4_500, 1_000))
    world.do("s0", order(1, NEXT, Side.SELL, 3_000, 1_000))
    world.run_until(world.start_ms(NEXT) + 1)
    assert world.last(AuctionCleared).price_uwatt_per_kwh == PRICE
    world.deliver(FIRST, idle())
    world.run_until(world.start_ms(NEXT + 1))
    return world


def deliver(world: ConsortiumWorld, interval: int, *entries: MeterEntry) -> None:
    """A report with these entries, and idle meters for the rest."""
    own = {each.device for each in entries if each.corrects is None}
    rest = [each for each in idle() if each.device not in own]
    if world.now_ms < world.start_ms(interval + 1):
        world.run_until(world.start_ms(interval + 1))
    assert {result.code for result in world.deliver(interval, [*entries, *rest])} == {"ok"}


def context(world: ConsortiumWorld) -> Context:
    return Context(CHAIN_ID, world.head.height + 1, 0, world.now_ms + 1, State(world.head.state))


def net(world: ConsortiumWorld, interval: int, name: str) -> int:
    (statement,) = (
        each
        for each in world.all(Statement)
        if each.interval == interval and each.account == key(name)
    )
    return statement.net_uwatt


def items(world: ConsortiumWorld, interval: int, name: str) -> dict[Item, int]:
    (statement,) = (
        each
        for each in world.all(Statement)
        if each.interval == interval and each.account == key(name)
    )
    return {line.item: line.energy_wh for line in statement.lines}


# -- contracts and imbalance -----------------------------------------------------------------------


def test_delivered_contracts_pay_the_uniform_price_and_nothing_else() -> None:
    world = traded()
    deliver(world, NEXT, entry("b0", import_wh=1_000), entry("s0", export_wh=1_000))
    assert net(world, NEXT, "b0") == -(PRICE + 8_350 + 1_151_000)
    assert net(world, NEXT, "s0") == PRICE - 8_350
    assert net(world, NEXT, "utility") == 1_151_000
    settled = world.last(IntervalSettled)
    assert (settled.pool_uwatt, settled.dust_nwatt) == (16_700, 0)
    assert (settled.contracted_wh, settled.short_wh, settled.long_wh) == (1_000, 0, 0)


def test_short_pays_retail_and_long_earns_the_buyback() -> None:
    world = traded()
    deliver(world, NEXT, entry("b0", import_wh=700), entry("s0", export_wh=600))
    assert items(world, NEXT, "b0")[Item.LONG] == 300
    assert items(world, NEXT, "s0")[Item.SHORT] == 400
    assert net(world, NEXT, "b0") == -(PRICE + 8_350 + 1_151_000) + 300 * 2_200
    assert net(world, NEXT, "s0") == PRICE - 8_350 - 400 * 5_960_500 // 1_000
    assert net(world, NEXT, "utility") == 1_151_000 - 300 * 2_200 + 400 * 5_960_500 // 1_000


def test_each_item_stands_once_on_a_statement() -> None:
    world = traded()
    deliver(world, NEXT, entry("b0", import_wh=700), entry("s0", export_wh=600))
    for statement in world.all(Statement):
        kinds = [(line.interval, line.zone, line.item) for line in statement.lines]
        assert len(set(kinds)) == len(kinds)


def test_households_without_contracts_settle_with_the_utility() -> None:
    world = traded()
    deliver(world, NEXT, entry("b1", import_wh=333), entry("s1", export_wh=777))
    assert net(world, NEXT, "b1") == -(333 * 5_960_500 // 1_000 + 1)  # rounded up
    assert net(world, NEXT, "s1") == 777 * 2_200


def test_a_position_without_a_meter_entry_counts_as_nothing_delivered() -> None:
    world = traded()
    world.deliver(NEXT, [entry("b0", import_wh=1_000)])
    assert items(world, NEXT, "s0")[Item.SHORT] == 1_000


def test_what_is_no_participants_revenue_meter_is_not_settled() -> None:
    world = traded()
    stranger = replace(entry("b0", import_wh=5), device=key("stranger"))
    solar = replace(entry("s0"), device=key("s0-solar"), generation_wh=900)
    world.deliver(NEXT, [*idle(), stranger, solar])
    assert world.last(IntervalSettled).unknown == 1
    assert world.last(IntervalSettled).meters == 4


# -- collateral ------------------------------------------------------------------------------------


def test_margins_stay_locked_until_the_window_ends() -> None:
    world = traded()
    margin = 596_050
    deliver(world, NEXT, entry("b0", import_wh=1_000), entry("s0", export_wh=1_000))
    assert (world.locked("b0"), world.locked("s0")) == (margin, margin)
    for interval in range(NEXT + 1, NEXT + 4):
        assert world.locked("b0") == margin
        deliver(world, interval)
    assert (world.locked("b0"), world.locked("s0")) == (0, 0)
    closed = world.last(WindowClosed)
    assert (closed.interval, closed.released_uwatt) == (NEXT, 2 * margin)


def test_nothing_of_a_final_interval_remains_in_state() -> None:
    world = traded()
    for interval in range(NEXT, NEXT + 4):
        deliver(world, interval)
    keys = [raw for raw, _ in world.head.state.items()]
    for prefix in (b"positions.page", b"market.result", b"market.desk", b"settlement.ch"):
        assert not [raw for raw in keys if raw.startswith(prefix)], prefix


# -- reports ---------------------------------------------------------------------------------------


def big_genesis() -> ConsortiumGenesis:
    return genesis_of(buyers=300, sellers=0)


def test_an_interval_settles_when_its_last_chunk_arrives_in_any_order() -> None:
    world = ConsortiumWorld(big_genesis())
    world.check_every_block = False
    world.block()
    world.run_until(world.start_ms(NEXT), step_ms=5_000)
    first, second = reports(FIRST, [entry(f"b{n}", import_wh=100) for n in range(300)])
    world.do("operator", Deliver(second))
    assert world.all(IntervalSettled) == []
    assert world.do("operator", Deliver(second))[0].code == "report-repeated"
    world.do("operator", Deliver(first))
    assert world.last(IntervalSettled).meters == 300
    assert world.do("operator", Deliver(first))[0].code == "interval-settled"
    assert world.ledger.check_invariants(world.head.state) == []


def test_chunks_must_belong_together_and_hash_to_their_root() -> None:
    world = ConsortiumWorld(big_genesis())
    world.check_every_block = False
    world.block()
    world.run_until(world.start_ms(NEXT), step_ms=5_000)
    first, second = reports(FIRST, [entry(f"b{n}", import_wh=100) for n in range(300)])
    other, _ = reports(FIRST, [entry(f"b{n}", import_wh=101) for n in range(300)])
    world.do("operator", Deliver(second))
    assert world.do("operator", Deliver(other))[0].code == "report-mismatch"
    forged = replace(first, entries=other.entries)
    assert world.do("operator", Deliver(forged))[0].code == "report-root"
    assert world.do("operator", Deliver(first))[0].code == "ok"
    assert world.last(IntervalSettled).import_wh == 30_000


def test_intervals_settle_in_order() -> None:
    world = ConsortiumWorld()
    world.block()
    world.run_until(world.start_ms(FIRST + 2))
    world.deliver(NEXT, idle())
    assert world.all(IntervalSettled) == []
    world.deliver(FIRST, idle())
    assert [each.interval for each in world.all(IntervalSettled)] == [FIRST, NEXT]


def test_a_report_ahead_of_our_clock_waits() -> None:
    world = ConsortiumWorld()
    world.block()
    world.deliver(FIRST, idle())
    assert world.all(IntervalSettled) == []
    world.run_until(world.start_ms(NEXT))
    assert world.last(IntervalSettled).interval == FIRST
    assert world.deliver(FIRST + 99, idle())[0].code == "interval-ahead"


def test_implausible_energy_is_limited_and_nobody_elses_interval_waits() -> None:
    world = traded()
    absurd = entry("b1", import_wh=2**62, export_wh=2**63 - 1)
    deliver(world, NEXT, entry("b0", import_wh=1_000), entry("s0", export_wh=1_000), absurd)
    assert world.last(EntryLimited) == EntryLimited(NEXT, key("b1-meter"), 2**62, 2**63 - 1)
    settled = world.last(IntervalSettled)
    assert (settled.interval, settled.meters) == (NEXT, 4)
    assert settled.export_wh == 1_000 + MAX_ENTRY_WH
    assert net(world, NEXT, "s0") == PRICE - 8_350
    deliver(world, NEXT + 1, replace(absurd, export_wh=2**61, corrects=NEXT))
    assert world.last(IntervalSettled).corrections == 1


# -- corrections -----------------------------------------------------------------------------------


def test_a_correction_is_a_new_line_for_the_difference() -> None:
    world = traded()
    estimate = entry("s0", export_wh=600, quality=Quality.SUBSTITUTED)
    deliver(world, NEXT, entry("b0", import_wh=1_000), estimate)
    assert world.last(IntervalSettled).substituted == 1
    before = world.all(Statement)
    deliver(world, NEXT + 1, entry("s0", export_wh=1_100, corrects=NEXT))
    (statement,) = (each for each in world.all(Statement)[len(before) :] if each.net_uwatt > 0)
    lines = {line.item: (line.interval, line.energy_wh) for line in statement.lines}
    assert lines == {Item.SHORT: (NEXT, -400), Item.LONG: (NEXT, 100)}
    assert statement.net_uwatt == 400 * 5_960_500 // 1_000 + 100 * 2_200
    assert world.all(Statement)[: len(before)] == before
    assert world.last(IntervalSettled).corrections == 1


def test_corrections_add_up_to_what_was_finally_known() -> None:
    world = traded()
    deliver(world, NEXT, entry("b1", import_wh=100, quality=Quality.SUBSTITUTED))
    deliver(world, NEXT + 1, entry("b1", import_wh=40, corrects=NEXT))
    deliver(world, NEXT + 2, entry("b1", import_wh=0, corrects=NEXT))
    deliver(world, NEXT + 3, entry("b1", import_wh=250, corrects=NEXT))
    paid = sum(each.net_uwatt for each in world.all(Statement) if each.account == key("b1"))
    assert -1 * paid == pytest.approx(250 * 5_960_500 / 1_000, abs=4)


def test_a_correction_after_the_window_changes_nothing() -> None:
    world = traded()
    for interval in range(NEXT, NEXT + 4):
        deliver(world, interval)
    assert world.chain.settlement.final_through(world.state) == NEXT
    deliver(world, NEXT + 4, entry("b1", import_wh=40, corrects=NEXT))
    assert world.last(IntervalSettled).corrections == 0
    assert world.all(CorrectionsMissed) == [CorrectionsMissed(NEXT + 4, NEXT, 1, 40, 0)]
    assert world.chain.settlement.missed.get(world.state) == Missed(1, 40, 0)


def test_a_correction_of_what_was_settled_without_a_report_is_told_too() -> None:
    genesis = replace(genesis_of(), settlement=SettlementParameters(report_deadline_intervals=2))
    world = traded(genesis)
    world.run_until(world.start_ms(NEXT + 3))
    assert not world.last(IntervalSettled).metered
    corrected = [entry(name, import_wh=70, corrects=NEXT) for name in ("b0", "b1")]
    solar = replace(entry("s0", export_wh=9, corrects=NEXT), device=key("s0-solar"))
    world.deliver(NEXT + 1, [*idle(), *corrected, solar])
    assert world.last(CorrectionsMissed) == CorrectionsMissed(NEXT + 1, NEXT, 2, 140, 0)


def test_chains_that_disagree_on_the_window_are_refused() -> None:
    consortium = replace(
        genesis_of(), settlement=SettlementParameters(correction_window_intervals=4)
    )
    oracle = oracle_world.genesis()
    with pytest.raises(LocalFault, match="correction_window is 3; give both the same"):
        check_windows(consortium, oracle)
    check_windows(genesis_of(), oracle)


def test_a_correction_with_the_same_energy_makes_no_line() -> None:
    world = traded()
    deliver(world, NEXT, entry("b1", import_wh=100, quality=Quality.SUBSTITUTED))
    before = len(world.all(Statement))
    deliver(world, NEXT + 1, entry("b1", import_wh=100, corrects=NEXT))
    assert len(world.all(Statement)) == before


def test_a_long_statement_comes_in_parts_with_its_totals_once() -> None:
    """The utility's other side of a thousand zones is more than one event can hold."""
    world = traded()
    settlement, ctx = world.chain.settlement, context(world)
    draft = _Draft(NEXT, is_metered=True)
    short = Imbalance(short_wh=1_000, long_wh=0)
    prices = world.chain.market.prices(ctx.state, 0, NEXT)
    for zone in range(600):
        draft.batch.add(key("b0"), imbalance_lines(NEXT, zone, short, prices))
    draft.close(key("utility"))
    settlement._pay(ctx, draft)
    for name in ("b0", "utility"):
        parts = [e for e in ctx.events if isinstance(e, Statement) and e.account == key(name)]
        assert [len(part.lines) for part in parts] == [256, 256, 88]
        assert [bool(part.net_uwatt) for part in parts] == [False, False, True]
        lines = [line for part in parts for line in part.lines]
        assert sum(line.amount_nwatt for line in lines) == 1_000 * parts[-1].net_uwatt


# -- defaults --------------------------------------------------------------------------------------


def poor(opening_uwatt: int, bond_uwatt: int = 0, fund_uwatt: int = 0) -> ConsortiumGenesis:
    """b1 has this much, and will draw 2 kWh for 11.921 WATT."""
    genesis = genesis_of()
    accounts = tuple(
        replace(each, opening_uwatt=opening_uwatt, bond_uwatt=bond_uwatt)
        if each.account == key("b1")
        else each
        for each in genesis.accounts
    )
    return replace(genesis, accounts=accounts, default_fund_uwatt=fund_uwatt)


def is_suspended(world: ConsortiumWorld, name: str) -> bool:
    participant = world.chain.participants.participant(world.state, key(name))
    assert participant is not None
    return participant.suspended


def paid(world: ConsortiumWorld, interval: int, name: str) -> int:
    (statement,) = (
        each
        for each in world.all(Statement)
        if each.interval == interval and each.account == key(name)
    )
    return statement.paid_uwatt


def test_an_unpaid_electricity_bill_is_the_utilitys_loss_alone() -> None:
    """A neighbour who draws what nobody pays takes nothing from those who sold or fed in."""
    world = traded(poor(5 * WATT))
    bought, sold = entry("b0", import_wh=1_000), entry("s0", export_wh=1_000)
    deliver(world, NEXT, bought, sold, entry("b1", import_wh=2_000), entry("s1", export_wh=1_000))
    settled, defaulted = world.last(IntervalSettled), world.last(AccountDefaulted)
    assert (defaulted.account, defaulted.shortfall_uwatt) == (key("b1"), 6_921_000)
    assert settled.shortfall_uwatt == 6_921_000
    assert world.balance("b1") == 0
    for name in ("s0", "s1"):
        assert paid(world, NEXT, name) == net(world, NEXT, name) > 0
    assert net(world, NEXT, "utility") - paid(world, NEXT, "utility") == 6_921_000
    assert is_suspended(world, "b1")


def test_a_household_that_never_pays_costs_the_utility_alone_however_often() -> None:
    world = traded(poor(5 * WATT, fund_uwatt=100 * WATT))
    for interval in range(NEXT, NEXT + 4):
        deliver(world, interval, entry("b1", import_wh=2_000), entry("s1", export_wh=1_000))
        assert paid(world, interval, "s1") == net(world, interval, "s1") == 2_200_000
    assert paid(world, NEXT + 3, "utility") == -2_200_000, "it pays the feed-in all the same"
    assert len(world.all(AccountDefaulted)) == 4
    fund = world.chain.tokens.balance(world.state, "WATT", DEFAULT_FUND)
    assert fund == 100 * WATT


def test_who_needs_the_bond_has_to_see_the_operator() -> None:
    world = traded(poor(12 * WATT, bond_uwatt=4 * WATT))
    deliver(world, NEXT, entry("b1", import_wh=2_000))
    assert world.last(IntervalSettled).shortfall_uwatt == 0
    assert world.all(AccountDefaulted) == []
    assert world.balance("b1") == 0
    assert is_suspended(world, "b1")
    world.do("operator", Reinstate(account=key("b1")))
    assert not is_suspended(world, "b1")


def test_margins_pay_when_the_balance_is_used_up() -> None:
    genesis = genesis_of()
    accounts = tuple(
        replace(each, opening_uwatt=5_200_000) if each.account == key("b0") else each
        for each in genesis.accounts
    )
    world = traded(replace(genesis, accounts=accounts))
    # 4.49935 for the contract leaves 0.10 free and a margin of 0.596; 0.1 kWh short is 0.596.
    deliver(world, NEXT, entry("b0", import_wh=1_100), entry("s0", export_wh=1_000))
    assert world.last(IntervalSettled).shortfall_uwatt == 0
    assert world.balance("b0") == 0
    assert 0 < world.locked("b0") < 596_050


# -- deadlines -------------------------------------------------------------------------------------


def test_contracts_settle_without_a_report_when_none_comes() -> None:
    genesis = replace(genesis_of(), settlement=SettlementParameters(report_deadline_intervals=4))
    world = traded(genesis)
    world.run_until(world.start_ms(NEXT + 5) - 1)
    assert world.last(IntervalSettled).interval == FIRST
    world.block(1)
    settled = world.last(IntervalSettled)
    assert (settled.interval, settled.metered, settled.contracted_wh) == (NEXT, False, 1_000)
    assert (settled.short_wh, settled.long_wh) == (0, 0)
    assert net(world, NEXT, "s0") == PRICE - 8_350
    assert world.deliver(NEXT, idle())[0].code == "interval-settled"
    world.run_until(world.start_ms(NEXT + 8))
    assert world.locked("b0") == 0


def test_a_year_without_reports_costs_one_block() -> None:
    world = traded()
    world.block(365 * 24 * 3_600_000 // 60)
    assert world.last(IntervalSettled).interval == NEXT
    assert world.locked("b0") == 0
    current = world.chain.market.schedule.current(world.now_ms)
    assert world.chain.settlement.settled_through(world.state) == current - 1 - 336
