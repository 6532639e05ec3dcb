"""Enrolled relayers: transport without fee, within a quota, and never belief.

Law of the file: enrolment buys a relayer nothing but room in blocks. What it carries is judged by
proofs like anyone's; what it sends free of charge is interchain calls only, so many per window.
"""

from collections.abc import Callable, Sequence
from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.types import PublicKey, UInt63
from gridtokenx.ledger.admission import TokenFee
from gridtokenx.ledger.runtime import CallFailed, Context, InvalidTransaction, Module, handles
from gridtokenx.ledger.state import Cell, Map, State
from gridtokenx.ledger.tokens import Tokens
from gridtokenx.ledger.transactions import TransactionBody

QUOTA_WINDOW_MS: Final = 60_000
"""Network time over which a quota counts."""


class Usage(Wire, frozen=True):
    """What a relayer has used of its quota."""

    window: UInt63
    """Number of the quota window: block time // `QUOTA_WINDOW_MS`."""
    used: UInt63
    """Transactions without fee in that window."""


class SetRelayer(Wire, frozen=True, tag="relayers.set"):
    """Enrol a relayer, change its quota, or end it with 0; the operator's."""

    account: PublicKey
    free_per_window: UInt63
    """Transactions without fee in one quota window."""


class RelayerChanged(Wire, frozen=True, tag="relayers.changed"):
    """A relayer's quota was set."""

    account: PublicKey
    free_per_window: UInt63


class Relayers(Module):
    """Who relays without fee, and how much of the quota is used.

    Args:
        operator: the account that decides.
        relayers: opening relayers with their quota.
        free_calls: the kinds of call that may be free.
    """

    name = "relayers"
    events = (RelayerChanged,)

    def __init__(
        self,
        operator: bytes,
        relayers: Sequence[tuple[bytes, int]],
        free_calls: Sequence[type[Wire]],
    ) -> None:
        self._operator: Final = operator
        self._genesis: Final = tuple(relayers)
        self._free_calls: Final = tuple(free_calls)
        self.quotas: Final = Map("relayers.quota", int)
        self.usage: Final = Map("relayers.usage", Usage)
        self.window: Final = Cell("relayers.window", int, 0)

    def genesis(self, ctx: Context) -> None:
        """Enrol the opening relayers."""
        for account, free_per_window in self._genesis:
            self.quotas.put(ctx.state, free_per_window, account)

    def begin_block(self, ctx: Context) -> None:
        """Open the next quota window when its time has come."""
        window = ctx.timestamp_ms // QUOTA_WINDOW_MS
        if window != self.window.get(ctx.state):
            self.window.put(ctx.state, window)

    def is_free(self, state: State, sender: bytes, calls: Sequence[Wire]) -> bool:
        """Whether this sender may have these calls carried out without a fee now."""
        quota = self.quotas.read(state, 0, sender)
        if quota == 0 or not all(isinstance(call, self._free_calls) for call in calls):
            return False
        return self._used(state, sender) < quota

    def count(self, state: State, sender: bytes) -> None:
        """One more transaction of a relayer was carried out without fee."""
        usage = Usage(window=self.window.get(state), used=self._used(state, sender) + 1)
        self.usage.put(state, usage, sender)

    @handles(SetRelayer)
    def set_relayer(self, ctx: Context, call: SetRelayer) -> None:
        """Enrol a relayer, change its quota, or end it."""
        if ctx.sender != self._operator:
            raise CallFailed("not-operator", "only the operator of the consortium decides this")
        if call.free_per_window:
            self.quotas.put(ctx.state, call.free_per_window, call.account)
        else:
            self.quotas.delete(ctx.state, call.account)
            self.usage.delete(ctx.state, call.account)
        ctx.emit(RelayerChanged(account=call.account, free_per_window=call.free_per_window))

    def _used(self, state: State, sender: bytes) -> int:
        usage = self.usage.get(state, sender)
        return usage.used if usage is not None and usage.window == self.window.get(state) else 0


class FeeUnlessRelayed(TokenFee):
    """A token fee that enrolled relayers are spared within their quota, and members who decide."""

    def __init__(
        self,
        tokens: Tokens,
        denom: str,
        per_weight: int,
        treasury: bytes,
        relayers: Relayers,
        decides: Callable[[State, bytes, Sequence[Wire]], bool],
    ) -> None:
        def exempt(state: State, sender: bytes, calls: Sequence[Wire]) -> bool:
            return relayers.is_free(state, sender, calls) or decides(state, sender, calls)

        super().__init__(tokens, denom, per_weight, treasury, exempt)
        self._relayers = relayers

    def check(
        self, state: State, body: TransactionBody, calls: Sequence[Wire], weight: int
    ) -> None:
        """Ask for the whole fee or none: what is less would be neither paid nor counted."""
        if 0 < body.fee < self.minimum(weight):
            raise InvalidTransaction(
                "fee-too-low",
                f"offered {body.fee}, at least {self.minimum(weight)} is asked; an enrolled relayer"
                " may offer 0 within its quota",
            )
        super().check(state, body, calls, weight)

    def charge(self, ctx: Context, body: TransactionBody) -> None:
        """Take the fee, or a piece of the quota where none is offered."""
        if body.fee == 0 and self._relayers.quotas.has(ctx.state, body.sender):
            self._relayers.count(ctx.state, body.sender)
        super().charge(ctx, body)
