"""What the simulator reads in PBFT's messages: whose vote it is, and of which round."""

from collections.abc import Hashable

from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.keys import sha256
from gridtokenx.pbft.messages import (
    Commit,
    NewView,
    Prepare,
    PrePrepare,
    Status,
    Suspect,
    ViewChange,
)

PHASES = 3
VIEW_ROUNDS = 2


def vote_in(message: Wire, replicas: int) -> tuple[int, Hashable, bytes] | None:
    """(author, what the vote is about, what it says) of a signed vote; None if it is none.

    Two votes of one honest replica about the same thing say the same.
    """
    match message:
        case PrePrepare(view, block):
            return view % replicas, ("pre-prepare", view, block.height), block.hash
        case Prepare(ballot, replica):
            return replica, ("prepare", ballot.view, ballot.height), ballot.block_hash
        case Commit(vote, replica):
            return replica, ("commit", vote.view, vote.height), vote.block_hash
        case ViewChange(body):
            return body.replica, ("view-change", body.view), sha256(encode(body))
        case NewView(body):
            return body.view % replicas, ("new-view", body.view), sha256(encode(body))
        case _:
            return None


def view_in(message: Wire) -> tuple[int, int] | None:
    """The (set, view) in which a message says that its sender is; None if it says nothing of it."""
    match message:
        case Status(set_id=set_id, view=view) | Suspect(set_id=set_id, view=view):
            return set_id, view
        case _:
            return None


def round_of(message: Wire) -> int | None:
    """The round of a message, in the sense of ByzzFuzz: phases of heights, and of view changes.

    A run without view change passes the rounds 0, 1, 2 (height 1: pre-prepare, prepare, commit), 3, ...;
    every view change puts two rounds in between.
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
            return _round(body.view - 1, head + 1, 0)
        case NewView(body):
            heads = [
                c.body.head.header.height for c in body.view_changes if c.body.head is not None
            ]
            return _round(body.view - 1, max(heads, default=0) + 1, 1)
        case _:
            return None


def _round(view: int, height: int, phase: int) -> int:
    return PHASES * (height - 1) + VIEW_ROUNDS * view + phase
