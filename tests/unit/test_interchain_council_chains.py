"""Who has a voice on each of the three chains, and what it costs."""

import pytest
from tests.consortium_world import ConsortiumWorld
from tests.oracle_world import CHAIN, ORACLES, OracleWorld, seed_signers
from tests.oracle_world import RELAYER as ORACLE_RELAYER
from tests.public_ledger import VALIDATORS, World, account

from gridtokenx.core.units import GRID
from gridtokenx.interchain import stores
from gridtokenx.interchain.council import ApprovePause, ApproveRecovery
from gridtokenx.ledger.runtime import InvalidTransaction
from gridtokenx.ledger.transactions import sign_transaction

STOP = ApprovePause(paused=True)
RECOVER = ApproveRecovery("public", bytes([1]) * 32)


def test_the_accounts_of_the_elected_decide_on_the_public_chain() -> None:
    chain = World().public
    for name in ("alice", "ann session", "eve"):  # a session key may be stolen; eve has no seat
        assert chain.block(STOP, by=account(name), fee=GRID) == ["kept out"]
    for name in VALIDATORS[:3]:
        assert not stores.PAUSED.get(chain.state)
        assert chain.block(STOP, by=account(name), fee=GRID) == ["ok"]
    assert stores.PAUSED.get(chain.state)


def test_validators_decide_on_the_consortium_chain_without_a_fee() -> None:
    world = ConsortiumWorld()
    for name in ("replica0", "replica1", "replica2"):
        assert not stores.PAUSED.get(world.state)
        world.submit(name, STOP, fee=0)
        world.block()
    assert stores.PAUSED.get(world.state)


@pytest.mark.parametrize("name", ["relayer", "operator", "s0", "nobody"])
def test_nobody_else_decides_on_the_consortium_chain(name: str) -> None:
    world = ConsortiumWorld()
    world.submit(name, STOP, fee=0)
    with pytest.raises(InvalidTransaction):
        world.ledger.admit(world.state, world._queue[0], world.now_ms)
    assert world.balance("replica0") == 0


def test_oracles_decide_on_the_oracle_chain() -> None:
    world = OracleWorld()
    for number, oracle in enumerate(ORACLES[:3]):
        assert not stores.PAUSED.get(world.state)
        assert world.block(sign_transaction(oracle, CHAIN, 1_000 + number, [STOP])) == ["ok"]
    assert stores.PAUSED.get(world.state)
    for stranger in (ORACLE_RELAYER, *seed_signers("stranger")):
        assert world.block(sign_transaction(stranger, CHAIN, 1_000, [RECOVER])) == ["refused"]
