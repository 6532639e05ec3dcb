"""The audit's own books of energy, against a real settlement, and against what could go wrong."""

from collections.abc import Iterable

import pytest
from msgspec.structs import replace
from tests.consortium_world import ConsortiumWorld, entry, reports
from tests.unit.test_consortium_settlement import HOUSES, NEXT, deliver, idle, traded

from gridtokenx.consortium.settlement.messages import IntervalSettled, WindowClosed
from gridtokenx.interchain.apps import attestation
from gridtokenx.interchain.apps.attestation import GenerationAttestation, GenerationAttestations
from gridtokenx.interchain.apps.meter_report import MeterEntry
from gridtokenx.interchain.apps.registry import DeviceKind
from gridtokenx.lab.testnet.energy import CERTIFIED_WITHIN_MS, Certified, Settled
from gridtokenx.oracle.chain.meters import Outcome
from gridtokenx.public.rec import AttestationDeclined, CertificateIssued

STRANGER = replace(entry("b0", import_wh=7), device=b"\x05" * 32)


class Books:
    """A consortium world, and the audit's books of what is delivered to it."""

    def __init__(self) -> None:
        self.world: ConsortiumWorld = traded()
        self.book = Settled()
        for report in reports(NEXT - 1, idle()):
            self.book.report(report)

    def kind_of(self, device: bytes) -> DeviceKind | None:
        known = self.world.chain.participants.device(self.world.state, device)
        return None if known is None else known.kind

    def deliver(self, interval: int, *entries: MeterEntry) -> None:
        own = {each.device for each in entries if each.corrects is None}
        rest = [each for each in idle() if each.device not in own]
        for report in reports(interval, [*entries, *rest]):
            self.book.report(report)
        deliver(self.world, interval, *entries)

    def judge(self) -> list[str]:
        found: list[str] = []
        for event in self.world.events:
            if isinstance(event, WindowClosed):
                self.book.closed.add(event.interval)
            elif isinstance(event, IntervalSettled):
                found += self.book.judge_batch(event, self.kind_of)
        totals = self.world.chain.settlement.totals.get(self.world.state)
        return found + list(self.book.judge_total(totals.metered_wh))


def test_strangers_corrections_and_closed_windows_are_booked_as_settlement_does() -> None:
    books = Books()
    books.deliver(NEXT, entry("s0", export_wh=900), entry("b0", import_wh=1_200), STRANGER)
    books.deliver(NEXT + 1, entry("b1", import_wh=40, corrects=NEXT), STRANGER)
    books.deliver(NEXT + 2, entry("b1", import_wh=25, corrects=NEXT))
    for later in range(3, 6):
        books.deliver(NEXT + later, entry("s1", export_wh=later, corrects=NEXT))
    assert books.judge() == []
    settled = books.world.all(IntervalSettled)
    assert sum(each.unknown for each in settled) == 2
    assert 0 < sum(each.corrections for each in settled) < 5, "some came too late"


def broken_by(change: Iterable[tuple[str, int]]) -> list[str]:
    books = Books()
    books.deliver(NEXT, entry("b0", import_wh=1_200), STRANGER)
    books.deliver(NEXT + 1, entry("b0", import_wh=1_100, corrects=NEXT))
    events = books.world.events
    changes = dict(change)
    books.world.events = [
        replace(each, **{k: getattr(each, k) + v for k, v in changes.items()})
        if isinstance(each, IntervalSettled) and each.interval == NEXT
        else each
        for each in events
    ]
    return books.judge()


def test_an_interval_with_a_stranger_is_judged_all_the_same() -> None:
    assert broken_by([]) == []
    for field in ("import_wh", "export_wh", "meters", "unknown", "corrections"):
        assert any(f"interval {NEXT}" in each for each in broken_by([(field, 1)])), field


def test_a_correction_that_settlement_ignored_shows_in_the_total() -> None:
    books = Books()
    books.deliver(NEXT, entry("b0", import_wh=1_200))
    assert books.judge() == []
    books.book.net_wh[NEXT][STRANGER.device] = -7
    totals = books.world.chain.settlement.totals.get(books.world.state)
    assert len(list(books.book.judge_total(totals.metered_wh))) == 1


def test_a_batch_without_a_report_is_no_batch() -> None:
    books = Books()
    books.deliver(NEXT)
    del books.book.reports[NEXT]
    assert books.judge() == [f"interval {NEXT} was never reported"]


def test_a_report_is_the_outcome_of_its_interval() -> None:
    book = Settled()
    entries = [entry(name, import_wh=10) for name in HOUSES]
    (report,) = reports(NEXT, entries)
    book.report(report)
    assert list(book.judge_reports()) == [f"interval {NEXT} was reported, but never closed"]
    outcome = Outcome(NEXT, report.root, 4, 4, 40, 0, 0, 0, 0, 0, 1)
    book.outcomes[NEXT] = outcome
    assert list(book.judge_reports()) == []
    for change in ({"import_wh": 41}, {"corrections": 1}, {"entries": 5}, {"export_wh": 1}):
        book.outcomes[NEXT] = replace(outcome, **change)
        assert len(list(book.judge_reports())) == 1


# -- certificates ----------------------------------------------------------------------------------

ROOF, OTHER = b"\x01" * 32, b"\x02" * 32
SENT_MS = 1_000_000
END_MS = SENT_MS + CERTIFIED_WITHIN_MS


def attested() -> Certified:
    book = Certified()
    each = GenerationAttestation(ROOF, 5, 120, OTHER, 0, attestation.SOLAR)
    other = replace(each, device=OTHER, energy_wh=80)
    book.attest(GenerationAttestations((each, other)), SENT_MS)
    book.outcomes.append((SENT_MS, 200))
    return book


def issued(device: bytes, energy_wh: int) -> CertificateIssued:
    return CertificateIssued(bytes(32), 0, device, 5, energy_wh, OTHER, 0, "ES100", "T")


def test_an_attestation_is_certified_or_declined_in_time() -> None:
    book = attested()
    assert list(book.judge(END_MS - 1)) == [], "it may still come"
    assert len(list(book.judge(END_MS))) == 2
    book.issue(issued(ROOF, 120))
    assert len(list(book.judge(END_MS))) == 1
    book.decline(AttestationDeclined(OTHER, 5, 80, "unknown-source"))
    assert list(book.judge(END_MS)) == []


def test_an_attestation_sent_again_is_as_old_as_the_first() -> None:
    book = attested()
    each = GenerationAttestation(ROOF, 5, 120, OTHER, 0, attestation.SOLAR)
    book.attest(GenerationAttestations((each,)), END_MS)
    assert len(list(book.judge(END_MS))) == 2


@pytest.mark.parametrize("energy_wh", [119, 121])
def test_nothing_is_certified_but_what_was_attested(energy_wh: int) -> None:
    book = attested()
    book.issue(issued(ROOF, energy_wh))
    assert len(list(book.judge(SENT_MS))) == 1
    book.issue(issued(ROOF, 120))
    assert book.twice == [(ROOF, 5)]


def test_what_waits_on_the_oracle_chain_is_missed() -> None:
    book = attested()
    book.outcomes.append((SENT_MS, 60))
    assert list(book.judge(END_MS - 1)) == []
    book.issue(issued(ROOF, 120))
    book.issue(issued(OTHER, 80))
    assert len(list(book.judge(END_MS))) == 1
