"""Fungible balances by (denomination, account), with named locks.

Law of the file: for every denomination, supply = free balances + locked balances, always. Minting
and burning are for other modules (custody, bridge escrow); accounts can only transfer.

A lock holds part of an account's balance for one purpose; only the module that knows the purpose
unlocks or seizes it.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.keys import sha256
from gridtokenx.core.types import Denom, PublicKey, UInt63
from gridtokenx.core.units import checked_amount
from gridtokenx.ledger.runtime import CallFailed, Context, Module, handles
from gridtokenx.ledger.state import Map, State


def module_account(name: str) -> bytes:
    """The account of a module: nobody has its key."""
    return sha256(b"module account", name.encode())


class Transfer(Wire, frozen=True, tag="tokens.transfer"):
    """Give tokens to another account."""

    denom: Denom
    to: PublicKey
    amount: UInt63


class Transferred(Wire, frozen=True, tag="tokens.transferred"):
    """Tokens changed hands by a `Transfer`."""

    denom: Denom
    sender: PublicKey
    to: PublicKey
    amount: UInt63


class Allocation(Wire, frozen=True):
    """An opening balance."""

    denom: Denom
    account: PublicKey
    amount: UInt63


class Tokens(Module):
    """The token module; other modules hold a reference and move balances through it."""

    name = "tokens"
    events = (Transferred,)

    def __init__(self, allocations: Sequence[Allocation] = ()) -> None:
        self._allocations = tuple(allocations)
        self.balances: Final = Map("tokens.balance", int)
        self.locks: Final = Map("tokens.lock", int)
        self.supplies: Final = Map("tokens.supply", int)

    def genesis(self, ctx: Context) -> None:
        """Mint the opening balances."""
        for allocation in self._allocations:
            self.mint(ctx.state, allocation.denom, allocation.account, allocation.amount)

    # -- reads -------------------------------------------------------------------------------------

    def balance(self, state: State, denom: str, account: bytes) -> int:
        """What the account can spend."""
        return self.balances.read(state, 0, denom, account)

    def locked(self, state: State, denom: str, account: bytes, purpose: str) -> int:
        """What is locked for one purpose."""
        return self.locks.read(state, 0, denom, account, purpose)

    def supply(self, state: State, denom: str) -> int:
        """All that exists on this chain."""
        return self.supplies.read(state, 0, denom)

    # -- for other modules -------------------------------------------------------------------------

    def mint(self, state: State, denom: str, account: bytes, amount: int) -> None:
        """Create tokens in an account."""
        self._add(self.supplies, state, amount, denom)
        self._add(self.balances, state, amount, denom, account)

    def burn(self, state: State, denom: str, account: bytes, amount: int) -> None:
        """Destroy tokens of an account."""
        self._take(self.balances, state, amount, denom, account)
        self._take(self.supplies, state, amount, denom)

    def move(self, state: State, denom: str, sender: bytes, to: bytes, amount: int) -> None:
        """Move free balance between accounts.

        Raises:
            CallFailed: insufficient funds.
        """
        self._take(self.balances, state, amount, denom, sender)
        self._add(self.balances, state, amount, denom, to)

    def lock(self, state: State, denom: str, account: bytes, purpose: str, amount: int) -> None:
        """Hold part of the free balance for a purpose."""
        self._take(self.balances, state, amount, denom, account)
        self._add(self.locks, state, amount, denom, account, purpose)

    def unlock(self, state: State, denom: str, account: bytes, purpose: str, amount: int) -> None:
        """Return part of a lock to the free balance."""
        self._take(self.locks, state, amount, denom, account, purpose)
        self._add(self.balances, state, amount, denom, account)

    def seize(
        self, state: State, denom: str, account: bytes, purpose: str, to: bytes, amount: int
    ) -> None:
        """Pay someone out of a lock."""
        self._take(self.locks, state, amount, denom, account, purpose)
        self._add(self.balances, state, amount, denom, to)

    # -- calls -------------------------------------------------------------------------------------

    @handles(Transfer)
    def transfer(self, ctx: Context, call: Transfer) -> None:
        """Give tokens to another account."""
        if call.amount == 0:
            raise CallFailed("amount-zero", "a transfer moves at least one unit")
        self.move(ctx.state, call.denom, ctx.sender, call.to, call.amount)
        ctx.emit(Transferred(call.denom, ctx.sender, call.to, call.amount))

    # -- laws --------------------------------------------------------------------------------------

    def check_invariants(self, state: State) -> Iterator[str]:
        """Supply = free + locked, per denomination."""
        held: defaultdict[bytes, int] = defaultdict(int)
        for store in (self.balances, self.locks):
            for key, amount in store.scan(state):
                held[key[: key[0] + 1]] += amount
        supplies = dict(self.supplies.scan(state))
        for denom in held.keys() | supplies.keys():
            if held.get(denom, 0) != supplies.get(denom, 0):
                yield (
                    f"{denom[1:].decode()}: supply {supplies.get(denom, 0)}, "
                    f"held {held.get(denom, 0)}"
                )

    # -- the two primitives ------------------------------------------------------------------------

    @staticmethod
    def _add(store: Map[int], state: State, amount: int, *key: bytes | str) -> None:
        if amount:
            at = store.key(*key)
            store.put_at(state, checked_amount((store.get_at(state, at) or 0) + amount), at)

    @staticmethod
    def _take(store: Map[int], state: State, amount: int, *key: bytes | str) -> None:
        if amount == 0:
            return
        at = store.key(*key)
        held = store.get_at(state, at) or 0
        if not 0 <= amount <= held:
            raise CallFailed("insufficient-funds", f"{held} held, {amount} asked")
        if held == amount:
            store.delete_at(state, at)
        else:
            store.put_at(state, held - amount, at)
