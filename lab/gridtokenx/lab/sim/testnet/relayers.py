"""Lying relayers: what one may submit in place of what it should carry. The chains judge all of it.

======================  ========================================================================
behaviour               what it does
======================  ========================================================================
false-proof             carries packets that were changed, or whose proofs do not hold
old-header              teaches clients the first header that it knows, again and again
replay                  submits what it submitted before (and sends old frames, `meddling.py`)
======================  ========================================================================

What must follow is a refusal, paid by its own quota, and a delay of one stagger: then it is the next
relayer's turn (`bridge/relayer/machine.py`).
"""

import random
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final, get_args

from msgspec.structs import replace

from gridtokenx.bridge.process.driver import Head, RelayChain
from gridtokenx.bridge.relayer.edge import Proven
from gridtokenx.core.errors import RemoteFault
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.interchain.calls import (
    AcknowledgePacket,
    ReceivePacket,
    RelayCall,
    SubmitMisbehaviour,
    TimeoutPacket,
    UpdateClient,
)
from gridtokenx.interchain.clients import CertifiedHeader
from gridtokenx.lab.faults import Behave, OfRelayers

BEHAVIOURS: Final[tuple[str, ...]] = (*get_args(OfRelayers), "replay")
_REMEMBERED: Final = 16


class RelayerLie:
    """One fault of kind `behave` of a relayer.

    Args:
        fault: of this file's behaviours.
        draw: of what it leaves to chance.
    """

    def __init__(self, fault: Behave, draw: random.Random) -> None:
        self.fault: Final = fault
        self.active = False
        self.draw: Final = draw
        self._first: Final[dict[str, CertifiedHeader]] = {}
        self._said: Final[dict[str, deque[tuple[RelayCall, ...]]]] = {}

    def tells(self) -> bool:
        """Whether it uses this opportunity."""
        return self.active and (self.fault.share >= 1 or self.draw.random() < self.fault.share)

    def before(self, chain: str, calls: Sequence[RelayCall]) -> tuple[RelayCall, ...]:
        """What it submits to a chain first, if anything; and remembers what comes."""
        said = self._said.setdefault(chain, deque(maxlen=_REMEMBERED))
        old = self.draw.choice(said) if said and self.fault.behaviour == "replay" else ()
        said.append(tuple(calls))
        return old if self.tells() else ()

    def told(self, calls: Sequence[RelayCall]) -> tuple[RelayCall, ...]:
        """What it submits in place of some calls."""
        for call in calls:
            if isinstance(call, UpdateClient):
                self._first.setdefault(call.client_id, call.certified)
        return tuple(map(self._changed, calls)) if self.tells() else tuple(calls)

    def _changed(self, call: RelayCall) -> RelayCall:
        match self.fault.behaviour, call:
            case "old-header", UpdateClient():
                return replace(call, certified=self._first[call.client_id], next_set=None)
            case "false-proof", UpdateClient():
                header = replace(call.certified.header, state_root=self.draw.randbytes(32))
                return replace(call, certified=replace(call.certified, header=header))
            case "false-proof", SubmitMisbehaviour():
                return call
            case "false-proof", ReceivePacket() | AcknowledgePacket() | TimeoutPacket():
                return self._unproved(call)
            case _:
                return call

    def _unproved(
        self, call: ReceivePacket | AcknowledgePacket | TimeoutPacket
    ) -> ReceivePacket | AcknowledgePacket | TimeoutPacket:
        """Another packet than the one that was sent, or half of the way to it."""
        if self.draw.random() < 0.5:
            longer = replace(call.packet, timeout_ms=call.packet.timeout_ms + 1)
            return replace(call, packet=longer)
        return replace(call, proof=replace(call.proof, levels=call.proof.levels[:-1]))


class LyingChain:
    """A relayer's access to a chain, with its lies in between; see `RelayChain`.

    Args:
        name: of the chain.
        chain: the honest access.
        lies: what it does.
        deeds: counts what it did, by behaviour.
    """

    def __init__(
        self, name: str, chain: RelayChain, lies: Sequence[RelayerLie], deeds: Counter[str]
    ) -> None:
        self._name: Final = name
        self._chain: Final = chain
        self._lies: Final = lies
        self._deeds: Final = deeds

    async def next_head(self) -> Head:
        """See `RelayChain`."""
        return await self._chain.next_head()

    async def read(self, height: int, keys: Sequence[bytes]) -> Mapping[bytes, Proven]:
        """See `RelayChain`."""
        return await self._chain.read(height, keys)

    async def handover(self, set_id: int) -> tuple[CertifiedHeader, ValidatorSet]:
        """See `RelayChain`."""
        return await self._chain.handover(set_id)

    async def submit(self, calls: Sequence[RelayCall], valid_until_ms: int) -> int:
        """See `RelayChain`: what was said before, then something like what should be said."""
        for old in self._before(calls):
            with suppress(RemoteFault):
                await self._chain.submit(old, valid_until_ms)
        said = tuple(calls)
        for lie in self._lies:
            before, said = said, lie.told(said)
            self._deeds[lie.fault.behaviour] += said != before
        return await self._chain.submit(said, valid_until_ms)

    def _before(self, calls: Sequence[RelayCall]) -> Iterator[tuple[RelayCall, ...]]:
        for lie in self._lies:
            if old := lie.before(self._name, calls):
                self._deeds[lie.fault.behaviour] += 1
                yield old
