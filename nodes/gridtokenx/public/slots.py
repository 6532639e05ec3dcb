"""Slots: who may author a block when, and how everybody checks it.

Law of the file: the right to author is a function of (ancestry, slot, key). No node's clock enters
a header's validity; a clock only says that a header from the future has to wait.

Theory: BABE (Polkadot specification, "Block Production"), with

    slot(t)        t // slot_ms; a header's `round` is its slot, and its timestamp lies in it
    primary        VRF draw below the threshold 1 - (1 - c) ** (1 / n), so a slot has a primary
                   author with chance c, sometimes several, often none
    secondary      author number hash(randomness, slot) mod n may always author: no slot need be lost
    epoch          `epoch_slots` slots, counted from the genesis slot
    randomness     of epoch e + 2: hash of the randomness announced before and the VRF outputs of the
                   blocks of epoch e, so it is fixed before anyone can choose keys by it

An epoch without a block is skipped: the next block's epoch uses what was announced for the first
epoch after its parent's. All of it is a fold over the blocks of a branch (`Epoch.at`, `Epoch.mix`).

Ours differs: secondary blocks carry a VRF output as well (BABE's "secondary VRF" variant), so that
every block feeds the randomness; all blocks of an epoch are mixed, not only full segments of it.
"""

import hmac
from dataclasses import dataclass
from typing import Annotated, Final, Protocol

from msgspec import Meta

from gridtokenx.core import vrf
from gridtokenx.core.codec import Wire, decode, encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Domain, Signer, sha256, signed_bytes
from gridtokenx.core.machine import Instant, SignatureCheck
from gridtokenx.core.types import Hash32, Index16, SignatureBytes, UInt63
from gridtokenx.core.vrf import lottery_draw, slot_threshold
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Block, Header

PRIMARY: Final = 0
SECONDARY: Final = 1


class SlotClaim(Wire, frozen=True):
    """A header's digest: the right by which its author made it."""

    authority: Index16
    """The author's index in the validator set."""
    kind: Annotated[int, Meta(ge=PRIMARY, le=SECONDARY)]
    vrf_output: Annotated[bytes, Meta(min_length=vrf.OUTPUT_BYTES, max_length=vrf.OUTPUT_BYTES)]
    vrf_proof: Annotated[bytes, Meta(min_length=vrf.PROOF_BYTES, max_length=vrf.PROOF_BYTES)]


class SealedBlock(Wire, frozen=True):
    """A block and its author's signature over the header's hash."""

    block: Block
    seal: SignatureBytes

    @property
    def header(self) -> Header:
        """The block's header."""
        return self.block.header


class SealedHeader(Wire, frozen=True):
    """A header with its seal: what evidence of double authorship consists of."""

    header: Header
    seal: SignatureBytes


class SlotEquivocation(Wire, frozen=True, tag="slots.equivocation"):
    """Evidence: one author sealed two different headers for one slot."""

    first: SealedHeader
    second: SealedHeader


class VrfSigner(Protocol):
    """Holds one VRF secret key."""

    def prove(self, alpha: bytes) -> tuple[bytes, bytes]:
        """The proof (80 bytes) and the output (64 bytes) for an input."""
        ...


class VrfVerifier(Protocol):
    """Checks VRF proofs of any key."""

    def verify(self, public_key: bytes, alpha: bytes, proof: bytes) -> bytes | None:
        """The output that the proof shows, or None."""
        ...


class Ed25519Vrf:
    """RFC 9381 under the key of an Ed25519 seed."""

    __slots__ = ("_seed",)

    def __init__(self, seed: bytes) -> None:
        self._seed = seed

    def prove(self, alpha: bytes) -> tuple[bytes, bytes]:
        """See `VrfSigner`."""
        return vrf.prove(self._seed, alpha)


class Ed25519VrfVerifier:
    """RFC 9381."""

    def verify(self, public_key: bytes, alpha: bytes, proof: bytes) -> bytes | None:
        """See `VrfVerifier`."""
        return vrf.verify(public_key, alpha, proof)


class KeyedHashVrf:
    """The simulator's VRF: keyed hashes of the same sizes, which anyone could forge."""

    __slots__ = ("_public_key",)

    def __init__(self, public_key: bytes) -> None:
        self._public_key = public_key

    def prove(self, alpha: bytes) -> tuple[bytes, bytes]:
        """See `VrfSigner`."""
        output = hmac.digest(self._public_key, b"vrf output" + alpha, "sha512")
        return output + output[:16], output


class KeyedHashVrfVerifier:
    """Verifies `KeyedHashVrf` proofs. Only for simulations."""

    def verify(self, public_key: bytes, alpha: bytes, proof: bytes) -> bytes | None:
        """See `VrfVerifier`."""
        expected, output = KeyedHashVrf(public_key).prove(alpha)
        return output if expected == proof else None


@dataclass(frozen=True, slots=True)
class SlotRules:
    """The parameters of slots; part of the chain's genesis."""

    chain_id: bytes
    genesis_ms: int
    """The genesis block's timestamp."""
    slot_ms: int = 6_000
    epoch_slots: int = 600
    primary_chance: tuple[int, int] = (1, 4)
    """c, the chance that a slot has a primary author, as a fraction."""
    future_slots: int = 1
    """A header so many slots ahead of the clock is still taken at once; clocks differ."""

    def slot_at(self, time_ms: Instant) -> int:
        """The slot of a moment."""
        return time_ms // self.slot_ms

    def start_of(self, slot: int) -> Instant:
        """The first moment of a slot."""
        return slot * self.slot_ms

    def epoch_of(self, slot: int) -> int:
        """The epoch of a slot."""
        return max(0, slot - self.slot_at(self.genesis_ms)) // self.epoch_slots


class Epoch(Wire, frozen=True):
    """What a block's children need to know of randomness; a pure function of its ancestry."""

    index: UInt63
    """The epoch of the block itself."""
    randomness: Hash32
    """Decides the slots of this epoch."""
    next_randomness: Hash32
    """Decides the slots of the next epoch that has a block."""
    mixed: Hash32
    """Running hash of the VRF outputs of this epoch's blocks."""

    @staticmethod
    def genesis(rules: SlotRules) -> "Epoch":
        """Epochs 0 and 1 have nothing to be collected from; the chain id stands in."""
        first, second = (sha256(b"genesis epoch", bytes((i,)), rules.chain_id) for i in (0, 1))
        return Epoch(0, first, second, bytes(32))

    def at(self, slot: int, rules: SlotRules) -> "Epoch":
        """The epoch in which a child in this slot lives, before that child is mixed in."""
        index = rules.epoch_of(slot)
        if index <= self.index:
            return self
        number = (self.index + 2).to_bytes(8, "big")
        after = sha256(b"epoch randomness", self.next_randomness, number, self.mixed)
        return Epoch(index, self.next_randomness, after, bytes(32))

    def mix(self, output: bytes) -> "Epoch":
        """This epoch with one more block's VRF output."""
        mixed = sha256(b"epoch mix", self.mixed, output)
        return Epoch(self.index, self.randomness, self.next_randomness, mixed)


def vrf_input(rules: SlotRules, epoch: Epoch, slot: int) -> bytes:
    """What the lottery of a slot is drawn over; the key enters through the VRF itself."""
    numbers = epoch.index.to_bytes(8, "big") + slot.to_bytes(8, "big")
    return b"gtx slot" + rules.chain_id + epoch.randomness + numbers


def secondary_author(epoch: Epoch, slot: int, size: int) -> int:
    """Who may author a slot without luck."""
    drawn = sha256(b"secondary author", epoch.randomness, slot.to_bytes(8, "big"))
    return int.from_bytes(drawn, "big") % size


def threshold(rules: SlotRules, size: int) -> int:
    """What a draw must be below, each of `size` authorities having weight 1."""
    return slot_threshold(*rules.primary_chance, 1, size)


def claim_slot(
    rules: SlotRules, epoch: Epoch, slot: int, authority: int, size: int, key: VrfSigner
) -> SlotClaim | None:
    """The right of an authority to author `slot` in `epoch` (of that slot), if it has one."""
    proof, output = key.prove(vrf_input(rules, epoch, slot))
    if lottery_draw(output) < threshold(rules, size):
        return SlotClaim(authority, PRIMARY, output, proof)
    if secondary_author(epoch, slot, size) == authority:
        return SlotClaim(authority, SECONDARY, output, proof)
    return None


def read_claim(header: Header) -> SlotClaim:
    """The claim in a header's digest.

    Raises:
        Malformed: there is none.
    """
    return decode(header.digest, SlotClaim)


def check_claim(
    rules: SlotRules,
    header: Header,
    parent: Header,
    epoch: Epoch,
    validators: ValidatorSet,
    verifier: VrfVerifier,
) -> SlotClaim:
    """Checks everything about a header's slot but its seal; returns the claim.

    `epoch` is that of the header's slot on the parent's branch (`Epoch.at`); `validators` is the
    set that authors this block.

    Raises:
        RemoteFault: `slot-time`, `slot-order`, `malformed`, `slot-author`, `slot-vrf`, or
            `slot-threshold`.
    """
    slot = header.round
    if slot != rules.slot_at(header.timestamp_ms):
        raise RemoteFault("slot-time", f"{header.timestamp_ms} ms is not in slot {slot}")
    if slot <= parent.round:
        raise RemoteFault("slot-order", f"slot {slot} after the parent's {parent.round}")
    claim = read_claim(header)
    if claim.authority >= validators.size:
        raise RemoteFault("slot-author", f"authority {claim.authority} of {validators.size}")
    key = validators.members[claim.authority]
    if verifier.verify(key, vrf_input(rules, epoch, slot), claim.vrf_proof) != claim.vrf_output:
        raise RemoteFault("slot-vrf", f"the proof of authority {claim.authority} does not hold")
    _check_right(rules, claim, epoch, slot, validators.size)
    return claim


def _check_right(rules: SlotRules, claim: SlotClaim, epoch: Epoch, slot: int, size: int) -> None:
    if claim.kind == PRIMARY and lottery_draw(claim.vrf_output) >= threshold(rules, size):
        raise RemoteFault("slot-threshold", f"authority {claim.authority} drew too high")
    if claim.kind == SECONDARY and secondary_author(epoch, slot, size) != claim.authority:
        raise RemoteFault("slot-author", f"authority {claim.authority} is not slot {slot}'s")


def _seal_bytes(header: Header) -> bytes:
    return signed_bytes(Domain.BLOCK_SEAL, header.chain_id, header.hash)


def seal(block: Block, signer: Signer) -> SealedBlock:
    """A block under its author's signature."""
    return SealedBlock(block, signer.sign(_seal_bytes(block.header)))


def seal_check(header: Header, seal_: bytes, validators: ValidatorSet) -> SignatureCheck:
    """The signature that makes a header its claimed author's.

    Raises:
        RemoteFault: `malformed` or `slot-author`: no key could make it valid.
    """
    authority = read_claim(header).authority
    if authority >= validators.size:
        raise RemoteFault("slot-author", f"authority {authority} of {validators.size}")
    return SignatureCheck(validators.members[authority], _seal_bytes(header), seal_)


def encoded_claim(claim: SlotClaim) -> bytes:
    """The digest of a header with this claim."""
    return encode(claim)
