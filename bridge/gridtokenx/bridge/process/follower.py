"""A chain of the relayer, followed by the host's light client and written to by its client.

Law of the file: **what the machine is told has been verified by `Follower`**, or, for handovers,
here by the same rule: a set is believed because the set before it finalised the header that names
it, from the genesis set on.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from gridtokenx.bridge.process.driver import Clock, Head
from gridtokenx.bridge.relayer.edge import Proven
from gridtokenx.core.codec import decode_own
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Verifier
from gridtokenx.finality.proofs import verify_finality
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.client import ChainClient
from gridtokenx.host.follow import FinalBlock, Follower
from gridtokenx.host.follow_messages import GetHandover, Handover, Reply
from gridtokenx.host.questions import Lie
from gridtokenx.interchain.calls import RelayCall, relay_weight
from gridtokenx.interchain.clients import CertifiedHeader
from gridtokenx.ledger.blocks import EventRecord

TAG_PREFIX: Final = b"interchain."
"""What the tag of every interchain event begins with."""
TAG_END: Final = 24
"""A tag lies within the first bytes of an event, behind two short headers."""


class FollowedChain:
    """One chain; see `driver.RelayChain`.

    Args:
        follower: must be running.
        client: signs and submits for this relayer's account.
        genesis_set: the chain's first validator set.
        verifier: checks signatures of handovers.
        clock: network time.
        fee_per_weight: what the chain asks of this account.
    """

    def __init__(
        self,
        follower: Follower,
        client: ChainClient,
        genesis_set: ValidatorSet,
        verifier: Verifier,
        clock: Clock,
        fee_per_weight: int,
    ) -> None:
        self._follower: Final = follower
        self._chain_id: Final = follower.trust.chain_id
        self._client: Final = client
        self._verifier: Final = verifier
        self._clock: Final = clock
        self._fee_per_weight: Final = fee_per_weight
        self._sets: Final = {genesis_set.set_id: genesis_set}
        self._handovers: Final[dict[int, tuple[CertifiedHeader, ValidatorSet]]] = {}
        self._head: Head | None = None
        self._touched = True
        self._news: Final = asyncio.Event()
        follower.on_final(self._on_final)

    async def next_head(self) -> Head:
        """See `RelayChain`. At the first, everything may have changed."""
        await self._news.wait()
        self._news.clear()
        head = self._head
        if head is None:
            raise AssertionError("news without a head")
        touched, self._touched = self._touched, False
        return Head(head.certified, head.next_set, touched)

    async def read(self, height: int, keys: Sequence[bytes]) -> Mapping[bytes, Proven]:
        """See `RelayChain`."""
        found = await self._follower.get(keys, height)
        return {key: Proven(each.value, each.proof) for key, each in found.items()}

    async def handover(self, set_id: int) -> tuple[CertifiedHeader, ValidatorSet]:
        """See `RelayChain`; goes from set to set, from the last that is believed."""
        if set_id < min(self._sets):
            raise RemoteFault("unknown-set", f"set {set_id} precedes genesis")
        while set_id not in self._handovers:
            await self._believe_handover(max(self._sets))
        return self._handovers[set_id]

    async def submit(self, calls: Sequence[RelayCall], valid_until_ms: int) -> int:
        """See `RelayChain`."""
        inclusion = await self._client.call(
            calls,
            fee=self._fee_per_weight * relay_weight(calls),
            valid_for_ms=max(1, valid_until_ms - self._clock.now_ms()),
        )
        return inclusion.height

    def _on_final(self, block: FinalBlock) -> None:
        self._touched = self._touched or any(map(_is_interchain, block.events))
        if block.proof is not None:
            certified = CertifiedHeader(block.header, block.proof)
            self._head = Head(certified, block.next_set, touched=False)
            self._news.set()

    async def _believe_handover(self, set_id: int) -> None:
        """Ask for the end of a set that is believed, and believe the set after it."""
        members = self._sets[set_id]

        def believe(reply: Reply) -> Handover:
            if not isinstance(reply, Handover) or reply.header.chain_id != self._chain_id:
                raise Lie("wrong-answer", type(reply).__name__)
            try:
                verify_finality(reply.header, reply.proof, members, self._verifier)
            except RemoteFault as fault:
                raise Lie(fault.reason, fault.detail) from None
            if reply.next_set.hash != reply.header.next_set_hash:
                raise Lie("wrong-next-set", f"of set {set_id}")
            if reply.next_set.set_id != set_id + 1 or not reply.next_set.is_well_formed():
                raise Lie("wrong-next-set", f"set {reply.next_set.set_id} after {set_id}")
            return reply

        found = await self._follower.nodes.ask(GetHandover(set_id=set_id), believe)
        certified = CertifiedHeader(found.header, found.proof)
        self._handovers[set_id] = (certified, found.next_set)
        self._sets[set_id + 1] = found.next_set


def _is_interchain(record: bytes) -> bool:
    """Whether an encoded event record holds an interchain event."""
    data = decode_own(record, EventRecord).data
    return TAG_PREFIX in data[:TAG_END]
