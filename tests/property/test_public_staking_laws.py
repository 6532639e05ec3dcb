"""Laws of staking under any sequence of calls: nothing appears, nothing vanishes, nobody is early."""

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.public_ledger import VALIDATORS, key
from tests.stages import examples
from tests.unit.test_public_staking import ERA, Staked

from gridtokenx.core.codec import Wire
from gridtokenx.core.units import GRID
from gridtokenx.public.staking import (
    GRID_DENOM,
    Bond,
    Chill,
    Nominate,
    Nomination,
    Unbond,
    Withdraw,
)
from gridtokenx.public.staking.ballots import Candidate, hold_election

PEOPLE = (*VALIDATORS, "nina", "alice", "bob")
WHO = st.sampled_from(PEOPLE)
AMOUNTS = st.integers(1, 400).map(lambda grid: grid * GRID)
TARGETS = st.lists(WHO, min_size=1, max_size=4)
STEPS = st.one_of(
    st.tuples(st.just("bond"), WHO, AMOUNTS),
    st.tuples(st.just("unbond"), WHO, AMOUNTS),
    st.tuples(st.just("withdraw"), WHO, st.none()),
    st.tuples(st.just("nominate"), WHO, TARGETS),
    st.tuples(st.just("stand"), WHO, st.none()),
    st.tuples(st.just("chill"), WHO, st.none()),
    st.tuples(st.just("era"), WHO, st.none()),
)


class Model:
    """The obvious book: what is bonded, and what is free from which era on."""

    def __init__(self, at: Staked) -> None:
        self.at = at
        self.bonded = {name: at.bonded(name) for name in PEOPLE}
        self.waiting: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)

    @property
    def era(self) -> int:
        """Of the newest block: calls take a slot each, so eras also pass by themselves."""
        return (self.at.slot - self.at.staking.rules.first_slot) // ERA

    def apply(self, kind: str, who: str, what: object) -> None:
        at = self.at
        if kind == "era":
            at.next_era()
            return
        locked = at.locked(who)
        code = at.call(who, self.call(kind, who, what))
        if code != "ok":
            assert at.locked(who) == locked, "a refused call leaves no trace"
            return
        if kind == "bond":
            assert isinstance(what, int)
            self.bonded[who] += what
        elif kind == "unbond":
            assert isinstance(what, int)
            self.bonded[who] -= what
            self.waiting[who].append((self.era + 2, what))
        elif kind == "withdraw":
            self.waiting[who] = [each for each in self.waiting[who] if each[0] > self.era]

    def call(self, kind: str, who: str, what: object) -> Wire:
        match kind, what:
            case "bond", int():
                return Bond(what)
            case "unbond", int():
                return Unbond(what)
            case "nominate", list():
                return Nominate(tuple(dict.fromkeys(map(key, what))))
            case "stand", _:
                return self.at.stand(who)
            case "chill", _:
                return Chill()
            case _:
                return Withdraw()

    def check(self) -> None:
        at = self.at
        for name in PEOPLE:
            assert at.bonded(name) == self.bonded[name]
            assert at.locked(name) == self.bonded[name] + sum(n for _, n in self.waiting[name])
        assert at.public.tokens.supply(at.state, GRID_DENOM) == 9_000 * GRID


@settings(max_examples=examples(150))
@given(st.lists(STEPS, max_size=30))
def test_stake_is_conserved_and_comes_back_in_time(steps: list[tuple[str, str, object]]) -> None:
    model = Model(Staked())
    for kind, who, what in steps:
        model.apply(kind, who, what)
    model.check()
    for _ in range(2):
        model.apply("era", "alice", None)
    for name in PEOPLE:
        model.apply("withdraw", name, None)
        assert model.at.locked(name) == model.at.bonded(name), "all that waited is free by now"


@settings(max_examples=examples(150))
@given(st.lists(STEPS, max_size=25))
def test_every_era_seats_whom_an_election_from_scratch_would(
    steps: list[tuple[str, str, object]],
) -> None:
    """The chain's lists, kept through all calls, against ballots gathered anew from the state."""
    model = Model(Staked())
    for kind, who, what in steps:
        model.apply(kind, who, what)
    at, staking, state = model.at, model.at.staking, model.at.state
    before = at.following
    standing = [key(name) for name in PEOPLE if staking.stands(state, key(name))]
    nominating = [key(name) for name in PEOPLE if staking.targets.has(state, key(name))]
    candidates = [
        Candidate(account=each, session_key=staking.session_keys.read(state, b"", each))
        for each in standing
    ]
    ballots = [
        Nomination(
            voter=each,
            stake_ngrid=staking.bonded.read(state, 0, each),
            targets=staking.targets.read(state, (), each),
        )
        for each in nominating
    ]
    fresh, era = hold_election(4, candidates, ballots), model.era
    at.next_era()
    assert staking.era.get(at.state).index == model.era == era + 1
    if len(fresh.seats) < 4:
        assert at.following == before
        return
    supports = [seat.support_ngrid for seat in fresh.seats]
    chain_seats = [staking.seats.get(at.state, each) for each in staking.accounts(at.state)]
    found = [seat.support_ngrid for seat in chain_seats if seat is not None]
    assert sum(found) == sum(supports)
    assert at.following.set_id - before.set_id == (set(at.following.members) != set(before.members))
