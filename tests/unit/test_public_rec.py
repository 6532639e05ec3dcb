"""Certificates: issued by proof alone, held in parts, retired once."""

from collections.abc import Iterator

import pytest
from tests.public_ledger import FIRST_INTERVAL, START_MS, World, account, attested, key

from gridtokenx.core.codec import decode
from gridtokenx.core.units import GRID
from gridtokenx.interchain.apps import attestation
from gridtokenx.interchain.packets import Acknowledgement, Delivered, Refused
from gridtokenx.ledger.state import State
from gridtokenx.public import rec
from gridtokenx.public.rec import (
    AccountTotals,
    AttestationDeclined,
    CertificateIssued,
    CertificateRetired,
    CertificateTransferred,
    MintOutcome,
    Retire,
    Totals,
    TransferCertificate,
    certificate_id,
)

ROOF = attested()
CERTIFICATE = certificate_id(ROOF.device, ROOF.interval)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    assert outcome(made.attest(ROOF)) == (1, 0)
    return made


def outcome(ack: Acknowledgement) -> tuple[int, int]:
    assert isinstance(ack, Delivered), ack
    counted = decode(ack.result, MintOutcome)
    return counted.issued, counted.declined


def retire(world: World, energy_wh: int, by: str = "alice") -> list[str]:
    call = Retire(CERTIFICATE, energy_wh, "Siam Brewery", "beer of April")
    return world.public.block(call, by=account(by), fee=GRID)


def transfer(world: World, energy_wh: int, by: str = "alice", to: str = "bob") -> list[str]:
    call = TransferCertificate(CERTIFICATE, key(to), energy_wh)
    return world.public.block(call, by=account(by), fee=GRID)


def held(world: World, who: str) -> int:
    return rec.HOLDINGS.read(world.public.state, 0, CERTIFICATE, key(who))


def test_an_attestation_becomes_a_certificate_of_its_owner(world: World) -> None:
    certificate = rec.CERTIFICATES.get(world.public.state, CERTIFICATE)
    assert certificate == rec.Certificate(
        number=0,
        device=ROOF.device,
        interval=FIRST_INTERVAL,
        energy_wh=1_250,
        retired_wh=0,
        owner=key("alice"),
        zone=3,
        source="ES100",
        technology="TC120",
        issued_ms=START_MS + 300_000,
    )
    assert held(world, "alice") == 1_250
    assert rec.NUMBERS.get(world.public.state, 0) == CERTIFICATE
    (issued,) = world.public.events(CertificateIssued)
    assert isinstance(issued, CertificateIssued)
    assert (issued.certificate, issued.energy_wh, issued.owner) == (
        CERTIFICATE,
        1_250,
        key("alice"),
    )


def test_each_device_and_interval_is_certified_once(world: World) -> None:
    """Also with other energy or another owner, and without harm to the rest of its batch."""
    again = attested(energy_wh=9_999, owner="bob")
    assert outcome(world.attest(again, attested(interval=1), attested("shed"))) == (2, 1)
    (declined,) = world.public.events(AttestationDeclined)
    assert isinstance(declined, AttestationDeclined)
    assert (declined.device, declined.energy_wh) == (ROOF.device, 9_999)
    assert declined.code == "already-certified"
    assert held(world, "bob") == 0
    assert rec.TOTALS.get(world.public.state) == Totals(issued_wh=3 * 1_250, retired_wh=0)


def test_what_can_not_be_certified_is_declined(world: World) -> None:
    bad = [attested("coal", source="ES500"), attested("oracle", interval=10**6)]
    assert outcome(world.attest(*bad)) == (0, 2)
    codes = {event.code for event in world.public.events(AttestationDeclined)}
    assert codes == {"unknown-source", "interval-not-over"}


def test_an_interval_is_certified_from_its_very_end() -> None:
    for after_ms, expected in ((29_999, (0, 1)), (30_000, (1, 0))):
        world = World()
        payload = attestation.encode_attestations(
            attestation.GenerationAttestations(attestations=(ROOF,))
        )
        assert outcome(world.deliver(payload, after_ms=after_ms)) == expected


def test_another_chain_can_not_attest() -> None:
    """A proven packet of the consortium, say, on the same port."""
    world = World(client="consortium", oracle_client="consortium")
    world.public_chain.certificates._oracle = "oracle"  # type: ignore[misc]
    ack = world.attest(ROOF)
    assert isinstance(ack, Refused)
    assert ack.code == "not-the-oracle-chain"
    assert rec.TOTALS.get(world.public.state) == Totals(issued_wh=0, retired_wh=0)


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x93\x01\x02\x03", bytes(1_000)])
def test_garbage_is_refused_as_a_whole(world: World, payload: bytes) -> None:
    ack = world.deliver(payload)
    assert isinstance(ack, Refused)
    assert ack.code == "malformed"


def test_more_energy_than_can_be_counted_is_refused_as_a_whole(world: World) -> None:
    most = 2**63 - 1
    ack = world.attest(attested("a", energy_wh=most), attested("b", energy_wh=most, owner="bob"))
    assert isinstance(ack, Refused)
    assert rec.TOTALS.get(world.public.state) == Totals(issued_wh=1_250, retired_wh=0)


def test_no_call_mints(world: World) -> None:
    calls = {type_.__name__ for type_ in world.public.ledger._handlers}
    assert calls == {
        "Bond",
        "Unbond",
        "Withdraw",
        "Nominate",
        "Stand",
        "SetSessionKey",
        "Chill",
        "Transfer",
        "TransferCertificate",
        "Retire",
        "SendTransfer",
        "UpdateClient",
        "SubmitMisbehaviour",
        "ReceivePacket",
        "AcknowledgePacket",
        "TimeoutPacket",
        "ApproveRecovery",
        "RecoverClient",
        "ApprovePause",
    }


def test_a_part_is_transferred_and_each_owner_retires_his_own(world: World) -> None:
    assert transfer(world, 250) == ["ok"]
    (moved,) = world.public.events(CertificateTransferred)
    assert moved == CertificateTransferred(CERTIFICATE, key("alice"), key("bob"), 250)
    assert (held(world, "alice"), held(world, "bob")) == (1_000, 250)
    assert retire(world, 250, by="bob") == ["ok"]
    assert retire(world, 400) == ["ok"]
    assert (held(world, "alice"), held(world, "bob")) == (600, 0)
    assert not rec.HOLDINGS.has(world.public.state, CERTIFICATE, key("bob"))
    state = world.public.state
    assert rec.CERTIFICATES.get(state, CERTIFICATE).retired_wh == 650  # type: ignore[union-attr]
    assert rec.ACCOUNTS.get(state, key("alice")) == AccountTotals(held_wh=600, retired_wh=400)
    assert rec.ACCOUNTS.get(state, key("bob")) == AccountTotals(held_wh=0, retired_wh=250)
    assert rec.TOTALS.get(state) == Totals(issued_wh=1_250, retired_wh=650)


def test_a_retirement_names_its_beneficiary_and_reason(world: World) -> None:
    assert retire(world, 1_250) == ["ok"]
    (event,) = world.public.events(CertificateRetired)
    assert event == CertificateRetired(
        0, CERTIFICATE, key("alice"), 1_250, "Siam Brewery", "beer of April"
    )
    claim = rec.RETIREMENTS.get(world.public.state, 0)
    assert claim is not None
    assert (claim.beneficiary, claim.reason) == ("Siam Brewery", "beer of April")
    assert claim.retired_ms == world.public.head.header.timestamp_ms


@pytest.mark.parametrize("act", [retire, transfer])
def test_nobody_gives_what_he_does_not_hold(world: World, act) -> None:
    assert act(world, 1_251) == ["insufficient-energy"]
    assert act(world, 1, by="bob") == ["insufficient-energy"]
    assert act(world, 1_250) == ["ok"]
    assert act(world, 1) == ["insufficient-energy"]


def test_a_transfer_to_oneself_changes_nothing(world: World) -> None:
    assert transfer(world, 1_250, to="alice") == ["ok"]
    assert held(world, "alice") == 1_250


def test_a_certificate_that_does_not_exist(world: World) -> None:
    call = Retire(bytes(32), 1, "nobody", "")
    assert world.public.block(call, by=account("alice"), fee=GRID) == ["insufficient-energy"]


@pytest.mark.parametrize("call", [Retire(CERTIFICATE, 0, "x", ""), Retire(CERTIFICATE, 1, "", "")])
def test_calls_out_of_bounds_never_enter_a_block(world: World, call: Retire) -> None:
    assert world.public.block(call, by=account("alice"), fee=GRID) == ["kept out"]


def test_broken_books_are_noticed(world: World) -> None:
    """The invariants see what no call can do."""
    module = world.public_chain.certificates

    def complaints(*changes) -> str:
        state = State(world.public.head.state)
        for store, value, *parts in changes:
            store.put(state, value, *parts)
        return "\n".join(module.check_invariants(state))

    certificate = rec.CERTIFICATES.get(world.public.state, CERTIFICATE)
    assert complaints() == ""
    assert "1250 Wh issued, 1251 held" in complaints(
        (rec.HOLDINGS, 1_251, CERTIFICATE, key("alice"))
    )
    assert "never issued" in complaints((rec.HOLDINGS, 1, bytes(32), key("alice")))
    assert "retired in all" in complaints((rec.TOTALS, Totals(1_250, 1)))
    assert "issued in all" in complaints((rec.TOTALS, Totals(1_249, 0)))
    assert "booked" in complaints((rec.ACCOUNTS, AccountTotals(1, 0), key("bob")))
    assert "not filed" in complaints((rec.CERTIFICATES, certificate, bytes(32)))
    assert "not number 0" in complaints((rec.CERTIFICATES, certificate, bytes(32)))
