"""The public chain on real nodes in one loop: a validator, and a full node that has no seat."""

import time
from pathlib import Path

from tests.unit.host_chain import places, running
from tests.unit.host_network import seed, signer

from gridtokenx.core.keys import Ed25519Verifier, sha256
from gridtokenx.core.state_tree import StateTree
from gridtokenx.finality.justifications import Justification
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.addresses import HostPort
from gridtokenx.host.chain_node import ChainNode, MachineStatus, NodeParts
from gridtokenx.host.checking import CachingVerifier
from gridtokenx.host.clock import NetworkClock
from gridtokenx.host.follow import Follower, Trust
from gridtokenx.host.handshake import LinkIdentity
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.security import open_security
from gridtokenx.host.storage import Store
from gridtokenx.host.transport import NetworkParts
from gridtokenx.lab.ports import free_ports
from gridtokenx.ledger.admission import StrictNonce, TokenFee
from gridtokenx.ledger.runtime import Ledger, SetReference
from gridtokenx.ledger.tokens import Tokens
from gridtokenx.public.machine import NodeKeys, PublicConfig, PublicNode
from gridtokenx.public.messages import Message
from gridtokenx.public.slots import Ed25519Vrf, Ed25519VrfVerifier, SlotRules

CHAIN_ID = sha256(b"public host test")


def make_node(index: int, home: Path, ports: list[int], genesis_ms: int) -> ChainNode:
    """Node 0 is the only validator; the others only follow, as members."""
    validators = ValidatorSet(0, (signer(0).public_key,))
    tokens = Tokens([])
    admission = StrictNonce(TokenFee(tokens, "GRID", 0, bytes(32)))
    reference = SetReference(0, validators.hash)
    ledger = Ledger(CHAIN_ID, [tokens], admission, lambda _: reference)
    genesis = ledger.genesis(genesis_ms)
    store = Store.open(home / str(index))
    keys = NodeKeys(signer(index), Ed25519Vrf(seed(index)), Ed25519VrfVerifier())
    rules = SlotRules(CHAIN_ID, genesis_ms, slot_ms=300, epoch_slots=10)
    machine = PublicNode(ledger, genesis, validators, keys, PublicConfig(rules, 100), store)

    def validators_of(_state: StateTree) -> ValidatorSet:
        return validators

    return ChainNode(
        NodeParts(
            chain="public",
            machine=machine,
            message_type=Message,
            ledger=ledger,
            genesis=genesis,
            head=machine.head,
            validators=validators,
            status=lambda: MachineStatus(machine.best.height, machine.round, b"", machine.pending),
            signer=signer(index),
            verifier=CachingVerifier(Ed25519Verifier()),
            store=store,
            security=open_security(),
            clock=NetworkClock(),
            metrics=Metrics(),
            log=NullLogger(),
            listen=HostPort("127.0.0.1", ports[index]),
            peers=places(ports),
            others=[signer(number).public_key for number in range(len(ports))],
            validators_of=validators_of,
        )
    )


async def test_a_full_node_without_a_seat_follows_and_serves(tmp_path: Path) -> None:
    ports, genesis_ms = free_ports(2), time.time_ns() // 1_000_000
    validator, full = (make_node(index, tmp_path, ports, genesis_ms) for index in (0, 1))
    genesis = validator.history.head
    own = LinkIdentity(signer(9), "client", CHAIN_ID, genesis.hash)
    parts = NetworkParts(
        own, open_security(listens=False), Ed25519Verifier(), Metrics(), NullLogger()
    )
    trust = Trust(CHAIN_ID, 0, genesis.hash, ValidatorSet(0, (signer(0).public_key,)))
    follower = Follower(trust, places(ports[1:]), parts)  # asks the full node only
    async with running(validator, full, follower):
        head = await follower.wait_beyond(4)
        assert isinstance(head.proof, Justification)
        assert head.header.hash == validator.history.blocks(head.header.height, 1)[0].hash
