"""What a running network is at: packets under way, intervals settled, transactions, by its events."""

from collections import Counter
from dataclasses import dataclass, field

from gridtokenx.consortium.market.messages import AuctionCleared
from gridtokenx.consortium.settlement.messages import IntervalSettled
from gridtokenx.core.machine import Instant
from gridtokenx.host.chains import ChainFacts
from gridtokenx.interchain import calls
from gridtokenx.lab.replay import decoded_events
from gridtokenx.lab.sim.history import BlockPoint, PacketPoint
from gridtokenx.lab.sim.world import START_MS
from gridtokenx.ledger.runtime import Executed, ExecutedBlock


@dataclass(slots=True)
class Tally:
    """Counted as blocks become final for the first time."""

    transactions: int = 0
    auctions: int = 0
    settled: int = -1
    """The last interval that the consortium settled from what was metered."""
    settlements: int = 0
    blocks: list[BlockPoint] = field(default_factory=list)
    packets: list[PacketPoint] = field(default_factory=list)
    open_packets: dict[bytes, Instant] = field(default_factory=dict)
    """When each left that has not ended for its sender."""
    travelled_ms: list[int] = field(default_factory=list)
    """From a packet's leaving until its sender knew how it ended."""
    ended: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    """Calls in blocks that failed, by chain and reason."""

    def take(self, facts: ChainFacts, executed: ExecutedBlock, now: Instant) -> None:
        """One more block of a chain."""
        transactions = len(executed.block.transactions)
        self.transactions += transactions
        point = BlockPoint(
            at_ms=now - START_MS,
            height=executed.height,
            transactions=transactions,
            latency_ms=-1,
            chain=facts.name,
        )
        self.blocks.append(point)
        for event in decoded_events(facts.ledger, executed):
            match event:
                case calls.PacketSent():
                    self.open_packets[event.packet_id] = now
                case calls.PacketAcknowledged(packet_id, client_id):
                    self._end(packet_id, "acknowledged", f"{facts.name}-{client_id}", now)
                case calls.PacketTimedOut(packet_id, client_id):
                    self._end(packet_id, "timed out", f"{facts.name}-{client_id}", now)
                case Executed():
                    self._count_refused(facts.name, event)
                case AuctionCleared():
                    self.auctions += 1
                case IntervalSettled() if event.metered:
                    self.settled = max(self.settled, event.interval)
                    self.settlements += 1

    def _count_refused(self, chain: str, executed: Executed) -> None:
        for result in executed.results:
            if result.code != "ok":
                self.refused[f"{chain}: {result.code}"] += 1

    def _end(self, packet: bytes, how: str, route: str, now: Instant) -> None:
        self.ended[how] += 1
        sent_ms = self.open_packets.pop(packet, None)
        if sent_ms is None:
            return
        self.travelled_ms.append(now - sent_ms)
        point = PacketPoint(at_ms=now - START_MS, latency_ms=now - sent_ms, end=how, route=route)
        self.packets.append(point)
