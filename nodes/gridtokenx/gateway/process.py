"""The gateway as a process: follow three chains, index them, answer over HTTP."""

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier, Signer, Verifier
from gridtokenx.gateway.api import Api
from gridtokenx.gateway.facts import (
    CHAINS,
    CONSORTIUM,
    ORACLE,
    PUBLIC,
    ChainFacts,
    NetworkFacts,
    load_facts,
)
from gridtokenx.gateway.followed import FollowedChain
from gridtokenx.gateway.index import Index, is_damage
from gridtokenx.gateway.ports import ChainSource, ForeignBlock, ProvedState
from gridtokenx.gateway.queries import Queries
from gridtokenx.gateway.settings import GatewaySettings
from gridtokenx.gateway.submission import Submissions
from gridtokenx.host.addresses import HostPort, NodeAddress
from gridtokenx.host.follow import Follower, Trust
from gridtokenx.host.handshake import LinkIdentity
from gridtokenx.host.http import HttpServer
from gridtokenx.host.logs import Logger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.role import Role, open_key_seed, open_role
from gridtokenx.host.security import LinkSecurity, mutual_security, open_security
from gridtokenx.host.settings import LinkSettings
from gridtokenx.host.transport import NetworkParts
from gridtokenx.ledger.transactions import Transaction

INDEX_FILE: Final = "index.sqlite"
BEHIND_BLOCKS: Final = 16
"""An index further behind what was verified is still catching up."""
_PAUSE_S: Final = 1.0


async def run_gateway(settings: GatewaySettings) -> None:
    """Run a gateway until cancelled.

    Raises:
        LocalFault: settings, keys, certificates, genesis files or a directory that cannot be used.
    """
    role = open_role(settings, "gateway")
    if role.http is None:
        raise LocalFault("http is not set: give the address (host:port) that the API listens on")
    network = load_facts(
        settings.network,
        settings.public.genesis,
        settings.consortium.genesis,
        settings.oracle.genesis,
    )
    seed = open_key_seed(settings)
    links = {PUBLIC: settings.public, CONSORTIUM: settings.consortium, ORACLE: settings.oracle}
    verifier = Ed25519Verifier()
    openers = {
        name: _opener(network.chains[name], links[name], seed, verifier, role) for name in CHAINS
    }
    index = Index(_make_directory(settings.data) / INDEX_FILE, network)
    try:
        gateway = Gateway(network, index, openers, role, verifier, settings.stale_after_ms)
        await gateway.run(role.http)
    finally:
        index.close()


class Gateway:
    """A running gateway.

    Args:
        network: the chains.
        index: what was verified before, and will be.
        openers: make a follower of a chain that goes on from a checkpoint.
        role: log, numbers and clock.
        verifier: checks senders' signatures.
        stale_ms: see `GatewaySettings.stale_after_ms`.
    """

    def __init__(
        self,
        network: NetworkFacts,
        index: Index,
        openers: Mapping[str, Callable[[Trust], Follower]],
        role: Role,
        verifier: Verifier,
        stale_ms: int,
    ) -> None:
        self._network: Final = network
        self._index: Final = index
        self._openers: Final = openers
        self._log: Final[Logger] = role.log
        self._metrics: Final[Metrics] = role.metrics
        self._now_ms: Final = role.clock.now_ms
        self._stale_ms: Final = stale_ms
        self._followed: Final = {name: self._open(name) for name in network.chains}
        queries = Queries(index, network)
        sources: dict[str, ChainSource] = {name: _Current(self, name) for name in network.chains}
        self.api: Final = Api(
            network,
            queries,
            sources,
            Submissions(network, sources, index, verifier, self._now_ms),
            self._metrics,
            self._now_ms,
            self.troubles,
        )
        self.port = 0
        """Where it listens, once `run` has begun."""
        self._describe()

    async def run(self, listen: HostPort) -> None:
        """Serve and follow until cancelled."""
        if self._index.rebuilt_because:
            self._log.warning("index made anew", reason=self._index.rebuilt_because)
        server = HttpServer(self.api.application(self._log), listen)
        await server.start()
        self.port = server.port
        self._log.info("gateway", port=self.port)
        try:
            async with asyncio.TaskGroup() as group:
                for name in self._followed:
                    group.create_task(self._follow(name), name=f"follow {name}")
        finally:
            await server.close()

    def followed(self, chain: str) -> FollowedChain:
        """The chain as it is followed now."""
        return self._followed[chain]

    def troubles(self) -> list[str]:
        """Why the gateway is not ready, in words."""
        found = []
        for name, chain in self._followed.items():
            trouble = chain.trouble() or self._catching_up(name, chain)
            if trouble is not None:
                found.append(trouble)
        return found

    def _catching_up(self, name: str, chain: FollowedChain) -> str | None:
        cursor, verified = self._index.cursor(name), chain.verified_height
        indexed = cursor.height if cursor else 0
        if verified - indexed > BEHIND_BLOCKS:
            return f"{name}: indexed {indexed} of {verified} blocks"
        return None

    # -- following ---------------------------------------------------------------------------------

    async def _follow(self, name: str) -> None:
        """Take block after block; whatever happens to the index, go on from where it is."""
        while True:
            try:
                await self._take_blocks(name)
            except ForeignBlock as fault:
                self._log.info("following from the index again", chain=name, why=str(fault))
            except sqlite3.Error as error:
                self._repair(name, error)
            await asyncio.sleep(_PAUSE_S)
            self._followed[name] = self._open(name)

    async def _take_blocks(self, name: str) -> None:
        chain = self._followed[name]
        tasks = (
            asyncio.create_task(chain.run(), name=f"light client of {name}"),
            asyncio.create_task(self._apply_all(name, chain), name=f"index {name}"),
        )
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _apply_all(self, name: str, chain: FollowedChain) -> None:
        async for block in chain.blocks():
            self._index.apply(name, block)
            self._metrics.count("gateway_blocks", chain=name)

    def _repair(self, name: str, error: sqlite3.Error) -> None:
        """A damaged file is made anew; a full disk is waited for."""
        if is_damage(error):
            self._log.warning("the index is damaged: made anew", chain=name, error=str(error))
            self._index.rebuild(str(error))
        else:
            self._log.error("the index cannot be written", chain=name, error=str(error))

    def _open(self, name: str) -> FollowedChain:
        facts, cursor = self._network.chains[name], self._index.cursor(name)
        trust = (
            Trust(facts.chain_id, 0, facts.genesis_hash, facts.validators)
            if cursor is None
            else Trust(facts.chain_id, cursor.height, cursor.block_hash, cursor.validators)
        )
        follower = self._openers[name](trust)
        return FollowedChain(name, follower, self._now_ms, self._stale_ms, whole=name == ORACLE)

    def _describe(self) -> None:
        metrics, index = self._metrics, self._index
        metrics.describe("lies", "answers of nodes that did not verify")
        metrics.describe("gateway_index_height", "last block in the index")
        metrics.gauge("gateway_index_rebuilds", lambda: index.rebuilds)
        for name in self._network.chains:

            def height(name: str = name) -> float:
                cursor = index.cursor(name)
                return cursor.height if cursor else 0

            metrics.gauge("gateway_index_height", height, chain=name)


class _Current:
    """A chain's source for the API: whichever follower is at work."""

    def __init__(self, gateway: Gateway, chain: str) -> None:
        self._gateway: Final = gateway
        self._chain: Final = chain

    async def read(self, keys: Sequence[bytes]) -> ProvedState:
        """See `ports.ChainSource`."""
        return await self._gateway.followed(self._chain).read(keys)

    async def submit(self, transaction: Transaction) -> None:
        """See `ports.ChainSource`."""
        await self._gateway.followed(self._chain).submit(transaction)


# -- putting together ------------------------------------------------------------------------------


def _opener(
    facts: ChainFacts, link: LinkSettings, seed: bytes, verifier: Verifier, role: Role
) -> Callable[[Trust], Follower]:
    """Everything that a follower of a chain needs but its checkpoint."""
    parts = NetworkParts(
        own=_identity(Ed25519Signer(seed), facts),
        security=_security(facts.name, link, seed),
        verifier=verifier,
        metrics=role.metrics,
        log=role.log,
    )
    if not link.nodes:
        raise LocalFault(f"{facts.name}.nodes is empty; name at least one node as host:port")
    addresses = [NodeAddress.parse(text) for text in link.nodes]
    return lambda trust: Follower(trust, addresses, parts)


def _identity(signer: Signer, facts: ChainFacts) -> LinkIdentity:
    return LinkIdentity(signer, "client", facts.chain_id, facts.genesis_hash)


def _security(chain: str, link: LinkSettings, seed: bytes) -> LinkSecurity:
    if chain == PUBLIC:
        return open_security(listens=False)
    if link.certificate is None or link.authority is None:
        raise LocalFault(
            f"{chain}.certificate and {chain}.authority are needed: "
            f"nodes of the {chain} chain talk only to whom their authority admitted"
        )
    return mutual_security(seed, link.certificate, link.authority, listens=False)


def _make_directory(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LocalFault(f"data directory {path}: cannot be made: {error.strerror}") from None
    return path
