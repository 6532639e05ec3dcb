"""The three chains as clients find them in their genesis files, and a client's access to one.

Whoever is not a node (gateway, relayer, agents, `gtx tx`, the audit) begins here: a genesis file says
what to trust, a `LinkSettings` where the nodes are, and everything that comes back was verified by a
`Follower`.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from gridtokenx.consortium.chain import ConsortiumGenesis, consortium_ledger
from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.gridtime import GridClock
from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier, Signer, Verifier
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.addresses import NodeAddress
from gridtokenx.host.checking import CachingVerifier
from gridtokenx.host.client import (
    ChainClient,
    ClockNonces,
    Inclusion,
    InclusionWatch,
    Nonces,
    StrictNonces,
)
from gridtokenx.host.clock import NetworkClock
from gridtokenx.host.files import read_file
from gridtokenx.host.follow import Follower, Trust
from gridtokenx.host.handshake import INSTANCE_BYTES, LinkIdentity
from gridtokenx.host.logs import Logger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.security import LinkSecurity, mutual_security, open_security
from gridtokenx.host.settings import LinkSettings
from gridtokenx.host.transport import NetworkParts
from gridtokenx.interchain.clients import ClientGenesis
from gridtokenx.ledger.admission import StrictNonce
from gridtokenx.ledger.identity import is_genesis, parse_genesis
from gridtokenx.ledger.runtime import ExecutedBlock, Ledger
from gridtokenx.oracle.chain.ledger import OracleGenesis, oracle_ledger
from gridtokenx.pbft.membership import DECISIONS
from gridtokenx.public.chain import PublicGenesis, public_ledger

CHAINS: Final = ("public", "consortium", "oracle")

CURRENT_MS: Final = 60_000
"""A chain of which nothing was heard for so long is not known as it is now."""

Genesis = PublicGenesis | ConsortiumGenesis | OracleGenesis


@dataclass(frozen=True, slots=True)
class ChainFacts:
    """A chain put together from its genesis."""

    name: str
    genesis: Genesis
    ledger: Ledger
    genesis_block: ExecutedBlock
    fee_per_weight: int
    """In the smallest unit of the fee token; what a sender without privilege offers."""

    @property
    def chain_id(self) -> bytes:
        """The chain's identity."""
        return self.genesis.chain_id

    @property
    def clock(self) -> GridClock:
        """The map between network time and grid time."""
        return self.genesis.clock

    @property
    def clients(self) -> tuple[ClientGenesis, ...]:
        """The other chains, as this one knows them."""
        return self.genesis.clients

    @property
    def validators(self) -> ValidatorSet:
        """The first validator set."""
        return self.genesis.validator_set

    @property
    def trust(self) -> Trust:
        """Where following begins."""
        return Trust(self.chain_id, 0, self.genesis_block.hash, self.validators)

    def fee(self, calls: Sequence[Wire]) -> int:
        """What carrying out these calls costs; the permissioned chains' members decide for free."""
        if self.name != "public" and all(isinstance(call, DECISIONS) for call in calls):
            return 0
        return self.fee_per_weight * self.ledger.weight(calls)

    def nonces(self, follower: Follower, account: bytes, clock: NetworkClock) -> Nonces:
        """How this chain numbers an account's transactions."""
        admission = self.ledger.admission
        if isinstance(admission, StrictNonce):
            return StrictNonces(follower, admission.nonces.key(account))
        return ClockNonces(clock)


def read_chain(name: str, path: Path, verifier: Verifier | None = None) -> ChainFacts:
    """Read the genesis file of a chain and put it together.

    Args:
        name: one of `CHAINS`.
        path: of the genesis file.
        verifier: checks other chains' certificates; libsodium if None.

    Raises:
        LocalFault: a genesis that is unreadable, of another chain, or could not work.
    """
    return _parse(name, read_file(path), str(path), verifier)


def recognise_chain(path: Path) -> ChainFacts:
    """Put together whichever chain a genesis file is of.

    Raises:
        LocalFault: it is unreadable, of none of the three chains, or was changed.
    """
    data = read_file(path)
    for name in CHAINS:
        if is_genesis(data, _KINDS[name][0]):
            return _parse(name, data, str(path), None)
    raise LocalFault(f"genesis {path}: is of none of the chains {', '.join(CHAINS)}")


def faced(facts: ChainFacts, chains: Iterable[ChainFacts]) -> dict[str, str]:
    """Which of these chains each client of a chain faces: chain name by client id.

    Raises:
        LocalFault: one faces none of them: the files are not of one network.
    """
    names = {each.chain_id: each.name for each in chains}
    for client in facts.clients:
        if client.chain_id not in names:
            raise LocalFault(
                f"the {facts.name} genesis has a client {client.client_id!r} of another chain "
                f"({client.chain_id.hex()[:16]}...) than the files given: use those of one network"
            )
    return {client.client_id: names[client.chain_id] for client in facts.clients}


_KINDS: Final[dict[str, tuple[type[msgspec.Struct], Callable[..., Ledger]]]] = {
    "public": (PublicGenesis, public_ledger),
    "consortium": (ConsortiumGenesis, consortium_ledger),
    "oracle": (OracleGenesis, oracle_ledger),
}


def _parse(name: str, data: bytes, source: str, verifier: Verifier | None) -> ChainFacts:
    genesis: Any = parse_genesis(data, _KINDS[name][0], source)  # one of the three
    return put_together(name, genesis, verifier)


def put_together(name: str, genesis: Genesis, verifier: Verifier | None = None) -> ChainFacts:
    """A chain from its genesis.

    Args:
        name: one of `CHAINS`.
        genesis: of that chain.
        verifier: checks other chains' certificates; libsodium if None.

    Raises:
        LocalFault: a genesis that could not work.
    """
    ledger = _KINDS[name][1](genesis, verifier)
    block = ledger.genesis(genesis.clock.network_genesis_ms)
    return ChainFacts(name, genesis, ledger, block, _fee_per_weight(genesis))


def _fee_per_weight(genesis: Genesis) -> int:
    match genesis:
        case PublicGenesis():
            return genesis.fee_per_weight_ngrid
        case ConsortiumGenesis():
            return genesis.fee_uwatt_per_weight
        case OracleGenesis():
            return 0


# -- a client's access -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClientParts:
    """What a client process brings to every chain."""

    seed: bytes
    """Its identity on the links."""
    clock: NetworkClock
    metrics: Metrics
    log: Logger
    instance: bytes = field(default_factory=lambda: secrets.token_bytes(INSTANCE_BYTES))
    """Tells this process from another one with the same key."""


def open_follower(
    facts: ChainFacts,
    link: LinkSettings,
    parts: ClientParts,
    *,
    trust: Trust | None = None,
    from_newest: bool = True,
    first: int = 0,
) -> Follower:
    """A follower of a chain, not running yet.

    Args:
        facts: of the chain.
        link: where its nodes are.
        parts: of the process.
        trust: a checkpoint of an earlier life; genesis if None.
        from_newest: begin at the newest header, without the blocks between.
        first: which node to begin with.

    Raises:
        LocalFault: no node is named, or a certificate cannot be used.
    """
    if not link.nodes:
        raise LocalFault(f"{facts.name}.nodes is empty: name at least one node to follow")
    identity = LinkIdentity(
        Ed25519Signer(parts.seed),
        "client",
        facts.chain_id,
        facts.genesis_block.hash,
        parts.instance,
    )
    security = _security(facts, link, parts.seed)
    security.report_to(parts.log, parts.metrics, facts.name)
    network = NetworkParts(
        own=identity,
        security=security,
        verifier=CachingVerifier(Ed25519Verifier()),
        metrics=parts.metrics,
        log=parts.log,
        now_ms=parts.clock.now_ms,
    )
    addresses = [NodeAddress.parse(text) for text in link.nodes]
    return Follower(trust or facts.trust, addresses, network, from_newest=from_newest, first=first)


def _security(facts: ChainFacts, link: LinkSettings, seed: bytes) -> LinkSecurity:
    if facts.name == "public":
        return open_security(listens=False)
    if link.certificate is None or link.authority is None:
        raise LocalFault(
            f"{facts.name}.certificate and {facts.name}.authority are needed: "
            "the chain admits only those whom its authority knows"
        )
    return mutual_security(
        seed, link.certificate, link.authority, listens=False, revocations_file=link.revocations
    )


def staleness(name: str, follower: Follower, now_ms: int) -> Iterator[str]:
    """Why a client process is not ready: it is not welcome on a chain, or heard nothing of it lately."""
    for trouble in follower.troubles():
        yield f"{name}: {trouble}"
    head = follower.head
    if head is None:
        yield f"{name}: nothing verified yet"
    elif (age_ms := now_ms - head.header.timestamp_ms) >= CURRENT_MS:
        yield (
            f"{name}: the newest final block {head.header.height} is {age_ms // 1000} s old,"
            f" at most {CURRENT_MS // 1000} s are allowed"
        )


def open_access(facts: ChainFacts, link: LinkSettings, parts: ClientParts) -> "ChainAccess":
    """Access to a chain through its nodes.

    Raises:
        LocalFault: no node is named, or a certificate cannot be used.
    """
    return ChainAccess(facts, open_follower(facts, link, parts), parts.clock)


class ChainAccess:
    """Follows one chain and hands out accounts on it. `follower.run` must be running.

    Args:
        facts: of the chain.
        follower: of the chain.
        clock: network time.
    """

    def __init__(self, facts: ChainFacts, follower: Follower, clock: NetworkClock) -> None:
        self.facts: Final = facts
        self.follower: Final = follower
        self._clock: Final = clock
        self._watch: Final = InclusionWatch(self.follower)

    def account(self, signer: Signer) -> "Account":
        """The account of a key."""
        nonces = self.facts.nonces(self.follower, signer.public_key, self._clock)
        client = ChainClient(self.follower, signer, nonces, self._clock, self._watch)
        return Account(client, self.facts)

    async def news(self) -> None:
        """Wait for the next final header."""
        head = self.follower.head
        await self.follower.wait_beyond(0 if head is None else head.header.height)

    async def read(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes | None]:
        """Verified values under the newest final header.

        Raises:
            RemoteFault: no node can prove them.
        """
        head = await self.follower.wait_beyond(0)
        try:
            found = await self.follower.get(keys, head.header.height)
        except RemoteFault:  # nodes may have forgotten that height; the next one is fresh
            head = await self.follower.wait_beyond(head.header.height)
            found = await self.follower.get(keys, head.header.height)
        return {key: proven.value for key, proven in found.items()}


class Account:
    """One key on one chain. Its transactions go one after another."""

    def __init__(self, client: ChainClient, facts: ChainFacts) -> None:
        self._client = client
        self._facts = facts
        self._turn = asyncio.Lock()

    @property
    def public_key(self) -> bytes:
        """The account."""
        return self._client.account

    async def call(self, calls: Sequence[Wire], valid_for_ms: int) -> Inclusion:
        """Send calls as one transaction and wait until it is final.

        Raises:
            RemoteFault: refused, or not included while it was valid.
        """
        async with self._turn:
            return await self._client.call(
                calls, fee=self._facts.fee(calls), valid_for_ms=valid_for_ms
            )
