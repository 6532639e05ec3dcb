"""The gateway as a process: follow three chains, index them, answer over HTTP."""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import Ed25519Verifier
from gridtokenx.gateway.api import Api
from gridtokenx.gateway.facts import CONSORTIUM, ORACLE, PUBLIC, NetworkFacts, network_facts
from gridtokenx.gateway.followed import FollowedChain
from gridtokenx.gateway.index import Index, is_damage
from gridtokenx.gateway.ports import ChainSource, ForeignBlock, ProvedState
from gridtokenx.gateway.queries import Queries
from gridtokenx.gateway.settings import GatewaySettings
from gridtokenx.gateway.submission import Submissions
from gridtokenx.host.addresses import HostPort
from gridtokenx.host.chains import ClientParts, open_follower, read_chain
from gridtokenx.host.follow import Follower, Trust
from gridtokenx.host.http import HttpServer
from gridtokenx.host.logs import Logger, SparseLog
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.role import Role, open_key_seed, open_role
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
    links = {PUBLIC: settings.public, CONSORTIUM: settings.consortium, ORACLE: settings.oracle}
    chains = {name: read_chain(name, link.genesis) for name, link in links.items()}
    network = network_facts(settings.network, chains)
    parts = ClientParts(open_key_seed(settings), role.clock, role.metrics, role.log)

    def open_chain(name: str, trust: Trust) -> Follower:
        return open_follower(chains[name], links[name], parts, trust=trust, from_newest=False)

    index = _open_index(_make_directory(settings.data) / INDEX_FILE, network)
    try:
        gateway = Gateway(network, index, open_chain, role, settings.stale_after_ms)
        await gateway.run(role.http)
    finally:
        index.close()


class Gateway:
    """A running gateway.

    Args:
        network: the chains.
        index: what was verified before, and will be.
        open_chain: makes a follower of a chain that goes on from a checkpoint.
        role: log, numbers and clock.
        stale_ms: see `GatewaySettings.stale_after_ms`.
    """

    def __init__(
        self,
        network: NetworkFacts,
        index: Index,
        open_chain: Callable[[str, Trust], Follower],
        role: Role,
        stale_ms: int,
    ) -> None:
        self._network: Final = network
        self._index: Final = index
        self._open_chain: Final = open_chain
        self._log: Final[Logger] = role.log
        self._sparse: Final = SparseLog(role.log)
        self._unwritten = ""
        """Why the last block could not be indexed; empty if it could."""
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
            Submissions(network, sources, index, Ed25519Verifier(), self._now_ms),
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
        server = HttpServer(self.api.application(self._log), listen, self._metrics)
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
        found = [f"the index cannot be written: {self._unwritten}"] if self._unwritten else []
        for name, chain in self._followed.items():
            found += chain.credential_troubles()
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
            self._unwritten = ""
            self._metrics.count("gateway_blocks", chain=name)

    def _repair(self, name: str, error: sqlite3.Error) -> None:
        """A damaged file is made anew; a full disk is waited for."""
        if is_damage(error):
            self._log.warning("the index is damaged: made anew", chain=name, error=str(error))
            self._index.rebuild(str(error))
        else:
            self._unwritten = str(error)
            self._sparse.warning("the index cannot be written", name, chain=name, error=str(error))

    def _open(self, name: str) -> FollowedChain:
        facts, cursor = self._network.chains[name].facts, self._index.cursor(name)
        trust = (
            facts.trust
            if cursor is None
            else Trust(facts.chain_id, cursor.height, cursor.block_hash, cursor.validators)
        )
        follower = self._open_chain(name, trust)
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


def _open_index(path: Path, network: NetworkFacts) -> Index:
    try:
        return Index(path, network)
    except (sqlite3.Error, OSError) as error:
        raise LocalFault(
            f"{path}: the index cannot be opened: {error}; see to its disk, then start again"
        ) from None


def _make_directory(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LocalFault(f"data directory {path}: cannot be made: {error.strerror}") from None
    return path
