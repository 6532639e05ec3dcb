"""Settlement: contracts meet meters.

Law of the file: **an interval is settled once, in order, from a complete report; whatever is known
later is a new line.** No batch is ever rewritten.

::

    end of block        for each interval, in order:
    report complete     contracts in full + imbalance to the utility + corrections of the window
    3 intervals later   the window closes: margins are free, nothing can change any more
    no report in time   contracts in full, no imbalance (a network that lost its oracle chain)

An account that cannot pay is made good from its own balance, margins and bond, in this order, and
suspended. What remains is the loss of those whom it owed: first the utility's, as far as it is for
network and imbalance (nobody else chose to deliver that energy); what concerns contracts is paid by
the default fund, then borne pro rata by those who receive for contracts in the same batch.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Final

from msgspec import Meta
from msgspec.structs import replace

from gridtokenx.consortium.custody import TREASURY, WATT_DENOM
from gridtokenx.consortium.market.module import COLLATERAL, Market
from gridtokenx.consortium.market.parameters import Positive
from gridtokenx.consortium.market.positions import NO_POSITION, Holder, Position, Positions
from gridtokenx.consortium.parameters import Section
from gridtokenx.consortium.participants import Participants
from gridtokenx.consortium.settlement.messages import (
    EVENTS,
    STATEMENT_LINES,
    AccountDefaulted,
    CorrectionsMissed,
    EntryLimited,
    IntervalSettled,
    Statement,
    WindowClosed,
)
from gridtokenx.consortium.settlement.reports import Metered, Reports, limited
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
from gridtokenx.core.codec import Wire
from gridtokenx.core.gridtime import GridClock, interval_at
from gridtokenx.core.types import Int64, UInt63
from gridtokenx.interchain.apps import meter_report
from gridtokenx.interchain.apps.meter_report import (
    MeterEntry,
    MeterReport,
    Quality,
    decode_report,
)
from gridtokenx.interchain.apps.registry import DeviceKind
from gridtokenx.interchain.packets import Acknowledgement, Packet
from gridtokenx.ledger.runtime import CallFailed, Context, Module
from gridtokenx.ledger.state import Cell, State
from gridtokenx.ledger.tokens import Tokens, module_account

BATCHES_PER_BLOCK: Final = 4
"""Intervals that one block settles at most when reports come in a burst."""
BOND: Final = "bond"
"""Purpose of the lock that a participant's bond is."""
MAX_AHEAD_INTERVALS: Final = 48
"""The oracle chain may run ahead of us; a report waits until its interval is over here."""
DEFAULT_FUND: Final = module_account("default-fund")
CLEARING: Final = module_account("settlement")
"""Holds a batch's money between debits and credits; empty between blocks."""


class SettlementParameters(Section, frozen=True):
    """Rules of settlement."""

    correction_window_intervals: Annotated[int, Meta(ge=0, le=48)] = 3
    """An interval may be corrected by the reports of so many later ones."""
    report_deadline_intervals: Positive = 336
    """After so long without a report (a week) contracts are settled without it."""


class Totals(Wire, frozen=True):
    """All energy ever settled."""

    bought_wh: UInt63
    sold_wh: UInt63
    metered_wh: Int64
    """Feed-in less draw, of accounts as settled and corrected."""
    short_wh: UInt63
    long_wh: UInt63


class Missed(Wire, frozen=True):
    """All corrections that came too late, as `CorrectionsMissed` told them."""

    entries: UInt63
    import_wh: UInt63
    export_wh: UInt63


@dataclass(slots=True)
class _Draft:
    """A batch while it is put together."""

    interval: int
    is_metered: bool
    batch: Batch = field(default_factory=Batch)
    meters: int = 0
    substituted: int = 0
    unknown: int = 0
    corrections: int = 0
    import_wh: int = 0
    export_wh: int = 0
    net_wh: int = 0
    """Metered feed-in less draw of all accounts, corrections included."""
    missed: dict[int, list[MeterEntry]] = field(default_factory=dict)
    """Corrections that are too late, by the interval that they correct."""
    positions: dict[int, dict[Holder, Position]] = field(default_factory=dict)
    """By interval, the positions that this batch is about; saved when it is paid."""
    energy_wh: Counter[Item] = field(default_factory=Counter)
    """Energy of each item, corrections included."""
    own_wh: Counter[Item] = field(default_factory=Counter)
    """The same of the batch's own interval alone."""

    def book(self, state: State, positions: Positions, interval: int) -> dict[Holder, Position]:
        """The positions of an interval, loaded once."""
        if interval not in self.positions:
            self.positions[interval] = positions.load(state, interval)
        return self.positions[interval]

    def close(self, utility: bytes) -> None:
        """Count the accounts' lines, then add the utility's side of them."""
        for line in (line for lines in self.batch.lines.values() for line in lines):
            self.energy_wh[line.item] += line.energy_wh
            if line.interval == self.interval:
                self.own_wh[line.item] += line.energy_wh
        self.batch.add_utility(utility)


class Settlement(Module):
    """See the head of the file; also the ``meter-report`` app of this chain.

    Args:
        tokens: holds collateral and pays.
        participants: says whose a meter is.
        market: has the prices of past auctions.
        positions: the contracts.
        utility: the funded account that takes every imbalance.
        clock: the map from block time to grid time.
        parameters: windows and deadlines.
        oracle_client: our client of the oracle chain; reports by any other are refused.
        bonds: opening bonds by account.
        default_fund_uwatt: opening default fund, from the utility.
    """

    name = "settlement"
    port = meter_report.PORT
    events = EVENTS

    def __init__(
        self,
        tokens: Tokens,
        participants: Participants,
        market: Market,
        positions: Positions,
        *,
        utility: bytes,
        clock: GridClock,
        parameters: SettlementParameters,
        oracle_client: str = "oracle",
        bonds: Mapping[bytes, int] | None = None,
        default_fund_uwatt: int = 0,
    ) -> None:
        self._tokens: Final = tokens
        self._participants: Final = participants
        self._market: Final = market
        self._positions: Final = positions
        self._utility: Final = utility
        self._clock: Final = clock
        self.parameters: Final = parameters
        self._oracle_client: Final = oracle_client
        self._bonds: Final = dict(bonds or {})
        self._default_fund_uwatt: Final = default_fund_uwatt
        self.reports: Final = Reports()
        self._settled: Final = Cell("settlement.settled_through", int, 0)
        self._final: Final = Cell("settlement.final_through", int, 0)
        self._reported: Final = Cell("settlement.last_reported", int, 0)
        self.missed: Final = Cell("settlement.missed", Missed, Missed(0, 0, 0))
        self.totals: Final = Cell("settlement.totals", Totals, Totals(0, 0, 0, 0, 0))

    def genesis(self, ctx: Context) -> None:
        """Lock bonds, fund the default fund, and start at the interval that genesis lies in."""
        for account, amount in self._bonds.items():
            self._tokens.lock(ctx.state, WATT_DENOM, account, BOND, amount)
        self._tokens.move(
            ctx.state, WATT_DENOM, self._utility, DEFAULT_FUND, self._default_fund_uwatt
        )
        before_first = interval_at(self._clock.grid_ms(ctx.timestamp_ms)) - 1
        self._settled.put(ctx.state, before_first)
        self._final.put(ctx.state, before_first)

    # -- reads -------------------------------------------------------------------------------------

    def settled_through(self, state: State) -> int:
        """The last settled interval."""
        return self._settled.get(state)

    def final_through(self, state: State) -> int:
        """The last interval whose correction window is over."""
        return self._final.get(state)

    # -- the meter-report app ----------------------------------------------------------------------

    def on_receive(self, ctx: Context, packet: Packet) -> bytes:
        """Take a chunk of a meter report, proved to come from the oracle chain."""
        if packet.destination_client != self._oracle_client:
            raise CallFailed("not-the-oracle", "meter reports come from the oracle chain alone")
        self.take_report(ctx, decode_report(packet.payload))
        return b""

    def on_acknowledge(self, ctx: Context, packet: Packet, ack: Acknowledgement) -> None:
        """Nothing: this chain sends no reports."""

    def on_timeout(self, ctx: Context, packet: Packet) -> None:
        """Nothing: this chain sends no reports."""

    def take_report(self, ctx: Context, report: MeterReport) -> None:
        """Keep one chunk until its interval is complete.

        Raises:
            CallFailed: of an interval that is settled or far ahead, or see `Reports.take`.
        """
        if report.interval <= self._settled.get(ctx.state):
            raise CallFailed("interval-settled", f"interval {report.interval} was settled before")
        if report.interval > self._current(ctx) + MAX_AHEAD_INTERVALS:
            raise CallFailed("interval-ahead", f"interval {report.interval} is far from over here")
        self.reports.take(ctx.state, report)
        if report.interval > self._reported.get(ctx.state):
            self._reported.put(ctx.state, report.interval)

    # -- hooks -------------------------------------------------------------------------------------

    def end_block(self, ctx: Context) -> None:
        """Settle, in order, what is complete or overdue."""
        self._settle_overdue(ctx)
        for _ in range(BATCHES_PER_BLOCK):
            interval = self._settled.get(ctx.state) + 1
            over = interval < self._current(ctx)
            if not (over and self.reports.is_complete(ctx.state, interval)):
                break
            self._settle(ctx, interval)
            self._settled.put(ctx.state, interval)
        self._close_windows(ctx)

    def _settle_overdue(self, ctx: Context) -> None:
        """Settle what no report will come for; intervals with nothing in them cost nothing."""
        deadline = self.parameters.report_deadline_intervals
        overdue = self._current(ctx) - 1 - deadline
        settled = self._settled.get(ctx.state)
        if settled >= overdue:
            return
        for interval in range(settled + 1, min(overdue, self._last_active(ctx.state)) + 1):
            self._settle(ctx, interval)
        self._settled.put(ctx.state, overdue)

    def _current(self, ctx: Context) -> int:
        """The interval that is being delivered by this chain's clock."""
        return interval_at(self._clock.grid_ms(ctx.timestamp_ms))

    def _last_active(self, state: State) -> int:
        """No later interval has a position or a report."""
        return max(self._positions.last(state), self._reported.get(state))

    def _close_windows(self, ctx: Context) -> None:
        through = self._settled.get(ctx.state) - self.parameters.correction_window_intervals
        final = self._final.get(ctx.state)
        if through <= final:
            return
        for interval in range(final + 1, min(through, self._last_active(ctx.state)) + 1):
            self._close_window(ctx, interval)
        self._final.put(ctx.state, through)

    def _close_window(self, ctx: Context, interval: int) -> None:
        released = 0
        for holder, position in self._positions.load(ctx.state, interval).items():
            self._unlock(ctx.state, holder.account, position.margin_uwatt)
            released += position.margin_uwatt
        self._positions.save(ctx.state, interval, {})
        self.reports.keep_metered(ctx.state, interval, ())
        self._market.forget_prices(ctx.state, interval)
        ctx.emit(WindowClosed(interval=interval, released_uwatt=released))

    # -- a batch -----------------------------------------------------------------------------------

    def _settle(self, ctx: Context, interval: int) -> None:
        """Put the batch of one interval together, pay it, and say so."""
        complete = self.reports.is_complete(ctx.state, interval)
        entries = self.reports.entries(ctx.state, interval) if complete else []
        self.reports.drop_chunks(ctx.state, interval)
        entries = [_limited(ctx, interval, entry) for entry in entries]
        draft = _Draft(interval, complete)
        metered = self._metered(ctx.state, draft, [e for e in entries if e.corrects is None])
        self.reports.keep_metered(ctx.state, interval, metered)
        self._draft_interval(ctx.state, draft, metered)
        self._draft_corrections(ctx.state, draft, [e for e in entries if e.corrects is not None])
        draft.close(self._utility)
        self._count(ctx.state, draft)
        self._tell_missed(ctx, draft)
        self._pay(ctx, draft)

    def _metered(
        self, state: State, draft: _Draft, entries: Iterable[MeterEntry]
    ) -> tuple[Metered, ...]:
        """The entries that are a participant's revenue meter, with their owners."""
        found = []
        for entry in entries:
            device = self._participants.device(state, entry.device)
            if device is not None and device.kind is DeviceKind.SOLAR:
                continue  # generation is behind the revenue meter, which has it already
            if device is None or device.kind is not DeviceKind.METER:
                draft.unknown += 1
                continue
            draft.meters += 1
            draft.substituted += entry.quality is Quality.SUBSTITUTED
            draft.import_wh += entry.import_wh
            draft.export_wh += entry.export_wh
            net_wh = entry.export_wh - entry.import_wh
            found.append(Metered(entry.device, device.owner, device.zone, net_wh))
        return tuple(found)

    def _draft_interval(self, state: State, draft: _Draft, metered: Iterable[Metered]) -> None:
        """Contracts and imbalance of everyone with a position or a meter."""
        interval, positions = draft.interval, draft.book(state, self._positions, draft.interval)
        net_wh = _by_holder(metered)
        prices_in = cache(lambda zone: self._market.prices(state, zone, interval))
        for holder in sorted(positions.keys() | net_wh.keys()):
            zone, account = holder.zone, holder.account
            position = positions.get(holder, NO_POSITION)
            prices = prices_in(zone)
            actual_wh = net_wh.get(holder, 0) if draft.is_metered else position.net_wh
            difference = imbalance(actual_wh, position.net_wh)
            draft.batch.add(account, contract_lines(interval, zone, position, prices))
            draft.batch.add(account, imbalance_lines(interval, zone, difference, prices))
            draft.net_wh += actual_wh

    def _draft_corrections(
        self, state: State, draft: _Draft, entries: Iterable[MeterEntry]
    ) -> None:
        """New lines for what is now known better of intervals whose window is open."""
        by_interval: dict[int, dict[bytes, MeterEntry]] = {}
        for entry in entries:
            if entry.corrects is None:
                continue
            if entry.corrects > self._final.get(state):
                by_interval.setdefault(entry.corrects, {})[entry.device] = entry
            else:
                self._miss(state, draft, entry)
        for interval, corrected in sorted(by_interval.items()):
            self._correct(state, draft, interval, corrected)

    def _correct(
        self, state: State, draft: _Draft, interval: int, corrected: Mapping[bytes, MeterEntry]
    ) -> None:
        before = self.reports.metered(state, interval)
        after = tuple(
            replace(meter, net_wh=entry.export_wh - entry.import_wh)
            if (entry := corrected.get(meter.device))
            else meter
            for meter in before
        )
        known = {meter.device for meter in before}
        draft.corrections += sum(device in known for device in corrected)
        for entry in (each for device, each in corrected.items() if device not in known):
            self._miss(state, draft, entry)
        self.reports.keep_metered(state, interval, after)
        old_wh, new_wh = _by_holder(before), _by_holder(after)
        positions = draft.book(state, self._positions, interval)
        for holder in sorted(new_wh):
            if new_wh[holder] == old_wh[holder]:
                continue
            contracted_wh = positions.get(holder, NO_POSITION).net_wh
            change = imbalance(new_wh[holder], contracted_wh).minus(
                imbalance(old_wh[holder], contracted_wh)
            )
            prices = self._market.prices(state, holder.zone, interval)
            lines = imbalance_lines(interval, holder.zone, change, prices)
            draft.batch.add(holder.account, lines)
            draft.net_wh += new_wh[holder] - old_wh[holder]

    def _miss(self, state: State, draft: _Draft, entry: MeterEntry) -> None:
        """Note a correction of a revenue meter that has nothing left to correct."""
        device = self._participants.device(state, entry.device)
        if entry.corrects is not None and device is not None and device.kind is DeviceKind.METER:
            draft.missed.setdefault(entry.corrects, []).append(entry)

    def _tell_missed(self, ctx: Context, draft: _Draft) -> None:
        for corrects, entries in sorted(draft.missed.items()):
            import_wh = sum(each.import_wh for each in entries)
            export_wh = sum(each.export_wh for each in entries)
            event = CorrectionsMissed(draft.interval, corrects, len(entries), import_wh, export_wh)
            ctx.emit(event)
            before = self.missed.get(ctx.state)
            total = Missed(
                before.entries + event.entries,
                before.import_wh + import_wh,
                before.export_wh + export_wh,
            )
            self.missed.put(ctx.state, total)

    def _count(self, state: State, draft: _Draft) -> None:
        totals = self.totals.get(state)
        self.totals.put(
            state,
            Totals(
                bought_wh=totals.bought_wh + draft.energy_wh[Item.PURCHASE],
                sold_wh=totals.sold_wh + draft.energy_wh[Item.SALE],
                metered_wh=totals.metered_wh + draft.net_wh,
                short_wh=totals.short_wh + draft.energy_wh[Item.SHORT],
                long_wh=totals.long_wh + draft.energy_wh[Item.LONG],
            ),
        )

    # -- money -------------------------------------------------------------------------------------

    def _pay(self, ctx: Context, draft: _Draft) -> None:
        """Collect the debits, pay the credits, leave the pool its own."""
        nets = draft.batch.nets()
        debits_uwatt = -sum(net for net in nets.values() if net < 0)
        credits_uwatt = sum(net for net in nets.values() if net > 0)
        pool_uwatt = debits_uwatt - credits_uwatt
        self._release_contracts(ctx.state, draft)
        paid, shortfall_uwatt = self._clear(ctx, draft, nets, pool_uwatt)
        for interval, positions in draft.positions.items():
            self._positions.save(ctx.state, interval, positions)
        for account, lines in sorted(draft.batch.lines.items()):
            parts = [
                lines[at : at + STATEMENT_LINES] for at in range(0, len(lines), STATEMENT_LINES)
            ]
            for part in parts:
                is_last = part is parts[-1]
                ctx.emit(
                    Statement(
                        interval=draft.interval,
                        account=account,
                        lines=tuple(part),
                        net_uwatt=nets[account] if is_last else 0,
                        paid_uwatt=paid.get(account, 0) if is_last else 0,
                    )
                )
        ctx.emit(
            IntervalSettled(
                interval=draft.interval,
                metered=draft.is_metered,
                accounts=sum(bool(lines) for lines in draft.batch.lines.values()),
                meters=draft.meters,
                substituted=draft.substituted,
                unknown=draft.unknown,
                corrections=draft.corrections,
                contracted_wh=draft.own_wh[Item.PURCHASE],
                import_wh=draft.import_wh,
                export_wh=draft.export_wh,
                short_wh=draft.own_wh[Item.SHORT],
                long_wh=draft.own_wh[Item.LONG],
                debits_uwatt=debits_uwatt,
                credits_uwatt=credits_uwatt,
                pool_uwatt=pool_uwatt,
                dust_nwatt=dust_nwatt(pool_uwatt, draft.batch.fees_nwatt()),
                shortfall_uwatt=shortfall_uwatt,
            )
        )

    def _clear(
        self, ctx: Context, draft: _Draft, nets: Mapping[bytes, int], pool_uwatt: int
    ) -> tuple[dict[bytes, int], int]:
        """Move a batch's money through the clearing account.

        Returns:
            What each account received (negative: paid), and what debtors did not pay.
        """
        utility, paid = self._utility, dict[bytes, int]()
        to_utility = for_contracts = 0
        for account in [each for each in nets if nets[each] < 0 and each != utility]:
            unpaid = self._collect(ctx, draft, account, -nets[account])
            paid[account] = nets[account] + sum(unpaid)
            to_utility += unpaid[0]
            for_contracts += unpaid[1]
        credits_ = {each: net for each, net in nets.items() if net > 0 and each != utility}
        claims = {
            each: min(net, draft.batch.contract_claim(each)) for each, net in credits_.items()
        }
        losses = share_losses(claims, pool_uwatt, for_contracts)
        credits_ = {each: net - losses.by_account.get(each, 0) for each, net in credits_.items()}
        own = nets[utility] - to_utility - losses.utility
        short_uwatt = self._collect_utility(ctx, draft, -own) if own < 0 else 0
        (paid if own < 0 else credits_)[utility] = own + short_uwatt
        received_uwatt = -sum(paid.values())
        receipts, to_pool = share_receipts(credits_, pool_uwatt - losses.pool, received_uwatt)
        for account, amount in (*receipts.items(), (TREASURY, to_pool)):
            self._tokens.move(ctx.state, WATT_DENOM, CLEARING, account, amount)
        return paid | receipts, to_utility + for_contracts + short_uwatt

    def _release_contracts(self, state: State, draft: _Draft) -> None:
        """The contracts of this interval are paid now: their locks pay first."""
        positions = draft.book(state, self._positions, draft.interval)
        for holder, position in positions.items():
            self._unlock(state, holder.account, position.contract_uwatt)
            positions[holder] = replace(position, contract_uwatt=0)

    def _collect(
        self, ctx: Context, draft: _Draft, account: bytes, debit_uwatt: int
    ) -> tuple[int, int]:
        """Take a debit; returns what is missing of it: the utility's loss, and that of contracts.

        The released contract lock is part of the balance by now; margins are touched only when
        that is used up, since they secure later corrections.
        """
        state = ctx.state
        missing = debit_uwatt - self._take_balance(state, account, debit_uwatt)
        missing -= self._take_margins(state, draft, account, missing)
        if not missing:
            return 0, 0
        bond = min(missing, self._tokens.locked(state, WATT_DENOM, account, BOND))
        self._tokens.seize(state, WATT_DENOM, account, BOND, CLEARING, bond)
        missing -= bond
        self._participants.suspend_for(ctx, account, "default")
        to_utility = min(missing, draft.batch.owed_to_utility(account))
        for_contracts = missing - to_utility
        for_contracts -= self._take_balance(state, DEFAULT_FUND, for_contracts)
        _note_default(ctx, draft, account, to_utility + for_contracts)
        return to_utility, for_contracts

    def _collect_utility(self, ctx: Context, draft: _Draft, debit_uwatt: int) -> int:
        """Take what the utility has to pay, others' losses included; returns what is missing."""
        missing = debit_uwatt - self._take_balance(ctx.state, self._utility, debit_uwatt)
        missing -= self._take_balance(ctx.state, DEFAULT_FUND, missing)
        _note_default(ctx, draft, self._utility, missing)
        return missing

    def _take_balance(self, state: State, account: bytes, wanted: int) -> int:
        if not wanted:
            return 0
        amount = min(wanted, self._tokens.balance(state, WATT_DENOM, account))
        self._tokens.move(state, WATT_DENOM, account, CLEARING, amount)
        return amount

    def _take_margins(self, state: State, draft: _Draft, account: bytes, wanted: int) -> int:
        """Seize what the account's positions of this batch still hold, oldest first."""
        taken = 0
        for _, positions in sorted(draft.positions.items()) if wanted else ():
            for holder in [each for each in positions if each.account == account]:
                position = positions[holder]
                amount = min(wanted - taken, position.margin_uwatt)
                self._tokens.seize(state, WATT_DENOM, account, COLLATERAL, CLEARING, amount)
                rest = replace(position, margin_uwatt=position.margin_uwatt - amount)
                positions[holder] = rest
                taken += amount
        return taken

    def _unlock(self, state: State, account: bytes, amount: int) -> None:
        if amount:
            self._tokens.unlock(state, WATT_DENOM, account, COLLATERAL, amount)

    # -- laws --------------------------------------------------------------------------------------

    def check_invariants(self, state: State) -> Iterator[str]:
        """Bought = sold; contracted + imbalance = metered; no money between batches."""
        totals = self.totals.get(state)
        if totals.bought_wh != totals.sold_wh:
            yield f"{totals.bought_wh} Wh were bought, {totals.sold_wh} Wh sold"
        contracted_wh = totals.sold_wh - totals.bought_wh
        if contracted_wh + totals.long_wh - totals.short_wh != totals.metered_wh:
            yield (
                f"contracted {contracted_wh} + long {totals.long_wh} - short {totals.short_wh} Wh "
                f"is not the metered {totals.metered_wh} Wh"
            )
        stranded = self._tokens.balance(state, WATT_DENOM, CLEARING)
        if stranded:
            yield f"{stranded} uWATT remain in the settlement account"


def _limited(ctx: Context, interval: int, entry: MeterEntry) -> MeterEntry:
    booked = limited(entry)
    if booked is not entry:
        ctx.emit(EntryLimited(interval, entry.device, entry.import_wh, entry.export_wh))
    return booked


def _note_default(ctx: Context, draft: _Draft, account: bytes, shortfall_uwatt: int) -> None:
    if shortfall_uwatt:
        ctx.emit(AccountDefaulted(draft.interval, account, shortfall_uwatt))


def _by_holder(metered: Iterable[Metered]) -> dict[Holder, int]:
    """Net feed-in by zone and account."""
    sums: dict[Holder, int] = {}
    for meter in metered:
        holder = Holder(meter.zone, meter.account)
        sums[holder] = sums.get(holder, 0) + meter.net_wh
    return sums
