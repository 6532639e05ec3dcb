"""Who may relay to the oracle chain, which takes no fees: those whom a quorum of the oracles stands for.

Law of the file: **enrolment buys a relayer nothing but room in blocks**, so much of it per window
(`relaying.py`); what it carries is judged by proofs like anyone's. Every oracle stands for one change
at a time, at most, so open changes never outnumber the members; a change that came into force voids
all voices (`interchain/voting.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.keys import sha256
from gridtokenx.core.types import Index16, PublicKey
from gridtokenx.interchain import voting
from gridtokenx.interchain.voting import MembersOf, Voice
from gridtokenx.ledger.runtime import (
    NOBODY,
    CallFailed,
    Context,
    InvalidTransaction,
    Module,
    handles,
)
from gridtokenx.ledger.state import Cell, Map, State

MAX_RELAYERS: Final = 64
APPROVE_WEIGHT: Final = 50


class ApproveRelayer(Wire, frozen=True, tag="relayers.approve"):
    """An oracle stands for letting somebody relay, or for ending it."""

    account: PublicKey
    enrolled: bool


class RelayerApproved(Wire, frozen=True, tag="relayers.approved"):
    """An oracle stands for a change now."""

    account: PublicKey
    enrolled: bool
    member: PublicKey
    approvals: Index16
    """How many stand for it now."""


class RelayerEnrolled(Wire, frozen=True, tag="relayers.enrolled"):
    """A quorum stood for a change: from the next transaction on it holds."""

    account: PublicKey
    enrolled: bool


class Standing(Wire, frozen=True):
    """Who relays, in the order of enrolment."""

    accounts: Annotated[tuple[PublicKey, ...], Meta(max_length=MAX_RELAYERS)]
    changes: int
    """How many changes came into force: what voices are about."""


CALLS: Final = (ApproveRelayer,)
STANDING: Final = Cell("relayers.standing", Standing, Standing(accounts=(), changes=0))
BALLOT: Final = Map("relayers.ballot", voting.Ballot)
"""() -> the oracles' voices."""


class OracleRelayers(Module):
    """See the head of the file.

    Args:
        genesis: those who relay from the beginning.
        members: reads the oracles of now.
    """

    name = "relayers"
    events = (RelayerApproved, RelayerEnrolled)

    def __init__(self, genesis: Sequence[bytes], members: MembersOf) -> None:
        self._genesis: Final = tuple(genesis)
        self._members: Final = members

    def genesis(self, ctx: Context) -> None:
        """Enrol the opening relayers."""
        STANDING.put(ctx.state, Standing(accounts=self._genesis, changes=0))

    def is_relayer(self, state: State, account: bytes) -> bool:
        """Whether an account may relay."""
        return account in STANDING.get(state).accounts

    @handles(ApproveRelayer, weight=APPROVE_WEIGHT)
    def approve(self, ctx: Context, call: ApproveRelayer) -> None:
        """Count an oracle's voice, and make the change when a quorum stands for it."""
        members = self._members(ctx.state)
        if ctx.sender not in members:
            raise CallFailed("not-a-member", f"account {ctx.sender.hex()[:16]} has no voice")
        standing = STANDING.get(ctx.state)
        changed = _changed(standing, call)
        voice = Voice(member=ctx.sender, choice=_choice(call))
        ballot = _ballot(ctx.state, standing)
        ballot = voting.with_voice(ballot, members, voice, ctx.timestamp_ms)
        BALLOT.put(ctx.state, ballot)
        ctx.emit(
            RelayerApproved(
                account=call.account,
                enrolled=call.enrolled,
                member=ctx.sender,
                approvals=voting.count(ballot, members)[voice.choice],
            )
        )
        if ballot.agreed == voice.choice:
            STANDING.put(ctx.state, changed)
            BALLOT.delete(ctx.state)
            ctx.emit(RelayerEnrolled(account=call.account, enrolled=call.enrolled))

    def precheck(self, state: State, sender: bytes, call: Wire) -> None:
        """Keep what cannot change anything out of the pool and of new blocks."""
        if not isinstance(call, ApproveRelayer):
            return
        standing = STANDING.get(state)
        if (call.account in standing.accounts) == call.enrolled:
            raise InvalidTransaction("unchanged", f"{call.account.hex()[:16]} stands like that")
        said = Voice(member=sender, choice=_choice(call))
        if said in _ballot(state, standing).voices:
            raise InvalidTransaction("said-already", f"by {sender.hex()[:16]}")

    def check_invariants(self, state: State) -> Iterator[str]:
        """Nobody is enrolled twice."""
        accounts = STANDING.get(state).accounts
        if len(set(accounts)) < len(accounts):
            yield "a relayer is enrolled twice"


IsRelayer = Callable[[State, bytes], bool]


def _changed(standing: Standing, call: ApproveRelayer) -> Standing:
    accounts = standing.accounts
    if call.account == NOBODY:
        raise CallFailed("bad-key", "a key of zeros is nobody's")
    if (call.account in accounts) == call.enrolled:
        raise CallFailed("unchanged", f"{call.account.hex()[:16]} stands like that")
    if call.enrolled and len(accounts) >= MAX_RELAYERS:
        raise CallFailed("too-many-relayers", f"at most {MAX_RELAYERS}")
    rest = tuple(each for each in accounts if each != call.account)
    return Standing(
        accounts=(*rest, call.account) if call.enrolled else rest, changes=standing.changes + 1
    )


def _ballot(state: State, standing: Standing) -> voting.Ballot:
    situation = sha256(b"relayers", encode(standing.changes))
    ballot = BALLOT.get(state)
    if ballot is None or ballot.situation != situation:
        return voting.empty_ballot(situation)
    return ballot


def _choice(call: ApproveRelayer) -> bytes:
    return sha256(b"relayer", encode(call))
