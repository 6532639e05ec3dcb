"""A public validator, or a full node without a seat, as a process."""

from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier
from gridtokenx.host.addresses import HostPort, NodeAddress
from gridtokenx.host.chain_node import (
    ChainNode,
    MachineStatus,
    NodeParts,
    refuse_foreign_store,
)
from gridtokenx.host.checking import CachingVerifier
from gridtokenx.host.files import read_file
from gridtokenx.host.replica import serving_node
from gridtokenx.host.role import Role, open_key_seed, open_role
from gridtokenx.host.security import open_security
from gridtokenx.host.settings import NodeSettings
from gridtokenx.host.storage import Store
from gridtokenx.ledger.identity import parse_genesis
from gridtokenx.public.chain import PublicChain, PublicGenesis, public_chain
from gridtokenx.public.machine import NodeKeys, PublicConfig, PublicNode
from gridtokenx.public.messages import Message
from gridtokenx.public.slots import Ed25519Vrf, Ed25519VrfVerifier

CHAIN = "public"


class PublicNodeSettings(NodeSettings, frozen=True, kw_only=True):
    """Settings of `gtx node public`."""


async def run_public(settings: PublicNodeSettings) -> None:
    """Run a node until cancelled; it authors and votes if its key has a seat.

    Raises:
        LocalFault: settings, keys, genesis or store that cannot be used.
    """
    genesis = parse_genesis(read_file(settings.genesis), PublicGenesis, str(settings.genesis))
    role = open_role(settings, CHAIN)
    node = _make_node(settings, role, genesis)
    async with serving_node(role, node):
        await node.run()


def _make_node(settings: PublicNodeSettings, role: Role, genesis: PublicGenesis) -> ChainNode:
    seed = open_key_seed(settings)
    signer, verifier = Ed25519Signer(seed), CachingVerifier(Ed25519Verifier())
    chain = public_chain(genesis, verifier)
    store = Store.open(settings.data)
    try:
        refuse_foreign_store(store, chain.ledger, signer)
        keys = NodeKeys(signer, Ed25519Vrf(seed), Ed25519VrfVerifier())
        machine = _make_machine(chain, keys, store)
    except BaseException:
        store.close()
        raise
    return ChainNode(
        NodeParts(
            chain=CHAIN,
            machine=machine,
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
            others=[candidate.session_key for candidate in genesis.candidates],
            validators_of=chain.staking.validators_of,
        )
    )


def _make_machine(chain: PublicChain, keys: NodeKeys, store: Store) -> PublicNode:
    return PublicNode(
        chain.ledger,
        chain.genesis_block(),
        chain.genesis.validator_set,
        keys,
        PublicConfig(chain.genesis.slot_rules),
        store,
        chain.staking.validators_of,
    )


def _status(machine: PublicNode) -> MachineStatus:
    return MachineStatus(
        best_height=machine.best.height,
        round=machine.round,
        leader=machine.leader,
        pending=machine.pending,
    )
