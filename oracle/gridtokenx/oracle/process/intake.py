"""From an MQTT message to a transaction that may enter the chain.

Law of the file: **what comes over the broker is a stranger's bytes.** The cheap checks come first, the
signature last, every refusal is counted by its reason, and nothing here can fail the process.

===================  ====================================================================
reason               what was wrong
===================  ====================================================================
oversized            longer than any reading
malformed            no canonical transaction with one reading in it
wrong-topic          published under another device's name
wrong-chain          made for another chain
replayed             its sequence number is used, or older than the window
unknown-device       no active device has this key, and there was no room to keep it
device-quota         more readings in one interval than any outage explains
premature            stamped more than a minute ahead: its meter sends it again
expired              its sender limited its validity, and that has passed
bad-signature        altered on the way, or forged
===================  ====================================================================

Readings of a device that is not registered yet are kept a while, for registrations travel too.
The signature of a good one is checked by the caller, together with others (`host.checking`).
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from gridtokenx.core.codec import decode
from gridtokenx.core.errors import BadSignature, Malformed, RemoteFault
from gridtokenx.core.keys import Verifier
from gridtokenx.ledger.readings import MAX_READING_BYTES, SubmitReading
from gridtokenx.ledger.runtime import Ledger
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import Transaction

MAX_STRANGERS: Final = 1_024
"""Readings of devices that are not registered yet; the oldest give way."""
PER_STRANGER: Final = 8
_RENAMED: Final = {"nonce-used": "replayed"}


class Kept(RemoteFault):
    """Not to be submitted yet: its device may be registered soon."""


class Intake:
    """Judges readings; keeps those of devices whose registration is still on its way.

    Args:
        ledger: the oracle chain's.
        verifier: checks signatures.
    """

    def __init__(self, ledger: Ledger, verifier: Verifier) -> None:
        self._ledger: Final = ledger
        self._verifier: Final = verifier
        self._strangers: OrderedDict[bytes, list[Transaction]] = OrderedDict()
        self._kept = 0
        self.dropped = 0
        """Kept ones that gave way to others, in all."""

    def examine(self, state: State, now_ms: int, transaction: Transaction) -> None:
        """Whether a reading may be submitted, if its signature holds.

        Args:
            state: the newest committed one.
            now_ms: network time.
            transaction: as `parse` gave it.

        Raises:
            Kept: its device is not registered, and it was kept, now or when it came first.
            RemoteFault: with one of the reasons above.
        """
        try:
            self._ledger.admit(state, transaction, now_ms)
        except RemoteFault as fault:
            if fault.reason == "unknown-device" and self._keep(transaction):
                raise Kept(fault.reason, fault.detail) from None
            raise RemoteFault(_RENAMED.get(fault.reason, fault.reason), fault.detail) from None

    def registered(self, public_key: bytes) -> Sequence[Transaction]:
        """What was kept of a device that is known from now on; its signatures hold."""
        kept = self._strangers.pop(public_key, [])
        self._kept -= len(kept)
        return kept

    def _keep(self, transaction: Transaction) -> bool:
        """Keep it if there is room; whether it is kept."""
        sender = transaction.body.sender
        known = self._strangers.get(sender, [])
        if transaction in known:
            return True
        if len(known) >= PER_STRANGER:
            return False
        self._check_signature(transaction)
        self._strangers.setdefault(sender, []).append(transaction)
        self._strangers.move_to_end(sender)
        self._kept += 1
        while self._kept > MAX_STRANGERS:
            _, dropped = self._strangers.popitem(last=False)
            self._kept -= len(dropped)
            self.dropped += len(dropped)
        return True

    def _check_signature(self, transaction: Transaction) -> None:
        check = transaction.signature_check()
        if not self._verifier.verify(check.public_key, check.message, check.signature):
            raise forged(transaction)


def forged(transaction: Transaction) -> BadSignature:
    """The fault of a reading whose signature does not hold."""
    body = transaction.body
    return BadSignature(f"reading {body.nonce} of {body.sender.hex()[:16]}")


def parse(payload: bytes, device: bytes | None) -> Transaction:
    """The reading in some bytes.

    Args:
        payload: its canonical encoding.
        device: under whose name it was published; None if a concentrator carried it.

    Raises:
        RemoteFault: it is none, or another's.
    """
    if len(payload) > MAX_READING_BYTES:
        raise RemoteFault("oversized", f"{len(payload)} bytes, at most {MAX_READING_BYTES}")
    transaction = decode(payload, Transaction)
    if len(transaction.body.calls) != 1:
        raise Malformed("a reading is one call")
    decode(transaction.body.calls[0], SubmitReading)
    if device is not None and device != transaction.body.sender:
        raise RemoteFault("wrong-topic", f"it is {transaction.body.sender.hex()[:16]}'s")
    return transaction
