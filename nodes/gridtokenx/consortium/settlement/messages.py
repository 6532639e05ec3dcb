"""Events of settlement; it has no calls: everything follows from contracts and meter reports."""

from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.consortium.settlement.statement import Line
from gridtokenx.core.codec import Wire
from gridtokenx.core.types import Hash32, Int64, PublicKey, UInt63

STATEMENT_LINES: Final = 256
"""Lines of one statement: about 13 KiB, a fifth of an event record."""


class Statement(Wire, frozen=True, tag="settlement.statement"):
    """One account's part of a batch: every item once, rounded once.

    More lines than `STATEMENT_LINES` come in several statements; all but the last have no totals.
    """

    interval: UInt63
    """The batch: the delivery interval whose report made it."""
    account: PublicKey
    lines: Annotated[tuple[Line, ...], Meta(max_length=STATEMENT_LINES)]
    """Items of this interval, and corrections of earlier ones."""
    net_uwatt: Int64
    """Sum of all lines, rounded against the account; positive to receive. 0 before the last part."""
    paid_uwatt: Int64
    """What moved; differs from `net_uwatt` only if somebody in the batch could not pay."""


class IntervalSettled(Wire, frozen=True, tag="settlement.interval_settled"):
    """A batch was paid."""

    interval: UInt63
    metered: bool
    """False: no report came in time, and contracts were settled without imbalance."""
    accounts: UInt63
    """Statements in the batch."""
    meters: UInt63
    """Meters with an entry of this interval."""
    substituted: UInt63
    """Of these, estimates that may be corrected."""
    unknown: UInt63
    """Entries of devices that are no participant's meter here; not settled."""
    corrections: UInt63
    """Entries that corrected earlier intervals."""
    contracted_wh: UInt63
    """Bought, which equals sold."""
    import_wh: UInt63
    export_wh: UInt63
    short_wh: UInt63
    long_wh: UInt63
    debits_uwatt: UInt63
    credits_uwatt: UInt63
    pool_uwatt: UInt63
    """Fees and dust."""
    dust_nwatt: UInt63
    """The part of the pool's that rounding made."""
    shortfall_uwatt: UInt63
    """Debts that were not paid: the losses of the utility, and of this batch's contract receivers."""


class AccountDefaulted(Wire, frozen=True, tag="settlement.account_defaulted"):
    """A debt exceeded all that secured it."""

    interval: UInt63
    account: PublicKey
    shortfall_uwatt: UInt63
    """What remained after balance, margins, bond and (for contracts) the default fund."""


class EntryLimited(Wire, frozen=True, tag="settlement.entry_limited"):
    """A meter entry claimed more than any device can move; only the bound was booked."""

    interval: UInt63
    """The batch."""
    device: Hash32
    import_wh: UInt63
    """As the report has it."""
    export_wh: UInt63


class CorrectionsMissed(Wire, frozen=True, tag="settlement.corrections_missed"):
    """Revenue meters were corrected for an interval that can not change any more: not settled."""

    interval: UInt63
    """The batch whose report held them."""
    corrects: UInt63
    entries: UInt63
    import_wh: UInt63
    """What these meters drew in the corrected interval, as is known now."""
    export_wh: UInt63


class WindowClosed(Wire, frozen=True, tag="settlement.window_closed"):
    """Nothing can change an interval any more; its collateral is free."""

    interval: UInt63
    released_uwatt: UInt63


EVENTS: Final = (
    Statement,
    IntervalSettled,
    AccountDefaulted,
    EntryLimited,
    CorrectionsMissed,
    WindowClosed,
)
