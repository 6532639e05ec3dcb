"""The public chain's genesis: what it elects, what it locks, and what it refuses."""

import msgspec
import pytest
from msgspec.structs import replace
from tests.public_ledger import START_MS, VALIDATORS, Chain, World, account, key, public_genesis

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import KeyedHashVerifier
from gridtokenx.core.units import GRID
from gridtokenx.ledger.identity import parse_genesis, render_genesis
from gridtokenx.ledger.runtime import TRANSACTION_WEIGHT
from gridtokenx.ledger.tokens import Transfer
from gridtokenx.public.chain import (
    TREASURY,
    Balance,
    PublicGenesis,
    public_chain,
    public_ledger,
)
from gridtokenx.public.staking import (
    GRID_DENOM,
    Backing,
    Candidate,
    Nomination,
    ValidatorElected,
)


def chain() -> tuple[Chain, PublicGenesis]:
    genesis = public_genesis()
    made = public_chain(genesis, KeyedHashVerifier())
    return Chain(made.ledger, made.ledger.admission, made.genesis_block()), genesis


def test_the_election_seats_the_session_keys_of_the_best_supported() -> None:
    """Nina's 600 GRID go to Cho and Dao, so Eve is left out."""
    genesis = public_genesis()
    elected = {each.account: each for each in genesis.elected.seats}
    assert set(elected) == {key(name) for name in VALIDATORS[:4]}
    assert (
        sum(each.support_ngrid for each in elected.values()) == (500 + 400 + 300 + 200 + 600) * GRID
    )
    assert elected[key("dao")].own_ngrid == 200 * GRID
    members = genesis.validator_set
    assert members.set_id == 0
    assert members.members == tuple(each.session_key for each in genesis.elected.seats)
    assert set(members.members) == {key(f"{name} session") for name in VALIDATORS[:4]}


def test_genesis_bonds_every_stake_and_headers_name_the_set() -> None:
    world = World()
    made, state = world.public_chain, world.public.state
    assert made.tokens.locked(state, GRID_DENOM, key("nina"), "staking") == 600 * GRID
    assert made.tokens.balance(state, GRID_DENOM, key("nina")) == 400 * GRID
    assert made.tokens.locked(state, GRID_DENOM, key("eve"), "staking") == 100 * GRID
    assert made.tokens.supply(state, GRID_DENOM) == 9_000 * GRID
    assert made.staking.validators_of(world.public.head.state) == world.genesis.validator_set
    header = world.public.head.header
    assert (header.set_id, header.next_set_hash) == (0, world.genesis.validator_set.hash)
    assert header.timestamp_ms == START_MS
    assert len(world.public.events(ValidatorElected)) == 4
    seat = made.staking.seats.get(state, key("ann"))
    assert seat is not None
    assert seat.backing == (Backing(key("ann"), 500 * GRID),)
    assert made.ledger.check_invariants(world.public.head.state) == []


def test_a_transfer_pays_its_fee_to_the_treasury() -> None:
    public, genesis = chain()
    call = Transfer(GRID_DENOM, key("bob"), 5 * GRID)
    fee = (TRANSACTION_WEIGHT + 10) * genesis.fee_per_weight_ngrid
    assert public.block(call, by=account("alice"), fee=fee - 1) == ["kept out"]
    assert public.block(call, by=account("alice"), fee=fee) == ["ok"]
    tokens = public_chain(genesis).tokens
    assert tokens.balance(public.state, GRID_DENOM, key("alice")) == 995 * GRID - fee
    assert tokens.balance(public.state, GRID_DENOM, TREASURY) == fee


def test_bonded_stake_can_not_be_spent() -> None:
    public, _ = chain()
    call = Transfer(GRID_DENOM, key("bob"), 401 * GRID)
    assert public.block(call, by=account("nina"), fee=GRID) == ["insufficient-funds"]


def test_genesis_files_round_trip() -> None:
    genesis = World().genesis
    assert parse_genesis(render_genesis(genesis), PublicGenesis, "public.json") == genesis
    head = public_ledger(genesis).genesis(START_MS)
    again = public_ledger(parse_genesis(render_genesis(genesis), PublicGenesis, "public.json"))
    assert again.genesis(START_MS).hash == head.hash


def test_an_edited_genesis_file_is_refused() -> None:
    edited = render_genesis(replace(public_genesis(), slot_ms=3_000))
    with pytest.raises(LocalFault, match=r"public\.json: .*changed after it was made"):
        parse_genesis(edited, PublicGenesis, "public.json")
    with pytest.raises(LocalFault, match="not a PublicGenesis"):
        parse_genesis(b'{"validators": 4}', PublicGenesis, "public.json")


def test_the_slot_rules_are_the_genesis() -> None:
    rules = public_genesis(slot_ms=2_000, epoch_slots=50).slot_rules
    assert (rules.slot_ms, rules.epoch_slots, rules.genesis_ms) == (2_000, 50, START_MS)
    assert rules.chain_id == public_genesis(slot_ms=2_000, epoch_slots=50).chain_id


ANN = Candidate(account=key("ann"), session_key=key("ann session"))
STAKE = Nomination(voter=key("ann"), stake_ngrid=1, targets=(key("ann"),))
RICH = Balance(account=key("rich"), amount_ngrid=2**63 - 1)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"validators": 5, "nominations": (STAKE,)}, "support only 1 of 5 validators"),
        ({"validators": 6}, "support only 5 of 6"),
        ({"candidates": (ANN, ANN)}, "stands twice"),
        (
            {"candidates": (ANN, Candidate(account=key("x"), session_key=ANN.session_key))},
            "share a session_key",
        ),
        ({"nominations": (STAKE, STAKE)}, "nominates twice"),
        (
            {"nominations": (Nomination(voter=key("a"), stake_ngrid=1, targets=(bytes(32),)),)},
            "not among candidates",
        ),
        ({"balances": ()}, "of a balance of 0; raise its entry in balances"),
        ({"balances": (RICH, RICH)}, "balances repeats an account"),
        ({"balances": (RICH, Balance(account=key("b"), amount_ngrid=1))}, "too much"),
        ({"primary_chance": (5, 4)}, "above one"),
    ],
)
def test_what_could_not_work_is_refused_and_says_why(changes: dict[str, object], why: str) -> None:
    with pytest.raises(LocalFault, match=why):
        public_chain(public_genesis(**changes))


def test_the_oracle_client_must_exist() -> None:
    with pytest.raises(LocalFault, match="oracle_client is 'oracle', but clients are"):
        World(client="consortium")


def test_bounds_are_the_decoders() -> None:
    raw = msgspec.json.decode(render_genesis(public_genesis()))
    for name, value in (("slot_ms", 0), ("validators", 0), ("epoch_slots", 0), ("colour", 1)):
        with pytest.raises(LocalFault, match="not a PublicGenesis"):
            parse_genesis(msgspec.json.encode({**raw, name: value}), PublicGenesis, "public.json")
