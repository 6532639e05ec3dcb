"""Which watermarks to publish, and when: so that meters stop sending what is committed.

Law of the file: **a watermark says what committed state says, and nothing earlier.** It is made after
the block is durable under its certificate.

Every oracle could publish every watermark; that would be n times the traffic. For each block and
device one oracle is on duty, by turns; and whoever sees a device send what is committed already
answers it. So a silent oracle costs its share of the devices one repetition.
"""

from collections.abc import Iterable
from typing import Final

from gridtokenx.core.codec import decode
from gridtokenx.ledger.blocks import EventRecord
from gridtokenx.ledger.readings import SubmitReading, Watermark
from gridtokenx.ledger.runtime import ExecutedBlock, Ledger
from gridtokenx.ledger.state import State
from gridtokenx.oracle.chain.admission import watermark
from gridtokenx.oracle.chain.registry import ORDER, DeviceRegistered, walk_devices
from gridtokenx.pbft.membership import validators_of

ANSWER_AGAIN_MS: Final = 2_000
"""A device that keeps repeating itself is answered this often."""
MAX_ANSWERED: Final = 65_536


class Watermarks:
    """The watermarks that wait to be published, newest only.

    Args:
        ledger: decodes what blocks hold.
        key: this oracle's; its seat after each block says which devices it publishes for.
    """

    def __init__(self, ledger: Ledger, key: bytes) -> None:
        self._ledger: Final = ledger
        self._key: Final = key
        self._waiting: dict[bytes, Watermark] = {}
        self._answered_ms: dict[bytes, int] = {}

    def connected(self, state: State) -> None:
        """A broker may have lost everything: publish for every device."""
        for device in walk_devices(state, 0, ORDER.length(state)):
            self._publish(state, device.registration.public_key)

    def committed(self, executed: ExecutedBlock) -> list[bytes]:
        """Note what a block changed; returns the keys of devices that it registered."""
        state = State(executed.state)
        registered = registered_keys(self._ledger, executed)
        for key in registered:
            self._publish(state, key)
        oracles = validators_of(executed.state)
        seat = oracles.index_of(self._key)
        for key in _readers(self._ledger, executed):
            if _on_duty(key, executed.height, oracles.size) == seat:
                self._publish(state, key)
        return registered

    def repeated(self, state: State, public_key: bytes, now_ms: int) -> None:
        """A device sends what is committed: it has missed its watermark."""
        if now_ms - self._answered_ms.get(public_key, -ANSWER_AGAIN_MS) < ANSWER_AGAIN_MS:
            return
        if len(self._answered_ms) >= MAX_ANSWERED:
            self._answered_ms.clear()
        self._answered_ms[public_key] = now_ms
        self._publish(state, public_key)

    def take(self) -> Watermark | None:
        """The next one to publish; None if nothing waits."""
        if not self._waiting:
            return None
        return self._waiting.pop(next(iter(self._waiting)))

    def put_back(self, unsent: Watermark) -> None:
        """It could not be published; a newer one of the same device goes first."""
        self._waiting.setdefault(unsent.device, unsent)

    def _publish(self, state: State, public_key: bytes) -> None:
        self._waiting[public_key] = watermark(state, public_key)


def _on_duty(public_key: bytes, height: int, oracles: int) -> int:
    """Whose turn it is to publish for a device after a block."""
    return (int.from_bytes(public_key[:4], "big") + height) % oracles


def registered_keys(ledger: Ledger, executed: ExecutedBlock) -> list[bytes]:
    """Keys of devices that the consortium registered, by a block's events."""
    keys = []
    for raw in executed.events:
        event = decode(decode(raw, EventRecord).data, ledger.event_union)
        if isinstance(event, DeviceRegistered) and event.registration.active:
            keys.append(event.registration.public_key)
    return keys


def _readers(ledger: Ledger, executed: ExecutedBlock) -> Iterable[bytes]:
    """Devices of which a block holds readings."""
    return dict.fromkeys(
        transaction.body.sender
        for transaction in executed.block.transactions
        if isinstance(ledger.decode_calls(transaction)[0], SubmitReading)
    )
