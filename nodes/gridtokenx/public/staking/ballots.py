"""Who wins the seats: the same election at genesis and in every era, over plain values.

Law of the file: **a seat is only ever filled by somebody whom stake supports.** Sequential Phragmén
seats candidates in the order of their election; one that nobody backs does not count, and an election
that fills fewer seats than there are fills none.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.types import UINT63_MAX, PublicKey, UInt63
from gridtokenx.finality.validators import MAX_VALIDATORS, ValidatorSet
from gridtokenx.public.election.phragmen import Election, Vote, elect
from gridtokenx.public.staking.calls import MAX_TARGETS

FIRST_SET_ID: Final = 0
MAX_CANDIDATES: Final = 1_000
MAX_VOTERS: Final = 4_000


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who stands for election."""

    account: PublicKey
    """Holds the stake, and is what nominations name."""
    session_key: PublicKey
    """Signs blocks, slot draws and votes; lives on the validator's machine."""


class Nomination(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whom a voter trusts, and with how much."""

    voter: PublicKey
    stake_ngrid: Annotated[int, Meta(ge=1, le=UINT63_MAX)]
    """Bonded, in 10**-9 GRID."""
    targets: Annotated[tuple[PublicKey, ...], Meta(min_length=1, max_length=MAX_TARGETS)]
    """Accounts of candidates."""


class Backing(Wire, frozen=True):
    """One voter's stake behind one validator."""

    voter: PublicKey
    stake_ngrid: UInt63


class Seat(Wire, frozen=True):
    """A validator and who put it there; as elected, whatever its voters do until the next election."""

    account: PublicKey
    session_key: PublicKey
    support_ngrid: UInt63
    """All stake behind it."""
    own_ngrid: UInt63
    """Of that, its own."""
    backing: tuple[Backing, ...]
    """Adds up to the support."""


@dataclass(frozen=True, slots=True)
class Elected:
    """An election's outcome."""

    seats: tuple[Seat, ...]
    """In the order of their election."""

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Session keys in that order."""
        return tuple(seat.session_key for seat in self.seats)

    @property
    def validator_set(self) -> ValidatorSet:
        """The first set of a chain, if this is the election at genesis."""
        return ValidatorSet(set_id=FIRST_SET_ID, members=self.keys)


def hold_election(
    seats: int, candidates: Sequence[Candidate], nominations: Sequence[Nomination]
) -> Elected:
    """The winners whom anybody supports; fewer than `seats` if there are not enough."""
    accounts = [candidate.account for candidate in candidates]
    votes = [Vote(each.voter, each.stake_ngrid, each.targets) for each in nominations]
    election = elect(seats, accounts, votes)
    supports, backing = election.supports(), _backing(election)
    keys = {candidate.account: candidate.session_key for candidate in candidates}
    return Elected(
        tuple(
            Seat(
                account=account,
                session_key=keys[account],
                support_ngrid=supports[account],
                own_ngrid=sum(b.stake_ngrid for b in backing[account] if b.voter == account),
                backing=backing[account],
            )
            for account in election.winners
            if supports[account]
        )
    )


def elect_at_genesis(
    seats: int, candidates: Sequence[Candidate], nominations: Sequence[Nomination]
) -> Elected:
    """Fill all seats.

    Raises:
        LocalFault: the nominations are contradictory, or leave a seat without support.
    """
    _check_ballots(seats, candidates, nominations)
    elected = hold_election(seats, candidates, nominations)
    if len(elected.seats) < seats:
        raise LocalFault(
            f"public genesis: nominations support only {len(elected.seats)} of {seats} validators; "
            "nominate more candidates, or ask for fewer validators"
        )
    return elected


def _check_ballots(
    seats: int, candidates: Sequence[Candidate], nominations: Sequence[Nomination]
) -> None:
    if not 1 <= seats <= MAX_VALIDATORS:
        raise LocalFault(f"public genesis: {seats} validators; 1 to {MAX_VALIDATORS} are possible")
    if len(candidates) > MAX_CANDIDATES or len(nominations) > MAX_VOTERS:
        raise LocalFault(
            f"public genesis: {len(candidates)} candidates and {len(nominations)} nominations; "
            f"an election holds at most {MAX_CANDIDATES} and {MAX_VOTERS}"
        )
    standing = {candidate.account for candidate in candidates}
    if len(standing) < len(candidates):
        raise LocalFault("public genesis: an account stands twice in candidates")
    if len({candidate.session_key for candidate in candidates}) < len(candidates):
        raise LocalFault("public genesis: candidates share a session_key; give each its own")
    if len({nomination.voter for nomination in nominations}) < len(nominations):
        raise LocalFault("public genesis: a voter nominates twice; join the two nominations")
    for nomination in nominations:
        strangers = [target for target in nomination.targets if target not in standing]
        if strangers:
            raise LocalFault(
                f"public genesis: {nomination.voter.hex()[:16]}... nominates "
                f"{strangers[0].hex()[:16]}..., which is not among candidates"
            )


def _backing(election: Election[bytes]) -> dict[bytes, tuple[Backing, ...]]:
    by_winner: defaultdict[bytes, list[Backing]] = defaultdict(list)
    for assignment in election.assignments:
        for winner, stake in assignment.shares:
            by_winner[winner].append(Backing(voter=assignment.voter, stake_ngrid=stake))
    return {winner: tuple(each) for winner, each in by_winner.items()}
