"""An oracle chain in memory with devices, and a consortium that is keys and a state tree.

The consortium here has no ledger: it commits to registry packets in a tree and certifies headers of
it, which is all that the oracle chain can see of it anyway.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from gridtokenx.core.codec import Wire, decode, encode
from gridtokenx.core.gridtime import INTERVAL_MS, GridClock, interval_at, interval_start_ms
from gridtokenx.core.keys import KeyedHashSigner, KeyedHashVerifier, sha256
from gridtokenx.core.merkle import EMPTY_LIST_ROOT
from gridtokenx.core.state_tree import StateTree
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.interchain import calls, stores
from gridtokenx.interchain.apps import attestation, meter_report, registry
from gridtokenx.interchain.apps.attestation import GenerationAttestation
from gridtokenx.interchain.apps.meter_report import MeterEntry, MeterReport
from gridtokenx.interchain.apps.registry import (
    DeviceKind,
    DeviceRegistration,
    DeviceRegistrations,
)
from gridtokenx.interchain.clients import CertifiedHeader, ClientGenesis, ClientKind
from gridtokenx.interchain.packets import Delivered, Packet, packet_hash
from gridtokenx.ledger.blocks import PROTOCOL_VERSION, EventRecord, Header
from gridtokenx.ledger.readings import SubmitReading
from gridtokenx.ledger.runtime import Executed, ExecutedBlock, Proposal
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import Transaction, sign_transaction
from gridtokenx.oracle.chain.feeds import SubmitObservation
from gridtokenx.oracle.chain.ledger import OracleGenesis, oracle_chain
from gridtokenx.oracle.chain.parameters import FeedSpec, MeterParameters
from tests.interchain_chains import certificate, seed_signers

CHAIN = sha256(b"oracle test chain")
CONSORTIUM = sha256(b"consortium test chain")
PUBLIC = sha256(b"public test chain")
NETWORK_MS = 1_776_830_400_000
GRID_EPOCH_MS = 1_776_823_200_000  # 22 April 2026, 09:00 in Bangkok
SCALE = 60
CLOCK = GridClock(NETWORK_MS, GRID_EPOCH_MS, SCALE)
FIRST = interval_at(GRID_EPOCH_MS)
INTERVAL_NETWORK_MS = INTERVAL_MS // SCALE
GRACE_MS = 9_000
OWNER = sha256(b"owner")
RELAYER = KeyedHashSigner(sha256(b"oracle test relayer"))
ORACLES = seed_signers("oracle node")
MEMBERS = seed_signers("consortium")
PRICE = FeedSpec(feed="energy-price", unit="micro-WATT per kWh", minimum=0, maximum=20_000_000)


def genesis(**changes: object) -> OracleGenesis:
    sections = {
        "chain_id": CHAIN,
        "validators": tuple(signer.public_key for signer in ORACLES),
        "relayers": (RELAYER.public_key,),
        "clock": CLOCK,
        "clients": (
            _client("consortium", CONSORTIUM, ClientKind.PBFT),
            _client("public", PUBLIC, ClientKind.GRANDPA),
        ),
        "meters": MeterParameters(grace_ms=GRACE_MS),
        "feeds": (PRICE,),
    }
    return OracleGenesis(**{**sections, **changes})  # type: ignore[arg-type]


def _client(name: str, chain_id: bytes, kind: ClientKind) -> ClientGenesis:
    return ClientGenesis(
        client_id=name,
        counterparty="oracle",
        chain_id=chain_id,
        kind=kind,
        set_id=0,
        validators=tuple(signer.public_key for signer in MEMBERS),
        trusting_period_ms=86_400_000,
        clock_drift_ms=30_000,
    )


@dataclass
class Device:
    """A device with its key and sequence; `signer` may differ from the first key."""

    name: str
    kind: DeviceKind = DeviceKind.METER
    rating_w: int = 10_000
    sequence: int = 0
    revision: int = 0
    signer: KeyedHashSigner = field(init=False)
    device: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.signer = KeyedHashSigner(sha256(b"device", self.name.encode()))
        self.device = self.signer.public_key

    def registration(
        self, *, active: bool = True, revision: int | None = None
    ) -> DeviceRegistration:
        self.revision = self.revision + 1 if revision is None else revision
        return DeviceRegistration(
            device=self.device,
            public_key=self.signer.public_key,
            owner=OWNER,
            zone=1,
            kind=self.kind,
            rating_w=self.rating_w,
            revision=self.revision,
            active=active,
        )

    def reading(
        self,
        boundary: int,
        import_wh: int = 0,
        export_wh: int = 0,
        *,
        flags: int = 0,
        skew_ms: int = 0,
        sequence: int | None = None,
    ) -> Transaction:
        """Registers at the start of interval FIRST + boundary."""
        self.sequence = self.sequence + 1 if sequence is None else sequence
        call = SubmitReading(
            boundary_grid_ms=interval_start_ms(FIRST + boundary) + skew_ms,
            import_wh=import_wh,
            export_wh=export_wh,
            power_w=0,
            charge_wh=0,
            flags=flags,
        )
        return sign_transaction(self.signer, CHAIN, self.sequence, [call])


class OracleWorld:
    """The chain, and all that left it."""

    def __init__(self, *, check: bool = True, **changes: object) -> None:
        self.chain = oracle_chain(genesis(**changes), KeyedHashVerifier())
        self.ledger = self.chain.ledger
        self.check = check
        self.blocks: list[ExecutedBlock] = [self.ledger.genesis(NETWORK_MS)]
        self.entries: dict[tuple[bytes, int], MeterEntry] = {}
        self.reports: list[MeterReport] = []
        self.attested: dict[tuple[bytes, int], GenerationAttestation] = {}
        self._consortium = StateTree.empty()
        self._consortium_height = 0
        self._sent = 0
        self._relayer_nonce = 0
        self._observation = 0

    @property
    def head(self) -> ExecutedBlock:
        return self.blocks[-1]

    @property
    def now_ms(self) -> int:
        return self.head.header.timestamp_ms

    @property
    def state(self) -> State:
        return State(self.head.state)

    def block(self, *transactions: Transaction, at_ms: int | None = None) -> list[str]:
        """One block; the codes of its calls in order, after a "refused" for each left out."""
        timestamp_ms = self.now_ms + 1_000 if at_ms is None else NETWORK_MS + at_ms
        proposal = Proposal(round=0, timestamp_ms=timestamp_ms)
        executed, refused = self.ledger.build(self.head, proposal, transactions)
        if self.check:
            assert self.ledger.execute(self.head, executed.block).hash == executed.hash
            assert self.ledger.check_invariants(executed.state) == []
        self.blocks.append(executed)
        for event in self.events(calls.PacketSent):
            self._receive(event.packet)
        codes = [result.code for event in self.events(Executed) for result in event.results]
        return ["refused"] * len(refused) + codes

    def run_to(self, at_ms: int) -> None:
        """Empty blocks, one a second, up to a time after genesis."""
        while self.now_ms < NETWORK_MS + at_ms:
            self.block(at_ms=min(at_ms, self.now_ms - NETWORK_MS + 1_000))

    def close(self, interval: int) -> None:
        """Run until interval FIRST + `interval` has closed."""
        self.run_to((interval + 1) * INTERVAL_NETWORK_MS + GRACE_MS)

    def events(self, type_: type[Wire]) -> list[Wire]:
        records = [decode(raw, EventRecord) for raw in self.head.events]
        found = [decode(record.data, self.ledger.event_union) for record in records]
        return [event for event in found if isinstance(event, type_)]

    def _receive(self, packet: Packet) -> None:
        if packet.port == meter_report.PORT:
            report = meter_report.decode_report(packet.payload)
            self.reports.append(report)
            for entry in report.entries:
                interval = report.interval if entry.corrects is None else entry.corrects
                assert (entry.corrects is None) == ((entry.device, interval) not in self.entries)
                self.entries[entry.device, interval] = entry
        else:
            assert packet.port == attestation.PORT
            for each in attestation.decode_attestations(packet.payload).attestations:
                assert (each.device, each.interval) not in self.attested, "attested twice"
                self.attested[each.device, each.interval] = each

    # -- the consortium ----------------------------------------------------------------------------

    def relay(self, *batch: Wire) -> Transaction:
        self._relayer_nonce += 1
        return sign_transaction(RELAYER, CHAIN, self._relayer_nonce, batch)

    def registry_packet(
        self, registrations: Iterable[DeviceRegistration], *, port: str = registry.PORT
    ) -> list[Wire]:
        """What a relayer submits so that the oracle chain takes note of registrations."""
        ordered = tuple(sorted(registrations, key=lambda each: each.device))
        payload = encode(DeviceRegistrations(registrations=ordered))
        self._sent += 1
        packet = Packet("oracle", "consortium", self._sent, port, self.now_ms + 10**6, payload)
        key = stores.COMMITMENTS.key("oracle", self._sent)
        commitment = encode(packet_hash(packet, CONSORTIUM, CHAIN))
        self._consortium = self._consortium.update({key: commitment})
        certified = self._certified_header()
        update = calls.UpdateClient("consortium", certified, None)
        proof = self._consortium.prove(key)
        return [update, calls.ReceivePacket(packet, certified.header.height, proof)]

    def _certified_header(self) -> CertifiedHeader:
        members = ValidatorSet(0, tuple(signer.public_key for signer in MEMBERS))
        self._consortium_height += 1
        header = Header(
            version=PROTOCOL_VERSION,
            chain_id=CONSORTIUM,
            height=self._consortium_height,
            round=0,
            parent=sha256(b"parent", bytes([self._consortium_height % 256])),
            timestamp_ms=NETWORK_MS + self._consortium_height + self.now_ms - NETWORK_MS,
            transaction_root=EMPTY_LIST_ROOT,
            state_root=self._consortium.root,
            event_root=EMPTY_LIST_ROOT,
            set_id=0,
            next_set_hash=members.hash,
            digest=b"",
        )
        return CertifiedHeader(header, certificate(header, members, MEMBERS))

    def register(self, *devices: Device) -> None:
        """Register devices by packets, in one block."""
        groups = [
            devices[cut : cut + registry.MAX_REGISTRATIONS]
            for cut in range(0, len(devices), registry.MAX_REGISTRATIONS)
        ]
        for group in groups:
            packet = self.registry_packet(device.registration() for device in group)
            assert self.block(self.relay(*packet)) == ["ok", "ok"]
            (event,) = self.events(calls.PacketReceived)
            assert isinstance(event.acknowledgement, Delivered), event

    # -- feeds -------------------------------------------------------------------------------------

    def observe(self, oracle: int, round_: int, value: int, feed: str = PRICE.feed) -> Transaction:
        self._observation += 1
        call = SubmitObservation(feed=feed, round=round_, value=value, source=f"source {oracle}")
        return sign_transaction(ORACLES[oracle], CHAIN, self._observation, [call])

    def entry(self, device: Device, interval: int) -> MeterEntry:
        return self.entries[device.device, FIRST + interval]

    def total(self, device: Device, field_name: str) -> int:
        """Sum of what was reported for a device, as corrected."""
        return sum(
            getattr(entry, field_name) or 0
            for (owner, _), entry in self.entries.items()
            if owner == device.device
        )
