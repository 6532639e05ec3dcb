"""Bech32m text (BIP-350): binary data that survives being read aloud, typed and pasted.

Law of the file: **one text, one value**. A checksum over prefix and data detects up to four wrong
characters; bytes are split into groups of five bits with zero padding, which the decoder insists
on. Mixed case, foreign characters and Bech32's older checksum constant are refused.
"""

from collections.abc import Iterable
from typing import Final

CHARSET: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
CHECKSUM_CHARACTERS: Final = 6
MAX_CHARACTERS: Final = 90
"""BIP-173's limit, within which four errors are always detected."""

_CONSTANT: Final = 0x2BC830A3
_GENERATOR: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_VALUE_OF: Final = {character: value for value, character in enumerate(CHARSET)}


def encode_groups(prefix: str, groups: Iterable[int]) -> str:
    """Bech32m text of five-bit groups under `prefix` (lower case)."""
    data = list(groups)
    checksum = _polymod([*_expand(prefix), *data, *([0] * CHECKSUM_CHARACTERS)]) ^ _CONSTANT
    tail = [(checksum >> 5 * (5 - i)) & 31 for i in range(CHECKSUM_CHARACTERS)]
    return prefix + "1" + "".join(CHARSET[group] for group in data + tail)


def decode_groups(text: str) -> tuple[str, list[int]]:
    """The prefix (lower case) and the five-bit groups, without the checksum.

    Raises:
        ValueError: says what is wrong with the text.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text)} characters where at most {MAX_CHARACTERS} are allowed")
    if any(not 33 <= ord(character) <= 126 for character in text):
        raise ValueError("a character outside printable ASCII")
    if text != text.lower() and text != text.upper():
        raise ValueError("mixed upper and lower case")
    prefix, separator, body = text.lower().rpartition("1")
    if not separator or not prefix:
        raise ValueError("no prefix before the separator '1'")
    if len(body) < CHECKSUM_CHARACTERS:
        raise ValueError(f"fewer than {CHECKSUM_CHARACTERS} characters after the separator '1'")
    foreign = next((character for character in body if character not in _VALUE_OF), None)
    if foreign is not None:
        raise ValueError(f"the character {foreign!r} is not used in bech32m")
    groups = [_VALUE_OF[character] for character in body]
    if _polymod([*_expand(prefix), *groups]) != _CONSTANT:
        raise ValueError("the checksum does not match: a character was mistyped or lost")
    return prefix, groups[:-CHECKSUM_CHARACTERS]


def encode(prefix: str, data: bytes) -> str:
    """Bech32m text of whole bytes under `prefix`."""
    bits = int.from_bytes(data, "big")
    count = -(-len(data) * 8 // 5)
    bits <<= count * 5 - len(data) * 8
    return encode_groups(prefix, [(bits >> 5 * (count - 1 - i)) & 31 for i in range(count)])


def decode(text: str) -> tuple[str, bytes]:
    """The prefix and the bytes of a text that `encode` made.

    Raises:
        ValueError: says what is wrong with the text.
    """
    prefix, groups = decode_groups(text)
    size, padding = divmod(len(groups) * 5, 8)
    bits = 0
    for group in groups:
        bits = bits << 5 | group
    if padding > 4 or bits & ((1 << padding) - 1):
        raise ValueError("the padding after the last byte is not zero, or too long")
    return prefix, (bits >> padding).to_bytes(size, "big")


def _expand(prefix: str) -> list[int]:
    codes = [ord(character) for character in prefix]
    return [*(code >> 5 for code in codes), 0, *(code & 31 for code in codes)]


def _polymod(values: Iterable[int]) -> int:
    """The BCH checksum of BIP-173 over GF(32)."""
    state = 1
    for value in values:
        top = state >> 25
        state = (state & 0x1FFFFFF) << 5 ^ value
        for i, generator in enumerate(_GENERATOR):
            if top >> i & 1:
                state ^= generator
    return state
