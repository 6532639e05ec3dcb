"""A change of the validator set: old rounds end, new ones begin at 1, nobody votes across it."""

from functools import partial
from typing import ClassVar

from tests.simulation.public_network import (
    CHAIN_ID,
    GOSSIP_MS,
    RULES,
    SLOT_MS,
    TOKENS,
    TREASURY,
    keyed_hash_keys,
)

from gridtokenx.core.keys import KeyedHashVerifier
from gridtokenx.core.machine import Reader
from gridtokenx.core.state_tree import StateTree
from gridtokenx.core.types import UInt63
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.lab.sim.network import LinkProfile
from gridtokenx.lab.sim.world import START_MS, World
from gridtokenx.ledger.admission import StrictNonce, TokenFee
from gridtokenx.ledger.runtime import Context, ExecutedBlock, Ledger, Module, SetReference
from gridtokenx.ledger.state import Cell, State
from gridtokenx.public.machine import PublicConfig, PublicNode

N = 7
KEYS = [keyed_hash_keys(index) for index in range(N)]


def set_of(set_id: int, *members: int) -> ValidatorSet:
    return ValidatorSet(set_id, tuple(KEYS[index].signer.public_key for index in members))


SETS = (set_of(0, 0, 1, 2, 3), set_of(1, 1, 2, 3, 4), set_of(2, 6, 5, 4, 3))
HANDOVERS = {6: 1, 14: 2}
"""Height of the block that hands over -> the set of its children."""


class Sessions(Module):
    """Hands over at fixed heights."""

    name: ClassVar[str] = "sessions"
    current = Cell("sessions.current", UInt63, 0)
    following = Cell("sessions.following", UInt63, 0)

    def begin_block(self, ctx: Context) -> None:
        self.current.put(ctx.state, self.following.get(ctx.state))

    def end_block(self, ctx: Context) -> None:
        if ctx.height in HANDOVERS:
            self.following.put(ctx.state, HANDOVERS[ctx.height])

    def reference(self, state: State) -> SetReference:
        current, following = self.current.get(state), self.following.get(state)
        return SetReference(SETS[current].set_id, SETS[following].hash)

    def validators_of(self, tree: StateTree) -> ValidatorSet:
        return SETS[self.following.get(State(tree))]


SESSIONS = Sessions()
LEDGER = Ledger(
    CHAIN_ID,
    [TOKENS, SESSIONS],
    StrictNonce(TokenFee(TOKENS, "GRID", 0, TREASURY)),
    SESSIONS.reference,
)
GENESIS = LEDGER.genesis(START_MS)


def node_from(reader: Reader, index: int) -> PublicNode:
    config = PublicConfig(RULES, GOSSIP_MS)
    return PublicNode(LEDGER, GENESIS, SETS[0], KEYS[index], config, reader, SESSIONS.validators_of)


def network(seed: int) -> World:
    profile = LinkProfile(delay_ms=(5, 150), loss=0.03)
    world = World(seed, KeyedHashVerifier(), profile=profile)
    for index in range(N):
        world.add(KEYS[index].signer.public_key, partial(node_from, index=index))
    return world


def node(world: World, index: int) -> PublicNode:
    machine = world.nodes[KEYS[index].signer.public_key].machine
    assert isinstance(machine, PublicNode)
    return machine


def all_at(world: World, height: int) -> bool:
    return all(node(world, i).head.height >= height for i in range(N) if alive(world, i))


def alive(world: World, index: int) -> bool:
    return world.nodes[KEYS[index].signer.public_key].alive


def check_headers(world: World) -> None:
    for simulated in world.nodes.values():
        for committed in simulated.committed:
            assert isinstance(committed.value, ExecutedBlock)
            header = committed.value.header
            passed = [i for height, i in HANDOVERS.items() if height < header.height]
            assert header.set_id == max(passed, default=0)


def test_two_handovers() -> None:
    world = network(1)
    world.start()
    assert world.run_until(lambda: all_at(world, 22), 60 * SLOT_MS)
    assert {node(world, i).validators.set_id for i in range(N)} == {2}
    assert node(world, 0).round < 22, "rounds began anew"
    check_headers(world)


def test_a_validator_that_slept_through_a_handover_follows_it() -> None:
    world = network(2)
    world.start()
    assert world.run_until(lambda: all_at(world, 4), 20 * SLOT_MS)
    world.crash(KEYS[3].signer.public_key)
    assert world.run_until(lambda: all_at(world, 13), 40 * SLOT_MS)
    world.start()
    assert world.run_until(lambda: all_at(world, 24), 60 * SLOT_MS)
    assert {node(world, i).validators.set_id for i in range(N)} == {2}
    check_headers(world)


def test_all_die_between_the_sets() -> None:
    world = network(3)
    world.start()
    assert world.run_until(lambda: all_at(world, 5), 20 * SLOT_MS)
    for _ in range(3):
        world.run_for(SLOT_MS)
        for index in range(N):
            world.crash(KEYS[index].signer.public_key)
        world.start()
    assert world.run_until(lambda: all_at(world, 20), 60 * SLOT_MS)
    check_headers(world)
