"""Disks of real nodes: each engine runs for a while in the simulator, with real signatures.

What lies on such a disk is exactly what the engine writes: chain, marks, votes in flight, seals.
"""

import asyncio
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from gridtokenx.consortium.chain import consortium_ledger
from gridtokenx.core.codec import decode_own
from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier, sha256
from gridtokenx.core.machine import Machine, Reader, Write
from gridtokenx.host.keyfile import KeyRing, create_development_password
from gridtokenx.host.storage import META as STORE
from gridtokenx.host.storage import Store
from gridtokenx.lab.sim.world import World
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.identity import render_genesis
from gridtokenx.ledger.tokens import Transfer
from gridtokenx.ledger.transactions import Transaction, sign_transaction
from gridtokenx.oracle.chain.ledger import oracle_ledger
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.timing import Timing
from gridtokenx.public.chain import public_chain
from gridtokenx.public.machine import NodeKeys, PublicConfig, PublicNode
from gridtokenx.public.slots import Ed25519Vrf, Ed25519VrfVerifier, read_claim
from tests.gateway_world import CLOCK, key, make_genesis, signer

NAMES = ("public", "consortium", "oracle")
Disk = dict[tuple[str, bytes], bytes]
LIFE_MS = {"public": 40_000, "consortium": 6_000, "oracle": 6_000}


def genesis_of(name: str):
    return dict(zip(NAMES, make_genesis(), strict=True))[name]


def seed_of(name: str) -> bytes:
    """As `tests.gateway_world.signer` makes it."""
    return sha256(b"gateway test", name.encode())


def transfer(name: str, nonce: int) -> Transaction:
    denom, fee = ("GRID", 10**6) if name == "public" else ("WATT", 10_000)
    call = Transfer(denom=denom, to=key("bob"), amount=7)
    return sign_transaction(signer("alice"), genesis_of(name).chain_id, nonce, [call], fee=fee)


def builder(name: str, seed: bytes, timing: Timing | None = None) -> Callable[[Reader], Machine]:
    """Makes a node's machine, as its process does."""
    genesis, verifier = genesis_of(name), Ed25519Verifier()
    own = Ed25519Signer(seed)
    if name == "public":
        chain = public_chain(genesis, verifier)
        keys = NodeKeys(own, Ed25519Vrf(seed), Ed25519VrfVerifier())
        return lambda reader: PublicNode(
            chain.ledger,
            chain.genesis_block(),
            genesis.validator_set,
            keys,
            PublicConfig(genesis.slot_rules, 200),
            reader,
            chain.staking.validators_of,
        )
    make = consortium_ledger if name == "consortium" else oracle_ledger
    ledger = make(genesis, verifier)
    block = ledger.genesis(CLOCK.network_genesis_ms)
    return lambda reader: Replica.restore(
        reader, ledger, genesis.validator_set, own, block, timing or Timing()
    )


def grown_world(name: str, life_ms: int | None = None) -> World:
    """Four nodes of a chain that have lived for a while."""
    world = World(3, Ed25519Verifier(), start_ms=CLOCK.network_genesis_ms)
    for index in range(4):
        seed = seed_of(f"{name}-{index}")
        world.add(Ed25519Signer(seed).public_key, builder(name, seed))
    world.start()
    if name != "oracle":
        first = next(iter(world.nodes))
        world.submit(first, [transfer(name, nonce) for nonce in range(3)])
    world.run_for(LIFE_MS[name] if life_ms is None else life_ms)
    return world


@cache
def disks_of(name: str) -> dict[bytes, Disk]:
    """What lies on each node's disk afterwards, by its key."""
    world = grown_world(name)
    assert world.run_until(lambda: _is_amid(world, name), 60_000)
    return {id_: dict(records_of(node.store)) for id_, node in world.nodes.items()}


def _is_amid(world: World, name: str) -> bool:
    """Whether node 1 is inside a decision: it has authored, and its votes are in flight."""
    store = list(world.nodes.values())[1].store
    if name != "public":
        return any(record[8:] == b"/prepare" for record, _ in store.scan("log"))
    node = list(world.nodes.values())[1]
    votes = next(iter(store.scan("grandpa", b"vote:")), None) is not None
    own = node.machine.validators.index_of(node.id)  # type: ignore[union-attr]  # it runs
    blocks = (decode_own(raw, Block) for _, raw in store.scan("blocks"))
    return votes and any(b.height and read_claim(b.header).authority == own for b in blocks)


def records_of(store: Reader) -> Iterable[tuple[tuple[str, bytes], bytes]]:
    tables = ("blocks", "hashes", "finality", "events", "state", "meta", "log", "terms", "seals",
              "unfinal", "grandpa", "sets", "evidence", "snapshot")  # fmt: skip
    for table in tables:
        for record_key, value in store.scan(table):
            yield (table, record_key), value


def write_disk(directory: Path, disk: Disk, lies: Iterable[Write] = ()) -> None:
    """Put a disk's records into a real store, then what somebody altered."""

    async def fill() -> None:
        store = Store.open(directory)
        await store.write([Write(table, k, value) for (table, k), value in disk.items()])
        await store.write(lies)
        store.close()

    asyncio.run(fill())


def make_home(
    directory: Path,
    name: str,
    lies: Iterable[Write] = (),
    index: int = 1,
    disk: Disk | None = None,
) -> Path:
    """A stopped node's home, with its keys, and its chain on disk."""
    node, genesis = f"{name}-{index}", genesis_of(name)
    own = key(node)
    bound = {(STORE, b"chain"): genesis.chain_id, (STORE, b"identity"): own}
    write_disk(directory / "data", {**(disk or disks_of(name)[own]), **bound}, lies)
    (directory / "genesis.json").write_bytes(render_genesis(genesis))
    keys = directory / "keys"
    keys.mkdir()
    ring = KeyRing.create(keys, create_development_password(keys), scrypt_n=1_024)
    ring.put("identity", seed_of(node))
    (directory / "config.toml").write_text(
        'genesis = "genesis.json"\ndata = "data"\nkeys = "keys"\nkey = "identity"\n'
    )
    return directory
