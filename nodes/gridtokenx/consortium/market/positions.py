"""Positions: what accounts contracted, from clearing until the correction window ends.

The market opens them, settlement pays and closes them. A position is one account's net result in
one zone and interval; since an account is on one side of a product only, it bought or it sold.
"""

from collections.abc import Iterator
from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.types import Index16, PublicKey, UInt63
from gridtokenx.ledger.state import Cell, Log, Map, State


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


class Holder(Wire, frozen=True):
    """Whose position."""

    zone: Index16
    account: PublicKey


NO_POSITION: Final = Position(bought_wh=0, sold_wh=0, contract_uwatt=0, margin_uwatt=0)


class Positions:
    """The store, with the list of holders per interval."""

    def __init__(self) -> None:
        self._positions: Final = Map("positions.position", Position)
        self._holders: Final = Log("positions.holder", Holder)
        self._last: Final = Cell("positions.last_interval", UInt63, 0)

    def open(self, state: State, interval: int, holder: Holder, position: Position) -> None:
        """Record a new position."""
        self._positions.put(state, position, interval, holder.zone, holder.account)
        self._holders.append(state, holder, interval)
        if interval > self._last.get(state):
            self._last.put(state, interval)

    def last(self, state: State) -> int:
        """The last interval that ever had a position; 0 before the first."""
        return self._last.get(state)

    def get(self, state: State, interval: int, holder: Holder) -> Position:
        """A position; the empty one where there is none."""
        return self._positions.read(state, NO_POSITION, interval, holder.zone, holder.account)

    def replace(self, state: State, interval: int, holder: Holder, position: Position) -> None:
        """Change a position that is open."""
        self._positions.put(state, position, interval, holder.zone, holder.account)

    def holders(self, state: State, interval: int) -> Iterator[Holder]:
        """Who has a position in an interval."""
        return self._holders.walk(state, interval)

    def close(self, state: State, interval: int) -> None:
        """Forget all positions of an interval."""
        for holder in self._holders.walk(state, interval):
            self._positions.delete(state, interval, holder.zone, holder.account)
        self._holders.clear(state, interval)

    def scan(self, state: State) -> Iterator[tuple[int, Holder, Position]]:
        """All open positions; for invariants only."""
        for key, position in self._positions.scan(state):
            interval, zone = (int.from_bytes(key[at : at + 8], "big") for at in (0, 8))
            yield interval, Holder(zone=zone, account=key[17:]), position
