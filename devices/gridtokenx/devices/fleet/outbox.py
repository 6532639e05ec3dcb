"""Which readings of a device still have to be sent.

A reading goes out once as soon as it exists and the broker can be reached. It is committed when the
oracle chain's watermark covers it; until then it is sent again, oldest first (the chain remembers a
window of sequence numbers, so the newest must not run ahead), a few at a time and ever more rarely
while nothing moves.

A watermark comes over the broker unsigned. A false one can make a device wait or repeat itself,
never lose or alter a reading: nothing is deleted, the next true watermark replaces it, and
registers are cumulative.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from gridtokenx.core.codec import decode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.devices.fleet.journal import COMPACT_AT, SignedReading
from gridtokenx.ledger.readings import Watermark

RESEND_BATCH: Final = 16
"""Readings that one repetition sends at most."""
FIRST_RESEND_S: Final = 6.0
"""Wait before the first repetition: longer than a reading takes to be committed."""
LAST_RESEND_S: Final = 60.0
"""Longest wait between repetitions."""


class Outbox:
    """The readings of one device, in order of sequence.

    Args:
        device: whose.
        readings: those retained, oldest first.
    """

    def __init__(self, device: bytes, readings: Sequence[SignedReading]) -> None:
        self.device = device
        self._readings: deque[SignedReading] = deque(readings, maxlen=COMPACT_AT)
        self._changed = asyncio.Event()
        self.heard = asyncio.Event()
        """Set when the first watermark arrives."""
        self.watermark = 0
        """The highest sequence that is known to be committed, and all below it."""

    @property
    def newest(self) -> int:
        """The highest sequence that was signed; 0 before the first."""
        return self._readings[-1].sequence if self._readings else 0

    @property
    def waiting(self) -> int:
        """How many readings are not known to be committed."""
        return min(len(self._readings), max(0, self.newest - self.watermark))

    def add(self, reading: SignedReading) -> None:
        """Take a reading that has just become durable."""
        self._readings.append(reading)
        self._changed.set()

    def after(self, sequence: int) -> list[SignedReading]:
        """The uncommitted readings above a sequence, oldest first."""
        # Sequences have no gaps, so the wanted ones are the last ones.
        count = min(len(self._readings), self.newest - max(sequence, self.watermark))
        return [self._readings[index] for index in range(-count, 0)]

    def batch_after(self, sequence: int) -> list[SignedReading]:
        """What to repeat next: from the oldest on, round and round, so that none starves."""
        return (self.after(sequence) or self.after(0))[:RESEND_BATCH]

    def observe(self, payload: bytes) -> None:
        """Take a watermark from the broker.

        Raises:
            RemoteFault: it is none, is another device's, or covers what was never signed.
        """
        self.reached(decode(payload, Watermark, limit=256))

    def reached(self, watermark: Watermark) -> None:
        """Take a watermark that was read.

        Raises:
            RemoteFault: it is another device's, or covers what was never signed.
        """
        if watermark.device != self.device:
            raise RemoteFault("watermark-device", watermark.device.hex())
        if watermark.sequence > self.newest:
            raise RemoteFault("watermark-ahead", f"{watermark.sequence} > {self.newest}")
        self.watermark = watermark.sequence
        self.heard.set()

    async def wait_for_new(self, sequence: int, patience_s: float) -> bool:
        """Wait until there is a reading above a sequence; False if patience ran out."""
        try:
            async with asyncio.timeout(patience_s):
                while self.newest <= sequence:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True


class Feed:
    """What to send of one outbox, and when: what is new at once, what stays uncommitted again.

    Args:
        outbox: whose readings.
        now_s: any clock's time, in seconds.
    """

    def __init__(self, outbox: Outbox, now_s: float) -> None:
        self._outbox = outbox
        self._pace = Pace()
        self._repeated = 0
        self.sent = 0
        """Up to here all has been sent at least once."""
        self.repeat_at_s = now_s + self._pace.wait_s

    def due(self, now_s: float) -> list[SignedReading]:
        """What is to be sent now, oldest first; it counts as sent."""
        return self.fresh(now_s) or self.again(now_s)

    def fresh(self, now_s: float) -> list[SignedReading]:
        """What was never sent; it counts as sent from now on."""
        outbox = self._outbox
        fresh = outbox.after(self.sent)
        self.sent = max(self.sent, outbox.watermark, *(each.sequence for each in fresh))
        if fresh and outbox.waiting <= len(fresh):
            # All that waits goes out for the first time.
            self._pace = Pace()
            self.repeat_at_s = now_s + self._pace.wait_s
        return fresh

    def again(self, now_s: float) -> list[SignedReading]:
        """What is to be repeated, if it is time; its turn has then passed."""
        outbox = self._outbox
        if now_s < self.repeat_at_s:
            return []
        batch = outbox.batch_after(self._repeated)
        self._repeated = batch[-1].sequence if batch else self._repeated
        self._pace.note(outbox.watermark)
        self.repeat_at_s = now_s + self._pace.wait_s
        return batch


class Pace:
    """How long to wait for the next repetition: doubles while no watermark moves."""

    def __init__(self) -> None:
        self._seen = 0
        self.wait_s = FIRST_RESEND_S

    def note(self, watermark: int) -> None:
        """Look at the watermark after a wait that brought nothing new to send."""
        moved = watermark != self._seen
        self._seen = watermark
        self.wait_s = FIRST_RESEND_S if moved else min(2 * self.wait_s, LAST_RESEND_S)
