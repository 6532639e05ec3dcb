"""The real public ledger under consensus: the elected validate, the others follow."""

from collections.abc import Callable

from msgspec.structs import replace
from tests.public_ledger import VALIDATORS, account, key, public_genesis

from gridtokenx.core.gridtime import GridClock
from gridtokenx.core.keys import KeyedHashVerifier
from gridtokenx.core.machine import Reader
from gridtokenx.core.units import GRID
from gridtokenx.lab.sim.world import START_MS, World
from gridtokenx.ledger.identity import derive_chain_id
from gridtokenx.ledger.records import load_block, load_head
from gridtokenx.ledger.state import State
from gridtokenx.ledger.tokens import Transfer
from gridtokenx.ledger.transactions import sign_transaction
from gridtokenx.public.chain import TREASURY, public_chain
from gridtokenx.public.machine import NodeKeys, PublicConfig, PublicNode
from gridtokenx.public.slots import KeyedHashVrf, KeyedHashVrfVerifier, read_claim
from gridtokenx.public.staking import GRID_DENOM

CLOCK = GridClock(network_genesis_ms=START_MS, grid_epoch_ms=START_MS, time_scale=60)
GENESIS = replace(public_genesis(clock=CLOCK, slot_ms=2_000, epoch_slots=10), chain_id=bytes(32))
GENESIS = replace(GENESIS, chain_id=derive_chain_id(GENESIS))
CHAIN = public_chain(GENESIS, KeyedHashVerifier())


def _builder(name: str) -> Callable[[Reader], PublicNode]:
    own = account(f"{name} session")
    keys = NodeKeys(own, KeyedHashVrf(own.public_key), KeyedHashVrfVerifier())
    config = PublicConfig(GENESIS.slot_rules, 200)

    def build(reader: Reader) -> PublicNode:
        return PublicNode(
            CHAIN.ledger,
            CHAIN.genesis_block(),
            GENESIS.validator_set,
            keys,
            config,
            reader,
            CHAIN.staking.validators_of,
        )

    return build


def test_elected_validators_finalise_transfers_and_a_restarted_one_keeps_its_state() -> None:
    world = World(7, KeyedHashVerifier())
    for name in VALIDATORS:
        world.add(key(f"{name} session"), _builder(name))
    world.start()
    call = Transfer(GRID_DENOM, key("bob"), 5 * GRID)
    alice = account("alice")
    world.submit(
        key("eve session"),
        [sign_transaction(alice, GENESIS.chain_id, nonce, [call], fee=GRID) for nonce in (0, 1)],
    )
    world.run_for(30_000)
    world.crash(key("ann session"))
    world.start(key("ann session"))
    world.run_for(20_000)
    heads = [load_head(node.store) for node in world.nodes.values()]
    for head in heads:
        assert head is not None
        assert head.height >= 15
        assert CHAIN.ledger.check_invariants(head.state) == []
        state = State(head.state)
        assert CHAIN.tokens.balance(state, GRID_DENOM, key("bob")) == 1_010 * GRID
        assert CHAIN.tokens.balance(state, GRID_DENOM, TREASURY) == 2 * GRID
    store = world.nodes[key("eve session")].store
    blocks = [load_block(store, height) for height in range(1, 15)]
    authors = {read_claim(block.header).authority for block in blocks if block is not None}
    assert authors == {0, 1, 2, 3}, "Eve was not elected, and follows"
