"""What has arrived from the broker and waits to be judged: bounded, and fair to every sender.

Law of the file: **a flood costs its sender, and nobody else.** Each topic has its own short queue, and
they take turns; a concentrator is one sender, and a batch one turn. What finds no room is dropped:
nothing is lost by that, because its meter sends again what has no watermark.
"""

from collections import OrderedDict, deque
from typing import Final

MOST: Final = 2_048
"""Messages that wait."""
MOST_BYTES: Final = 16 * 1024 * 1024
PER_SENDER: Final = 64
"""Of one topic: more than a meter repeats at a time."""


class Inbox:
    """Messages by sender, taken in turns.

    Args:
        most: messages in all.
        most_bytes: the same in bytes.
        per_sender: messages of one topic.
    """

    def __init__(
        self, most: int = MOST, most_bytes: int = MOST_BYTES, per_sender: int = PER_SENDER
    ) -> None:
        self._most: Final = most
        self._most_bytes: Final = most_bytes
        self._per_sender: Final = per_sender
        self._senders: Final[OrderedDict[str, deque[bytes]]] = OrderedDict()
        self._messages = 0
        self._bytes = 0

    def __len__(self) -> int:
        return self._messages

    @property
    def full_percent(self) -> int:
        """How much of the room is taken."""
        by_bytes = 100 * self._bytes // self._most_bytes
        return max(100 * self._messages // self._most, by_bytes)

    def put(self, topic: str, payload: bytes) -> str | None:
        """Take a message; returns why not, if it found no room."""
        if self._messages >= self._most or self._bytes + len(payload) > self._most_bytes:
            return "overload"
        own = self._senders.get(topic)
        if own is None:
            own = self._senders[topic] = deque()
        elif len(own) >= self._per_sender:
            return "sender-flood"
        own.append(payload)
        self._messages += 1
        self._bytes += len(payload)
        return None

    def clear(self) -> None:
        """Forget everything."""
        self._senders.clear()
        self._messages = self._bytes = 0

    def take(self) -> tuple[str, bytes] | None:
        """The oldest message of the sender whose turn it is; None if nothing waits."""
        if not self._senders:
            return None
        topic, own = self._senders.popitem(last=False)
        payload = own.popleft()
        if own:
            self._senders[topic] = own
        self._messages -= 1
        self._bytes -= len(payload)
        return topic, payload
