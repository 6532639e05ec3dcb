"""Relayers between three chains: everything ends, nothing twice, and little is wasted."""

import dataclasses

import pytest
from msgspec import structs
from tests.interchain_chains import (
    ALICE,
    BOB,
    GRID,
    HOUR_MS,
    HandOver,
    Poke,
    TestChain,
    seed_signers,
)
from tests.relayer_world import Pending, World
from tests.stages import spread

from gridtokenx.bridge.relayer.edge import Proven, Submit
from gridtokenx.core.codec import Wire
from gridtokenx.core.keys import Signer
from gridtokenx.core.state_tree import StateProof
from gridtokenx.interchain import stores
from gridtokenx.interchain.apps.transfer import SendTransfer
from gridtokenx.ledger.state import State

ROUTES = [
    (a, b)
    for a in ("oracle", "consortium", "public")
    for b in ("oracle", "consortium", "public")
    if a != b
]


def submit(world: World, chain: str, by: Signer, *batch: Wire) -> None:
    """Put a user's calls into the chain's next block."""

    class User:
        signer = by
        silent = True

    call = Submit(chain, 0, tuple(batch), 2**60)
    world.pools[chain].append(Pending(User, call))


def poke_all(world: World, payload: bytes = b"hi", for_ms: int = HOUR_MS) -> None:
    for source, destination in ROUTES:
        until = world.now + for_ms
        submit(world, source, BOB, Poke(destination, payload, until))


def ends(world: World) -> dict[tuple[str, str], tuple[int, int, int]]:
    found = {}
    for source, destination in ROUTES:
        books = stores.channel(world.chains[source].state, destination)
        found[source, destination] = (books.delivered, books.refused, books.timed_out)
    return found


def test_packets_on_all_routes_are_delivered_and_acknowledged() -> None:
    world = World()
    world.run(2_000)
    poke_all(world)
    world.run(45_000)
    assert world.open_packets() == 0
    assert set(ends(world).values()) == {(1, 0, 0)}
    assert world.codes["kept out"] == 0
    assert set(world.codes) == {"ok"}
    assert all(driven.machine.waiting == 0 for driven in world.driven)


def test_nothing_is_updated_while_nothing_waits() -> None:
    world = World()
    world.run(60_000)
    assert not world.updates
    poke_all(world)
    world.run(45_000)
    before = sum(world.updates.values())
    world.run(60_000)
    assert sum(world.updates.values()) == before
    assert before <= 2 * len(ROUTES)
    assert max(world.updates.values()) == 1


@pytest.mark.parametrize("silent", [0, 1])
def test_one_silent_relayer_of_two_only_delays(silent: int) -> None:
    world = World()
    world.driven[silent].silent = True
    world.run(2_000)
    poke_all(world)
    world.run(90_000)
    assert set(ends(world).values()) == {(1, 0, 0)}


def test_without_relayers_nothing_moves_and_a_late_one_finds_everything() -> None:
    world = World(relayers=1)
    world.driven[0].silent = True
    poke_all(world)
    world.run(30_000)
    assert set(ends(world).values()) == {(0, 0, 0)}
    world.driven = [world.relayer(0)]
    world.run(60_000)
    assert set(ends(world).values()) == {(1, 0, 0)}


def test_expired_packets_are_refunded_by_absence() -> None:
    world = World()
    world.run(2_000)
    until = world.chains["public"].now_ms + 6_300  # the next block sends it, and 300 ms remain
    submit(world, "public", ALICE, SendTransfer("consortium", GRID, 70, BOB.public_key, until))
    world.run(60_000)
    assert ends(world)["public", "consortium"] == (0, 0, 1)
    assert world.chains["public"].balance(ALICE) == 1_000


def test_many_packets_travel_in_few_transactions() -> None:
    world = World()
    world.run(2_000)
    for _ in range(3):
        pokes = [Poke("consortium", bytes(2_000), world.now + HOUR_MS)] * 60
        submit(world, "oracle", BOB, *pokes)
        world.run(1_000)
    world.run(40_000)
    assert ends(world)["oracle", "consortium"] == (180, 0, 0)
    transactions = sum(len(block.block.transactions) for block in world.chains["consortium"].blocks)
    assert transactions <= 8
    assert set(world.codes) == {"ok"}


@pytest.mark.parametrize("seed", spread(range(6), 2))
def test_failing_reads_and_a_storm_of_packets_all_end(seed: int) -> None:
    world = World(relayers=3, seed=seed, read_failures=0.2)
    for _ in range(12):
        source, destination = world.random.choice(ROUTES)
        payload = world.random.choice([b"fine", b"refuse"])
        until = world.now + world.random.choice([7_000, 15_000, HOUR_MS])
        submit(world, source, BOB, *[Poke(destination, payload, until)] * 5)
        world.run(world.random.randrange(500, 5_000))
    world.run(240_000)
    assert world.open_packets() == 0
    assert sum(sum(each) for each in ends(world).values()) == 60 - world.codes["bad-timeout"]


@pytest.mark.parametrize("changes", [2, 20])
def test_relayers_pass_through_changes_of_the_validator_set(changes: int) -> None:
    world = World()
    chain = world.chains["consortium"]
    for number in range(1, changes + 1):
        newcomers = seed_signers(f"set {number}")
        chain.signers[number] = newcomers
        chain.sets[number] = structs.replace(
            chain.sets[0], set_id=number, members=tuple(s.public_key for s in newcomers)
        )
        submit(world, "consortium", BOB, HandOver(chain.sets[number]))
        world.run(3_000)
    poke_all(world)
    world.run(60_000)
    assert set(ends(world).values()) == {(1, 0, 0)}
    client = stores.CLIENTS.get(world.chains["public"].state, "consortium")
    assert client is not None
    assert client.set_id == changes


@pytest.mark.parametrize("relayers", [1, 3])
def test_clients_are_taken_to_each_new_set_without_packets(relayers: int) -> None:
    """Former members have nothing to lose by lying to a client that still believes them."""
    world = World(relayers=relayers)
    chain = world.chains["consortium"]
    world.run(5_000)
    for number in range(1, 4):
        newcomers = seed_signers(f"set {number}")
        chain.signers[number] = newcomers
        chain.sets[number] = structs.replace(
            chain.sets[0], set_id=number, members=tuple(s.public_key for s in newcomers)
        )
        submit(world, "consortium", BOB, HandOver(chain.sets[number]))
        world.run(40_000)
        for other in ("public", "oracle"):
            client = stores.CLIENTS.get(world.chains[other].state, "consortium")
            assert client is not None
            assert client.set_id == number
    assert set(world.codes) == {"ok"}
    assert sum(world.updates.values()) <= 3 * 2 * 2, "once per client and set, with the head"
    assert all(driven.machine.waiting == 0 for driven in world.driven)


def test_idle_clients_are_renewed_before_they_expire() -> None:
    world = World(relayers=2)
    for chain in world.chains.values():
        shorten(chain, 60_000)
    world.run(300_000)
    poke_all(world)
    world.run(60_000)
    assert set(ends(world).values()) == {(1, 0, 0)}
    assert "client-expired" not in world.codes


def shorten(chain: TestChain, period_ms: int) -> None:
    """Give the clients of a chain another trusting period, as if its genesis had said so."""
    state = State(chain.head.state)
    for peer in chain.peers:
        client = stores.CLIENTS.get(state, peer.client_id)
        changed = structs.replace(client, trusting_period_ms=period_ms)
        stores.CLIENTS.put(state, changed, peer.client_id)
    tree = chain.head.state.update(state.changes())
    header = structs.replace(chain.head.header, state_root=tree.root)
    block = structs.replace(chain.head.block, header=header)
    chain.blocks[-1] = dataclasses.replace(chain.head, state=tree, block=block)


def test_a_lying_node_costs_fees_and_nothing_else() -> None:
    """Values and proofs that do not belong together reach the chains, and are refused there."""

    def lie(proven: Proven) -> Proven:
        return Proven(proven.value, StateProof(proven.proof.levels[1:], None))

    world = World(relayers=1, lie=lie)
    world.run(2_000)
    poke_all(world)
    world.run(40_000)
    assert set(ends(world).values()) == {(0, 0, 0)}
    assert world.codes["bad-proof"] > 0
    world.lie = lambda proven: proven
    world.run(150_000)
    assert set(ends(world).values()) == {(1, 0, 0)}
