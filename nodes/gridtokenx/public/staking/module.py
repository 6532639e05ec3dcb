"""Staking: whose stake stands behind whom, and which set it elects for each era.

Law of the file: **every staked unit is locked in its owner's account: locked = bonded + unbonding.**
A candidate's bond always backs the candidate itself, perhaps among others. Elections read the state
at the beginning of a block and depend on nothing else; no call changes a set between two of them.

    era e          the slots from genesis + e * `era_slots` on, so many
    election       in the first block of an era, before its transactions: sequential Phragmén over
                   all who stand and all who nominate (`ballots.py`), as at genesis
    same members   nothing is handed over; supports are the new ones
    new members    the block's header announces the next set, whose id is greater by one; the block's
                   children are its first. The block itself is the old set's, in authorship and votes
    too few        everybody keeps his seat: `ElectionFailed`
    unbonding      stake taken out of play in era e is free from era e + `unbonding_eras` on

An elected authority has weight one, whatever its stake: stake decides who is elected, not how votes
count. A set is known by its session keys (blocks, draws and votes are signed with them), accounts by
their own keys: a session key can be stolen without the stake. Whoever claims a session key shows that
it has it, so that nobody can take the blame, or the seat, of another.

Ours differs (from Substrate's staking): a candidate may nominate others beside itself; era and session
are one; a set changes in the block of its election, since finality hands over there and nowhere else.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.keys import Ed25519Verifier, Verifier
from gridtokenx.core.state_tree import StateTree
from gridtokenx.core.types import UINT63_MAX, PublicKey, UInt63
from gridtokenx.core.units import GRID
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.runtime import CallFailed, Context, Module, SetReference, handles
from gridtokenx.ledger.state import Cell, Map, State
from gridtokenx.ledger.tokens import Tokens
from gridtokenx.public.staking.ballots import (
    MAX_CANDIDATES,
    MAX_VOTERS,
    Candidate,
    Elected,
    Nomination,
    Seat,
    hold_election,
)
from gridtokenx.public.staking.calls import (
    EVENTS,
    Bond,
    Bonded,
    Chill,
    Chilled,
    Displaced,
    ElectionFailed,
    EraBegan,
    Nominate,
    Nominated,
    SessionKeySet,
    SetSessionKey,
    Stand,
    Stood,
    Unbond,
    Unbonded,
    ValidatorElected,
    ValidatorLeft,
    Withdraw,
    Withdrawn,
    holds_session_key,
)
from gridtokenx.public.staking.roll import Roll

GRID_DENOM: Final = "GRID"
PURPOSE: Final = "staking"
"""The purpose of the locks that hold bonded and unbonding stake."""
MAX_UNLOCKING: Final = 32
"""Amounts of one account that wait for the end of their unbonding period."""
LIST_WEIGHT: Final = 40
"""A nomination reads 16 candidates, and may displace another."""
KEY_WEIGHT: Final = 60
"""Checks a signature."""


@dataclass(frozen=True, slots=True)
class StakingRules:
    """The parameters of staking; part of the chain's genesis."""

    seats: int
    first_slot: int
    """The genesis block's; eras are counted from it."""
    era_slots: int
    unbonding_eras: int
    minimum_stake_ngrid: int = 100 * GRID
    """Least bond of a candidate."""
    minimum_nomination_ngrid: int = 10 * GRID
    """Least bond of a nominator."""
    max_candidates: int = MAX_CANDIDATES
    max_voters: int = MAX_VOTERS

    def era_of(self, slot: int) -> int:
        """The era of a slot."""
        return max(0, slot - self.first_slot) // self.era_slots

    def first_slot_of(self, era: int) -> int:
        """The slot in which an era begins, whoever authors it."""
        return self.first_slot + era * self.era_slots


class Era(Wire, frozen=True):
    """The era of the newest block, and the election that seats were last filled by."""

    index: UInt63
    elected: UInt63
    """The era whose election filled the seats; lower than `index` if later ones failed."""


class Unlocking(Wire, frozen=True):
    """Stake that is on its way out."""

    amount_ngrid: UInt63
    ready_era: UInt63


class Staking(Module):
    """See the head of the file; its genesis runs after the tokens' (it locks what they minted).

    Args:
        tokens: holds and locks the stake.
        rules: of the chain.
        candidates: who stands at genesis.
        nominations: what is bonded at genesis, and for whom.
        elected: the outcome of the election over these.
        verifier: checks proofs of possession; libsodium if None.
    """

    name = "staking"
    events = EVENTS

    def __init__(
        self,
        tokens: Tokens,
        rules: StakingRules,
        candidates: Sequence[Candidate],
        nominations: Sequence[Nomination],
        elected: Elected,
        verifier: Verifier | None = None,
    ) -> None:
        self.rules: Final = rules
        self._tokens: Final = tokens
        self._candidates: Final = tuple(candidates)
        self._nominations: Final = tuple(nominations)
        self._elected: Final = elected
        self._verifier: Final = Ed25519Verifier() if verifier is None else verifier
        self.era: Final = Cell("staking.era", Era, Era(index=0, elected=0))
        self.current: Final = Cell("staking.current", ValidatorSet, elected.validator_set)
        """The set that authors and finalises the newest block."""
        self.following: Final = Cell("staking.following", ValidatorSet, elected.validator_set)
        """The set that authors and finalises that block's children."""
        self.bonded: Final = Map("staking.bonded", int)
        """(account) -> stake in play, in 10**-9 GRID."""
        self.unlocking: Final[Map[tuple[Unlocking, ...]]] = Map(
            "staking.unlocking", tuple[Unlocking, ...]
        )
        """(account) -> stake on its way out, the earliest first."""
        self.targets: Final[Map[tuple[bytes, ...]]] = Map("staking.targets", tuple[bytes, ...])
        """(voter) -> the accounts that it nominates."""
        self.session_keys: Final = Map("staking.session_key", bytes)
        """(account that stands) -> the key that it will validate with."""
        self.key_owners: Final = Map("staking.key_owner", bytes)
        """(session key) -> the account that stands with it."""
        self.candidates: Final = Roll("staking.candidates", "candidates", rules.max_candidates)
        self.voters: Final = Roll("staking.voters", "nominators", rules.max_voters)
        self.seated: Final[Cell[tuple[bytes, ...]]] = Cell("staking.seated", tuple[bytes, ...], ())
        """The accounts behind `following`, in the order of their election."""
        self.seats: Final = Map("staking.seat", Seat)
        """(account) -> its seat."""

    def genesis(self, ctx: Context) -> None:
        """Bond the stakes, list who stands, and seat the elected."""
        state = ctx.state
        for candidate in self._candidates:
            self._enlist(state, candidate.account, candidate.session_key)
        for nomination in self._nominations:
            voter, stake = nomination.voter, nomination.stake_ngrid
            self._tokens.lock(state, GRID_DENOM, voter, PURPOSE, stake)
            self.bonded.put(state, stake, voter)
            self._set_targets(state, voter, nomination.targets)
        members = self._elected.validator_set
        self.current.put(state, members)
        self.following.put(state, members)
        self.era.put(state, Era(index=0, elected=0))
        self._fill(ctx, self._elected)

    def begin_block(self, ctx: Context) -> None:
        """Let an announced set take over, and elect the next one if an era begins."""
        state = ctx.state
        following = self.following.get(state)
        if self.current.get(state).set_id != following.set_id:
            self.current.put(state, following)
        era, now = self.era.get(state), self.rules.era_of(ctx.round)
        if now > era.index:
            self._begin_era(ctx, era, now)

    # -- reads -------------------------------------------------------------------------------------

    def validators_of(self, tree: StateTree) -> ValidatorSet:
        """The set that authors and finalises the children of the block with this state."""
        return self.following.get(State(tree))

    def accounts(self, state: State) -> tuple[bytes, ...]:
        """The accounts with a seat, which decide for the chain."""
        return self.seated.get(state)

    def reference(self, state: State) -> SetReference:
        """What a header says of validator sets."""
        current, following = self.current.get(state), self.following.get(state)
        return SetReference(current.set_id, following.hash)

    def stands(self, state: State, account: bytes) -> bool:
        """Whether an account is a candidate."""
        return self.session_keys.has(state, account)

    def _bond_of(self, state: State, account: bytes) -> int:
        return self.bonded.read(state, 0, account)

    # -- stake -------------------------------------------------------------------------------------

    @handles(Bond)
    def bond(self, ctx: Context, call: Bond) -> None:
        """Lock more of one's own."""
        self._tokens.lock(ctx.state, GRID_DENOM, ctx.sender, PURPOSE, call.amount_ngrid)
        bonded = self._bond_of(ctx.state, ctx.sender) + call.amount_ngrid
        self.bonded.put(ctx.state, bonded, ctx.sender)
        ctx.emit(Bonded(account=ctx.sender, amount_ngrid=call.amount_ngrid, bonded_ngrid=bonded))

    @handles(Unbond)
    def unbond(self, ctx: Context, call: Unbond) -> None:
        """Take stake out of play; what is left must still carry what the account does."""
        state, account = ctx.state, ctx.sender
        left = self._bond_of(state, account) - call.amount_ngrid
        if left < 0:
            raise CallFailed(
                "insufficient-bond", f"{left + call.amount_ngrid} bonded, {call.amount_ngrid} asked"
            )
        self._require_bond_for_roles(state, account, left)
        ready_era = self.era.get(state).index + self.rules.unbonding_eras
        self._queue(state, account, Unlocking(call.amount_ngrid, ready_era))
        if left:
            self.bonded.put(state, left, account)
        else:
            self.bonded.delete(state, account)
        ctx.emit(Unbonded(account=account, amount_ngrid=call.amount_ngrid, ready_era=ready_era))

    @handles(Withdraw)
    def withdraw(self, ctx: Context, call: Withdraw) -> None:  # noqa: ARG002 - it has no fields
        """Free what has waited long enough."""
        state, account = ctx.state, ctx.sender
        era, waiting = self.era.get(state).index, self.unlocking.read(state, (), account)
        later = tuple(each for each in waiting if each.ready_era > era)
        amount = sum(each.amount_ngrid for each in waiting if each.ready_era <= era)
        if not amount:
            when = (
                f"the next in era {later[0].ready_era}, now is {era}" if later else "unbond first"
            )
            raise CallFailed("nothing-to-withdraw", f"nothing is ready: {when}")
        if later:
            self.unlocking.put(state, later, account)
        else:
            self.unlocking.delete(state, account)
        self._tokens.unlock(state, GRID_DENOM, account, PURPOSE, amount)
        ctx.emit(Withdrawn(account=account, amount_ngrid=amount))

    def _require_bond_for_roles(self, state: State, account: bytes, left: int) -> None:
        if self.stands(state, account) and left < self.rules.minimum_stake_ngrid:
            raise CallFailed(
                "below-minimum",
                f"{left} would be left, a candidate needs {self.rules.minimum_stake_ngrid}; "
                "chill first, or unbond less",
            )
        if self.targets.has(state, account) and left < self.rules.minimum_nomination_ngrid:
            raise CallFailed(
                "below-minimum",
                f"{left} would be left, a nominator needs {self.rules.minimum_nomination_ngrid}; "
                "chill first, or unbond less",
            )

    def _queue(self, state: State, account: bytes, fresh: Unlocking) -> None:
        """One entry per era; eras only grow, so the order is by era."""
        waiting = self.unlocking.read(state, (), account)
        if waiting and waiting[-1].ready_era == fresh.ready_era:
            amount = waiting[-1].amount_ngrid + fresh.amount_ngrid
            waiting, fresh = waiting[:-1], Unlocking(amount, fresh.ready_era)
        if len(waiting) == MAX_UNLOCKING:
            raise CallFailed(
                "too-many-unlocking", f"{MAX_UNLOCKING} amounts wait already; withdraw first"
            )
        self.unlocking.put(state, (*waiting, fresh), account)

    # -- ballots -----------------------------------------------------------------------------------

    @handles(Nominate, weight=LIST_WEIGHT)
    def nominate(self, ctx: Context, call: Nominate) -> None:
        """Name whom the stake is to support."""
        state, account = ctx.state, ctx.sender
        bonded = self._bond_of(state, account)
        if bonded < self.rules.minimum_nomination_ngrid:
            raise CallFailed(
                "below-minimum",
                f"{bonded} bonded, a nominator needs {self.rules.minimum_nomination_ngrid}",
            )
        if len(set(call.targets)) < len(call.targets):
            raise CallFailed("repeated-target", "name each candidate once")
        for target in call.targets:
            if not self.stands(state, target):
                raise CallFailed("not-standing", f"{target.hex()} does not stand for election")
        if self.stands(state, account) and account not in call.targets:
            raise CallFailed("not-oneself", "a candidate's stake backs itself: name yourself too")
        self._make_room(ctx, self.voters, bonded)
        self._set_targets(state, account, call.targets)
        ctx.emit(Nominated(account=account, targets=call.targets))

    @handles(Stand, weight=KEY_WEIGHT)
    def stand(self, ctx: Context, call: Stand) -> None:
        """Become a candidate, or stand with another session key."""
        state, account = ctx.state, ctx.sender
        bonded = self._bond_of(state, account)
        if self.stands(state, account):
            raise CallFailed("already-standing", "use set_session_key to change the key")
        if bonded < self.rules.minimum_stake_ngrid:
            raise CallFailed(
                "below-minimum",
                f"{bonded} bonded, a candidate needs {self.rules.minimum_stake_ngrid}; bond first",
            )
        self._require_key(ctx, call.session_key, call.proof)
        self._make_room(ctx, self.candidates, bonded)
        self._enlist(state, account, call.session_key)
        targets = self.targets.read(state, (), account)
        if account not in targets:
            self._make_room(ctx, self.voters, bonded)
            self._set_targets(state, account, (account,))
        ctx.emit(Stood(account=account, session_key=call.session_key))

    @handles(SetSessionKey, weight=KEY_WEIGHT)
    def set_session_key(self, ctx: Context, call: SetSessionKey) -> None:
        """Change the key of the next election; the present set keeps the old one."""
        state, account = ctx.state, ctx.sender
        old = self.session_keys.get(state, account)
        if old is None:
            raise CallFailed("not-standing", "only a candidate has a session key; stand first")
        if call.session_key != old:
            self._require_key(ctx, call.session_key, call.proof)
            self.key_owners.delete(state, old)
            self._take_key(state, account, call.session_key)
        ctx.emit(SessionKeySet(account=account, session_key=call.session_key))

    @handles(Chill)
    def chill(self, ctx: Context, call: Chill) -> None:  # noqa: ARG002 - it has no fields
        """Stand down, and nominate nobody."""
        state, account = ctx.state, ctx.sender
        if not (self.stands(state, account) or self.targets.has(state, account)):
            raise CallFailed("not-active", "the account neither stands nor nominates")
        self._strike(state, account)
        ctx.emit(Chilled(account=account))

    def _require_key(self, ctx: Context, session_key: bytes, proof: bytes) -> None:
        owner = self.key_owners.get(ctx.state, session_key)
        if owner is not None:
            raise CallFailed("key-in-use", f"account {owner.hex()} stands with this session key")
        if not holds_session_key(self._verifier, ctx.chain_id, ctx.sender, session_key, proof):
            raise CallFailed(
                "bad-proof", "the session key did not sign for this account on this chain"
            )

    def _take_key(self, state: State, account: bytes, session_key: bytes) -> None:
        self.session_keys.put(state, session_key, account)
        self.key_owners.put(state, account, session_key)

    def _enlist(self, state: State, account: bytes, session_key: bytes) -> None:
        self.candidates.add(state, account)
        self._take_key(state, account, session_key)

    def _set_targets(self, state: State, voter: bytes, targets: tuple[PublicKey, ...]) -> None:
        if not self.voters.has(state, voter):
            self.voters.add(state, voter)
        self.targets.put(state, targets, voter)

    def _make_room(self, ctx: Context, roll: Roll, stake: int) -> None:
        """In a full list the weakest goes: its stake stays bonded, and it is told by an event."""
        if roll.has(ctx.state, ctx.sender):
            return
        weaker = roll.displaced(
            ctx.state, stake, lambda each: self._stake_in(ctx.state, roll, each)
        )
        if weaker is not None:
            self._strike(ctx.state, weaker)
            ctx.emit(Displaced(account=weaker, by=ctx.sender))

    def _stake_in(self, state: State, roll: Roll, account: bytes) -> int:
        """What it takes to displace an account; nobody loses a candidacy to a nominator."""
        if roll is self.voters and self.stands(state, account):
            return UINT63_MAX
        return self._bond_of(state, account)

    def _strike(self, state: State, account: bytes) -> None:
        """Take an account out of the next elections; a seat that it has is kept until then."""
        self.candidates.remove(state, account)
        self.voters.remove(state, account)
        self.targets.delete(state, account)
        session_key = self.session_keys.get(state, account)
        if session_key is not None:
            self.session_keys.delete(state, account)
            self.key_owners.delete(state, session_key)

    # -- eras --------------------------------------------------------------------------------------

    def _begin_era(self, ctx: Context, era: Era, index: int) -> None:
        state = ctx.state
        elected = self._hold_election(state)
        current = self.current.get(state)
        if len(elected.seats) < self.rules.seats:
            self.era.put(state, Era(index=index, elected=era.elected))
            ctx.emit(ElectionFailed(era=index, backed=len(elected.seats), seats=self.rules.seats))
            return
        self.era.put(state, Era(index=index, elected=index))
        following = current
        if set(elected.keys) != set(current.members):
            following = ValidatorSet(set_id=current.set_id + 1, members=elected.keys)
            self.following.put(state, following)
        self._fill(ctx, elected)
        supports = [seat.support_ngrid for seat in elected.seats]
        ctx.emit(
            EraBegan(
                era=index,
                set_id=following.set_id,
                support_ngrid=sum(supports),
                least_support_ngrid=min(supports),
            )
        )

    def _hold_election(self, state: State) -> Elected:
        standing = {
            account: self._bond_of(state, account) for account in self.candidates.walk(state)
        }
        ballots = [
            Nomination(
                voter=voter,
                stake_ngrid=self._bond_of(state, voter),
                targets=self.targets.read(state, (), voter),
            )
            for voter in self.voters.walk(state)
        ]
        candidates = [
            Candidate(account=account, session_key=self.session_keys.read(state, b"", account))
            for account in standing
        ]
        elected = hold_election(self.rules.seats, candidates, ballots)
        self._note_weakest(state, standing, ballots, elected)
        return elected

    def _note_weakest(
        self,
        state: State,
        standing: Mapping[bytes, int],
        ballots: Sequence[Nomination],
        elected: Elected,
    ) -> None:
        """Who may be displaced: nominators who do not stand, candidates who won no seat."""
        voters = ((each.stake_ngrid, each.voter) for each in ballots if each.voter not in standing)
        self.voters.note_weakest(state, voters)
        seated = {seat.account for seat in elected.seats}
        losers = ((bond, account) for account, bond in standing.items() if account not in seated)
        self.candidates.note_weakest(state, losers)

    def _fill(self, ctx: Context, elected: Elected) -> None:
        """Write the seats, and say who is new and who left."""
        state, before = ctx.state, self.seated.get(ctx.state)
        now = tuple(seat.account for seat in elected.seats)
        for account in before:
            if account not in now:
                self.seats.delete(state, account)
                ctx.emit(ValidatorLeft(account=account))
        for seat in elected.seats:
            self.seats.put(state, seat, seat.account)
            if seat.account not in before:
                ctx.emit(
                    ValidatorElected(
                        account=seat.account,
                        session_key=seat.session_key,
                        support_ngrid=seat.support_ngrid,
                    )
                )
        self.seated.put(state, now)

    # -- laws --------------------------------------------------------------------------------------

    def check_invariants(self, state: State) -> Iterator[str]:
        """Stake is locked, lists agree, and seats are backed by what was staked."""
        yield from self._check_stake(state)
        yield from self.candidates.check_invariants(state)
        yield from self.voters.check_invariants(state)
        yield from self._check_roles(state)
        yield from self._check_seats(state)

    def _check_stake(self, state: State) -> Iterator[str]:
        """Locked = bonded + unbonding, for each account and in all."""
        staked = Counter[bytes]()
        for key, bonded in self.bonded.scan(state):
            staked[key[1:]] += bonded
        for key, waiting in self.unlocking.scan(state):
            staked[key[1:]] += sum(each.amount_ngrid for each in waiting)
        for account, stake in staked.items():
            held = self._tokens.locked(state, GRID_DENOM, account, PURPOSE)
            if held != stake:
                yield f"{account.hex()[:16]}: {stake} staked, {held} locked for it"
        suffix = self._tokens.locks.key(PURPOSE)[len(self._tokens.locks.prefix) :]
        locks = self._tokens.locks.scan(state)
        of_purpose = sum(amount for key, amount in locks if key.endswith(suffix))
        if of_purpose != staked.total():
            yield f"{of_purpose} locked for staking, {staked.total()} bonded or unbonding"

    def _check_roles(self, state: State) -> Iterator[str]:
        """Whoever stands has a key of its own, enough stake, and backs itself."""
        keys = {key[1:]: session_key for key, session_key in self.session_keys.scan(state)}
        owners = {key[1:]: account for key, account in self.key_owners.scan(state)}
        if owners != {session_key: account for account, session_key in keys.items()}:
            yield "session keys and their owners disagree"
        if set(keys) != set(self.candidates.walk(state)):
            yield "candidates and the list of them disagree"
        if {key[1:] for key, _ in self.targets.scan(state)} != set(self.voters.walk(state)):
            yield "nominations and the list of voters disagree"

    def _check_seats(self, state: State) -> Iterator[str]:
        following, era = self.following.get(state), self.era.get(state)
        seats = [self.seats.get(state, account) for account in self.seated.get(state)]
        keys = {seat.session_key for seat in seats if seat is not None}
        if keys != set(following.members) or not following.is_well_formed():
            yield f"the seats are not those of set {following.set_id}"
        backed = Counter[bytes]()
        for seat in seats:
            if seat is None:
                continue
            for each in seat.backing:
                backed[each.voter] += each.stake_ngrid
            if sum(each.stake_ngrid for each in seat.backing) != seat.support_ngrid:
                yield f"validator {seat.account.hex()[:16]}: its support does not add up"
        if era.index - era.elected >= self.rules.unbonding_eras:
            return  # what backed the seats may be free by now
        for voter, stake in backed.items():
            held = self._tokens.locked(state, GRID_DENOM, voter, PURPOSE)
            if stake > held:
                yield f"{voter.hex()[:16]} backs validators with {stake}, locked are {held}"
