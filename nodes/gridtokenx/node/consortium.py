"""A consortium replica as a process."""

from functools import partial
from pathlib import Path

from gridtokenx.consortium.chain import ConsortiumGenesis, consortium_ledger
from gridtokenx.host.checking import CachingVerifier
from gridtokenx.host.files import read_file
from gridtokenx.host.replica import PbftChain, make_replica, serving_node
from gridtokenx.host.role import open_role
from gridtokenx.host.settings import PermissionedNodeSettings
from gridtokenx.ledger.identity import parse_genesis
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.pbft.rotation import blocks_of

CHAIN = "consortium"


class ConsortiumNodeSettings(PermissionedNodeSettings, frozen=True, kw_only=True):
    """Settings of `gtx node consortium`."""


def read_genesis(file: Path) -> ConsortiumGenesis:
    """What the genesis file says.

    Raises:
        LocalFault: it cannot be used.
    """
    return parse_genesis(read_file(file), ConsortiumGenesis, str(file))


def replicated_chain(file: Path, opened: ConsortiumGenesis, verifier: CachingVerifier) -> PbftChain:
    """The chain of a genesis file, for a process that is to run long.

    The opening of 10,000 accounts would take 3 MiB of it for ever, and nobody asks for it once block 0
    is stored: whoever executes it reads the file again.

    Args:
        file: the genesis.
        opened: what it says, without the opening.
        verifier: of a member's consent.
    """
    ledger, opening_ms = consortium_ledger(opened, verifier), opened.clock.network_genesis_ms

    def make_genesis() -> ExecutedBlock:
        return consortium_ledger(read_genesis(file), verifier).genesis(opening_ms)

    rotation = blocks_of(opened.rotation_blocks)
    return PbftChain(CHAIN, ledger, opened.validator_set, make_genesis, rotation)


async def run_consortium(settings: ConsortiumNodeSettings) -> None:
    """Run a replica until cancelled.

    Raises:
        LocalFault: settings, keys, certificates, genesis or store that cannot be used.
    """
    opened = read_genesis(settings.genesis).opened()
    role = open_role(settings, CHAIN)
    if not settings.data.exists():  # it does not change: said at the first start, not at each
        for warning in opened.warnings():
            role.log.warning("genesis", warning=warning)
    chain_of = partial(replicated_chain, settings.genesis, opened)
    node = make_replica(settings, role, chain_of).node
    async with serving_node(role, node):
        await node.run()
