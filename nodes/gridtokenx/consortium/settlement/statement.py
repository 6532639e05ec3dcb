"""The arithmetic of a settlement batch: lines, one rounding per account, who bears a shortfall.

Law of the file: **money is conserved**, to the nano-WATT before rounding, to the micro-WATT after.
A line is price x energy, exact in nano-WATT. Lines of an account are added first and rounded once:
debits up, credits down; the dust goes to the pool with the fees.

============  ==========================  ============================  =====================
line          who                         amount                        other side
============  ==========================  ============================  =====================
purchase      buyer of a contract         - price x contracted          the sellers' sale
sale          seller of a contract        + price x contracted          the buyers' purchase
network       buyer of a contract         - network x contracted        the utility
fee           both                        - fee x contracted            the pool
short         metered < contracted        - max(retail, price) x diff   the utility
long          metered > contracted        + min(buyback, price) x diff  the utility
============  ==========================  ============================  =====================

Contracts are firm: they are paid in full whatever the meter says, and only the difference between
metered and contracted feed-in meets the utility. As short is never cheaper and long never dearer
than the zone's price, energy that was sold and not delivered, or bought and not drawn, never pays.
No network charge on imbalance: retail holds it already.

A correction changes only the imbalance: its lines are the differences of short and long energy.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from gridtokenx.consortium.market.auction import largest_remainder
from gridtokenx.consortium.market.parameters import IntervalPrices
from gridtokenx.consortium.market.positions import Position
from gridtokenx.core.codec import Wire
from gridtokenx.core.types import Index16, Int64, UInt63
from gridtokenx.core.units import NANO_PER_MICRO, ceil_div


class Item(StrEnum):
    """What a line is for."""

    PURCHASE = "purchase"
    SALE = "sale"
    NETWORK = "network"
    FEE = "fee"
    SHORT = "short"
    LONG = "long"


_EARNS = frozenset((Item.SALE, Item.LONG))
_WITH_UTILITY = frozenset((Item.NETWORK, Item.SHORT, Item.LONG))


class Line(Wire, frozen=True):
    """One item of a statement."""

    interval: UInt63
    """The delivery interval that it is about; earlier than the batch's for a correction."""
    zone: Index16
    item: Item
    energy_wh: Int64
    """Negative where a correction takes back."""
    price_uwatt_per_kwh: UInt63
    amount_nwatt: Int64
    """Positive: the account receives. Exact, in 10**-9 WATT."""


@dataclass(frozen=True, slots=True)
class Imbalance:
    """Metered less contracted feed-in, split by sign; differences of two when correcting."""

    short_wh: int
    long_wh: int

    def minus(self, other: "Imbalance") -> "Imbalance":
        """What changed since `other`."""
        return Imbalance(self.short_wh - other.short_wh, self.long_wh - other.long_wh)


def imbalance(metered_wh: int, contracted_wh: int) -> Imbalance:
    """The imbalance of a metered against a contracted net feed-in."""
    difference_wh = metered_wh - contracted_wh
    return Imbalance(max(0, -difference_wh), max(0, difference_wh))


def contract_lines(
    interval: int, zone: int, position: Position, prices: IntervalPrices
) -> list[Line]:
    """What the contracts of one position cost and earn."""
    price, bought_wh, sold_wh = prices.price or 0, position.bought_wh, position.sold_wh
    items = (
        (Item.PURCHASE, bought_wh, price),
        (Item.NETWORK, bought_wh, prices.network),
        (Item.FEE, bought_wh, prices.fee_buy),
        (Item.SALE, sold_wh, price),
        (Item.FEE, sold_wh, prices.fee_sell),
    )
    return [_line(interval, zone, *item) for item in items if item[1]]


def imbalance_lines(
    interval: int, zone: int, change: Imbalance, prices: IntervalPrices
) -> list[Line]:
    """What an imbalance, or a change of one, costs and earns."""
    items = ((Item.SHORT, change.short_wh, prices.short), (Item.LONG, change.long_wh, prices.long))
    return [_line(interval, zone, *item) for item in items if item[1]]


def _line(interval: int, zone: int, item: Item, energy_wh: int, price: int) -> Line:
    sign = 1 if item in _EARNS else -1
    return Line(
        interval=interval,
        zone=zone,
        item=item,
        energy_wh=energy_wh,
        price_uwatt_per_kwh=price,
        amount_nwatt=sign * price * energy_wh,
    )


@dataclass(slots=True)
class Batch:
    """Lines by account, as they are collected for one settlement."""

    lines: dict[bytes, list[Line]] = field(default_factory=dict)

    def add(self, account: bytes, lines: Iterable[Line]) -> None:
        """Book lines to an account."""
        self.lines.setdefault(account, []).extend(lines)

    def add_utility(self, utility: bytes) -> None:
        """Book the other side of all that concerns the utility, summed per item and price."""
        sums: dict[tuple[int, int, Item, int], tuple[int, int]] = {}
        for line in (line for lines in self.lines.values() for line in lines):
            if line.item in _WITH_UTILITY:
                key = (line.interval, line.zone, line.item, line.price_uwatt_per_kwh)
                energy_wh, amount = sums.get(key, (0, 0))
                sums[key] = (energy_wh + line.energy_wh, amount - line.amount_nwatt)
        mirrored = [
            Line(interval, zone, item, energy_wh, price, amount)
            for (interval, zone, item, price), (energy_wh, amount) in sums.items()
        ]
        self.add(utility, sorted(mirrored, key=lambda line: (line.interval, line.zone, line.item)))

    def nets(self) -> dict[bytes, int]:
        """Micro-WATT per account, positive to receive. The one rounding: against the account."""
        return {
            account: sum(line.amount_nwatt for line in lines) // NANO_PER_MICRO
            for account, lines in self.lines.items()
        }

    def owed_to_utility(self, account: bytes) -> int:
        """Micro-WATT of an account's lines that the utility is the other side of, rounded up."""
        owed = -sum(each.amount_nwatt for each in self.lines[account] if each.item in _WITH_UTILITY)
        return max(0, ceil_div(owed, NANO_PER_MICRO))

    def contract_claim(self, account: bytes) -> int:
        """Micro-WATT that an account's contracts earn, after fees; 0 if they cost."""
        lines = (each for each in self.lines[account] if each.item not in _WITH_UTILITY)
        return max(0, sum(each.amount_nwatt for each in lines) // NANO_PER_MICRO)

    def fees_nwatt(self) -> int:
        """What the pool earns before dust."""
        lines = (line for lines in self.lines.values() for line in lines)
        return -sum(line.amount_nwatt for line in lines if line.item is Item.FEE)


@dataclass(frozen=True, slots=True)
class Losses:
    """Who bears what of a batch's unpaid contracts; together all of it."""

    by_account: Mapping[bytes, int]
    pool: int
    utility: int
    """What exceeds the claims of all who receive for contracts."""


def share_losses(claims_uwatt: Mapping[bytes, int], pool_uwatt: int, unpaid_uwatt: int) -> Losses:
    """Let those who receive for contracts, and the pool, bear unpaid contracts pro rata."""
    claims: Sequence[tuple[int, int]] = list(enumerate((*claims_uwatt.values(), pool_uwatt)))
    borne = min(unpaid_uwatt, sum(claim for _, claim in claims))
    shares = largest_remainder(claims, borne) if borne else {}
    by_account = {
        account: shares[index] for index, account in enumerate(claims_uwatt) if shares.get(index)
    }
    return Losses(by_account, shares.get(len(claims) - 1, 0), unpaid_uwatt - borne)


def share_receipts(
    credits_uwatt: Mapping[bytes, int], pool_uwatt: int, received_uwatt: int
) -> tuple[dict[bytes, int], int]:
    """Pay the receivers of a batch and its pool from what was received.

    If all debts were paid everyone has their own; else the shortfall is borne pro rata.

    Returns:
        What each receiver gets, and what the pool gets; together exactly what was received.
    """
    claims: Sequence[tuple[int, int]] = list(enumerate((*credits_uwatt.values(), pool_uwatt)))
    if received_uwatt == sum(claim for _, claim in claims):
        return dict(credits_uwatt), pool_uwatt
    shares = largest_remainder(claims, received_uwatt)
    paid = {account: shares[index] for index, account in enumerate(credits_uwatt)}
    return paid, shares[len(claims) - 1]


def dust_nwatt(pool_uwatt: int, fees_nwatt: int) -> int:
    """The part of the pool's claim that rounding made."""
    return pool_uwatt * NANO_PER_MICRO - fees_nwatt
