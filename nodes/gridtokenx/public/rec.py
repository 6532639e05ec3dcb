"""Renewable energy certificates: watt-hours that were metered, proved, and can be claimed once.

Law of the file: **issued = held + retired, for every certificate, and every Wh is certified once.**
A certificate is the energy of one device over one interval. It comes into being only when an
attestation arrives from the oracle chain by a proven packet: there is no call that mints. It is
held in parts by accounts, moves by `TransferCertificate`, and ends by `Retire`, after which nobody
else can claim that energy.

::

    attestation packet --> issued to the device's owner
                              |  TransferCertificate (all or part)
                              v
                            held --Retire (all or part)--> retired for a beneficiary, for ever

Fields are those of the EnergyTag granular certificate; source and technology are I-REC codes.
One REC of 1 MWh is a view on Wh. `Ours differs:` from I-REC in that a certificate covers half an
hour of one device instead of whole MWh over months: parts make that cheap, and claims precise.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Final

from msgspec import Meta
from msgspec.structs import replace

from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.gridtime import GridClock, interval_start_ms
from gridtokenx.core.keys import sha256
from gridtokenx.core.types import UINT63_MAX, Hash32, Index16, Millis, PublicKey, ShortText, UInt63
from gridtokenx.core.units import checked_amount
from gridtokenx.interchain.apps import attestation
from gridtokenx.interchain.apps.attestation import GenerationAttestation
from gridtokenx.interchain.packets import Acknowledgement, Packet
from gridtokenx.ledger.runtime import CallFailed, Context, Module, handles
from gridtokenx.ledger.state import Cell, Log, Map, State

TECHNOLOGY_OF: Final = {attestation.SOLAR: "TC120"}
"""I-REC technology by source: the solar that this network certifies is on roofs."""

EnergyWh = Annotated[int, Meta(ge=1, le=UINT63_MAX)]
Beneficiary = Annotated[str, Meta(min_length=1, max_length=64)]


class Certificate(Wire, frozen=True):
    """Energy of one device over one interval."""

    number: UInt63
    """Certificates are numbered from 0 in the order of issue."""
    device: Hash32
    """The generation sub-meter."""
    interval: UInt63
    """UTC index of the half hour."""
    energy_wh: EnergyWh
    """Issued."""
    retired_wh: UInt63
    """Of that, claimed; the rest is held."""
    owner: PublicKey
    """The account to which it was issued."""
    zone: Index16
    """Grid zone of the device."""
    source: ShortText
    """I-REC energy source, such as ``ES100``."""
    technology: ShortText
    """I-REC technology, such as ``TC120``."""
    issued_ms: Millis
    """Network time of the block that issued it."""


class Retirement(Wire, frozen=True):
    """A claim: who used which energy, and why."""

    certificate: Hash32
    account: PublicKey
    """Who held it and gave it up."""
    energy_wh: EnergyWh
    beneficiary: Beneficiary
    """For whom it is claimed: an organisation or a pseudonym, never a person's name."""
    reason: ShortText
    retired_ms: Millis
    """Network time of the block."""


class AccountTotals(Wire, frozen=True):
    """One account's energy, over all certificates."""

    held_wh: UInt63
    retired_wh: UInt63


class Totals(Wire, frozen=True):
    """All certificates of the chain."""

    issued_wh: UInt63
    retired_wh: UInt63


class Retire(Wire, frozen=True, tag="rec.retire"):
    """Claim energy that the sender holds; it can never be claimed again."""

    certificate: Hash32
    energy_wh: EnergyWh
    """All that the sender holds of it, or a part."""
    beneficiary: Beneficiary
    """See `Retirement`: public, for ever."""
    reason: ShortText


class TransferCertificate(Wire, frozen=True, tag="rec.transfer"):
    """Give energy that the sender holds to another account."""

    certificate: Hash32
    to: PublicKey
    energy_wh: EnergyWh
    """All that the sender holds of it, or a part."""


class CertificateIssued(Wire, frozen=True, tag="rec.issued"):
    """A certificate came into being."""

    certificate: Hash32
    number: UInt63
    device: Hash32
    interval: UInt63
    energy_wh: EnergyWh
    owner: PublicKey
    zone: Index16
    source: ShortText
    technology: ShortText


class AttestationDeclined(Wire, frozen=True, tag="rec.declined"):
    """A proven attestation was not certified: the oracle chain has to explain itself."""

    device: Hash32
    interval: UInt63
    energy_wh: EnergyWh
    code: ShortText


class CertificateTransferred(Wire, frozen=True, tag="rec.transferred"):
    """A certificate, or a part, changed hands."""

    certificate: Hash32
    sender: PublicKey
    to: PublicKey
    energy_wh: EnergyWh


class CertificateRetired(Wire, frozen=True, tag="rec.retired"):
    """A certificate, or a part, was claimed."""

    number: UInt63
    """Retirements are numbered from 0."""
    certificate: Hash32
    account: PublicKey
    energy_wh: EnergyWh
    beneficiary: Beneficiary
    reason: ShortText


class MintOutcome(Wire, frozen=True):
    """The result in the acknowledgement of an attestation packet."""

    issued: UInt63
    """Certificates that the packet brought into being."""
    declined: UInt63
    """Attestations that were not certified."""


CERTIFICATES: Final = Map("rec.certificate", Certificate)
"""(certificate id) -> the certificate."""
HOLDINGS: Final = Map("rec.holding", int)
"""(certificate id, account) -> Wh that the account holds of it."""
ACCOUNTS: Final = Map("rec.account", AccountTotals)
"""(account) -> what it holds and has retired."""
NUMBERS: Final[Log[bytes]] = Log("rec.number", bytes)
"""Certificate ids in the order of issue."""
RETIREMENTS: Final = Log("rec.retirement", Retirement)
"""All claims in their order."""
TOTALS: Final = Cell("rec.totals", Totals, Totals(issued_wh=0, retired_wh=0))

NO_ENERGY: Final = AccountTotals(held_wh=0, retired_wh=0)


def certificate_id(device: bytes, interval: int) -> bytes:
    """The id of the one certificate that a device can have for an interval."""
    return sha256(b"gtx:certificate:1", device, interval.to_bytes(8, "big"))


class Certificates(Module):
    """See the head of the file; also the app of the ``attestation`` port.

    Args:
        clock: tells whether an interval is over.
        oracle_client: our client of the oracle chain; no other chain may attest.
    """

    name = "rec"
    port = attestation.PORT
    events = (CertificateIssued, AttestationDeclined, CertificateTransferred, CertificateRetired)

    def __init__(self, clock: GridClock, oracle_client: str) -> None:
        self._clock: Final = clock
        self._oracle: Final = oracle_client

    # -- the only way in ---------------------------------------------------------------------------

    def on_receive(self, ctx: Context, packet: Packet) -> bytes:
        """Certify a batch of attestations; what can not be certified is declined one by one.

        One bad attestation must not cost the other owners of its batch their certificates, because
        a refused packet is not sent again.
        """
        if packet.destination_client != self._oracle:
            raise CallFailed("not-the-oracle-chain", f"attested by {packet.destination_client!r}")
        batch = attestation.decode_attestations(packet.payload).attestations
        declined = 0
        for each in batch:
            try:
                self.mint(ctx, each)
            except CallFailed as refusal:
                declined += 1
                ctx.emit(_declined(each, refusal.code))
        return encode(MintOutcome(issued=len(batch) - declined, declined=declined))

    def on_acknowledge(self, ctx: Context, packet: Packet, ack: Acknowledgement) -> None:
        """Nothing: this chain sends no attestations."""

    def on_timeout(self, ctx: Context, packet: Packet) -> None:
        """Nothing: this chain sends no attestations."""

    def mint(self, ctx: Context, attested: GenerationAttestation) -> bytes:
        """Issue the certificate of a proven attestation to its owner; returns its id.

        Raises:
            CallFailed: before anything changed, if this energy can not be certified.
        """
        state = ctx.state
        name = certificate_id(attested.device, attested.interval)
        if CERTIFICATES.has(state, name):
            raise CallFailed("already-certified", f"{name.hex()[:16]}")
        technology = TECHNOLOGY_OF.get(attested.source)
        if technology is None:
            raise CallFailed("unknown-source", f"{attested.source!r}, known: {[*TECHNOLOGY_OF]}")
        if interval_start_ms(attested.interval + 1) > self._clock.grid_ms(ctx.timestamp_ms):
            raise CallFailed("interval-not-over", f"interval {attested.interval}")
        certificate = Certificate(
            number=NUMBERS.append(state, name),
            device=attested.device,
            interval=attested.interval,
            energy_wh=attested.energy_wh,
            retired_wh=0,
            owner=attested.owner,
            zone=attested.zone,
            source=attested.source,
            technology=technology,
            issued_ms=ctx.timestamp_ms,
        )
        CERTIFICATES.put(state, certificate, name)
        _give(state, name, attested.owner, attested.energy_wh)
        totals = TOTALS.get(state)
        issued_wh = checked_amount(totals.issued_wh + attested.energy_wh)
        TOTALS.put(state, replace(totals, issued_wh=issued_wh))
        ctx.emit(_issued(name, certificate))
        return name

    # -- calls -------------------------------------------------------------------------------------

    @handles(TransferCertificate)
    def transfer(self, ctx: Context, call: TransferCertificate) -> None:
        """Give held energy to another account."""
        _take(ctx.state, call.certificate, ctx.sender, call.energy_wh)
        _give(ctx.state, call.certificate, call.to, call.energy_wh)
        ctx.emit(
            CertificateTransferred(
                certificate=call.certificate,
                sender=ctx.sender,
                to=call.to,
                energy_wh=call.energy_wh,
            )
        )

    @handles(Retire)
    def retire(self, ctx: Context, call: Retire) -> None:
        """Claim held energy for a beneficiary."""
        state, energy_wh = ctx.state, call.energy_wh
        _take(state, call.certificate, ctx.sender, energy_wh)
        certificate = CERTIFICATES.get(state, call.certificate)
        if certificate is None:
            raise AssertionError(f"{call.certificate.hex()} is held, but was never issued")
        retired_wh = certificate.retired_wh + energy_wh
        CERTIFICATES.put(state, replace(certificate, retired_wh=retired_wh), call.certificate)
        account = ACCOUNTS.read(state, NO_ENERGY, ctx.sender)
        ACCOUNTS.put(state, replace(account, retired_wh=account.retired_wh + energy_wh), ctx.sender)
        totals = TOTALS.get(state)
        TOTALS.put(state, replace(totals, retired_wh=totals.retired_wh + energy_wh))
        self._record(ctx, call)

    def _record(self, ctx: Context, call: Retire) -> None:
        retirement = Retirement(
            certificate=call.certificate,
            account=ctx.sender,
            energy_wh=call.energy_wh,
            beneficiary=call.beneficiary,
            reason=call.reason,
            retired_ms=ctx.timestamp_ms,
        )
        ctx.emit(
            CertificateRetired(
                number=RETIREMENTS.append(ctx.state, retirement),
                certificate=call.certificate,
                account=ctx.sender,
                energy_wh=call.energy_wh,
                beneficiary=call.beneficiary,
                reason=call.reason,
            )
        )

    # -- laws --------------------------------------------------------------------------------------

    def check_invariants(self, state: State) -> Iterator[str]:
        """Issued = held + retired: by certificate, by account, and in all."""
        held, held_by = Counter[bytes](), Counter[bytes]()
        for key, energy_wh in HOLDINGS.scan(state):
            held[key[1:33]] += energy_wh
            held_by[key[34:]] += energy_wh
        retired, retired_by = Counter[bytes](), Counter[bytes]()
        for claim in RETIREMENTS.walk(state):
            retired[claim.certificate] += claim.energy_wh
            retired_by[claim.account] += claim.energy_wh
        yield from _check_certificates(state, held, retired)
        yield from _check_accounts(state, held_by, retired_by)
        totals = TOTALS.get(state)
        if totals.retired_wh != retired.total():
            yield f"{totals.retired_wh} Wh retired in all, claims add up to {retired.total()}"
        if totals.issued_wh != held.total() + retired.total():
            yield (
                f"{totals.issued_wh} Wh issued in all, {held.total()} held and "
                f"{retired.total()} retired"
            )


def _check_certificates(
    state: State, held: Counter[bytes], retired: Counter[bytes]
) -> Iterator[str]:
    names = set(held) | set(retired)
    for key, certificate in CERTIFICATES.scan(state):
        name = key[1:]
        names.discard(name)
        if name != certificate_id(certificate.device, certificate.interval):
            yield f"certificate {name.hex()[:16]} is not filed under its device and interval"
        if NUMBERS.get(state, certificate.number) != name:
            yield f"certificate {name.hex()[:16]} is not number {certificate.number}"
        if retired[name] != certificate.retired_wh:
            yield f"certificate {name.hex()[:16]}: its claims do not add up to its retired Wh"
        if certificate.energy_wh != held[name] + retired[name]:
            yield (
                f"certificate {name.hex()[:16]}: {certificate.energy_wh} Wh issued, "
                f"{held[name]} held and {retired[name]} retired"
            )
    for name in names:
        yield f"certificate {name.hex()[:16]} is held or retired, but was never issued"


def _check_accounts(state: State, held: Counter[bytes], retired: Counter[bytes]) -> Iterator[str]:
    booked = {key[1:]: totals for key, totals in ACCOUNTS.scan(state)}
    for account in booked.keys() | held.keys() | retired.keys():
        actual = AccountTotals(held_wh=held[account], retired_wh=retired[account])
        if booked.get(account, NO_ENERGY) != actual:
            yield f"account {account.hex()[:16]}: {booked.get(account)} booked, {actual} found"


def _give(state: State, certificate: bytes, account: bytes, energy_wh: int) -> None:
    held_wh = HOLDINGS.read(state, 0, certificate, account) + energy_wh
    HOLDINGS.put(state, checked_amount(held_wh), certificate, account)
    totals = ACCOUNTS.read(state, NO_ENERGY, account)
    held_wh = checked_amount(totals.held_wh + energy_wh)
    ACCOUNTS.put(state, replace(totals, held_wh=held_wh), account)


def _take(state: State, certificate: bytes, account: bytes, energy_wh: int) -> None:
    held_wh = HOLDINGS.read(state, 0, certificate, account)
    if energy_wh > held_wh:
        raise CallFailed("insufficient-energy", f"{held_wh} Wh held, {energy_wh} asked")
    if energy_wh == held_wh:
        HOLDINGS.delete(state, certificate, account)
    else:
        HOLDINGS.put(state, held_wh - energy_wh, certificate, account)
    totals = ACCOUNTS.read(state, NO_ENERGY, account)
    ACCOUNTS.put(state, replace(totals, held_wh=totals.held_wh - energy_wh), account)


def _issued(name: bytes, certificate: Certificate) -> CertificateIssued:
    return CertificateIssued(
        certificate=name,
        number=certificate.number,
        device=certificate.device,
        interval=certificate.interval,
        energy_wh=certificate.energy_wh,
        owner=certificate.owner,
        zone=certificate.zone,
        source=certificate.source,
        technology=certificate.technology,
    )


def _declined(attested: GenerationAttestation, code: str) -> AttestationDeclined:
    return AttestationDeclined(
        device=attested.device, interval=attested.interval, energy_wh=attested.energy_wh, code=code
    )
