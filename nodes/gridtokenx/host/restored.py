"""A store that forgot: its node follows, and signs nothing, until that can contradict nothing.

Law of the file: **a node that lost part of its memory is an observer until everything that it may
have signed lies behind it.** A restored backup, or an emptied store, knows less than what this key has
signed. So such a store is marked; while the mark is there the machine is given a key without a seat
(it follows, executes and verifies, and cannot vote), and the high-water marks stand at their end.

What it may have signed is bounded by what others say (`docs/decisions/0004-restoring.md`). With n
members of whom f are faulty and a quorum of q, any ``n - q + f + 1`` others include an honest one
of the quorum behind the furthest step that this key took. Each says at its first contact after the
start where it is: (set, view or round, height). Let S, R (or V) and H be the greatest.

======  ===========================================  ===========================================
chain   this key may have signed at most             so it signs again once
======  ===========================================  ===========================================
PBFT    heights up to H + 2 windows, in views        its own final block is beyond H +
        that others know (V); a view-change          `HEIGHTS`, in view V at least; in no
        for view V + 1                               view up to V + 1, unless beyond V
public  slots up to now; round R + 1 of set S, or    it is in a later round than both; the last
        round 1 of set S + 1                         slot is put beyond the present one
======  ===========================================  ===========================================

Then the marks are written, the store's mark is removed in the same batch, and the process ends
(`StartAgain`): its next life restores a machine that signs.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Final, Protocol, TypeVar

from msgspec import Meta

from gridtokenx.core.codec import Wire, decode_own, encode
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import Domain, Ed25519Signer, sha256
from gridtokenx.core.machine import (
    Effect,
    Event,
    Instant,
    Machine,
    NodeId,
    Reader,
    Received,
    SignatureCheck,
    Unknown,
    Write,
)
from gridtokenx.core.types import UINT63_MAX, Millis, UInt63
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.process import StartAgain
from gridtokenx.host.storage import Store
from gridtokenx.ledger.records import META, height_key
from gridtokenx.pbft.journal import LOG
from gridtokenx.pbft.marks import Mark
from gridtokenx.pbft.messages import MAX_WINDOW
from gridtokenx.pbft.messages import Status as PbftStatus
from gridtokenx.public.messages import Status as PublicStatus

RESTORED: Final = "restored"
"""The table that marks such a store."""
SINCE: Final = b"since"
RETIRED: Final = b"retired"
"""The record of a store that was moved away by a final backup: nothing may sign from it again."""
HEIGHTS: Final = 2 * MAX_WINDOW
"""Heights beyond everybody's last committed one in which a PBFT vote of this key may lie."""
SLOTS: Final = 3
"""Slots beyond the present one that a clock running ahead may have authored."""
MARK: Final = b"mark/"
BY_HEIGHT: Final = (Domain.PBFT_PRE_PREPARE, Domain.PBFT_PREPARE, Domain.PBFT_COMMIT)
BY_VIEW: Final = (Domain.PBFT_VIEW_CHANGE, Domain.PBFT_NEW_VIEW)
_LEFT: Final = Domain.PBFT_VIEW_CHANGE.value
_SLOT: Final = b"slot"
M = TypeVar("M", bound=Machine)


class OldMark(Wire, frozen=True):
    """A high-water mark as the backup held it."""

    kind: Annotated[bytes, Meta(max_length=8)]
    set_id: UInt63
    view: UInt63


class Restored(Wire, frozen=True):
    """Why a store is marked."""

    reason: Annotated[str, Meta(max_length=256)]
    """For people."""
    restored_ms: Millis
    """Wall time."""
    marks: Annotated[tuple[OldMark, ...], Meta(max_length=16)]
    """What is known to have been signed."""


class Claim(Wire, frozen=True):
    """Where somebody says that it is."""

    set_id: UInt63
    round: UInt63
    """A view, or a GRANDPA round."""
    height: UInt63
    """Its last final block."""


class Position(Wire, frozen=True):
    """Where this node is itself."""

    validators: ValidatorSet
    """Who finalises the next block."""
    round: UInt63
    height: UInt63


# -- marking ---------------------------------------------------------------------------------------


def mark_writes(reader: Reader, chain: str, reason: str, now_ms: int) -> Iterator[Write]:
    """What marks a store as one that forgot; whoever restores or empties one writes this.

    Args:
        reader: the store, whose high-water marks are remembered.
        chain: ``public``, ``consortium`` or ``oracle``.
        reason: for people.
        now_ms: wall time.
    """
    known = tuple(
        OldMark(key[len(MARK) :], mark.set_id, mark.view)
        for key, mark in _marks(reader)
        if mark.set_id != UINT63_MAX
    )
    earlier = marked(reader)
    known = known if earlier is None else (*earlier.marks, *known)[-16:]
    yield Write(RESTORED, SINCE, encode(Restored(reason, now_ms, known)))
    if chain == "public":
        yield Write(META, _SLOT, height_key(UINT63_MAX))
        return
    for key, _ in reader.scan(LOG):
        yield Write(LOG, key, None)
    end = Mark(UINT63_MAX, UINT63_MAX, UINT63_MAX, bytes(32))
    for kind in (*BY_HEIGHT, *BY_VIEW):
        yield Write(META, MARK + kind.value, encode(end))


def retire_write(now_ms: int) -> Write:
    """What forbids a store's node to start: it lives elsewhere from now on."""
    return Write(RESTORED, RETIRED, now_ms.to_bytes(8, "big"))


def revive_write() -> Write:
    """What undoes it, in the copy that the node lives on in."""
    return Write(RESTORED, RETIRED, None)


def refuse_retired(reader: Reader) -> None:
    """Refuse a store whose node was moved away.

    Raises:
        LocalFault: it was.
    """
    if reader.get(RESTORED, RETIRED) is not None:
        raise LocalFault(
            "this node was moved away by a final backup, and may run elsewhere: start it where the"
            " backup was restored; or, if it never was, restore the backup here"
        )


def marked(reader: Reader) -> Restored | None:
    """Whether a store is marked, and why."""
    raw = reader.get(RESTORED, SINCE)
    return None if raw is None else decode_own(raw, Restored)


def _marks(reader: Reader) -> Iterator[tuple[bytes, Mark]]:
    return ((key, decode_own(raw, Mark)) for key, raw in reader.scan(META, MARK))


# -- following -------------------------------------------------------------------------------------


def seatless(seed: bytes) -> bytes:
    """A seed whose key has no seat anywhere; the same at each start."""
    return sha256(b"gridtokenx: a restored node follows with this key", seed)


class Following:
    """What is heard from others, and whether it is enough to sign again.

    Args:
        restored: the store's mark.
        identity: this node's public key.
        position: asks the machine where it is.
    """

    def __init__(
        self, restored: Restored, identity: bytes, position: Callable[[], Position]
    ) -> None:
        self.restored: Final = restored
        self._identity: Final = identity
        self._position: Final = position
        self._claims: dict[NodeId, Claim] = {}

    def hear(self, sender: NodeId, message: Wire) -> None:
        """A message of a peer: its first status since this start counts."""
        claim = _claim_of(message)
        if claim is not None and sender != self._identity:
            self._claims.setdefault(sender, claim)

    def missing(self, chain: str) -> str | None:
        """Why it is too early to sign; None once it is not."""
        here = self._position()
        members = here.validators
        needed = members.size - _quorum(chain, members) + members.faulty + 1
        heard = [self._claims[key] for key in members.members if key in self._claims]
        if needed > members.size - (members.index_of(self._identity) is not None):
            return "no other member can say what this key has signed: replace the key"
        if len(heard) < needed:
            return f"{needed} other members must say where they are, {len(heard)} have"
        if chain == "public":
            return self._missing_rounds(here, heard)
        return self._missing_heights(here, heard)

    def _missing_heights(self, here: Position, heard: Sequence[Claim]) -> str | None:
        beyond = max(claim.height for claim in heard) + HEIGHTS
        if here.height < beyond:
            return f"block {beyond} must be final here, {here.height} is"
        views = [(claim.set_id, claim.round) for claim in heard]
        views += [(m.set_id, 0 if m.kind == _LEFT else m.view) for m in self.restored.marks]
        if (here.validators.set_id, here.round) < max(views):
            set_id, view = max(views)
            return f"it may have signed in view {view} of set {set_id}, which is not reached here"
        return None

    def _missing_rounds(self, here: Position, heard: Sequence[Claim]) -> str | None:
        set_id, round_ = max((claim.set_id, claim.round) for claim in heard)
        bound = (set_id, round_ + 1) if here.validators.set_id <= set_id else (set_id + 1, 1)
        if (here.validators.set_id, here.round) <= bound:
            return f"round {bound[1]} of set {bound[0]} must be over, {here.round} has begun"
        return None

    def release_writes(self, chain: str, slot: int) -> Iterator[Write]:
        """What the store remembers from now on; only once nothing is missing.

        Args:
            chain: ``public``, ``consortium`` or ``oracle``.
            slot: the present slot; 0 where there are none.
        """
        here = self._position()
        yield Write(RESTORED, SINCE, None)
        if chain == "public":
            yield Write(META, _SLOT, height_key(slot + SLOTS))
            return
        set_id, view = here.validators.set_id, here.round
        places = dict.fromkeys(BY_HEIGHT, (view, here.height)) | dict.fromkeys(BY_VIEW, (view, 0))
        places[Domain.PBFT_VIEW_CHANGE] = (max(view, self._left_for(set_id)), 0)
        for kind, place in places.items():
            yield Write(META, MARK + kind.value, encode(Mark(set_id, *place, bytes(32))))

    def _left_for(self, set_id: int) -> int:
        """The furthest view of a set for which this key may have sent a view-change.

        One beyond all that is heard: for that its own suspicion and those of f faulty ones suffice, and
        no other moves. Its next life takes no part below (`Replica._stand_aside`).
        """
        heard = (c.round + 1 for c in self._claims.values() if c.set_id == set_id)
        known = (m.view for m in self.restored.marks if (m.kind, m.set_id) == (_LEFT, set_id))
        return max((*heard, *known), default=0)


class Sink(Protocol):
    """Where the marks go that a next life restores."""

    def submit(self, writes: Iterable[Write], done: Callable[[], None]) -> None:
        """Queue one atomic batch."""


class FollowingMachine:
    """A machine without a vote, until its store may sign again: then it ends this life.

    Args:
        machine: built with a key that has no seat.
        following: judges.
        chain: its name.
        store: where the marks are put.
        slot_at: the slot of a moment; zero where there are none.
    """

    def __init__(
        self,
        machine: Machine,
        following: Following,
        chain: str,
        store: Sink,
        slot_at: Callable[[Instant], int] = lambda _now: 0,
    ) -> None:
        self._machine: Final = machine
        self._following: Final = following
        self._chain: Final = chain
        self._store: Final = store
        self._slot_at: Final = slot_at

    @property
    def reason(self) -> str:
        """How the store came to forget."""
        return self._following.restored.reason

    def verification(self, message: Wire) -> Sequence[SignatureCheck] | Unknown:
        """See `Machine.verification`."""
        return self._machine.verification(message)

    def step(self, now: Instant, event: Event) -> Sequence[Effect]:
        """See `Machine.step`.

        Raises:
            StartAgain: it may sign again; what that needs is in the store.
        """
        if isinstance(event, Received):
            self._following.hear(event.verified.sender, event.verified.message)
        if self._following.missing(self._chain) is None:
            writes = self._following.release_writes(self._chain, self._slot_at(now))
            self._store.submit(writes, lambda: None)
            raise StartAgain(
                f"restored ({self.reason}), and caught up: nothing that this node signed before can"
                " be contradicted now; start it again, and it takes part"
            )
        return self._machine.step(now, event)

    def reasons(self) -> Iterable[str]:
        """Why the node is not ready, for `/ready`."""
        missing = self._following.missing(self._chain) or "it has caught up, and starts again"
        yield f"restored: it follows and signs nothing yet; {missing}"


def follow_first(
    store: Store,
    seed: bytes,
    build: Callable[[bytes], M],
    chain: str,
    position: Callable[[M], Position],
    slot_at: Callable[[Instant], int] = lambda _now: 0,
) -> tuple[M, FollowingMachine | None]:
    """The machine of a store: one that signs, or one that only follows where the store is marked.

    Args:
        store: the node's.
        seed: of its identity key.
        build: makes the machine with the key of a seed.
        chain: its name.
        position: where a machine is.
        slot_at: see `FollowingMachine`.

    Returns:
        The bare machine, and the one to be driven in its place, if any.

    Raises:
        LocalFault: the node was moved away.
    """
    refuse_retired(store)
    restored = marked(store)
    if restored is None:
        return build(seed), None
    machine = build(seatless(seed))
    identity = Ed25519Signer(seed).public_key
    following = Following(restored, identity, lambda: position(machine))
    return machine, FollowingMachine(machine, following, chain, store, slot_at)


def _quorum(chain: str, validators: ValidatorSet) -> int:
    return validators.supermajority if chain == "public" else validators.quorum


def _claim_of(message: Wire) -> Claim | None:
    match message:
        case PbftStatus():
            return Claim(message.set_id, message.view, message.height)
        case PublicStatus():
            standing = message.standing
            return Claim(standing.set_id, standing.round, message.final_height)
        case _:
            return None
