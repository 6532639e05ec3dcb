"""What the simulator reads in PBFT's messages: whose vote it is, and of which round."""

from collections.abc import Hashable, Mapping

from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.keys import sha256
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.pbft.messages import (
    Commit,
    NewView,
    Prepare,
    PrePrepare,
    Status,
    Suspect,
    ViewChange,
)
from gridtokenx.pbft.rotation import PERIOD_VIEWS, primary_of

PHASES = 3
VIEW_ROUNDS = 5


def vote_in(
    message: Wire, sets: Mapping[int, ValidatorSet]
) -> tuple[int, int, Hashable, bytes] | None:
    """(set, author's seat, what it is about, what it says) of a signed vote; None if it is none.

    Two votes of one honest replica about the same thing say the same.

    Args:
        message: any.
        sets: the chain's replica sets, by number.
    """
    match message:
        case PrePrepare(view, block):
            set_id = block.header.set_id
            subject: Hashable = ("pre-prepare", set_id, view, block.height)
            return set_id, primary_of(view, sets[set_id]), subject, block.hash
        case Prepare(ballot, seat):
            set_id = ballot.set_id
            return set_id, seat, ("prepare", set_id, ballot.view, ballot.height), ballot.block_hash
        case Commit(vote, seat):
            set_id = vote.set_id
            return set_id, seat, ("commit", set_id, vote.view, vote.height), vote.block_hash
        case ViewChange(body):
            subject = ("view-change", body.set_id, body.view)
            return body.set_id, body.replica, subject, sha256(encode(body))
        case NewView(body):
            subject = ("new-view", body.set_id, body.view)
            return (
                body.set_id,
                primary_of(body.view, sets[body.set_id]),
                subject,
                sha256(encode(body)),
            )
        case _:
            return None


def view_in(message: Wire) -> tuple[int, int] | None:
    """The (set, view) in which a message says that its sender is; None if it says nothing of it."""
    match message:
        case Status(set_id=set_id, view=view) | Suspect(set_id=set_id, view=view):
            return set_id, view
        case _:
            return None


def phase_of(message: Wire) -> tuple[int, int] | None:
    """View and phase of a message (0 pre-prepare, 1 prepare, 2 commit and what follows); None: of no view.

    What opens a view belongs to it; what asks to leave it comes last in it.
    """
    match message:
        case PrePrepare(view):
            return view % PERIOD_VIEWS, 0
        case Prepare(ballot):
            return ballot.view % PERIOD_VIEWS, 1
        case Commit(vote):
            return vote.view % PERIOD_VIEWS, 2
        case ViewChange(body) | NewView(body):
            return body.view % PERIOD_VIEWS, 0
        case Status(view=view) | Suspect(view=view):
            return view % PERIOD_VIEWS, 2
        case _:
            return None


def round_of(message: Wire) -> int | None:
    """The round of a message, in the sense of ByzzFuzz: phases of heights, and of view changes.

    A run without view change passes the rounds 0, 1, 2 (height 1: pre-prepare, prepare, commit), 3, ...;
    a view change at height 1 is rounds 3 and 4, and height 1 in view 1 is rounds 5, 6, 7.
    """
    match message:
        case PrePrepare(view, block):
            return _round(view, block.height, 0)
        case Prepare(ballot):
            return _round(ballot.view, ballot.height, 1)
        case Commit(vote):
            return _round(vote.view, vote.height, 2)
        case ViewChange(body):
            head = 0 if body.head is None else body.head.header.height
            return _round(body.view - 1, head + 1, 3)
        case NewView(body):
            heads = [
                c.body.head.header.height for c in body.view_changes if c.body.head is not None
            ]
            return _round(body.view - 1, max(heads, default=0) + 1, 4)
        case _:
            return None


def _round(view: int, height: int, phase: int) -> int:
    return PHASES * (height - 1) + VIEW_ROUNDS * (view % PERIOD_VIEWS) + phase
