"""Positions: what accounts contracted, from clearing until the correction window ends.

The market opens them, settlement pays and closes them. A position is one account's net result in
one zone and interval; since an account is on one side of a product only, it bought or it sold.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.types import Index16, PublicKey, UInt63
from gridtokenx.ledger.state import Cell, Map, State


class Position(Wire, frozen=True):
    """Contracted energy, firm, and the collateral that it still holds."""

    bought_wh: UInt63
    sold_wh: UInt63
    contract_uwatt: UInt63
    """Locked for the contract; 0 once that is paid."""
    margin_uwatt: UInt63
    """Locked against imbalance and corrections until the window ends."""

    @property
    def net_wh(self) -> int:
        """Contracted feed-in; negative for a buyer."""
        return self.sold_wh - self.bought_wh

    @property
    def locked_uwatt(self) -> int:
        """All collateral that it holds."""
        return self.contract_uwatt + self.margin_uwatt


class Holder(Wire, frozen=True, order=True):
    """Whose position."""

    zone: Index16
    account: PublicKey


class Held(Wire, frozen=True):
    """A position and its holder, as stored."""

    holder: Holder
    position: Position


NO_POSITION: Final = Position(bought_wh=0, sold_wh=0, contract_uwatt=0, margin_uwatt=0)
PAGE_POSITIONS: Final = 128
"""Positions in one record of state: an interval's are always needed together."""


class Positions:
    """The store: all positions of an interval, in pages."""

    def __init__(self) -> None:
        self._pages: Final = Map("positions.page", tuple[Held, ...])
        self._counts: Final = Map("positions.pages", int)
        self._last: Final = Cell("positions.last_interval", int, 0)

    def load(self, state: State, interval: int) -> dict[Holder, Position]:
        """All positions of an interval, in order of holder."""
        pages = (
            self._pages.read(state, (), interval, page)
            for page in range(self._counts.read(state, 0, interval))
        )
        return {held.holder: held.position for page in pages for held in page}

    def save(self, state: State, interval: int, positions: Mapping[Holder, Position]) -> None:
        """Replace all positions of an interval; none to forget it."""
        held = [Held(holder, positions[holder]) for holder in sorted(positions)]
        starts = range(0, len(held), PAGE_POSITIONS)
        for page, start in enumerate(starts):
            self._pages.put(state, tuple(held[start : start + PAGE_POSITIONS]), interval, page)
        for page in range(len(starts), self._counts.read(state, 0, interval)):
            self._pages.delete(state, interval, page)
        if held:
            self._counts.put(state, len(starts), interval)
        else:
            self._counts.delete(state, interval)
        if held and interval > self._last.get(state):
            self._last.put(state, interval)

    def last(self, state: State) -> int:
        """The last interval that ever had a position; 0 before the first."""
        return self._last.get(state)

    def scan(self, state: State) -> Iterator[tuple[Holder, Position]]:
        """All open positions; for invariants only."""
        for _, page in self._pages.scan(state):
            for held in page:
                yield held.holder, held.position
