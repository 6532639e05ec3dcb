"""Misbehaviour on connections: of relayers, devices, agents, the broker, and of nodes to their clients.

Their worst is what anybody on the way could do to their connections' frames: withhold them, send old
ones again, change them. What must follow is that nothing follows, but a delay.
"""

import random
from collections import deque
from collections.abc import Iterator
from typing import Final

from gridtokenx.lab.faults import Behave

MEDDLING: Final = ("silent", "replay", "forge-signature")
_REMEMBERED: Final = 64


class Meddler:
    """One fault of kind `behave` at work.

    Args:
        fault: `silent`, `replay` or `forge-signature`.
        draw: chooses which frames, and which bits.
    """

    def __init__(self, fault: Behave, draw: random.Random) -> None:
        self.fault: Final = fault
        self.node: Final = fault.node
        self.active = False
        self.changed = 0
        """How many frames were not sent as they were."""
        self.draw: Final = draw
        self._old: Final[deque[bytes]] = deque(maxlen=_REMEMBERED)

    def tells(self) -> bool:
        """Whether it uses this opportunity."""
        return self.active and self.draw.random() < self.fault.share

    def meddle(self, body: bytes) -> Iterator[bytes]:
        """What is sent in place of a frame."""
        old = list(self._old)
        self._old.append(body)
        if not self.tells():
            yield body
            return
        match self.fault.behaviour:
            case "replay":
                yield body
                if not old:
                    return
                yield self.draw.choice(old)
            case "forge-signature":
                changed = bytearray(body)
                changed[-1 - self.draw.randrange(min(64, len(body)))] ^= 1
                yield bytes(changed)
            case _:
                """Silence."""
        self.changed += 1
