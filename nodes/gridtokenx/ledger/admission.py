"""Who may send what, in which order, and for what fee.

Two orders exist. `StrictNonce`: an account's transactions form a sequence without gaps (public and
consortium chain). `WindowNonce`: a sender's transactions are unique inside a sliding window and come
in any order (oracle chain, where radio and brokers reorder what a meter sends).

Fees are a policy beside the order: `TokenFee` charges a token by size and weight, `NoFee` asks a
gate instead, because what is free must be limited otherwise.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from gridtokenx.core.codec import Wire
from gridtokenx.core.types import Blob, UInt63
from gridtokenx.ledger.runtime import CallFailed, Context, InvalidTransaction, Standing
from gridtokenx.ledger.state import Map, State
from gridtokenx.ledger.tokens import Tokens
from gridtokenx.ledger.transactions import TransactionBody

MAX_NONCE_GAP: Final = 256
"""How far ahead of its account a pooled transaction may be."""
WINDOW_BITS: Final = 256
"""How far behind the highest nonce of its sender a reordered transaction may be."""

NONCE_USED: Final = "nonce-used"
"""Why a transaction is refused whose nonce the chain has seen: maybe in this very transaction."""

Gate = Callable[[State, bytes, Sequence[Wire]], None]
"""(state, sender, calls) -> raises `InvalidTransaction` if this sender may not send these."""


class FeePolicy(Protocol):
    """What inclusion costs."""

    def check(
        self, state: State, body: TransactionBody, calls: Sequence[Wire], weight: int
    ) -> None:
        """Whether the offered fee is enough and payable; raises `InvalidTransaction`."""

    def charge(self, ctx: Context, body: TransactionBody) -> None:
        """Take the fee."""

    def budget(self, state: State, sender: bytes) -> int | None:
        """What the sender has for fees; None if nothing is ever asked."""
        ...


class TokenFee:
    """A fee in `denom`, at least ``per_weight * weight``, paid to `treasury`.

    Senders for whom `exempt` is true (enrolled relayers, say) may offer nothing.
    """

    def __init__(
        self,
        tokens: Tokens,
        denom: str,
        per_weight: int,
        treasury: bytes,
        exempt: Callable[[State, bytes, Sequence[Wire]], bool] = lambda _s, _a, _c: False,
    ) -> None:
        self._tokens = tokens
        self._denom = denom
        self._per_weight = per_weight
        self._treasury = treasury
        self._exempt = exempt

    def minimum(self, weight: int) -> int:
        """The least fee for calls of this weight."""
        return self._per_weight * weight

    def check(
        self, state: State, body: TransactionBody, calls: Sequence[Wire], weight: int
    ) -> None:
        """See `FeePolicy`."""
        if body.fee < self.minimum(weight) and not self._exempt(state, body.sender, calls):
            raise InvalidTransaction(
                "fee-too-low", f"offered {body.fee}, at least {self.minimum(weight)} is asked"
            )
        if self._tokens.balance(state, self._denom, body.sender) < body.fee:
            raise InvalidTransaction("fee-unpaid", f"the account has too little {self._denom}")

    def charge(self, ctx: Context, body: TransactionBody) -> None:
        """See `FeePolicy`."""
        if body.fee:
            self._tokens.move(ctx.state, self._denom, body.sender, self._treasury, body.fee)

    def budget(self, state: State, sender: bytes) -> int | None:
        """See `FeePolicy`."""
        return self._tokens.balance(state, self._denom, sender)


class NoFee:
    """Free for those whom the gate lets through; a fee must not be offered."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def check(
        self,
        state: State,
        body: TransactionBody,
        calls: Sequence[Wire],
        weight: int,  # noqa: ARG002 - the port's
    ) -> None:
        """See `FeePolicy`."""
        if body.fee:
            raise InvalidTransaction("fee-not-accepted", "this chain takes no fees; offer 0")
        self._gate(state, body.sender, calls)

    def charge(self, ctx: Context, body: TransactionBody) -> None:
        """Nothing to take."""

    def budget(self, state: State, sender: bytes) -> int | None:  # noqa: ARG002 - the port's
        """See `FeePolicy`."""
        return None


class StrictNonce:
    """Each sender's nonces are 0, 1, 2, ... without gap."""

    def __init__(self, fees: FeePolicy) -> None:
        self._fees = fees
        self.nonces: Final = Map("account.nonce", int)

    def next_nonce(self, state: State, sender: bytes) -> int:
        """The nonce that the sender's next included transaction must have."""
        return self.nonces.read(state, 0, sender)

    def check(
        self, state: State, body: TransactionBody, calls: Sequence[Wire], weight: int
    ) -> None:
        """See `Admission`."""
        expected = self.next_nonce(state, body.sender)
        if body.nonce < expected:
            raise InvalidTransaction(NONCE_USED, f"the account's next nonce is {expected}")
        if body.nonce > expected + MAX_NONCE_GAP:
            raise InvalidTransaction("nonce-too-far", f"the account's next nonce is {expected}")
        self._fees.check(state, body, calls, weight)

    def ready(self, state: State, body: TransactionBody) -> bool:
        """See `Admission`."""
        return body.nonce == self.next_nonce(state, body.sender)

    def standing(self, state: State, sender: bytes) -> Standing:
        """See `Admission`."""
        return Standing(self.next_nonce(state, sender), self._fees.budget(state, sender))

    def charge(
        self, ctx: Context, body: TransactionBody, calls: Sequence[Wire], weight: int
    ) -> None:
        """See `Admission`."""
        at = self.nonces.key(body.sender)
        if body.nonce != (self.nonces.get_at(ctx.state, at) or 0):
            raise InvalidTransaction("nonce-out-of-order", f"nonce {body.nonce} is not next")
        _charge(self._fees, ctx, body, calls, weight)
        self.nonces.put_at(ctx.state, body.nonce + 1, at)


class Window(Wire, frozen=True):
    """The nonces that one sender has used."""

    highest: UInt63
    used: Blob
    """Bit i (big-endian integer) set: ``highest - i`` is used. Older than the window: used."""


class WindowNonce:
    """Nonces are unique; those within `WINDOW_BITS` of the highest may come in any order."""

    def __init__(self, fees: FeePolicy) -> None:
        self._fees = fees
        self._windows: Final = Map("sender.window", Window)

    def is_used(self, state: State, sender: bytes, nonce: int) -> bool:
        """Whether the nonce was used, or is too old to tell."""
        window = self._windows.get(state, sender)
        if window is None or nonce > window.highest:
            return False
        behind = window.highest - nonce
        return behind >= WINDOW_BITS or bool(int.from_bytes(window.used, "big") >> behind & 1)

    def check(
        self, state: State, body: TransactionBody, calls: Sequence[Wire], weight: int
    ) -> None:
        """See `Admission`."""
        if not self.ready(state, body):
            raise InvalidTransaction(NONCE_USED, f"{body.nonce} was used, or is too old")
        self._fees.check(state, body, calls, weight)

    def ready(self, state: State, body: TransactionBody) -> bool:
        """See `Admission`."""
        return not self.is_used(state, body.sender, body.nonce)

    def standing(self, state: State, sender: bytes) -> Standing:
        """See `Admission`."""
        return Standing(None, self._fees.budget(state, sender))

    def charge(
        self, ctx: Context, body: TransactionBody, calls: Sequence[Wire], weight: int
    ) -> None:
        """See `Admission`."""
        if not self.ready(ctx.state, body):
            raise InvalidTransaction(NONCE_USED, f"{body.nonce} was used, or is too old")
        _charge(self._fees, ctx, body, calls, weight)
        self._use(ctx.state, body.sender, body.nonce)

    def _use(self, state: State, sender: bytes, nonce: int) -> None:
        window = self._windows.read(state, Window(highest=nonce, used=b""), sender)
        used = int.from_bytes(window.used, "big")
        if nonce > window.highest:
            shift = nonce - window.highest
            used = used << shift & (1 << WINDOW_BITS) - 1 if shift < WINDOW_BITS else 0
            highest = nonce
        else:
            highest = window.highest
        used |= 1 << (highest - nonce)
        raw = used.to_bytes((used.bit_length() + 7) // 8, "big")
        self._windows.put(state, Window(highest=highest, used=raw), sender)


def _charge(
    fees: FeePolicy, ctx: Context, body: TransactionBody, calls: Sequence[Wire], weight: int
) -> None:
    fees.check(ctx.state, body, calls, weight)
    try:
        fees.charge(ctx, body)
    except CallFailed as refusal:
        raise InvalidTransaction("fee-unpaid", refusal.message) from None
