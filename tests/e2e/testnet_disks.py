"""What a stopped testnet left on disk: who voted for what, and what meters and chain say they read."""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.e2e.testnet import Network

from gridtokenx.core.codec import decode
from gridtokenx.devices.fleet.journal import Journal
from gridtokenx.finality.certificates import CommitCertificate
from gridtokenx.finality.proofs import FinalityProof
from gridtokenx.host.chains import read_chain
from gridtokenx.host.keyfile import public_key_of
from gridtokenx.host.storage import Store
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.readings import SubmitReading
from gridtokenx.ledger.records import final_height, load_block, load_finality, load_head
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.oracle.chain.meters import METERED, OUTCOMES, Outcome, book_of
from gridtokenx.oracle.chain.registers import Point
from gridtokenx.oracle.chain.registry import device_by_key
from gridtokenx.public.slots import read_claim

SEEN_VOTING_S = {"public": 90.0, "consortium": 30.0, "oracle": 30.0}
"""Within how long a node that came back is seen to have voted.

Only three of four votes are in a proof, and whoever is slowest is in few; the public chain has a block in
6 s, and five of its blocks without any trace of a healthy node are not rare. Fifteen are.
"""


@dataclass(frozen=True, slots=True)
class Vote:
    """Something that a node can only have signed itself: a commit, a precommit, or a block."""

    height: int
    timestamp_ms: int
    """Network time of the block."""


def votes(network: Network, node: str) -> list[Vote]:
    """What a node signed of its chain's final blocks, by the proofs on the disks of all nodes."""
    chain = network.layout.member(node).chain
    facts = read_chain(chain, network.layout.genesis_path(chain))
    key = public_key_of(network.layout.directory(node) / "keys" / "identity.key")
    index = facts.validators.members.index(key)
    found = {
        Vote(block.height, block.header.timestamp_ms)
        for other in network.layout.nodes(chain)
        for block, proof in _proved_blocks(network, other.name)
        if index in _signers(block, proof)
    }
    return sorted(found, key=lambda vote: vote.height)


def voted_again_after_s(network: Network, node: str, died_ms: int, restarted_ms: int) -> float:
    """Seconds from a node's death to the time of the first block that its next life voted for."""
    later = [vote.timestamp_ms for vote in votes(network, node) if vote.timestamp_ms > restarted_ms]
    return (min(later) - died_ms) / 1000 if later else float("inf")


def _proved_blocks(network: Network, node: str) -> Iterator[tuple[Block, FinalityProof | None]]:
    store = Store.open(network.layout.directory(node) / "data", read_only=True)
    try:
        for height in range(1, (final_height(store) or 0) + 1):
            block, raw = load_block(store, height), load_finality(store, height)
            assert block is not None
            yield block, None if raw is None else decode(raw, FinalityProof)
    finally:
        store.close()


def _signers(block: Block, proof: FinalityProof | None) -> set[int]:
    found = {read_claim(block.header).authority} if block.header.digest else set()
    if isinstance(proof, CommitCertificate):
        found |= {signed.index for signed in proof.signatures}
    elif proof is not None:
        found |= {precommit.authority for precommit in proof.precommits}
    return found


@dataclass(frozen=True, slots=True)
class Registers:
    """The newest registers of one device."""

    boundary_grid_ms: int
    import_wh: int
    export_wh: int


def signed_registers(network: Network) -> dict[bytes, Registers]:
    """By device key: the last reading in the devices' journals."""
    found: dict[bytes, Registers] = {}
    for path in sorted((network.layout.directory("devices") / "data").glob("*.journal")):
        journal = Journal(path)
        for reading in journal.records[-1].readings:
            transaction = decode(reading.transaction, Transaction)
            call = decode(transaction.body.calls[0], SubmitReading)
            found[reading.device] = Registers(call.boundary_grid_ms, call.import_wh, call.export_wh)
        journal.close()
    return found


def oracle_state(network: Network) -> State:
    """The state of the oracle chain after its last final block."""
    store = Store.open(network.layout.directory("oracle-0") / "data", read_only=True)
    try:
        head = load_head(store)
    finally:
        store.close()
    assert head is not None
    return State(head.state)


def closed_intervals(network: Network) -> list[Outcome]:
    """What the oracle chain closed, oldest first."""
    outcomes = [outcome for _, outcome in OUTCOMES.scan(oracle_state(network))]
    return sorted(outcomes, key=lambda outcome: outcome.interval)


def booked_registers(network: Network, interval_ms: int) -> dict[bytes, Registers | None]:
    """By key of each device that energy is counted of: the last registers that the chain knows."""
    state = oracle_state(network)
    found: dict[bytes, Registers | None] = {}
    for key in signed_registers(network):
        device = device_by_key(state, key)
        assert device is not None, key.hex()
        if device.registration.kind in METERED:
            points = book_of(state, device.registration.device).points
            found[key] = _registers(points[-1], interval_ms) if points else None
    return found


def _registers(point: Point, interval_ms: int) -> Registers:
    return Registers(point.boundary * interval_ms, point.import_wh, point.export_wh)
