"""What a running network is at: packets under way, intervals settled, transactions, by its events."""

from collections import Counter
from dataclasses import dataclass, field

from gridtokenx.consortium.market.messages import AuctionCleared
from gridtokenx.consortium.settlement.messages import IntervalSettled
from gridtokenx.core.machine import Instant
from gridtokenx.host.chains import ChainFacts
from gridtokenx.interchain import calls
from gridtokenx.lab.replay import decoded_events
from gridtokenx.ledger.runtime import ExecutedBlock


@dataclass(slots=True)
class Tally:
    """Counted as blocks become final for the first time."""

    transactions: int = 0
    auctions: int = 0
    settled: int = -1
    """The last interval that the consortium settled from what was metered."""
    settlements: int = 0
    open_packets: dict[bytes, Instant] = field(default_factory=dict)
    """When each left that has not ended for its sender."""
    travelled_ms: list[int] = field(default_factory=list)
    """From a packet's leaving until its sender knew how it ended."""
    ended: Counter[str] = field(default_factory=Counter)

    def take(self, facts: ChainFacts, executed: ExecutedBlock, now: Instant) -> None:
        """One more block of a chain."""
        self.transactions += len(executed.block.transactions)
        for event in decoded_events(facts.ledger, executed):
            match event:
                case calls.PacketSent():
                    self.open_packets[event.packet_id] = now
                case calls.PacketAcknowledged():
                    self._end(event.packet_id, "acknowledged", now)
                case calls.PacketTimedOut():
                    self._end(event.packet_id, "timed out", now)
                case AuctionCleared():
                    self.auctions += 1
                case IntervalSettled() if event.metered:
                    self.settled = max(self.settled, event.interval)
                    self.settlements += 1

    def _end(self, packet: bytes, how: str, now: Instant) -> None:
        self.ended[how] += 1
        sent_ms = self.open_packets.pop(packet, None)
        if sent_ms is not None:
            self.travelled_ms.append(now - sent_ms)
