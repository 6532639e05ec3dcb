"""How much those who relay, or decide, may use of the oracle chain, which takes no fees.

Law of the file: **so much weight per window, and failing is dear.** A call is counted at the price of a
failing one before it is carried out, and the difference is given back when it succeeds. So a relayer
whose calls are refused (an unknown client, a bad proof) soon has no more room in blocks, while one that
is merely second pays the plain price: its calls succeed and do nothing. An oracle's decisions are rare
and always cost the full price.
"""

from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.types import UInt63
from gridtokenx.interchain import calls
from gridtokenx.interchain.module import Interchain
from gridtokenx.ledger.runtime import TRANSACTION_WEIGHT, Context, InvalidTransaction, handles
from gridtokenx.ledger.state import Map, State
from gridtokenx.oracle.chain.meters import SCHEDULE

QUOTA_WINDOW_MS: Final = 60_000
"""Network time over which a quota counts."""
WEIGHT_PER_WINDOW: Final = 2_000_000
"""Ten full blocks a minute: two client updates a second for each of two chains, and a thousand packets
of a backlog."""
FAILING_TIMES: Final = 8
"""A failing call counts as so many that succeed."""


class Usage(Wire, frozen=True):
    """What a relayer has used of its quota."""

    window: UInt63
    """Number of the quota window: block time // `QUOTA_WINDOW_MS`."""
    weight: UInt63


USAGE: Final = Map("admission.relayed", Usage)
"""(relayer's key) -> what it has used."""


def used(state: State, relayer: bytes) -> int:
    """Weight that a relayer has used in the window of the last block's time."""
    usage = USAGE.get(state, relayer)
    return usage.weight if usage is not None and usage.window == _window(state) else 0


def check_quota(state: State, relayer: bytes) -> None:
    """Refuse whoever has used its quota up; the last transaction may exceed it."""
    if used(state, relayer) >= WEIGHT_PER_WINDOW:
        raise InvalidTransaction(
            "relayer-quota", f"{WEIGHT_PER_WINDOW} weight in {QUOTA_WINDOW_MS // 1_000} s"
        )


def count(state: State, relayer: bytes, weight: int) -> None:
    """Count a transaction whose calls are about to be carried out, as if all failed."""
    of_calls = weight - TRANSACTION_WEIGHT
    _put(state, relayer, used(state, relayer) + TRANSACTION_WEIGHT + FAILING_TIMES * of_calls)


class QuotedInterchain(Interchain):
    """Interchain that gives back, call by call, what only failing costs."""

    @handles(calls.UpdateClient, weight=calls.WEIGHTS[calls.UpdateClient])
    def update_client(self, ctx: Context, call: calls.UpdateClient) -> None:
        """See `Interchain`."""
        super().update_client(ctx, call)
        _give_back(ctx, call)

    @handles(calls.SubmitMisbehaviour, weight=calls.WEIGHTS[calls.SubmitMisbehaviour])
    def submit_misbehaviour(self, ctx: Context, call: calls.SubmitMisbehaviour) -> None:
        """See `Interchain`."""
        super().submit_misbehaviour(ctx, call)
        _give_back(ctx, call)

    @handles(calls.ReceivePacket, weight=calls.WEIGHTS[calls.ReceivePacket])
    def receive_packet(self, ctx: Context, call: calls.ReceivePacket) -> None:
        """See `Interchain`."""
        super().receive_packet(ctx, call)
        _give_back(ctx, call)

    @handles(calls.AcknowledgePacket, weight=calls.WEIGHTS[calls.AcknowledgePacket])
    def acknowledge_packet(self, ctx: Context, call: calls.AcknowledgePacket) -> None:
        """See `Interchain`."""
        super().acknowledge_packet(ctx, call)
        _give_back(ctx, call)

    @handles(calls.TimeoutPacket, weight=calls.WEIGHTS[calls.TimeoutPacket])
    def timeout_packet(self, ctx: Context, call: calls.TimeoutPacket) -> None:
        """See `Interchain`."""
        super().timeout_packet(ctx, call)
        _give_back(ctx, call)


def _give_back(ctx: Context, call: Wire) -> None:
    surcharge = (FAILING_TIMES - 1) * calls.WEIGHTS[type(call)]
    _put(ctx.state, ctx.sender, max(0, used(ctx.state, ctx.sender) - surcharge))


def _put(state: State, relayer: bytes, weight: int) -> None:
    USAGE.put(state, Usage(window=_window(state), weight=weight), relayer)


def _window(state: State) -> int:
    """The window of the last block's time, which pool and block know alike."""
    return SCHEDULE.get(state).block_ms // QUOTA_WINDOW_MS
