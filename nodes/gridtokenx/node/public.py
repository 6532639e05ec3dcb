"""A public validator, or a full node without a seat, as a process."""

from collections.abc import Iterator
from typing import Annotated

from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier
from gridtokenx.host.addresses import HostPort, NodeAddress
from gridtokenx.host.chain_node import (
    ChainNode,
    MachineStatus,
    NodeParts,
    refuse_foreign_store,
)
from gridtokenx.host.checking import CachingVerifier
from gridtokenx.host.config import Setting
from gridtokenx.host.files import read_file
from gridtokenx.host.replica import serving_node
from gridtokenx.host.restored import Position, follow_first
from gridtokenx.host.role import Role, open_key_seed, open_role
from gridtokenx.host.security import open_security
from gridtokenx.host.settings import NodeSettings
from gridtokenx.host.storage import Store
from gridtokenx.host.transport import NetworkLimits
from gridtokenx.ledger.identity import parse_genesis
from gridtokenx.public.chain import PublicChain, PublicGenesis, public_chain
from gridtokenx.public.checkpoint import Checkpoint
from gridtokenx.public.machine import NodeKeys, PublicConfig, PublicNode
from gridtokenx.public.messages import Message
from gridtokenx.public.slots import Ed25519Vrf, Ed25519VrfVerifier

CHAIN = "public"
MAX_GUESTS = 32
"""Anybody may run a full node, and candidates without a seat do; each is linked to many."""


class PublicNodeSettings(NodeSettings, frozen=True, kw_only=True):
    """Settings of `gtx node public`."""

    checkpoint: Annotated[
        str | None,
        Setting(
            "HEIGHT:HASH of a final block of the chain that you mean, as `gtx stake checkpoint` prints "
            "it on a network that you trust; any other chain is refused. For nodes that join late."
        ),
    ] = None


async def run_public(settings: PublicNodeSettings) -> None:
    """Run a node until cancelled; it authors and votes if its key has a seat.

    Raises:
        LocalFault: settings, keys, genesis or store that cannot be used.
    """
    genesis = parse_genesis(read_file(settings.genesis), PublicGenesis, str(settings.genesis))
    role = open_role(settings, CHAIN)
    checkpoint = None if settings.checkpoint is None else Checkpoint.parse(settings.checkpoint)
    node = _make_node(settings, role, genesis, checkpoint)
    if node.seat is None:
        role.log.info("full node: this key has no seat; following", key=settings.key)
    async with serving_node(role, node):
        await node.run()


def _make_node(
    settings: PublicNodeSettings,
    role: Role,
    genesis: PublicGenesis,
    checkpoint: Checkpoint | None,
) -> ChainNode:
    seed = open_key_seed(settings)
    signer, verifier = Ed25519Signer(seed), CachingVerifier(Ed25519Verifier())
    chain = public_chain(genesis, verifier)
    store = Store.open(settings.data)
    try:
        refuse_foreign_store(store, chain.ledger, signer)

        def build(key_seed: bytes) -> PublicNode:
            return _make_machine(chain, key_seed, store, checkpoint)

        slot_at = genesis.slot_rules.slot_at
        machine, following = follow_first(store, seed, build, CHAIN, _position, slot_at)
    except BaseException:
        store.close()
        raise
    node = ChainNode(
        NodeParts(
            chain=CHAIN,
            machine=following or machine,
            message_type=Message,
            ledger=chain.ledger,
            genesis=chain.genesis_block(),
            head=machine.head,
            validators=genesis.validator_set,
            status=lambda: _status(machine),
            signer=signer,
            verifier=verifier,
            store=store,
            security=open_security(),
            clock=role.clock,
            metrics=role.metrics,
            log=role.log,
            listen=HostPort.parse(settings.listen),
            peers=[NodeAddress.parse(text) for text in settings.peers],
            limits=NetworkLimits(guests=MAX_GUESTS),
            validators_of=chain.staking.validators_of,
        )
    )
    node.add_reasons(lambda: _below_checkpoint(machine))
    if following is not None:
        node.add_reasons(following.reasons)
        role.log.warning("restored: following, signing nothing yet", reason=following.reason)
    return node


def _below_checkpoint(machine: PublicNode) -> Iterator[str]:
    if machine.awaits is not None:
        yield f"syncing to checkpoint {machine.awaits}: block {machine.head.height} is final here"


def _make_machine(
    chain: PublicChain, seed: bytes, store: Store, checkpoint: Checkpoint | None
) -> PublicNode:
    keys = NodeKeys(Ed25519Signer(seed), Ed25519Vrf(seed), Ed25519VrfVerifier())
    return PublicNode(
        chain.ledger,
        chain.genesis_block(),
        chain.genesis.validator_set,
        keys,
        PublicConfig(chain.genesis.slot_rules, checkpoint=checkpoint),
        store,
        chain.staking.validators_of,
    )


def _position(machine: PublicNode) -> Position:
    return Position(machine.validators, machine.round, machine.head.height)


def _status(machine: PublicNode) -> MachineStatus:
    return MachineStatus(
        best_height=machine.best.height,
        round=machine.round,
        leader=machine.leader,
        pending=machine.pending,
    )
