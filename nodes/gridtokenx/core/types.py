"""Bounded field types of wire messages.

Each alias is a plain Python type with a bound that the decoder enforces, so that a message that
decodes is already within its limits. Nothing here is a class: values stay `bytes`, `int`, `str`.
"""

from typing import Annotated

from msgspec import Meta

UINT63_MAX = 2**63 - 1

Hash32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""A SHA-256 digest: block hash, state root, chain id."""

PublicKey = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""An Ed25519 public key; also an account's or a node's identity."""

SignatureBytes = Annotated[bytes, Meta(min_length=64, max_length=64)]
"""An Ed25519 signature."""

UInt63 = Annotated[int, Meta(ge=0, le=UINT63_MAX)]
"""A non-negative integer that fits a signed 64-bit word: amounts, nonces, counters."""

Int64 = Annotated[int, Meta(ge=-UINT63_MAX - 1, le=UINT63_MAX)]
"""A signed 64-bit integer: differences and corrections."""

Height = UInt63
"""A block's height; genesis is 0."""

Millis = UInt63
"""Milliseconds since the Unix epoch, in network time unless the name says grid time."""

Index16 = Annotated[int, Meta(ge=0, le=65_535)]
"""A position in a bounded list, such as a validator's index."""

ShortText = Annotated[str, Meta(max_length=64)]
"""A name, a code; up to 256 bytes of UTF-8."""

Denom = Annotated[str, Meta(max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9._/-]*\Z")]
"""A token's name, as ``GRID`` or ``public/grid``: ASCII, since it is part of state keys."""

Text = Annotated[str, Meta(max_length=512)]
"""A sentence meant for a person."""

BLOB_MAX = 65_536

Blob = Annotated[bytes, Meta(max_length=BLOB_MAX)]
"""Opaque bytes whose meaning another layer decodes."""
