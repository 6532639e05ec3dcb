"""Validator sets: who finalises, under which number, and with what majority.

Every member has weight one on both kinds of chain, so a set is an ordered list of keys. The order
is part of the identity: votes name their voter by index.
"""

from functools import cached_property
from typing import Annotated

from msgspec import Meta

from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.keys import sha256
from gridtokenx.core.quorum import max_faulty, quorum, supermajority
from gridtokenx.core.types import PublicKey, UInt63

MAX_VALIDATORS = 1000


class ValidatorSet(Wire, frozen=True, dict=True):
    """An ordered set of equally weighted validators."""

    set_id: UInt63
    """Grows by one at every handover; in every vote, so that no vote outlives its set."""
    members: Annotated[tuple[PublicKey, ...], Meta(min_length=1, max_length=MAX_VALIDATORS)]
    """Distinct keys; the index of a key is how votes name it."""

    @cached_property
    def hash(self) -> bytes:
        """What a header's `next_set_hash` refers to."""
        return sha256(b"validator set", encode(self))

    @cached_property
    def size(self) -> int:
        """How many members."""
        return len(self.members)

    @cached_property
    def faulty(self) -> int:
        """How many Byzantine members are tolerated."""
        return max_faulty(len(self.members))

    @cached_property
    def quorum(self) -> int:
        """Votes of a PBFT certificate: any two quorums share an honest member."""
        return quorum(len(self.members))

    @property
    def supermajority(self) -> int:
        """Votes of a GRANDPA justification."""
        return supermajority(len(self.members))

    @cached_property
    def _indices(self) -> dict[bytes, int]:
        return {key: index for index, key in enumerate(self.members)}

    def index_of(self, key: bytes) -> int | None:
        """The index of a key, or None."""
        return self._indices.get(key)

    def is_well_formed(self) -> bool:
        """Whether all keys are distinct."""
        return len(self._indices) == len(self.members)
