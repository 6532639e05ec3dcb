"""Lying oracles: what one of them may do to readings and observations on their way into its chain.

Law of the file: **an oracle signs for itself.** It may say of a price what it likes, and keep back or
change what meters sent it; it cannot sign for a meter.

======================  ========================================================================
behaviour               what it does
======================  ========================================================================
false-price             observes several times, or a fraction of, what its source says
withheld-data           hands over neither readings nor observations
late-data               hands them over later
false-reading           changes what meters measured, under their signatures
false-watermark         tells devices that more of their readings are committed, or none
======================  ========================================================================
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final, get_args

from msgspec.structs import replace

from gridtokenx.core.codec import Wire, decode, encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Signer
from gridtokenx.lab.faults import Behave, OfOracles
from gridtokenx.lab.sim.testnet.broker import Publish, read
from gridtokenx.lab.sim.testnet.meddling import Meddler
from gridtokenx.lab.sim.testnet.processes import Life
from gridtokenx.ledger.readings import TOPIC_ROOT, SubmitReading, Watermark
from gridtokenx.ledger.runtime import ExecutedBlock, Ledger
from gridtokenx.ledger.transactions import Transaction, sign_transaction
from gridtokenx.oracle.chain.feeds import SubmitObservation
from gridtokenx.oracle.chain.parameters import FeedSpec
from gridtokenx.oracle.process.service import OracleNode

BEHAVIOURS: Final[tuple[str, ...]] = get_args(OfOracles)
FACTORS: Final = ((3, 1), (1, 3))
TOO_MUCH_WH: Final = 1_000
_WATERMARKS: Final = f"{TOPIC_ROOT}/watermark/"


class Lie:
    """One fault of kind `behave` of an oracle.

    Args:
        fault: of this file's behaviours.
        draw: of what it leaves to chance.
        factor: by which it lies about prices, as a fraction; liars agree on it.
    """

    def __init__(self, fault: Behave, draw: random.Random, factor: tuple[int, int]) -> None:
        self.fault: Final = fault
        self.active = False
        self._draw: Final = draw
        self._factor: Final = factor

    def tells(self) -> bool:
        """Whether it uses this opportunity."""
        return self.active and (self.fault.share >= 1 or self._draw.random() < self.fault.share)

    def price(self, value: int, spec: FeedSpec) -> int:
        """Another value, as far away as the feed lets it be."""
        times, parts = self._factor
        return min(max(value * times // parts, spec.minimum), spec.maximum)


class FalseWatermarks(Meddler):
    """false-watermark: nobody signs them, and each device believes what it may have said."""

    def meddle(self, body: bytes) -> Iterator[bytes]:
        """See `Meddler`: what is published of watermarks is changed."""
        said = self._false(body) if self.tells() else None
        self.changed += said is not None
        yield said or body

    def _false(self, body: bytes) -> bytes | None:
        with suppress(RemoteFault):
            packet = read(body)
            if isinstance(packet, Publish) and packet.topic.startswith(_WATERMARKS):
                said = decode(packet.payload, Watermark)
                wrong = self.draw.choice((0, said.sequence + 1, said.sequence + 3))
                payload = encode(replace(said, sequence=wrong))
                return encode(replace(packet, payload=payload))
        return None


class Desk:
    """Between an oracle's service and its chain node; see `OracleNode`.

    Args:
        node: the chain node.
        life: of the process.
        signer: the oracle's key.
        ledger: of the oracle chain.
        feeds: by name.
        lies: what this oracle does.
        deeds: counts what it did, by behaviour.
    """

    def __init__(
        self,
        node: OracleNode,
        life: Life,
        signer: Signer,
        ledger: Ledger,
        feeds: Mapping[str, FeedSpec],
        lies: Sequence[Lie],
        deeds: Counter[str],
    ) -> None:
        self._node: Final = node
        self._life: Final = life
        self._signer: Final = signer
        self._ledger: Final = ledger
        self._feeds: Final = feeds
        self._lies: Final = lies
        self._deeds: Final = deeds

    @property
    def head(self) -> ExecutedBlock:
        """The last committed block."""
        return self._node.head

    @property
    def pending(self) -> int:
        """Transactions that wait for a block here."""
        return self._node.pending

    def submit(self, transactions: Sequence[Transaction], *, everywhere: bool = False) -> None:
        """Hand over what is left of transactions, now or later."""
        for lie in self._lies:
            if not transactions or not lie.tells():
                continue
            said = tuple(self._told(lie, transactions))
            self._deeds[lie.fault.behaviour] += said != tuple(transactions)
            if lie.fault.behaviour == "late-data":
                self._deeds["late-data"] += 1
                self._later(lie.fault.delay_ms, said, everywhere=everywhere)
                return
            if lie.fault.behaviour == "false-reading":
                everywhere = False  # nobody else has it from the broker
            transactions = said
        if transactions:
            self._node.submit(transactions, everywhere=everywhere)

    def _later(self, delay_ms: int, said: Sequence[Transaction], *, everywhere: bool) -> None:
        def hand_over() -> None:
            with suppress(RemoteFault):  # the node is too busy by then
                self._node.submit(said, everywhere=everywhere)

        self._life.after(delay_ms, hand_over)

    def _told(self, lie: Lie, transactions: Iterable[Transaction]) -> Iterator[Transaction]:
        match lie.fault.behaviour:
            case "withheld-data":
                """Nothing."""
            case "false-price" | "false-reading":
                for transaction in transactions:
                    yield self._changed(lie, transaction)
            case _:
                yield from transactions

    def _changed(self, lie: Lie, transaction: Transaction) -> Transaction:
        (call,) = self._ledger.decode_calls(transaction)
        match call:
            case SubmitObservation() if lie.fault.behaviour == "false-price":
                false = replace(call, value=lie.price(call.value, self._feeds[call.feed]))
                body = transaction.body
                return sign_transaction(self._signer, body.chain_id, body.nonce, [false])
            case SubmitReading() if lie.fault.behaviour == "false-reading":
                return _with_call(transaction, _more(call))
            case _:
                return transaction


def _more(call: SubmitReading) -> SubmitReading:
    return replace(call, import_wh=call.import_wh + TOO_MUCH_WH)


def _with_call(transaction: Transaction, call: Wire) -> Transaction:
    """Another call under the same signature."""
    body = replace(transaction.body, calls=(encode(call),))
    return Transaction(body=body, signature=transaction.signature)
