"""Who makes up the replica set of a PBFT chain, and how its members change it.

Law of the file: **a set follows only from the one before it: one change, which a quorum of its
members stood for, and which the new key itself agreed to.** The block in which the quorum is reached
is certified by the old set and names the next one in its header; the block after it is the next
set's. Nobody outside the set, and nothing by packet, has a say.

::

    propose --> open --> a quorum of the members stands for it --> announced --> next block: entered
                 |                                                 (header: next_set_hash)
                 +--> withdrawn by its proposer, expired, or void because another change came first

====================  ============================================================================
a change              is refused if
====================  ============================================================================
any                   a next set is announced already; the member has an open proposal; the same
                      change is open; the key has a seat already, or has none to lose
add                   there are `MAX_MEMBERS` already
remove                fewer than `MIN_MEMBERS` would be left
add, replace          the new key did not sign this very change, for this chain and this set
====================  ============================================================================

The proof of possession is about the present set: after any handover it is worth nothing, as are all
approvals and the proposals themselves. So what members agree to is always about the set that they
know, and a proof that was made once cannot be used again later.

Theory: Castro & Liskov leave membership fixed; here the old set's quorum certifies the block that
hands over (`docs/pbft.md`, "Changing the set"). A removed index is closed up, an added key comes
last, a replacing key takes the seat: votes name their voter by index.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Final

from msgspec import Meta, structs

from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.keys import Domain, Ed25519Verifier, Verifier, sha256, signed_bytes
from gridtokenx.core.state_tree import StateTree
from gridtokenx.core.types import Index16, Millis, PublicKey, ShortText, SignatureBytes, UInt63
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.interchain import council, voting
from gridtokenx.interchain.voting import Ballot, Voice
from gridtokenx.ledger.runtime import (
    NOBODY,
    CallFailed,
    Context,
    InvalidTransaction,
    Module,
    SetReference,
    handles,
)
from gridtokenx.ledger.state import Cell, Map, State

MIN_MEMBERS: Final = 4
"""The least that tolerates a fault; a smaller chain may grow, none may shrink below."""
MAX_MEMBERS: Final = 21
"""The design's size of a PBFT set: messages grow with its square."""
PROPOSAL_LIFE_MS: Final = 7 * 24 * 3_600_000
"""Network time in which a quorum must be found."""
PROPOSE_WEIGHT: Final = 200
"""A signature is checked."""
APPROVE_WEIGHT: Final = 50
_MOST_OPEN: Final = 128
"""One per member, also of a set that genesis made larger."""


# -- calls -----------------------------------------------------------------------------------------


class AddMember(Wire, frozen=True, tag="members.add"):
    """A new key gets a seat of its own, the last."""

    key: PublicKey
    label: ShortText
    """Whose it is, in the proposer's words; for people."""


class RemoveMember(Wire, frozen=True, tag="members.remove"):
    """A key loses its seat."""

    key: PublicKey


class ReplaceMember(Wire, frozen=True, tag="members.replace"):
    """A new key takes over a seat: key rotation, or another operator."""

    key: PublicKey
    """The key that loses the seat."""
    by: PublicKey
    """The key that gets it."""
    label: ShortText
    """Whose it is, in the proposer's words; for people."""


Change = AddMember | RemoveMember | ReplaceMember


class Possession(Wire, frozen=True):
    """What a new key signs to agree to its seat."""

    set_id: UInt63
    """The set that is to be changed; the next one is not bound by it."""
    change: Change


class ProposeChange(Wire, frozen=True, tag="members.propose"):
    """A member proposes to change the set, and stands for it."""

    change: Change
    proof: SignatureBytes | None
    """By the new key over `Possession`; None if there is none."""


class ApproveChange(Wire, frozen=True, tag="members.approve"):
    """A member stands for an open proposal."""

    proposal: UInt63


class WithdrawChange(Wire, frozen=True, tag="members.withdraw"):
    """A member takes its approval back; the proposer, the whole proposal."""

    proposal: UInt63


CALLS: Final = (ProposeChange, ApproveChange, WithdrawChange)
DECISIONS: Final = (*council.CALLS, *CALLS)
"""What accounts may call because they are members; chains take these without fee."""


# -- events ----------------------------------------------------------------------------------------


class ChangeProposed(Wire, frozen=True, tag="members.proposed"):
    """A proposal is open."""

    proposal: UInt63
    proposer: PublicKey
    change: Change
    expires_ms: Millis


class ChangeApproved(Wire, frozen=True, tag="members.approved"):
    """A member stands for a proposal now."""

    proposal: UInt63
    member: PublicKey
    approvals: Index16
    """How many members stand for it now."""


class ChangeClosed(Wire, frozen=True, tag="members.closed"):
    """A proposal ended without effect."""

    proposal: UInt63
    reason: ShortText
    """``withdrawn``, ``expired`` or ``void``: another change came first."""


class SetAnnounced(Wire, frozen=True, tag="members.announced"):
    """A quorum stood for a change: this block is the present set's last."""

    proposal: UInt63
    change: Change
    next_set: ValidatorSet


class SetEntered(Wire, frozen=True, tag="members.entered"):
    """This block is the first of a set."""

    set_id: UInt63
    members: Index16


# -- state -----------------------------------------------------------------------------------------


class OpenProposal(Wire, frozen=True):
    """A change that waits for its quorum."""

    proposal: UInt63
    """Its number; never used again."""
    proposer: PublicKey
    change: Change
    expires_ms: Millis
    """Network time at which it ends."""
    ballot: Ballot
    """Who stands for it; its situation is the present set."""


OpenProposals = Annotated[tuple[OpenProposal, ...], Meta(max_length=_MOST_OPEN)]

CURRENT: Final = Map("members.current", ValidatorSet)
"""() -> the set that finalises the block in whose state this is."""
NEXT: Final = Map("members.next", ValidatorSet)
"""() -> the set that finalises the block after it, if that is another one."""
OPEN: Final = Cell[OpenProposals]("members.open", tuple[OpenProposal, ...], ())
"""The open proposals, oldest first."""
PROPOSED: Final = Cell("members.proposed", int, 0)
"""How many proposals there ever were."""
LABELS: Final = Map("members.label", str)
"""(key) -> whose it is, of members that were added or replaced another."""

OnHandover = Callable[[Context, ValidatorSet, ValidatorSet], None]
"""Called in a set's first block before anything else: (context, old set, new set)."""


# -- reading ---------------------------------------------------------------------------------------


def current_set(state: State) -> ValidatorSet:
    """The set that finalises the block in whose state this is."""
    found = CURRENT.get(state)
    assert found is not None, "the first set is in genesis"
    return found


def validators_of(tree: StateTree) -> ValidatorSet:
    """The set that finalises the children of the block with this state."""
    state = State(tree)
    announced = NEXT.get(state)
    return current_set(state) if announced is None else announced


# -- the rules of one change -----------------------------------------------------------------------


def possession_bytes(chain_id: bytes, set_id: int, change: Change) -> bytes:
    """What the new key of a change signs.

    Args:
        chain_id: of the chain whose set is to change.
        set_id: of its present set.
        change: an `AddMember` or a `ReplaceMember`.
    """
    possession = Possession(set_id=set_id, change=change)
    return signed_bytes(Domain.MEMBER_KEY, chain_id, encode(possession))


def new_key(change: Change) -> bytes | None:
    """The key that a change gives a seat."""
    match change:
        case AddMember(key=key) | ReplaceMember(by=key):
            return key
        case RemoveMember():
            return None


def changed(members: ValidatorSet, change: Change) -> ValidatorSet:
    """The set after a change.

    Raises:
        CallFailed: the change breaks a rule; see the head of the file.
    """
    keys, newcomer = members.members, new_key(change)
    if newcomer is not None and newcomer in keys:
        raise CallFailed("member-already", f"{newcomer.hex()[:16]} has a seat in this set")
    if newcomer == NOBODY:
        raise CallFailed("bad-key", "a key of zeros is nobody's")
    if not isinstance(change, AddMember) and change.key not in keys:
        raise CallFailed("no-member", f"{change.key.hex()[:16]} has no seat in this set")
    match change:
        case AddMember(key=key):
            if len(keys) >= MAX_MEMBERS:
                raise CallFailed("set-full", f"{len(keys)} members, at most {MAX_MEMBERS}")
            following = (*keys, key)
        case RemoveMember(key=key):
            if len(keys) <= MIN_MEMBERS:
                raise CallFailed(
                    "set-too-small", f"{len(keys)} members, at least {MIN_MEMBERS} must remain"
                )
            following = tuple(each for each in keys if each != key)
        case ReplaceMember(key=key, by=by):
            following = tuple(by if each == key else each for each in keys)
    return ValidatorSet(set_id=members.set_id + 1, members=following)


def change_hash(change: Change) -> bytes:
    """What a voice for a change names."""
    return sha256(b"member change", encode(change))


# -- the module ------------------------------------------------------------------------------------


class Membership(Module):
    """See the head of the file. Must be the first module of its ledger: its hook opens a set.

    Args:
        genesis: the first set.
        verifier: checks proofs of possession; libsodium if None.
    """

    name = "members"
    events = (ChangeProposed, ChangeApproved, ChangeClosed, SetAnnounced, SetEntered)

    def __init__(self, genesis: ValidatorSet, verifier: Verifier | None = None) -> None:
        self._genesis: Final = genesis
        self._verifier: Final = verifier if verifier is not None else Ed25519Verifier()
        self._listeners: Final[list[OnHandover]] = []

    def on_handover(self, listener: OnHandover) -> None:
        """Tell a module of each new set; when the ledger is put together, never later."""
        self._listeners.append(listener)

    # -- reading -----------------------------------------------------------------------------------

    def members(self, state: State) -> Sequence[bytes]:
        """The accounts that decide for the chain: the keys of the present set."""
        return current_set(state).members

    def validators_of(self, tree: StateTree) -> ValidatorSet:
        """The set that finalises the children of the block with this state."""
        return validators_of(tree)

    def reference(self, state: State) -> SetReference:
        """What a header says of validator sets."""
        current = current_set(state)
        announced = NEXT.get(state)
        return SetReference(current.set_id, (announced or current).hash)

    def is_member(self, state: State, account: bytes) -> bool:
        """Whether an account has a seat."""
        return account != NOBODY and current_set(state).index_of(account) is not None

    def decides(self, state: State, sender: bytes, calls: Sequence[Wire]) -> bool:
        """Whether a transaction is a member's part in decisions: chains may take it without fee."""
        return all(isinstance(call, DECISIONS) for call in calls) and self.is_member(state, sender)

    # -- hooks -------------------------------------------------------------------------------------

    def genesis(self, ctx: Context) -> None:
        """The first set."""
        CURRENT.put(ctx.state, self._genesis)

    def begin_block(self, ctx: Context) -> None:
        """Open the set that the last block announced; end what has expired."""
        following = NEXT.get(ctx.state)
        if following is not None:
            self._enter(ctx, following)
            return
        open_ = OPEN.get(ctx.state)
        expired = [each for each in open_ if each.expires_ms <= ctx.timestamp_ms]
        if expired:
            OPEN.put(ctx.state, tuple(each for each in open_ if each not in expired))
            _close(ctx, expired, "expired")

    def _enter(self, ctx: Context, following: ValidatorSet) -> None:
        before = current_set(ctx.state)
        NEXT.delete(ctx.state)
        CURRENT.put(ctx.state, following)
        for key in before.members:
            if following.index_of(key) is None:
                LABELS.delete(ctx.state, key)
        _close(ctx, OPEN.get(ctx.state), "void")
        OPEN.put(ctx.state, ())
        ctx.emit(SetEntered(set_id=following.set_id, members=following.size))
        for listener in self._listeners:
            listener(ctx, before, following)

    # -- calls -------------------------------------------------------------------------------------

    @handles(ProposeChange, weight=PROPOSE_WEIGHT)
    def propose(self, ctx: Context, call: ProposeChange) -> None:
        """Open a proposal with its proposer's voice."""
        current = self._ready(ctx)
        changed(current, call.change)
        open_ = OPEN.get(ctx.state)
        for each in open_:
            if each.change == call.change:
                raise CallFailed(
                    "proposed-already", f"approve proposal {each.proposal}, it is the same change"
                )
            if each.proposer == ctx.sender:
                raise CallFailed(
                    "one-at-a-time", f"withdraw proposal {each.proposal} of yours before another"
                )
        self._check_possession(ctx, current, call)
        number = PROPOSED.get(ctx.state) + 1
        PROPOSED.put(ctx.state, number)
        proposal = OpenProposal(
            proposal=number,
            proposer=ctx.sender,
            change=call.change,
            expires_ms=ctx.timestamp_ms + PROPOSAL_LIFE_MS,
            ballot=voting.empty_ballot(current.hash),
        )
        ctx.emit(
            ChangeProposed(
                proposal=number,
                proposer=ctx.sender,
                change=call.change,
                expires_ms=proposal.expires_ms,
            )
        )
        self._support(ctx, current, (*open_, proposal), proposal)

    @handles(ApproveChange, weight=APPROVE_WEIGHT)
    def approve(self, ctx: Context, call: ApproveChange) -> None:
        """Count a member's voice for an open proposal."""
        current = self._ready(ctx)
        open_ = OPEN.get(ctx.state)
        self._support(ctx, current, open_, _proposal(open_, call.proposal))

    @handles(WithdrawChange, weight=APPROVE_WEIGHT)
    def withdraw(self, ctx: Context, call: WithdrawChange) -> None:
        """Take a voice back, or the proposal."""
        current = self._ready(ctx)
        open_ = OPEN.get(ctx.state)
        proposal = _proposal(open_, call.proposal)
        if proposal.proposer == ctx.sender:
            OPEN.put(ctx.state, tuple(each for each in open_ if each is not proposal))
            _close(ctx, (proposal,), "withdrawn")
            return
        ballot = proposal.ballot
        if not _stands_for(proposal, ctx.sender):
            raise CallFailed("not-approved", f"you do not stand for proposal {call.proposal}")
        ballot = voting.without_voice(ballot, current.members, ctx.sender, ctx.timestamp_ms)
        _put(ctx.state, open_, structs.replace(proposal, ballot=ballot))

    def _support(
        self,
        ctx: Context,
        current: ValidatorSet,
        open_: tuple[OpenProposal, ...],
        proposal: OpenProposal,
    ) -> None:
        """Add the sender's voice; at a quorum, announce the next set."""
        choice = change_hash(proposal.change)
        ballot = voting.with_voice(
            proposal.ballot, current.members, Voice(ctx.sender, choice), ctx.timestamp_ms
        )
        _put(ctx.state, open_, structs.replace(proposal, ballot=ballot))
        ctx.emit(
            ChangeApproved(
                proposal=proposal.proposal,
                member=ctx.sender,
                approvals=voting.count(ballot, current.members)[choice],
            )
        )
        if ballot.agreed == choice:
            self._announce(ctx, current, proposal)

    def _announce(self, ctx: Context, current: ValidatorSet, proposal: OpenProposal) -> None:
        following = changed(current, proposal.change)
        NEXT.put(ctx.state, following)
        OPEN.put(
            ctx.state, tuple(e for e in OPEN.get(ctx.state) if e.proposal != proposal.proposal)
        )
        newcomer = new_key(proposal.change)
        if newcomer is not None and not isinstance(proposal.change, RemoveMember):
            LABELS.put(ctx.state, proposal.change.label, newcomer)
        ctx.emit(
            SetAnnounced(proposal=proposal.proposal, change=proposal.change, next_set=following)
        )

    def _ready(self, ctx: Context) -> ValidatorSet:
        """The present set, if the sender may decide about it now."""
        current = current_set(ctx.state)
        if ctx.sender == NOBODY or current.index_of(ctx.sender) is None:
            raise CallFailed("not-a-member", f"account {ctx.sender.hex()[:16]} has no seat here")
        if NEXT.has(ctx.state):
            raise CallFailed(
                "handing-over", f"set {current.set_id + 1} begins with the next block; decide then"
            )
        return current

    def _check_possession(self, ctx: Context, current: ValidatorSet, call: ProposeChange) -> None:
        newcomer = new_key(call.change)
        if newcomer is None:
            if call.proof is not None:
                raise CallFailed("unneeded-proof", "nobody joins by this change")
            return
        if call.proof is None:
            raise CallFailed("no-proof", f"{newcomer.hex()[:16]} did not agree to its seat")
        what = possession_bytes(ctx.chain_id, current.set_id, call.change)
        if not self._verifier.verify(newcomer, what, call.proof):
            raise CallFailed(
                "bad-proof",
                f"not signed by {newcomer.hex()[:16]} for this change of set {current.set_id};"
                " make the proof again",
            )

    # -- the pool's rule ---------------------------------------------------------------------------

    def precheck(self, state: State, sender: bytes, call: Wire) -> None:
        """Keep what cannot change anything out of the pool and of new blocks."""
        if not isinstance(call, CALLS):
            return
        if not self.is_member(state, sender):
            raise InvalidTransaction("not-a-member", f"account {sender.hex()[:16]} has no seat")
        if isinstance(call, ApproveChange):
            found = [each for each in OPEN.get(state) if each.proposal == call.proposal]
            if not found:
                raise InvalidTransaction("unknown-proposal", f"{call.proposal} is not open")
            if _stands_for(found[0], sender):
                raise InvalidTransaction(
                    "redundant", f"you stand for proposal {call.proposal} already"
                )

    # -- laws --------------------------------------------------------------------------------------

    def check_invariants(self, state: State) -> Iterator[str]:
        """The set and its successor are sound, and every open proposal is about the set."""
        current, following = current_set(state), NEXT.get(state)
        yield from _check_set(self._genesis, current)
        if following is not None:
            yield from _check_set(self._genesis, following)
            yield from _check_step(current, following)
        open_, numbers = OPEN.get(state), [each.proposal for each in OPEN.get(state)]
        if numbers != sorted(set(numbers)) or any(n > PROPOSED.get(state) for n in numbers):
            yield f"proposals {numbers} are not numbered as they came"
        if len({each.proposer for each in open_}) < len(open_):
            yield "a member has two open proposals"
        for each in open_:
            if each.ballot.situation != current.hash:
                yield f"proposal {each.proposal} is about another set"
            if each.ballot.agreed is not None:
                yield f"proposal {each.proposal} has its quorum and is still open"


def _put(state: State, open_: tuple[OpenProposal, ...], proposal: OpenProposal) -> None:
    replaced = (proposal if e.proposal == proposal.proposal else e for e in open_)
    OPEN.put(state, tuple(replaced))


def _proposal(open_: tuple[OpenProposal, ...], number: int) -> OpenProposal:
    for each in open_:
        if each.proposal == number:
            return each
    known = ", ".join(str(each.proposal) for each in open_) or "none"
    raise CallFailed("unknown-proposal", f"{number} is not open; open are: {known}")


def _stands_for(proposal: OpenProposal, member: bytes) -> bool:
    return any(voice.member == member for voice in proposal.ballot.voices)


def _close(ctx: Context, proposals: Sequence[OpenProposal], reason: str) -> None:
    for each in proposals:
        ctx.emit(ChangeClosed(proposal=each.proposal, reason=reason))


def _check_set(genesis: ValidatorSet, members: ValidatorSet) -> Iterator[str]:
    if not members.is_well_formed():
        yield f"set {members.set_id} repeats a key"
    if not min(MIN_MEMBERS, genesis.size) <= members.size <= max(MAX_MEMBERS, genesis.size):
        yield f"set {members.set_id} has {members.size} members"


def _check_step(before: ValidatorSet, after: ValidatorSet) -> Iterator[str]:
    gone, come = set(before.members) - set(after.members), set(after.members) - set(before.members)
    if after.set_id != before.set_id + 1:
        yield f"set {after.set_id} is announced after {before.set_id}"
    if len(gone) > 1 or len(come) > 1 or not gone | come:
        yield f"set {after.set_id} differs from the one before by more or less than one change"
