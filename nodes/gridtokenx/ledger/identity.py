"""A chain's identity: the hash of what it is made of.

A chain id is the hash of a genesis without its own `chain_id` and without its `clients`: the light
clients of the other chains name *their* ids, so leaving them out is what makes three chains that know
each other possible without a circle. Genesis block 0 commits to everything, clients included.
"""

from typing import Final, TypeVar

import msgspec

from gridtokenx.core.codec import encode
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import sha256

UNNAMED: Final = bytes(32)
"""The chain id in a genesis that has none yet."""


G = TypeVar("G", bound=msgspec.Struct)


def derive_chain_id(genesis: msgspec.Struct) -> bytes:
    """The identity that follows from a genesis."""
    anonymous = msgspec.structs.replace(genesis, chain_id=UNNAMED, clients=())
    return sha256(b"chain id", type(genesis).__name__.encode(), encode(anonymous))


def check_chain_id(genesis: msgspec.Struct, source: str) -> None:
    """Refuse a genesis whose id is not its own.

    Raises:
        LocalFault: it was edited after it was made.
    """
    declared, derived = getattr(genesis, "chain_id", UNNAMED), derive_chain_id(genesis)
    if declared != derived:
        raise LocalFault(
            f"{source}: chain_id is {declared.hex()[:16]}..., but its content hashes to "
            f"{derived.hex()[:16]}...: the file was changed after it was made; fetch it again"
        )


def parse_genesis(data: bytes, type_: type[G], source: str) -> G:
    """A genesis from its JSON file, checked.

    Raises:
        LocalFault: not JSON, not of this chain, out of bounds, or with a foreign id.
    """
    try:
        genesis = msgspec.json.decode(data, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LocalFault(f"{source}: not a {type_.__name__}: {error}") from None
    check_chain_id(genesis, source)
    check = getattr(genesis, "check", None)
    if check is not None:
        check()
    return genesis


def is_genesis(data: bytes, type_: type[msgspec.Struct]) -> bool:
    """Whether a file has the form of this chain's genesis; its id and content are not checked."""
    try:
        msgspec.json.decode(data, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def render_genesis(genesis: msgspec.Struct) -> bytes:
    """A genesis as an indented JSON file; byte strings are base64."""
    return msgspec.json.format(msgspec.json.encode(genesis), indent=2) + b"\n"
