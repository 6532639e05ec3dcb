"""The wire format: canonical MessagePack of frozen structs.

Law of the file: **one value has one encoding**. `decode` refuses bytes that do not re-encode to
themselves, so a hash of the bytes is a hash of the value. msgspec alone would accept non-minimal
integers and missing trailing fields; the comparison closes that.

A wire struct has no defaults, dicts, sets or floats; its fields are bounded (`core/types.py`), so
the cost of decoding is bounded by the frame's size.
"""

from collections.abc import Callable
from typing import Final, TypeVar, cast

import msgspec

from gridtokenx.core.errors import Malformed

MAX_MESSAGE_BYTES: Final = 8 * 1024 * 1024
"""No message of ours is larger; a frame that claims more is refused before it is read."""

T = TypeVar("T")

_encoder: Final = msgspec.msgpack.Encoder()
_decoders: Final[dict[object, msgspec.msgpack.Decoder[object]]] = {}
_by_identity: Final[dict[int, tuple[object, msgspec.msgpack.Decoder[object]]]] = {}
"""The same by `id` of a type, which is kept alive: hashing a union of many types costs microseconds."""
_IDENTITIES: Final = 1_024
"""More than there are types in the program; a bound for types that are made on the spot."""


class Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of every struct that crosses a process boundary or enters a hash."""


encode: Final[Callable[[object], bytes]] = _encoder.encode
"""The canonical bytes of a wire value."""


def decode(data: bytes, type_: type[T], limit: int = MAX_MESSAGE_BYTES) -> T:
    """The value that `data` is the canonical encoding of.

    Args:
        data: untrusted bytes.
        type_: a `Wire` struct, or a union of tagged ones.
        limit: the most bytes that are looked at.

    Raises:
        Malformed: too long, not MessagePack, not of this type, out of bounds, or not canonical.
    """
    if len(data) > limit:
        raise Malformed(f"{len(data)} bytes where at most {limit} are allowed")
    try:
        value: object = _decoder(type_).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(str(error)) from None
    if _encoder.encode(value) != data:
        raise Malformed("the bytes are not the canonical encoding of their value")
    return cast("T", value)


def _decoder(type_: object) -> msgspec.msgpack.Decoder[object]:
    known = _by_identity.get(id(type_))
    if known is not None and known[0] is type_:
        return known[1]
    found = _decoders.get(type_)
    if found is None:
        found = _decoders[type_] = msgspec.msgpack.Decoder(type_, strict=True)
    if len(_by_identity) < _IDENTITIES:
        _by_identity[id(type_)] = (type_, found)
    return found


def reader_of(type_: type[T]) -> Callable[[bytes], T]:
    """What reads bytes that this process itself encoded (its state, its disk) as values of a type.

    The canonical check is left out; a wrong type still raises.
    """
    return cast("Callable[[bytes], T]", _decoder(type_).decode)


def decode_own(data: bytes, type_: type[T]) -> T:
    """The value of bytes that this process itself encoded; see `reader_of`."""
    return cast("T", _decoder(type_).decode(data))
