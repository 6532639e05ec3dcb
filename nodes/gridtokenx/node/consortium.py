"""A consortium replica as a process."""

from gridtokenx.consortium.chain import ConsortiumGenesis, consortium_ledger
from gridtokenx.host.checking import CachingVerifier
from gridtokenx.host.files import read_file
from gridtokenx.host.replica import PbftChain, make_replica, serving_node
from gridtokenx.host.role import open_role
from gridtokenx.host.settings import PermissionedNodeSettings
from gridtokenx.ledger.identity import parse_genesis
from gridtokenx.pbft.rotation import blocks_of

CHAIN = "consortium"


class ConsortiumNodeSettings(PermissionedNodeSettings, frozen=True, kw_only=True):
    """Settings of `gtx node consortium`."""


async def run_consortium(settings: ConsortiumNodeSettings) -> None:
    """Run a replica until cancelled.

    Raises:
        LocalFault: settings, keys, certificates, genesis or store that cannot be used.
    """
    genesis = parse_genesis(read_file(settings.genesis), ConsortiumGenesis, str(settings.genesis))
    role = open_role(settings, CHAIN)
    if not settings.data.exists():  # it does not change: said at the first start, not at each
        for warning in genesis.warnings():
            role.log.warning("genesis", warning=warning)

    def chain_of(verifier: CachingVerifier) -> PbftChain:
        ledger = consortium_ledger(genesis, verifier)
        opening_ms = genesis.clock.network_genesis_ms
        rotation = blocks_of(genesis.rotation_blocks)
        return PbftChain(
            CHAIN, ledger, genesis.validator_set, lambda: ledger.genesis(opening_ms), rotation
        )

    node = make_replica(settings, role, chain_of).node
    async with serving_node(role, node):
        await node.run()
