"""A PBFT replica as a process: the consortium chain and the oracle chain run this."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier
from gridtokenx.core.machine import Machine
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.addresses import HostPort, NodeAddress
from gridtokenx.host.chain_node import (
    ChainNode,
    MachineStatus,
    NodeParts,
    refuse_foreign_store,
)
from gridtokenx.host.checking import CachingVerifier
from gridtokenx.host.genesis import open_genesis, prepare_genesis
from gridtokenx.host.restored import FollowingMachine, Position, follow_first
from gridtokenx.host.role import Role, open_key_seed
from gridtokenx.host.security import mutual_security
from gridtokenx.host.settings import PermissionedNodeSettings
from gridtokenx.host.stages import count_stages
from gridtokenx.host.storage import Store
from gridtokenx.ledger.runtime import ExecutedBlock, Ledger
from gridtokenx.pbft.membership import validators_of
from gridtokenx.pbft.messages import Message, Transactions
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.timing import Timing


@dataclass(frozen=True, slots=True)
class PbftChain:
    """A chain as its genesis defines it."""

    name: str
    ledger: Ledger
    validators: ValidatorSet
    """The first set."""
    make_genesis: Callable[[], ExecutedBlock]
    """Executes the opening; asked at the first start only."""
    rotation_blocks: int = 0
    """See `pbft/rotation.py`; 0: the leadership passes on only when it fails."""


@dataclass(frozen=True, slots=True)
class ReplicaProcess:
    """A replica that is about to run."""

    node: ChainNode
    signer: Ed25519Signer


def make_replica(
    settings: PermissionedNodeSettings,
    role: Role,
    chain_of: Callable[[CachingVerifier], PbftChain],
    *,
    timing: Timing | None = None,
    around: Callable[[Replica, Ed25519Signer], Machine] | None = None,
) -> ReplicaProcess:
    """Open the store and the keys, restore the replica, and put its node together.

    Args:
        settings: of the process.
        role: its log, numbers and clock.
        chain_of: puts the chain together around a verifier that remembers what it has checked.
        timing: how long to wait for what; by default only the block time differs from the engine's.
        around: what stands between the replica and its links; the lab's own processes use it, a
            node's command does not.

    Raises:
        LocalFault: settings, keys, certificates or store that cannot be used.
    """
    count_stages(role.metrics)
    seed = open_key_seed(settings)
    signer, verifier = Ed25519Signer(seed), CachingVerifier(Ed25519Verifier())
    chain = chain_of(verifier)
    security = mutual_security(
        seed, settings.certificate, settings.authority, revocations_file=settings.revocations
    )
    security.report_to(role.log, role.metrics, chain.name)
    prepare_genesis(settings.data, chain.make_genesis)
    store = Store.open(settings.data)
    try:
        refuse_foreign_store(store, chain.ledger, signer)
        genesis = open_genesis(store, chain.make_genesis)
        waits = timing or Timing(
            block_time_ms=settings.block_time_ms, snapshot_distance=settings.snapshot_distance
        )

        def restore(key_seed: bytes) -> Replica:
            return Replica.restore(
                store,
                chain.ledger,
                chain.validators,
                Ed25519Signer(key_seed),
                genesis,
                waits,
                validators_of=validators_of,
                rotation_blocks=chain.rotation_blocks,
            )

        replica, following = follow_first(store, seed, restore, chain.name, _position)
    except BaseException:
        store.close()
        raise
    parts = NodeParts(
        chain=chain.name,
        machine=following or (replica if around is None else around(replica, signer)),
        message_type=Message,
        ledger=chain.ledger,
        genesis=genesis,
        head=replica.head,
        validators=chain.validators,
        status=lambda: _status(replica),
        signer=signer,
        verifier=verifier,
        store=store,
        security=security,
        clock=role.clock,
        metrics=role.metrics,
        log=role.log,
        listen=HostPort.parse(settings.listen),
        peers=[NodeAddress.parse(text) for text in settings.peers],
        validators_of=validators_of,
        patient=(Transactions,),
    )
    node = ChainNode(parts)
    _say_if_silent(role, node, replica, following, signer.public_key)
    return ReplicaProcess(node, signer)


def _say_if_silent(
    role: Role, node: ChainNode, replica: Replica, following: FollowingMachine | None, key: bytes
) -> None:
    """Tell an operator why a replica that runs does not vote."""
    if following is not None:
        node.add_reasons(following.reasons)
        role.log.warning("restored: following, signing nothing yet", reason=following.reason)
    elif not replica.seated:
        role.log.warning(
            "observer: this key has no seat in the set; following",
            key=key.hex(),
            set_id=replica.validators.set_id,
        )


@asynccontextmanager
async def serving_node(role: Role, node: ChainNode) -> AsyncIterator[None]:
    """Answer over HTTP for a chain node while the context lasts."""
    async with role.serving(node.readiness, node.facts):
        yield


def _position(replica: Replica) -> Position:
    return Position(replica.validators, replica.view, replica.head.height)


def _status(replica: Replica) -> MachineStatus:
    return MachineStatus(
        best_height=replica.head.height,
        round=replica.view,
        leader=replica.primary,
        pending=replica.pending,
        congested=replica.congested,
    )
