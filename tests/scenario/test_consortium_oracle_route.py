"""Two real ledgers and a relayer: connection approvals up, readings down, energy settled.

Nothing is handed over by a test here: registrations, reports and acknowledgements travel as proved
packets between the consortium's and the oracle chain's ledgers; test keys certify their headers.
"""

from collections.abc import Sequence

from msgspec.structs import replace
from tests.consortium_world import (
    CHAIN_ID,
    CLOCK,
    FIRST,
    NETWORK_MS,
    client,
    genesis_of,
    key,
    order,
    signer,
)
from tests.interchain_chains import certificate

from gridtokenx.consortium.chain import RelayerQuota, consortium_chain
from gridtokenx.consortium.market.auction import Side
from gridtokenx.consortium.market.messages import AuctionCleared
from gridtokenx.consortium.participants import DeviceNoted
from gridtokenx.consortium.settlement.messages import IntervalSettled, Statement
from gridtokenx.core.codec import Wire, decode
from gridtokenx.core.gridtime import interval_start_ms
from gridtokenx.core.keys import KeyedHashVerifier
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.interchain import calls, stores
from gridtokenx.interchain.clients import CertifiedHeader, ClientGenesis
from gridtokenx.interchain.packets import Packet
from gridtokenx.ledger.blocks import EventRecord
from gridtokenx.ledger.readings import SubmitReading
from gridtokenx.ledger.runtime import Executed, ExecutedBlock, Ledger, Proposal
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import Transaction, sign_transaction
from gridtokenx.oracle.chain.ledger import OracleGenesis, oracle_chain
from gridtokenx.oracle.chain.parameters import MeterParameters

ORACLE_ID = b"oracle".ljust(32, b"\0")


class Chain:
    """A ledger whose headers its members certify at once."""

    def __init__(self, name: str, ledger: Ledger, members: str, peer: str) -> None:
        self.name = name
        self.ledger = ledger
        self.peer = peer
        """Our client of the other chain."""
        self.signers = [signer(f"{members}{n}") for n in range(4)]
        self.members = ValidatorSet(0, tuple(each.public_key for each in self.signers))
        self.head = ledger.genesis(NETWORK_MS)
        self.before: ExecutedBlock = self.head
        self.events: list[Wire] = []
        self._nonces: dict[str, int] = {}
        self._queue: list[Transaction] = []

    @property
    def state(self) -> State:
        return State(self.head.state)

    def certified(self) -> CertifiedHeader:
        header = self.head.header
        return CertifiedHeader(header, certificate(header, self.members, self.signers))

    def submit(self, name: str, batch: Sequence[Wire], *, fee: int = 0) -> None:
        nonce = self._nonces.get(name, 1 if self.name == "oracle" else 0)
        self._nonces[name] = nonce + 1
        chain_id = self.ledger.chain_id
        self._queue.append(sign_transaction(signer(name), chain_id, nonce, batch, fee=fee))

    def block(self) -> None:
        proposal = Proposal(0, self.head.header.timestamp_ms + 1_000)
        self.head, refused = self.ledger.build(self.head, proposal, self._queue)
        assert refused == ()
        self._queue = []
        assert self.ledger.check_invariants(self.head.state) == []
        for raw in self.head.events:
            event: Wire = decode(decode(raw, EventRecord).data, self.ledger.event_union)
            self.events.append(event)
            if isinstance(event, Executed):
                assert {result.code for result in event.results} == {"ok"}

    def all(self, kind: type[Wire]) -> list[Wire]:
        return [event for event in self.events if isinstance(event, kind)]

    def open_packets(self) -> list[Packet]:
        books = stores.channel(self.state, self.peer)
        found = (
            stores.OUTBOX.get(self.state, self.peer, number)
            for number in range(1, books.next_sequence)
        )
        return [packet for packet in found if packet is not None]


def relay(source: Chain, target: Chain) -> None:
    """Carry what waits: packets of `source`, and acknowledgements that `source` holds."""
    height = source.head.height
    batch: list[Wire] = []
    for packet in source.open_packets():
        if not stores.RECEIPTS.has(target.state, packet.destination_client, packet.sequence):
            raw = stores.COMMITMENTS.key(packet.source_client, packet.sequence)
            batch.append(calls.ReceivePacket(packet, height, source.head.state.prove(raw)))
    for packet in target.open_packets():
        name = (packet.destination_client, packet.sequence)
        ack = stores.ACKNOWLEDGEMENTS.get(source.state, *name)
        if ack is not None:
            proof = source.head.state.prove(stores.ACKNOWLEDGEMENTS.key(*name))
            batch.append(calls.AcknowledgePacket(packet, ack, height, proof))
    if batch:
        update = calls.UpdateClient(target.peer, source.certified(), None)
        target.submit("relayer", (update, *batch))


def known_as(name: str, chain_id: bytes) -> ClientGenesis:
    return replace(client(name), chain_id=chain_id)


def two_chains() -> tuple[Chain, Chain]:
    energy = replace(
        genesis_of(buyers=1, sellers=1),
        clients=(known_as("oracle", ORACLE_ID), known_as("public", b"p" * 32)),
        relayers=(RelayerQuota(account=key("relayer")),),
    )
    readings = OracleGenesis(
        chain_id=ORACLE_ID,
        validators=tuple(key(f"oracle{n}") for n in range(4)),
        relayers=(key("relayer"),),
        clock=CLOCK,
        clients=(
            replace(
                known_as("consortium", CHAIN_ID),
                counterparty="oracle",
                validators=tuple(key(f"replica{n}") for n in range(4)),
            ),
            replace(known_as("public", b"p" * 32), counterparty="oracle"),
        ),
        meters=MeterParameters(grace_ms=9_000),
    )
    verifier = KeyedHashVerifier()
    consortium = consortium_chain(energy, verifier).ledger
    oracle = oracle_chain(readings, verifier).ledger
    return (
        Chain("consortium", consortium, "replica", "oracle"),
        Chain("oracle", oracle, "oracle", "consortium"),
    )


def read(oracle: Chain, name: str, boundary: int, import_wh: int, export_wh: int) -> None:
    """Registers of a meter at the start of interval FIRST + boundary."""
    call = SubmitReading(
        boundary_grid_ms=interval_start_ms(FIRST + boundary),
        import_wh=import_wh,
        export_wh=export_wh,
        power_w=0,
        charge_wh=0,
        flags=0,
    )
    oracle.submit(name, (call,))


def test_meters_registered_here_settle_by_reports_from_there() -> None:
    consortium, oracle = two_chains()
    for second in range(1, 235):
        relay(consortium, oracle)
        relay(oracle, consortium)
        if second == 10:
            assert len(consortium.all(DeviceNoted)) == 3, "meters wait for this before they report"
            read(oracle, "b0-meter", 0, 0, 0)
            read(oracle, "s0-meter", 0, 0, 0)
            consortium.submit("b0", (order(1, FIRST + 1, Side.BUY, 4_500, 1_000),), fee=800)
            consortium.submit("s0", (order(1, FIRST + 1, Side.SELL, 3_000, 1_000),), fee=800)
        if second % 30 == 2 and second > 30:
            boundary = second // 30
            read(oracle, "b0-meter", boundary, 1_000 * boundary, 0)
            if boundary != 2:  # one reading of the seller is lost: its interval is estimated
                read(oracle, "s0-meter", boundary, 0, 900 * boundary)
        oracle.block()
        consortium.block()
    (traded,) = (each for each in consortium.all(AuctionCleared) if each.trades)
    assert (traded.interval, traded.volume_wh) == (FIRST + 1, 1_000)
    settled = consortium.all(IntervalSettled)
    assert [each.interval for each in settled] == list(range(FIRST, FIRST + 7))
    assert [each.substituted for each in settled] == [0, 1, 0, 0, 0, 0, 0]
    assert [each.corrections for each in settled] == [0, 0, 1, 0, 0, 0, 0]
    assert sum(each.import_wh for each in settled) == 7 * 1_000
    assert booked_wh(consortium, "b0") == -7_000
    assert booked_wh(consortium, "s0") == 7 * 900, "after the correction, the register's own sum"


def booked_wh(consortium: Chain, name: str) -> int:
    """Net feed-in that an account's statements add up to: contracts and imbalance."""
    sign = {"sale": 1, "purchase": -1, "long": 1, "short": -1}
    return sum(
        sign.get(line.item.value, 0) * line.energy_wh
        for statement in consortium.all(Statement)
        if statement.account == key(name)
        for line in statement.lines
    )
