"""Staking: who validates, whose stake stands behind them, and what is bonded for it.

Law of the file: **every bonded unit is locked in its owner's account, and backs at most once**. The
set that authors and finalises is elected at genesis by sequential Phragmén from the nominations in
the genesis file; candidates back themselves by a nomination of their own. An elected authority has
weight one, whatever its stake: stake decides who is elected, not how votes count.

A set is known by its session keys (blocks, draws and votes are signed with them), accounts by their
own keys: a session key can be stolen without the stake.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.state_tree import StateTree
from gridtokenx.core.types import UINT63_MAX, PublicKey, UInt63
from gridtokenx.finality.validators import MAX_VALIDATORS, ValidatorSet
from gridtokenx.ledger.runtime import Context, Module, SetReference
from gridtokenx.ledger.state import Cell, Log, Map, State
from gridtokenx.ledger.tokens import Tokens
from gridtokenx.public.election.phragmen import Election, Vote, elect

GRID_DENOM: Final = "GRID"
PURPOSE: Final = "staking"
"""The purpose of the locks that hold bonded stake."""
MAX_TARGETS: Final = 16
FIRST_SET_ID: Final = 0


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


class Validator(Wire, frozen=True):
    """A member of the current set."""

    account: PublicKey
    session_key: PublicKey
    support_ngrid: UInt63
    """All stake behind it."""
    own_ngrid: UInt63
    """Of that, its own."""


class Backing(Wire, frozen=True):
    """One voter's stake behind one validator."""

    voter: PublicKey
    stake_ngrid: UInt63


class ValidatorElected(Wire, frozen=True, tag="staking.elected"):
    """An account won a seat."""

    account: PublicKey
    session_key: PublicKey
    support_ngrid: UInt63


@dataclass(frozen=True, slots=True)
class Elected:
    """The outcome of the election at genesis."""

    validators: tuple[Validator, ...]
    """In the order of their election, which is the order of the set."""
    backing: dict[bytes, tuple[Backing, ...]]
    """By the validator's account."""

    @property
    def validator_set(self) -> ValidatorSet:
        """The set under its session keys."""
        members = tuple(validator.session_key for validator in self.validators)
        return ValidatorSet(set_id=FIRST_SET_ID, members=members)


def elect_validators(
    seats: int, candidates: Sequence[Candidate], nominations: Sequence[Nomination]
) -> Elected:
    """Fill all seats.

    Raises:
        LocalFault: the nominations are contradictory, or leave a seat without support.
    """
    _check_ballots(seats, candidates, nominations)
    accounts = [candidate.account for candidate in candidates]
    votes = [Vote(each.voter, each.stake_ngrid, each.targets) for each in nominations]
    election = elect(seats, accounts, votes)
    supports = election.supports()
    backed = [account for account in election.winners if supports[account]]
    if len(backed) < seats:
        raise LocalFault(
            f"public genesis: nominations support only {len(backed)} of {seats} validators; "
            "nominate more candidates, or ask for fewer validators"
        )
    backing = _backing(election)
    keys = {candidate.account: candidate.session_key for candidate in candidates}
    validators = tuple(
        Validator(
            account=account,
            session_key=keys[account],
            support_ngrid=supports[account],
            own_ngrid=sum(each.stake_ngrid for each in backing[account] if each.voter == account),
        )
        for account in backed
    )
    return Elected(validators, backing)


def _check_ballots(
    seats: int, candidates: Sequence[Candidate], nominations: Sequence[Nomination]
) -> None:
    if not 1 <= seats <= MAX_VALIDATORS:
        raise LocalFault(f"public genesis: {seats} validators; 1 to {MAX_VALIDATORS} are possible")
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


class Staking(Module):
    """See the head of the file; its genesis runs after the tokens' (it locks what they minted).

    Args:
        tokens: holds and locks the stake.
        nominations: what is bonded at genesis, and for whom.
        elected: the outcome of the election over these nominations.
    """

    name = "staking"
    events = (ValidatorElected,)

    def __init__(self, tokens: Tokens, nominations: Sequence[Nomination], elected: Elected) -> None:
        self._tokens: Final = tokens
        self._nominations: Final = tuple(nominations)
        self._elected: Final = elected
        self.current: Final = Cell("staking.current", ValidatorSet, elected.validator_set)
        """The set that authors and finalises the next block."""
        self.bonded: Final = Map("staking.bonded", int)
        """(account) -> stake in 10**-9 GRID."""
        self.targets: Final[Map[tuple[bytes, ...]]] = Map("staking.targets", tuple[bytes, ...])
        """(voter) -> the accounts that it nominates."""
        self.validators: Final = Log("staking.validator", Validator)
        """(set id) -> its members in order."""
        self.backing: Final = Log("staking.backing", Backing)
        """(set id, account of a validator) -> who backs it."""

    def genesis(self, ctx: Context) -> None:
        """Bond the stakes and seat the elected."""
        state = ctx.state
        for nomination in self._nominations:
            voter, stake = nomination.voter, nomination.stake_ngrid
            self._tokens.lock(state, GRID_DENOM, voter, PURPOSE, stake)
            self.bonded.put(state, stake, voter)
            self.targets.put(state, nomination.targets, voter)
        members = self._elected.validator_set
        self.current.put(state, members)
        for validator in self._elected.validators:
            self.validators.append(state, validator, members.set_id)
            for each in self._elected.backing[validator.account]:
                self.backing.append(state, each, members.set_id, validator.account)
            ctx.emit(
                ValidatorElected(
                    account=validator.account,
                    session_key=validator.session_key,
                    support_ngrid=validator.support_ngrid,
                )
            )

    def validators_of(self, tree: StateTree) -> ValidatorSet:
        """The set that authors and finalises the children of the block with this state."""
        return self.current.get(State(tree))

    def accounts(self, state: State) -> tuple[bytes, ...]:
        """The accounts of the current set, which decide for the chain."""
        seated = self.validators.walk(state, self.current.get(state).set_id)
        return tuple(validator.account for validator in seated)

    def reference(self, state: State) -> SetReference:
        """What a header says of validator sets."""
        members = self.current.get(state)
        return SetReference(members.set_id, members.hash)

    def check_invariants(self, state: State) -> Iterator[str]:
        """Bonds are locked, and supports are made of them."""
        yield from self._check_bonds(state)
        members, backed = self.current.get(state), Counter[bytes]()
        seated = list(self.validators.walk(state, members.set_id))
        if tuple(validator.session_key for validator in seated) != members.members:
            yield f"the validators of set {members.set_id} are not its members"
        for validator in seated:
            behind = list(self.backing.walk(state, members.set_id, validator.account))
            for each in behind:
                backed[each.voter] += each.stake_ngrid
            if sum(each.stake_ngrid for each in behind) != validator.support_ngrid:
                yield f"validator {validator.account.hex()[:16]}: its support does not add up"
        for voter, stake in backed.items():
            bonded = self.bonded.read(state, 0, voter)
            if stake > bonded:
                yield f"{voter.hex()[:16]} backs validators with {stake}, bonded are {bonded}"

    def _check_bonds(self, state: State) -> Iterator[str]:
        locked = 0
        for key, stake in self.bonded.scan(state):
            account = key[1:]
            locked += stake
            held = self._tokens.locked(state, GRID_DENOM, account, PURPOSE)
            if held != stake:
                yield f"{account.hex()[:16]}: {stake} bonded, {held} locked for it"
        suffix = self._tokens.locks.key(PURPOSE)[len(self._tokens.locks.prefix) :]
        of_purpose = sum(
            amount for key, amount in self._tokens.locks.scan(state) if key.endswith(suffix)
        )
        if of_purpose != locked:
            yield f"{of_purpose} locked for staking, {locked} bonded"
