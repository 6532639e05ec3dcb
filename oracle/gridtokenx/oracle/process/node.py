"""An oracle node as a process: a replica of the oracle chain, and the service that feeds it."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Annotated, Final

from gridtokenx.host.broker_address import (
    BrokerAddress,
    BrokerAuthority,
    BrokerCertificate,
    BrokerCertificateKey,
    BrokerPasswordFile,
    BrokerProtocol,
    BrokerUrl,
    open_broker,
)
from gridtokenx.host.checking import CachingVerifier, SignatureChecker
from gridtokenx.host.config import Setting
from gridtokenx.host.files import read_file
from gridtokenx.host.replica import PbftChain, make_replica, serving_node
from gridtokenx.host.role import open_key_seed, open_role
from gridtokenx.host.settings import PermissionedNodeSettings
from gridtokenx.ledger.identity import parse_genesis
from gridtokenx.ledger.runtime import Ledger
from gridtokenx.oracle.chain.ledger import OracleGenesis, oracle_ledger
from gridtokenx.oracle.process.observer import Source
from gridtokenx.oracle.process.service import OracleService
from gridtokenx.pbft.rotation import blocks_of

CHAIN: Final = "oracle"
GridMs = Callable[[], int]
OpenSource = Callable[[GridMs], AbstractAsyncContextManager[Source]]
"""Opens a source, given how to learn the grid time."""


class OracleNodeSettings(PermissionedNodeSettings, frozen=True, kw_only=True):
    """What an oracle node needs besides its sources."""

    broker: BrokerUrl
    broker_protocol: BrokerProtocol = "5"
    broker_authority: BrokerAuthority = None
    broker_certificate: BrokerCertificate = None
    broker_certificate_key: BrokerCertificateKey = None
    broker_password_file: BrokerPasswordFile = None
    verify_threads: Annotated[
        int,
        Setting(
            "Threads that check the signatures of readings; 0 uses the main one, which is best where"
            " many nodes share a machine.",
            minimum=0,
            maximum=64,
        ),
    ] = 0


async def run_oracle_node(settings: OracleNodeSettings, sources: Mapping[str, OpenSource]) -> None:
    """Run an oracle node until cancelled.

    Args:
        settings: of the process.
        sources: this oracle's own source of each feed that it observes, by feed.

    Raises:
        LocalFault: settings, keys, certificates, genesis or store that cannot be used.
    """
    genesis = parse_genesis(read_file(settings.genesis), OracleGenesis, str(settings.genesis))
    broker = _broker(settings)
    role = open_role(settings, CHAIN)
    chain = _Chain(genesis)
    replica = make_replica(settings, role, chain.assemble)
    checker = SignatureChecker(chain.verifier, settings.verify_threads)
    async with AsyncExitStack() as stack:
        opened = {
            feed: await stack.enter_async_context(
                open_source(lambda: genesis.clock.grid_ms(role.clock.now_ms()))
            )
            for feed, open_source in sources.items()
        }
        service = OracleService(
            genesis,
            chain.ledger,
            replica.node,
            replica.signer,
            checker,
            broker,
            opened,
            role.clock.now_ms,
            role.metrics,
            role.log,
        )
        stack.callback(checker.close)
        replica.node.on_final(service.committed)
        replica.node.add_reasons(service.reasons)
        await stack.enter_async_context(serving_node(role, replica.node))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(replica.node.run(), name="node")
            tasks.create_task(service.run(), name="oracle service")


def _broker(settings: OracleNodeSettings) -> BrokerAddress:
    """The broker, and how this node logs in there."""
    broker = open_broker(settings)
    if settings.broker_certificate is None:
        return broker
    key = settings.broker_certificate_key or open_key_seed(settings)
    return broker.with_certificate(settings.broker_certificate, key)


class _Chain:
    """The ledger and the verifier that replica and intake share, so nothing is checked twice."""

    def __init__(self, genesis: OracleGenesis) -> None:
        self._genesis: Final = genesis
        self.verifier: CachingVerifier
        self.ledger: Ledger

    def assemble(self, verifier: CachingVerifier) -> PbftChain:
        genesis = self._genesis
        self.verifier, self.ledger = verifier, oracle_ledger(genesis, verifier)
        ledger, opening_ms = self.ledger, genesis.clock.network_genesis_ms
        rotation = blocks_of(genesis.rotation_blocks)
        return PbftChain(
            CHAIN, ledger, genesis.validator_set, lambda: ledger.genesis(opening_ms), rotation
        )
