"""What the runner and its replicas tell each other, and what a person may ask of the runner.

Law of the file: **a replica listens to nobody.** It dials the runner's socket, a file that only its
owner can open, and ends when that connection does. One JSON object per line.

=========  =====================  ====================================================
message    from, to               says
=========  =====================  ====================================================
Hello      replica -> runner      who it is; answered by all faults in force
Seen       replica -> runner      its height, view and leader, whenever one changes
Began      runner -> replica      a fault inside of its process is in force
Over       runner -> replica      and is no more
Ask        person -> runner       list, add or heal
Told       runner -> person       the answer, for people
=========  =====================  ====================================================
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final, TypeAlias

import msgspec

from gridtokenx.core.errors import LocalFault
from gridtokenx.lab.faults import (
    Behave,
    ClockDrift,
    ClockJump,
    ClockOffset,
    Delay,
    Duplicate,
    Loss,
    Reorder,
)

MAX_LINE: Final = 64 * 1024
SOCKET: Final = "control.socket"
"""Name of the runner's socket."""
InnerFault: TypeAlias = (
    Delay | Loss | Duplicate | Reorder | Behave | ClockOffset | ClockDrift | ClockJump
)
"""What happens inside of a replica's own process: to its messages, its clock or its honesty."""


class Line(msgspec.Struct, frozen=True, tag_field="say"):
    """Base of all messages."""


class Hello(Line, frozen=True, tag="hello"):
    """A replica's process has opened its store and is about to take part."""

    index: int
    pid: int


class Seen(Line, frozen=True, tag="seen"):
    """Where a replica stands."""

    height: int
    """The last block that it has acknowledged: durable, with its certificate."""
    view: int
    leader: int
    """Index of the view's primary."""


class Began(Line, frozen=True, tag="began"):
    """A fault is in force."""

    number: int
    fault: InnerFault


class Over(Line, frozen=True, tag="over"):
    """A fault is no more in force."""

    number: int


class Ask(Line, frozen=True, tag="ask"):
    """A person asks."""

    what: str
    """``list``, ``add`` or ``heal``."""
    fault: str = ""
    """Of `add`: one ``[[fault]]`` as TOML."""
    number: int = 0
    """Of `heal`: which one; 0: all."""


class Told(Line, frozen=True, tag="told"):
    """The runner's answer."""

    lines: tuple[str, ...] = ()
    error: str = ""


Said = Hello | Seen | Began | Over | Ask | Told
_DECODER: Final = msgspec.json.Decoder(Said)


def write(writer: asyncio.StreamWriter, line: Line) -> None:
    """Say something; whoever is gone hears nothing."""
    with contextlib.suppress(ConnectionError):
        writer.write(msgspec.json.encode(line) + b"\n")


async def lines(reader: asyncio.StreamReader) -> AsyncIterator[Said]:
    """What the other end says, until it is gone.

    Raises:
        LocalFault: it says what is no message.
    """
    while True:
        try:
            raw = await reader.readline()
        except (ConnectionError, ValueError):
            return
        if not raw.endswith(b"\n"):
            return
        try:
            yield _DECODER.decode(raw)
        except msgspec.DecodeError as error:
            raise LocalFault(f"control: no message: {error}") from None
