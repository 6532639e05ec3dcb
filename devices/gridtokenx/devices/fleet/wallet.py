"""One process's access to one chain, shared by the accounts that it holds the keys of."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier, Signer
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.addresses import NodeAddress
from gridtokenx.host.checking import CachingVerifier
from gridtokenx.host.client import ChainClient, Inclusion, InclusionWatch, StrictNonces
from gridtokenx.host.clock import NetworkClock
from gridtokenx.host.follow import Follower, Trust
from gridtokenx.host.handshake import LinkIdentity
from gridtokenx.host.logs import Logger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.security import LinkSecurity, mutual_security, open_security
from gridtokenx.host.settings import LinkSettings
from gridtokenx.host.transport import NetworkParts
from gridtokenx.ledger.admission import StrictNonce
from gridtokenx.ledger.runtime import Ledger


@dataclass(frozen=True, slots=True)
class ChainFacts:
    """What a wallet needs to know of a chain, from its genesis."""

    name: str
    ledger: Ledger
    nonces: StrictNonce
    validators: ValidatorSet
    genesis_ms: int
    fee_per_weight: int


class ChainAccess:
    """Follows one chain and hands out accounts on it.

    Args:
        facts: of the chain.
        link: where its nodes are.
        seed: the identity with which this process connects.
        clock: network time.
        metrics: of the process.
        log: of the process.

    Raises:
        LocalFault: no node is named, or a certificate cannot be used.
    """

    def __init__(
        self,
        facts: ChainFacts,
        link: LinkSettings,
        seed: bytes,
        clock: NetworkClock,
        metrics: Metrics,
        log: Logger,
    ) -> None:
        if not link.nodes:
            raise LocalFault(f"{facts.name}.nodes is empty: name at least one node to follow")
        block = facts.ledger.genesis(facts.genesis_ms)
        chain_id = block.header.chain_id
        parts = NetworkParts(
            own=LinkIdentity(Ed25519Signer(seed), "client", chain_id, block.hash),
            security=_security(link, seed),
            verifier=CachingVerifier(Ed25519Verifier()),
            metrics=metrics,
            log=log,
        )
        self.facts: Final = facts
        self.follower: Final = Follower(
            Trust(chain_id, 0, block.hash, facts.validators),
            [NodeAddress.parse(text) for text in link.nodes],
            parts,
            from_newest=True,
        )
        self._clock: Final = clock
        self._watch: Final = InclusionWatch(self.follower)

    def account(self, signer: Signer) -> "Account":
        """The account of a key."""
        nonces = StrictNonces(self.follower, self.facts.nonces.nonces.key(signer.public_key))
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
        fee = self._facts.fee_per_weight * self._facts.ledger.weight(calls)
        async with self._turn:
            return await self._client.call(calls, fee=fee, valid_for_ms=valid_for_ms)


def _security(link: LinkSettings, seed: bytes) -> LinkSecurity:
    if link.certificate is None and link.authority is None:
        return open_security(listens=False)
    if link.certificate is None or link.authority is None:
        raise LocalFault("certificate and authority belong together: give both or neither")
    return mutual_security(seed, link.certificate, link.authority, listens=False)
