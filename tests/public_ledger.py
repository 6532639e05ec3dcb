"""The public chain's ledger in memory, and an oracle chain that attests to it by real packets.

Blocks are certified by test keys; whoever uses this is the relayer.
"""

from msgspec.structs import replace

from gridtokenx.core.codec import Wire, decode
from gridtokenx.core.gridtime import GridClock, interval_at
from gridtokenx.core.keys import KeyedHashSigner, KeyedHashVerifier, Signer, sha256
from gridtokenx.core.types import Blob, Millis
from gridtokenx.core.units import GRID
from gridtokenx.finality.certificates import CommitCertificate, CommitVote, IndexedSignature
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.interchain import calls, stores
from gridtokenx.interchain.apps import attestation
from gridtokenx.interchain.apps.attestation import GenerationAttestation, GenerationAttestations
from gridtokenx.interchain.clients import CertifiedHeader, ClientGenesis, ClientKind
from gridtokenx.interchain.module import Interchain
from gridtokenx.interchain.packets import Acknowledgement, Packet
from gridtokenx.ledger.admission import NoFee, StrictNonce
from gridtokenx.ledger.blocks import EventRecord
from gridtokenx.ledger.identity import derive_chain_id
from gridtokenx.ledger.runtime import (
    Context,
    Executed,
    ExecutedBlock,
    Ledger,
    Module,
    Proposal,
    SetReference,
    handles,
)
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import sign_transaction
from gridtokenx.public.chain import Balance, PublicGenesis, public_chain
from gridtokenx.public.staking import Candidate, Nomination

START_MS = 1_800_000_000_000
FIRST_INTERVAL = interval_at(START_MS)
CLOCK = GridClock(network_genesis_ms=START_MS, grid_epoch_ms=START_MS, time_scale=60)
INTERVAL_NETWORK_MS = 30_000
ORACLE_ID = sha256(b"test oracle chain")
DAY_MS = 86_400_000


def account(name: str) -> KeyedHashSigner:
    return KeyedHashSigner(sha256(b"account", name.encode()))


def key(name: str) -> bytes:
    return account(name).public_key


RELAYER = account("relayer")
VALIDATORS = ("ann", "ben", "cho", "dao", "eve")


def public_genesis(clients: tuple[ClientGenesis, ...] = (), **changes: object) -> PublicGenesis:
    """Five candidates for four seats; Eve has the least support."""
    stakes = dict(zip(VALIDATORS, (500, 400, 300, 200, 100), strict=True))
    own = tuple(
        Nomination(voter=key(name), stake_ngrid=stake * GRID, targets=(key(name),))
        for name, stake in stakes.items()
    )
    nominator = Nomination(
        voter=key("nina"), stake_ngrid=600 * GRID, targets=(key("cho"), key("dao"))
    )
    genesis = PublicGenesis(
        chain_id=bytes(32),
        clock=CLOCK,
        validators=4,
        candidates=tuple(
            Candidate(account=key(name), session_key=key(name + " session")) for name in VALIDATORS
        ),
        nominations=(*own, nominator),
        balances=tuple(
            Balance(account=key(name), amount_ngrid=1_000 * GRID)
            for name in (*VALIDATORS, "nina", "alice", "bob", "relayer")
        ),
        clients=clients,
    )
    changed = replace(genesis, **changes)
    return replace(changed, chain_id=derive_chain_id(changed))


class Attest(Wire, frozen=True, tag="attester.attest"):
    """Send bytes by the attestation port."""

    payload: Blob
    timeout_ms: Millis


class Attester(Module):
    """The sending end of the attestation port."""

    name = "attester"
    port = attestation.PORT

    def __init__(self, interchain: Interchain) -> None:
        self._interchain = interchain
        self.acknowledgements: list[Acknowledgement] = []
        interchain.register(self)

    @handles(Attest)
    def attest(self, ctx: Context, call: Attest) -> None:
        self._interchain.send(ctx, "public", self.port, call.payload, call.timeout_ms)

    def on_receive(self, ctx: Context, packet: Packet) -> bytes:
        raise AssertionError

    def on_acknowledge(self, ctx: Context, packet: Packet, ack: Acknowledgement) -> None:
        raise AssertionError

    def on_timeout(self, ctx: Context, packet: Packet) -> None:
        raise AssertionError


class Chain:
    """A ledger and its blocks."""

    def __init__(self, ledger: Ledger, admission: StrictNonce, genesis: ExecutedBlock) -> None:
        self.ledger, self.admission = ledger, admission
        self.blocks = [genesis]

    @property
    def head(self) -> ExecutedBlock:
        return self.blocks[-1]

    @property
    def state(self) -> State:
        return State(self.head.state)

    def block(
        self, *batch: Wire, by: Signer = RELAYER, fee: int = 0, after_ms: int = 1_000
    ) -> list[str]:
        """One block with one transaction of `batch`; the code of each call, or why none ran."""
        nonce = self.admission.next_nonce(self.state, by.public_key)
        transaction = sign_transaction(by, self.ledger.chain_id, nonce, batch, fee=fee)
        timestamp_ms = self.head.header.timestamp_ms + after_ms
        proposal = Proposal(round=len(self.blocks), timestamp_ms=timestamp_ms)
        executed, refused = self.ledger.build(self.head, proposal, [transaction] if batch else [])
        assert self.ledger.execute(self.head, executed.block).hash == executed.hash
        self.blocks.append(executed)
        assert self.ledger.check_invariants(executed.state) == []
        if refused:
            return ["kept out"]
        return [result.code for event in self.events(Executed) for result in event.results]

    def events(self, type_: type[Wire], height: int = -1) -> list[Wire]:
        records = [decode(raw, EventRecord) for raw in self.blocks[height].events]
        found = [decode(record.data, self.ledger.event_union) for record in records]
        return [event for event in found if isinstance(event, type_)]


class World:
    """A public chain, and an oracle chain that can attest to it."""

    def __init__(self, client: str = "oracle", **changes: object) -> None:
        self._keys = [account(f"oracle {i}") for i in range(4)]
        self._members = ValidatorSet(0, tuple(signer.public_key for signer in self._keys))
        link = self._client(client, "public", ORACLE_ID, ClientKind.PBFT)
        self.genesis = public_genesis((link,), **changes)
        self.public_chain = public_chain(self.genesis, KeyedHashVerifier())
        ledger = self.public_chain.ledger
        self.public = Chain(ledger, ledger.admission, self.public_chain.genesis_block())
        self.oracle = self._oracle(client)

    def _client(
        self, name: str, counterparty: str, chain_id: bytes, kind: ClientKind
    ) -> ClientGenesis:
        return ClientGenesis(
            client_id=name,
            counterparty=counterparty,
            chain_id=chain_id,
            kind=kind,
            set_id=0,
            validators=self._members.members,
            trusting_period_ms=14 * DAY_MS,
            clock_drift_ms=DAY_MS,
        )

    def _oracle(self, name: str) -> Chain:
        link = self._client("public", name, self.genesis.chain_id, ClientKind.GRANDPA)
        interchain = Interchain((link,), KeyedHashVerifier())
        admission = StrictNonce(NoFee(lambda _state, _sender, _calls: None))
        reference = SetReference(0, self._members.hash)
        modules = (interchain, Attester(interchain))
        ledger = Ledger(ORACLE_ID, modules, admission, lambda _state: reference)
        return Chain(ledger, admission, ledger.genesis(START_MS))

    def _certified(self) -> CertifiedHeader:
        header = self.oracle.head.header
        vote = CommitVote(0, 0, header.height, header.hash)
        message = vote.signed_bytes(ORACLE_ID)
        signatures = tuple(
            IndexedSignature(i, self._keys[i].sign(message)) for i in range(self._members.quorum)
        )
        return CertifiedHeader(header, CommitCertificate(ORACLE_ID, vote, signatures))

    def deliver(self, payload: bytes, after_ms: int = 10 * INTERVAL_NETWORK_MS) -> Acknowledgement:
        """Carry a payload from the attestation port; what the public chain's app answered."""
        timeout_ms = self.public.head.header.timestamp_ms + DAY_MS
        assert self.oracle.block(Attest(payload, timeout_ms)) == ["ok"]
        header, client = self.oracle.head.header, self.genesis.clients[0].client_id
        books = stores.channel(self.oracle.state, "public")
        packet = stores.OUTBOX.get(self.oracle.state, "public", books.next_sequence - 1)
        assert packet is not None
        proof = self.oracle.head.state.prove(stores.COMMITMENTS.key("public", packet.sequence))
        batch = (
            calls.UpdateClient(client, self._certified(), None),
            calls.ReceivePacket(packet, header.height, proof),
        )
        assert self.public.block(*batch, fee=GRID, after_ms=after_ms) == ["ok", "ok"]
        ack = stores.ACKNOWLEDGEMENTS.get(self.public.state, client, packet.sequence)
        assert ack is not None
        return ack

    def attest(self, *attestations: GenerationAttestation) -> Acknowledgement:
        """Carry a batch of attestations."""
        ordered = sorted(attestations, key=lambda each: (each.device, each.interval))
        batch = GenerationAttestations(attestations=tuple(ordered))
        return self.deliver(attestation.encode_attestations(batch))


def attested(
    device: str = "roof",
    interval: int = 0,
    energy_wh: int = 1_250,
    owner: str = "alice",
    source: str = attestation.SOLAR,
) -> GenerationAttestation:
    """Energy of a device in the interval so many after the first."""
    return GenerationAttestation(
        device=sha256(b"device", device.encode()),
        interval=FIRST_INTERVAL + interval,
        energy_wh=energy_wh,
        owner=key(owner),
        zone=3,
        source=source,
    )
