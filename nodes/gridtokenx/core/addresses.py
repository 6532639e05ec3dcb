"""Account addresses: an Ed25519 public key as bech32m text, ``grid1...``.

On the wire and in state an account is its 32-byte key; addresses exist only where people read.
"""

from typing import Final

from gridtokenx.core import bech32m
from gridtokenx.core.errors import RemoteFault

PREFIX: Final = "grid"
PUBLIC_KEY_BYTES: Final = 32


class BadAddress(RemoteFault):
    """A text that is no address of ours."""

    def __init__(self, detail: str) -> None:
        super().__init__("bad-address", detail)


def address(public_key: bytes) -> str:
    """The address of an account, 63 characters."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise ValueError(f"a public key has {PUBLIC_KEY_BYTES} bytes, not {len(public_key)}")
    return bech32m.encode(PREFIX, public_key)


def parse_address(text: str) -> bytes:
    """The public key that an address shows.

    Raises:
        BadAddress: says what is wrong: prefix, characters, checksum or length.
    """
    shown = text if len(text) <= bech32m.MAX_CHARACTERS else text[: bech32m.MAX_CHARACTERS] + "..."
    try:
        prefix, data = bech32m.decode(text)
    except ValueError as error:
        raise BadAddress(f"{shown!r}: {error}") from None
    if prefix != PREFIX:
        raise BadAddress(f"{shown!r} starts with {prefix!r}; an address starts with {PREFIX!r}")
    if len(data) != PUBLIC_KEY_BYTES:
        raise BadAddress(f"{shown!r} holds {len(data)} bytes; an address holds {PUBLIC_KEY_BYTES}")
    return data
