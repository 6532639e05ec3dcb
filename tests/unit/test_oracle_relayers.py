"""Who relays to the oracle chain: a quorum of the oracles decides, one change at a time."""

import itertools

import pytest
from tests.oracle_world import CHAIN, ORACLES, RELAYER, Device, OracleWorld, genesis, seed_signers

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import KeyedHashSigner, sha256
from gridtokenx.ledger.transactions import sign_transaction
from gridtokenx.oracle.chain.ledger import oracle_chain
from gridtokenx.oracle.chain.relayers import MAX_RELAYERS, STANDING, ApproveRelayer

NEWCOMER = KeyedHashSigner(sha256(b"another relayer"))
OTHER = KeyedHashSigner(sha256(b"a third relayer"))


_NONCES = itertools.count(1_000)


def say(world: OracleWorld, oracle: int, who: KeyedHashSigner, *, enrolled: bool = True) -> str:
    call = ApproveRelayer(account=who.public_key, enrolled=enrolled)
    return world.block(sign_transaction(ORACLES[oracle], CHAIN, next(_NONCES), [call]))[0]


def relays(world: OracleWorld, who: KeyedHashSigner) -> bool:
    return who.public_key in STANDING.get(world.state).accounts


def test_a_quorum_of_the_oracles_enrols_a_relayer() -> None:
    world = OracleWorld()
    for oracle in range(3):
        assert not relays(world, NEWCOMER)
        assert say(world, oracle, NEWCOMER) == "ok"
    assert relays(world, NEWCOMER)
    assert relays(world, RELAYER)


def test_enrolment_is_what_lets_relay_calls_in() -> None:
    world = OracleWorld()
    meter = Device("meter")
    packet = world.registry_packet([meter.registration()])
    carried = sign_transaction(NEWCOMER, CHAIN, 1, packet)
    assert world.block(carried) == ["refused"]
    for oracle in range(3):
        say(world, oracle, NEWCOMER)
    assert world.block(carried) == ["ok", "ok"]


def test_a_quorum_ends_a_relayer() -> None:
    world = OracleWorld()
    for oracle in range(3):
        assert say(world, oracle, RELAYER, enrolled=False) == "ok"
    assert not relays(world, RELAYER)


def test_an_oracle_stands_for_one_change_at_a_time() -> None:
    world = OracleWorld()
    say(world, 0, NEWCOMER)
    say(world, 1, NEWCOMER)
    say(world, 0, OTHER)
    assert say(world, 2, NEWCOMER) == "ok"
    assert not relays(world, NEWCOMER)


def test_a_change_voids_all_voices() -> None:
    world = OracleWorld()
    say(world, 3, OTHER)
    for oracle in range(3):
        say(world, oracle, NEWCOMER)
    for oracle in range(2):
        say(world, oracle, OTHER)
    assert not relays(world, OTHER)
    say(world, 3, OTHER)
    assert relays(world, OTHER)


@pytest.mark.parametrize("signer", [RELAYER, NEWCOMER, *seed_signers("stranger")[:1]])
def test_nobody_else_has_a_voice(signer: KeyedHashSigner) -> None:
    world = OracleWorld()
    call = ApproveRelayer(account=NEWCOMER.public_key, enrolled=True)
    assert world.block(sign_transaction(signer, CHAIN, 1, [call])) == ["refused"]


def test_what_changes_nothing_is_kept_out() -> None:
    world = OracleWorld()
    assert say(world, 0, RELAYER) != "ok"
    assert say(world, 0, NEWCOMER) == "ok"
    assert say(world, 0, NEWCOMER) != "ok"


def test_a_genesis_with_a_repeated_relayer_is_refused() -> None:
    with pytest.raises(LocalFault, match="relayers"):
        oracle_chain(genesis(relayers=(RELAYER.public_key,) * 2))
    many = tuple(sha256(bytes([index])) for index in range(MAX_RELAYERS + 1))
    with pytest.raises(LocalFault, match="relayers"):
        oracle_chain(genesis(relayers=many))
