"""How a chain's members are counted: one voice each, about one situation, at the present membership.

Law of the file: **what is agreed is what a quorum of the present members stands for now.** A voice of
an account that has left the set counts for nothing, and voices about another situation are void. So
two quorums cannot stand for different choices, and nothing that was said before a change of the
situation can take effect after it.

Pure values: who keeps a ballot, and what follows from it, is said in `council.py` and, for the
replica set of the PBFT chains, in `pbft/membership.py`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated

from msgspec import Meta, structs

from gridtokenx.core.codec import Wire
from gridtokenx.core.quorum import quorum
from gridtokenx.core.types import Hash32, Millis, PublicKey
from gridtokenx.finality.validators import MAX_VALIDATORS
from gridtokenx.ledger.state import State

MembersOf = Callable[[State], Sequence[bytes]]
"""Reads the accounts that make up the chain's validator set."""


class Voice(Wire, frozen=True):
    """What a member is for."""

    member: PublicKey
    choice: Hash32


class Ballot(Wire, frozen=True):
    """All voices on one subject."""

    situation: Hash32
    """What they are about; voices about another situation are void."""
    voices: Annotated[tuple[Voice, ...], Meta(max_length=MAX_VALIDATORS)]
    agreed: Hash32 | None
    """What a quorum stood for after the last voice."""
    agreed_ms: Millis
    """Since when without interruption; 0 if nothing is agreed."""


def empty_ballot(situation: bytes) -> Ballot:
    """Nobody has spoken about this situation."""
    return Ballot(situation=situation, voices=(), agreed=None, agreed_ms=0)


def with_voice(ballot: Ballot, members: Sequence[bytes], voice: Voice, timestamp_ms: int) -> Ballot:
    """The ballot after a member's voice, which replaces what it said before."""
    others = (v for v in ballot.voices if v.member != voice.member and v.member in members)
    ballot = structs.replace(ballot, voices=(*others, voice))
    return _recount(ballot, members, timestamp_ms)


def without_voice(
    ballot: Ballot, members: Sequence[bytes], member: bytes, timestamp_ms: int
) -> Ballot:
    """The ballot after a member took its voice back."""
    voices = tuple(v for v in ballot.voices if v.member != member and v.member in members)
    return _recount(structs.replace(ballot, voices=voices), members, timestamp_ms)


def count(ballot: Ballot, members: Sequence[bytes]) -> Counter[bytes]:
    """How many present members stand for each choice."""
    return Counter(voice.choice for voice in ballot.voices if voice.member in members)


def agreed(ballot: Ballot, members: Sequence[bytes]) -> bytes | None:
    """What a quorum of the present members stands for."""
    enough = quorum(len(members))
    counts = count(ballot, members)
    return next((choice for choice, voices in counts.items() if voices >= enough), None)


def _recount(ballot: Ballot, members: Sequence[bytes], timestamp_ms: int) -> Ballot:
    now = agreed(ballot, members)
    if now == ballot.agreed:
        return ballot
    return structs.replace(ballot, agreed=now, agreed_ms=0 if now is None else timestamp_ms)
