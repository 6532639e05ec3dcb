"""Where the energy went: reports against settlement, attestations against certificates.

Law of the file: what one chain did with energy is computed here once more, from what the other
chain sent, and compared batch by batch. Nothing is believed because the receiving chain says so.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from gridtokenx.consortium.settlement.messages import IntervalSettled
from gridtokenx.interchain.apps.attestation import GenerationAttestations
from gridtokenx.interchain.apps.meter_report import MeterEntry, MeterReport
from gridtokenx.interchain.apps.registry import DeviceKind
from gridtokenx.oracle.chain.meters import Outcome
from gridtokenx.public.rec import AttestationDeclined, CertificateIssued

CERTIFIED_WITHIN_MS: Final = 180_000
"""Network time in which an attestation is certified or declined, on however slow a machine."""

KindOf = Callable[[bytes], DeviceKind | None]
"""What the consortium knows a device as; None for a stranger."""
Key = tuple[bytes, int]
"""(device, interval)."""


@dataclass(slots=True)
class Settled:
    """Reports as they left the oracle chain, and what each batch should have made of them."""

    reports: dict[int, dict[int, MeterReport]] = field(default_factory=dict)
    """By interval and chunk."""
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    net_wh: dict[int, dict[bytes, int]] = field(default_factory=dict)
    """By interval and meter: feed-in less draw as last settled."""
    closed: set[int] = field(default_factory=set)
    """Intervals that nothing corrects any more."""

    def report(self, report: MeterReport) -> None:
        """One chunk left the oracle chain; a repetition after a timeout is the same."""
        self.reports.setdefault(report.interval, {})[report.chunk] = report

    def entries(self, interval: int) -> list[MeterEntry] | None:
        """The whole report of an interval, or None if it never left."""
        chunks = self.reports.get(interval, {})
        if not chunks or len(chunks) != next(iter(chunks.values())).chunks:
            return None
        return [entry for _, chunk in sorted(chunks.items()) for entry in chunk.entries]

    def judge_reports(self) -> Iterator[str]:
        """What left the oracle chain is what it says that it measured."""
        for interval in self.reports:
            entries, outcome = self.entries(interval), self.outcomes.get(interval)
            if entries is None:
                continue  # its other chunks wait for room, or for the end of the run
            own = [entry for entry in entries if entry.corrects is None]
            sent = (len(entries), *_sums(own), len(entries) - len(own))
            if outcome is None:
                yield f"interval {interval} was reported, but never closed"
            elif sent != (
                outcome.entries,
                outcome.import_wh,
                outcome.export_wh,
                outcome.corrections,
            ):
                yield f"interval {interval}: its report differs from its outcome"

    def judge_batch(self, batch: IntervalSettled, kind_of: KindOf) -> Iterator[str]:
        """A batch has every meter of its report, and every correction whose window is open."""
        if not batch.metered:
            return
        entries = self.entries(batch.interval)
        if entries is None:
            yield f"interval {batch.interval} was never reported"
            return
        own = [entry for entry in entries if entry.corrects is None]
        meters = [entry for entry in own if kind_of(entry.device) is DeviceKind.METER]
        solar = sum(kind_of(entry.device) is DeviceKind.SOLAR for entry in own)
        unknown = len(own) - len(meters) - solar
        self.net_wh[batch.interval] = {entry.device: _net_wh(entry) for entry in meters}
        corrections = sum(map(self._correct, entries))
        expected = (len(meters), unknown, *_sums(meters), corrections)
        found = (batch.meters, batch.unknown, batch.import_wh, batch.export_wh, batch.corrections)
        if found != expected:
            yield f"interval {batch.interval}: settled {found}, reported {expected}"

    def judge_total(self, metered_wh: int) -> Iterator[str]:
        """Everything that was ever settled, corrections included, is what was last reported."""
        total_wh = sum(sum(meters.values()) for meters in self.net_wh.values())
        if metered_wh != total_wh:
            yield f"{metered_wh} Wh settled in all, {total_wh} Wh reported and corrected"

    def _correct(self, entry: MeterEntry) -> bool:
        """Take a correction; whether there was something to correct."""
        interval = entry.corrects
        if interval is None or interval in self.closed:
            return False
        meters = self.net_wh.get(interval, {})
        if entry.device not in meters:
            return False
        meters[entry.device] = _net_wh(entry)
        return True


@dataclass(slots=True)
class Certified:
    """Attestations as they left the oracle chain, and what became of them."""

    attested: dict[Key, tuple[int, int]] = field(default_factory=dict)
    """(Wh, when it first left in network time)."""
    issued: dict[Key, int] = field(default_factory=dict)
    declined: dict[Key, int] = field(default_factory=dict)
    twice: list[Key] = field(default_factory=list)
    outcomes: list[tuple[int, int]] = field(default_factory=list)
    """(network time of closing, Wh attested with it)."""

    def attest(self, batch: GenerationAttestations, sent_ms: int) -> None:
        """A batch left the oracle chain, perhaps again."""
        for each in batch.attestations:
            self.attested.setdefault((each.device, each.interval), (each.energy_wh, sent_ms))

    def issue(self, event: CertificateIssued) -> None:
        """A certificate came into being."""
        key = (event.device, event.interval)
        if key in self.issued:
            self.twice.append(key)
        self.issued[key] = event.energy_wh

    def decline(self, event: AttestationDeclined) -> None:
        """An attestation was refused, for a reason that is on the chain."""
        self.declined[(event.device, event.interval)] = event.energy_wh

    def judge(self, end_ms: int) -> Iterator[str]:
        """Certificates are exactly what was attested; what is old enough has been decided upon.

        Args:
            end_ms: until when, in network time, both chains are known.
        """
        due_ms = end_ms - CERTIFIED_WITHIN_MS
        for decided in (self.issued, self.declined):
            for key, energy_wh in decided.items():
                if self.attested.get(key, (None, 0))[0] != energy_wh:
                    yield f"{_name(key)}: {energy_wh} Wh decided upon, which nobody attested"
        for key, (energy_wh, sent_ms) in self.attested.items():
            if sent_ms <= due_ms and key not in self.issued and key not in self.declined:
                yield f"{_name(key)}: {energy_wh} Wh attested, neither certified nor declined"
        due_wh = sum(energy_wh for closed_ms, energy_wh in self.outcomes if closed_ms <= due_ms)
        sent_wh = sum(energy_wh for energy_wh, _ in self.attested.values())
        if due_wh > sent_wh:
            yield f"{due_wh} Wh were to be attested, only {sent_wh} Wh left the oracle chain"


def _net_wh(entry: MeterEntry) -> int:
    return entry.export_wh - entry.import_wh


def _sums(entries: list[MeterEntry]) -> tuple[int, int]:
    return sum(entry.import_wh for entry in entries), sum(entry.export_wh for entry in entries)


def _name(key: Key) -> str:
    return f"device {key[0].hex()[:16]}, interval {key[1]}"
