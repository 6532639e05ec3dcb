"""A bounded list of accounts in state: who stands, who nominates.

State has no cheap iteration, and an election must read everybody. So each list is kept by place
(place -> account, account -> place), a removal moves the last entry into the gap, and the order is a
function of the chain's history alone.

Bounds need a rule against squatting: whoever fills a list with the least allowed stake would lock
others out. Every election therefore notes the weakest entries of a full list; a newcomer with more
stake takes the place of the first of them.
"""

from collections.abc import Callable, Iterable
from typing import Final

from gridtokenx.ledger.runtime import CallFailed
from gridtokenx.ledger.state import Cell, Map, State

MAX_WEAKEST: Final = 64
"""Places of a full list that can change hands between two elections."""


class Roll:
    """Accounts, each once.

    Args:
        name: of the list in state.
        what: of its entries, for people.
        capacity: how many it holds.
    """

    def __init__(self, name: str, what: str, capacity: int) -> None:
        self.capacity: Final = capacity
        self._what: Final = what
        self.length: Final = Cell(f"{name}.length", int, 0)
        self.entries: Final = Map(f"{name}.entry", bytes)
        """(place) -> account."""
        self._places: Final = Map(f"{name}.place", int)
        self._weakest: Final[Cell[tuple[bytes, ...]]] = Cell(
            f"{name}.weakest", tuple[bytes, ...], ()
        )

    def has(self, state: State, account: bytes) -> bool:
        """Whether the account is listed."""
        return self._places.has(state, account)

    def walk(self, state: State) -> list[bytes]:
        """All accounts in order."""
        found = (self.entries.get(state, place) for place in range(self.length.get(state)))
        return [account for account in found if account is not None]

    def add(self, state: State, account: bytes) -> None:
        """List an account that is not listed, where there is room (see `displaced`)."""
        place = self.length.get(state)
        self.entries.put(state, account, place)
        self._places.put(state, place, account)
        self.length.put(state, place + 1)

    def remove(self, state: State, account: bytes) -> None:
        """Strike an account; the last one moves into its place."""
        place = self._places.get(state, account)
        if place is None:
            return
        last = self.length.get(state) - 1
        moved = self.entries.get(state, last)
        if moved is not None and last != place:
            self.entries.put(state, moved, place)
            self._places.put(state, place, moved)
        self.entries.delete(state, last)
        self._places.delete(state, account)
        self.length.put(state, last)

    def note_weakest(self, state: State, stakes: Iterable[tuple[int, bytes]]) -> None:
        """At an election: who may be displaced until the next one, if the list is full."""
        full = self.length.get(state) >= self.capacity
        weakest = tuple(account for _, account in sorted(stakes)[:MAX_WEAKEST]) if full else ()
        if weakest != self._weakest.get(state):
            self._weakest.put(state, weakest)

    def displaced(self, state: State, stake: int, stake_of: Callable[[bytes], int]) -> bytes | None:
        """Who has to go so that somebody with this stake can be listed; None if there is room.

        Raises:
            CallFailed: `roll-full`.
        """
        if self.length.get(state) < self.capacity:
            return None
        weakest = self._weakest.get(state)
        while weakest:
            account, weakest = weakest[0], weakest[1:]
            if self.has(state, account) and stake_of(account) < stake:
                self._weakest.put(state, weakest)
                return account
        raise CallFailed(
            "roll-full",
            f"all {self.capacity} places for {self._what} are taken by greater stakes; "
            "bond more, or try again in the next era",
        )

    def check_invariants(self, state: State) -> Iterable[str]:
        """Both directions agree."""
        accounts = self.walk(state)
        if len(accounts) != self.length.get(state) or len(set(accounts)) < len(accounts):
            yield f"{self._what}: the list has gaps or repeats an account"
        placed = {key[1:]: place for key, place in self._places.scan(state)}
        if placed != {account: place for place, account in enumerate(accounts)}:
            yield f"{self._what}: the list and its index disagree"
