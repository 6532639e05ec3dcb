"""Port ``attestation``: metered renewable generation, from the oracle chain to the public chain.

An attestation leaves the oracle chain after the correction window of its interval, so it is never
corrected; a certificate is minted for it once, keyed by (device, interval). Fields follow the
EnergyTag granular certificate; codes are I-REC's.
"""

import itertools
from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.core.codec import Wire, decode, encode
from gridtokenx.core.errors import Malformed
from gridtokenx.core.types import UINT63_MAX, Hash32, Index16, PublicKey, ShortText, UInt63

PORT: Final = "attestation"
MAX_ATTESTATIONS: Final = 256
"""Attestations in one packet."""
SOLAR: Final = "ES100"
"""I-REC energy source code of solar."""


class GenerationAttestation(Wire, frozen=True):
    """Energy that one device generated in one interval."""

    device: Hash32
    """Device id of the generation sub-meter."""
    interval: UInt63
    """UTC index of the half hour."""
    energy_wh: Annotated[int, Meta(ge=1, le=UINT63_MAX)]
    """Whole Wh, rounded down."""
    owner: PublicKey
    """The account that receives the certificate."""
    zone: Index16
    """Grid zone of the device."""
    source: ShortText
    """I-REC energy source code, such as `SOLAR`."""


class GenerationAttestations(Wire, frozen=True, tag="attestation.generation"):
    """A batch of attestations, each of a different (device, interval)."""

    attestations: Annotated[
        tuple[GenerationAttestation, ...], Meta(min_length=1, max_length=MAX_ATTESTATIONS)
    ]
    """Ascending by (device, interval), without repetition."""


def encode_attestations(attestations: GenerationAttestations) -> bytes:
    """The packet payload of a batch."""
    return encode(attestations)


def decode_attestations(payload: bytes) -> GenerationAttestations:
    """The batch inside a packet payload.

    Raises:
        Malformed: not a batch, or out of order.
    """
    batch = decode(payload, GenerationAttestations)
    keys = [(each.device, each.interval) for each in batch.attestations]
    if any(later <= earlier for earlier, later in itertools.pairwise(keys)):
        raise Malformed("attestations are not in ascending order, or repeat")
    return batch
