"""What a check says: one line that names the place, what is wrong there, and what to do."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from gridtokenx.core.codec import decode
from gridtokenx.core.errors import RemoteFault

MOST_LINES: Final = 20
"""Lines about one kind of damage; the rest is counted."""

REFETCH: Final = "restore a backup, or fetch the chain anew: gtx backup reset"
"""What helps when what everybody holds is damaged: the peers have it."""
NEVER_SIGN: Final = (
    "do not start this node: it could contradict what it signed; restore a backup or use"
    " `gtx backup reset`, after which it only follows until that is impossible"
)
"""What helps when a node may have forgotten what it promised."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    where: str
    """Block, table and key, or file."""
    what: str
    """How it differs from what it should be."""
    remedy: str
    """What a person does about it."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


Progress = Callable[[int, int], None]
"""Told of (blocks done, blocks in all)."""


def bounded(findings: Iterable[Finding], most: int = MOST_LINES) -> Iterator[Finding]:
    """The first ones, and how many there were beside them."""
    more, last = 0, None
    for index, finding in enumerate(findings):
        if index < most:
            yield finding
        else:
            more, last = more + 1, finding
    if last is not None:
        yield Finding("and", f"{more} more of this kind, the last at {last.where}", last.remedy)


def read_as(raw: bytes, type_: type[T]) -> T | None:
    """A stored record, or None if it is not one of this type."""
    try:
        return decode(raw, type_, limit=max(len(raw), 1))
    except RemoteFault:
        return None


def name_of(key: bytes) -> str:
    """A record's key for people: a height where it begins with one, text where it is text."""
    if key.isascii() and key.decode("ascii").isprintable():
        return key.decode("ascii")
    if len(key) == 8:
        return str(int.from_bytes(key, "big"))
    if key[8:9] == b"/":
        return f"{int.from_bytes(key[:8], 'big')}{name_of(key[8:])}"
    return key.hex()
