"""Integer profiles: what every household would consume and its panels would give, minute by minute.

They are made once, with floats, by `fleet/profiles.py`; from then on only these integers exist, and
the hash of the file is part of the run's identity.

The file: a header, then for each household its load and then its panel power, each `steps` signed
32-bit little-endian integers in watts, then the SHA-256 of all that precedes.

======  =====  ======================================================
offset  size   field
======  =====  ======================================================
0       8      ``GTXPROF1``
8       4      grid milliseconds per step
12      4      steps per series
16      4      households
20      8      grid time of the first step
======  =====  ======================================================
"""

import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import sha256

STEP_MS: Final = 60_000
"""Length of a step of the profiles that drive devices."""
_MAGIC: Final = b"GTXPROF1"
_HEADER: Final = struct.Struct("<8sIIIq")
_DIGEST_BYTES: Final = 32
_MAX_STEPS: Final = 2_000_000
_MAX_HOUSEHOLDS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Profile:
    """Load and panel power of one household. After its last step it begins again.

    A whole number of weeks keeps weekdays in place.
    """

    start_grid_ms: int
    step_ms: int
    load_w: Sequence[int]
    solar_w: Sequence[int]

    def at(self, grid_ms: int) -> tuple[int, int]:
        """(load, panel power) in W during the step that contains a grid time."""
        step = (grid_ms - self.start_grid_ms) // self.step_ms % len(self.load_w)
        return self.load_w[step], self.solar_w[step]


@dataclass(frozen=True, slots=True)
class ProfileSet:
    """A profile file: one profile per household, in the manifest's order."""

    households: tuple[Profile, ...]
    digest: bytes
    """SHA-256 of the file's content; part of the run's identity."""


def pack_profiles(start_grid_ms: int, step_ms: int, households: Sequence[Profile]) -> bytes:
    """The bytes of a profile file.

    Args:
        start_grid_ms: grid time of the first step.
        step_ms: length of a step.
        households: profiles that all have this start, this step and one length.
    """
    steps = len(households[0].load_w)
    parts = [_HEADER.pack(_MAGIC, step_ms, steps, len(households), start_grid_ms)]
    for profile in households:
        assert len(profile.load_w) == len(profile.solar_w) == steps, "one length for all series"
        parts += (_pack_series(profile.load_w), _pack_series(profile.solar_w))
    body = b"".join(parts)
    return body + sha256(body)


def unpack_profiles(data: bytes, name: str) -> ProfileSet:
    """Read a profile file.

    Args:
        data: its bytes.
        name: what to call it in a refusal, usually its path.

    Raises:
        LocalFault: it is no profile file, is damaged, or is beyond the limits.
    """
    if len(data) < _HEADER.size + _DIGEST_BYTES or data[:8] != _MAGIC:
        raise LocalFault(f"{name} is not a profile file; make one with `gtx testnet init`")
    _, step_ms, steps, count, start_grid_ms = _HEADER.unpack_from(data)
    if not (step_ms and 0 < steps <= _MAX_STEPS and 0 < count <= _MAX_HOUSEHOLDS):
        raise LocalFault(f"{name} claims {count} households and {steps} steps: out of bounds")
    if len(data) != _HEADER.size + 8 * steps * count + _DIGEST_BYTES:
        raise LocalFault(f"{name} is cut short or too long; make it anew with `gtx testnet init`")
    digest = sha256(data[:-_DIGEST_BYTES])
    if digest != data[-_DIGEST_BYTES:]:
        raise LocalFault(f"{name} is damaged: its checksum is wrong; make it anew")
    series = _split_series(data[_HEADER.size : -_DIGEST_BYTES], steps)
    if min(map(min, series)) < 0:
        raise LocalFault(f"{name} holds a negative power")
    pairs = zip(series[::2], series[1::2], strict=True)
    households = tuple(Profile(start_grid_ms, step_ms, load, solar) for load, solar in pairs)
    return ProfileSet(households, digest)


def _split_series(body: bytes, steps: int) -> list[Sequence[int]]:
    values = array("i", body)
    assert values.itemsize == 4, "a C int has 32 bits on every supported platform"
    if sys.byteorder == "big":
        values.byteswap()
    view = memoryview(values)
    return [view[first : first + steps] for first in range(0, len(values), steps)]


def _pack_series(values: Iterable[int]) -> bytes:
    packed = array("i", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
