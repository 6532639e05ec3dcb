"""Light clients: what one chain believes of another, and by which rules it comes to believe more.

Law of the file: **a header is believed only after its certificate was verified here**, against a
validator set that is in state. No caller can say that something was verified; nothing unproven
equals a default value, because a client has no root at all before its first update.

============================================  =====================================================
a header is recorded if                       else
============================================  =====================================================
client known, not frozen, not expired         refused
chain id and kind of proof are the client's   refused
no root or hash in it is zero                 refused
height above the latest                       same header: nothing happens; another one: see below
time above the latest, not from the future,   refused
  not older than the trusting period
it names the client's set                     refused
next set: same hash, or given and hashed      refused
finality proof verifies                       refused
============================================  =====================================================

Theory: IBC ICS-07 for the shape and the trusting period, parity-bridges for justifications. A set
changes only by a header that the old set certified and whose `next_set_hash` the given set matches,
so every set-changing header passes through the client. Two certified headers that contradict each
other (one height, or a later height with an earlier time) mean that more validators lied than the
protocol tolerates: the client freezes, and believes nothing more of that chain.

A past root stays usable for proofs after the trusting period: it was verified in time. What brings a
frozen or expired client back is not a certificate but the chain's own members: see `council.py`.
"""

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Verifier
from gridtokenx.core.state_tree import EMPTY_ROOT
from gridtokenx.core.types import Hash32, Height, Millis, PublicKey, UInt63
from gridtokenx.finality.certificates import CommitCertificate
from gridtokenx.finality.justifications import Justification
from gridtokenx.finality.proofs import FinalityProof, verify_finality
from gridtokenx.finality.validators import MAX_VALIDATORS, ValidatorSet
from gridtokenx.interchain.packets import ClientId, is_name
from gridtokenx.ledger.blocks import Header

MAX_CONSENSUS_STATES: Final = 128
"""Recent headers that proofs may refer to; older ones are forgotten."""
MAX_ANCESTRY: Final = 64
"""Headers that evidence of misbehaviour may use to link a later header to an earlier height."""
DEFAULT_TRUSTING_PERIOD_MS: Final = 14 * 24 * 3_600_000
"""Two weeks: below any unbonding period."""
DEFAULT_CLOCK_DRIFT_MS: Final = 30_000
"""How far a header's time may lie ahead of ours: two chains' block times are not synchronous."""

ZERO_HASH: Final = bytes(32)


class ClientKind(StrEnum):
    """Which certificates finalise the other chain."""

    PBFT = "pbft"
    GRANDPA = "grandpa"


class ClientGenesis(Wire, frozen=True):
    """A client as a chain's genesis declares it."""

    client_id: ClientId
    """Our name for the other chain."""
    counterparty: ClientId
    """The other chain's name for us."""
    chain_id: Hash32
    """The other chain's id: the hash of its manifest and keys, so there is no circle."""
    kind: ClientKind
    set_id: UInt63
    """Its first validator set."""
    validators: Annotated[tuple[PublicKey, ...], Meta(min_length=1, max_length=MAX_VALIDATORS)]
    trusting_period_ms: Millis
    clock_drift_ms: Millis


class ClientState(Wire, frozen=True):
    """What is believed of another chain; its validator sets and recent headers lie beside it."""

    client_id: ClientId
    counterparty: ClientId
    chain_id: Hash32
    kind: ClientKind
    set_id: UInt63
    """The set that must certify the next header."""
    latest_height: Height
    """0 before the first update: there is no header and no root then."""
    latest_timestamp_ms: Millis
    """Time of the latest header; before the first update, our own genesis time."""
    latest_hash: Hash32 | None
    """Hash of the latest header; None before the first update."""
    updates: UInt63
    """How many headers were ever recorded."""
    trusting_period_ms: Millis
    clock_drift_ms: Millis
    frozen: bool
    """Two contradicting certified headers were seen."""


class ConsensusState(Wire, frozen=True):
    """What a recorded header proves by."""

    height: Height
    header_hash: Hash32
    state_root: Hash32
    timestamp_ms: Millis
    set_id: UInt63
    """The set that certified it."""


class CertifiedHeader(Wire, frozen=True):
    """A header and why it is final."""

    header: Header
    proof: FinalityProof


class Misbehaviour(Wire, frozen=True):
    """Two certified headers of one chain that contradict each other."""

    first: CertifiedHeader
    """The lower one, or either of the same height."""
    second: CertifiedHeader
    ancestry: Annotated[tuple[Header, ...], Meta(max_length=MAX_ANCESTRY)]
    """From the parent of `second` down to the height of `first`; empty at equal heights."""


class ClientFault(RemoteFault):
    """A header, proof or evidence that a client does not accept."""


def initial_state(genesis: ClientGenesis, own_chain: bytes, now_ms: int) -> ClientState:
    """A client before its first update.

    Raises:
        ClientFault: a genesis section that could never be safe (checked at start, not when used).
    """
    problem = _genesis_problem(genesis, own_chain)
    if problem:
        raise ClientFault("client-genesis", f"client {genesis.client_id!r}: {problem}")
    return ClientState(
        client_id=genesis.client_id,
        counterparty=genesis.counterparty,
        chain_id=genesis.chain_id,
        kind=genesis.kind,
        set_id=genesis.set_id,
        latest_height=0,
        latest_timestamp_ms=now_ms,
        latest_hash=None,
        updates=0,
        trusting_period_ms=genesis.trusting_period_ms,
        clock_drift_ms=genesis.clock_drift_ms,
        frozen=False,
    )


def _genesis_problem(genesis: ClientGenesis, own_chain: bytes) -> str:
    keys = genesis.validators
    if not (is_name(genesis.client_id) and is_name(genesis.counterparty)):
        return "client names are lower-case letters, digits and hyphens, at most 32"
    if genesis.chain_id in (ZERO_HASH, own_chain):
        return "the chain id is zero, or our own"
    if not keys or len(keys) > MAX_VALIDATORS or len(set(keys)) != len(keys):
        return f"1 to {MAX_VALIDATORS} different validator keys are needed"
    if genesis.trusting_period_ms <= genesis.clock_drift_ms:
        return "the trusting period must exceed the clock drift"
    return ""


def recorded(header: Header) -> ConsensusState:
    """What is kept of an accepted header."""
    return ConsensusState(
        height=header.height,
        header_hash=header.hash,
        state_root=header.state_root,
        timestamp_ms=header.timestamp_ms,
        set_id=header.set_id,
    )


def check_update(
    client: ClientState,
    validators: ValidatorSet,
    certified: CertifiedHeader,
    next_set: ValidatorSet | None,
    now_ms: int,
    verifier: Verifier,
) -> ValidatorSet:
    """Verify a header above the latest; returns the set that certifies what follows it.

    Args:
        client: the client as it stands.
        validators: its current set, from state.
        certified: the header and its proof, from anyone.
        next_set: the set behind `next_set_hash`, if the header hands over.
        now_ms: this chain's block time.
        verifier: checks signatures.

    Raises:
        ClientFault: the header is not to be believed, and why.
        RemoteFault: its finality proof does not verify.
    """
    header = certified.header
    _require_active(client, now_ms)
    _require_shape(client, header)
    if header.height <= client.latest_height:
        raise ClientFault("stale-header", f"height {header.height}, latest {client.latest_height}")
    _require_time(client, header, now_ms)
    _require_set(validators, header)
    following = _following_set(validators, header, next_set)
    _require_final(client, validators, certified, verifier)
    return following


def is_expired(client: ClientState, now_ms: int) -> bool:
    """Whether the trusting period has passed without an update: old validators may lie for free."""
    return now_ms - client.latest_timestamp_ms > client.trusting_period_ms


def _require_active(client: ClientState, now_ms: int) -> None:
    if client.frozen:
        raise ClientFault("client-frozen", client.client_id)
    if is_expired(client, now_ms):
        raise ClientFault(
            "client-expired",
            f"{client.client_id}: last header at {client.latest_timestamp_ms} ms, now {now_ms} ms",
        )


def _require_shape(client: ClientState, header: Header) -> None:
    if header.chain_id != client.chain_id:
        raise ClientFault("wrong-chain", f"{header.chain_id.hex()} under client {client.client_id}")
    if header.height < 1:
        raise ClientFault("genesis-header", "a client starts from keys, never from a header")
    roots = (header.state_root, header.transaction_root, header.event_root)
    if ZERO_HASH in (*roots, header.parent, header.next_set_hash):
        raise ClientFault("zero-hash", f"header {header.height} holds a hash of zeros")
    if header.state_root == EMPTY_ROOT:  # under it everything is absent
        raise ClientFault("empty-state", f"header {header.height} proves an empty state")


def _require_time(client: ClientState, header: Header, now_ms: int) -> None:
    time_ms = header.timestamp_ms
    if time_ms > now_ms + client.clock_drift_ms:
        raise ClientFault("header-from-future", f"{time_ms} ms, now {now_ms} ms")
    if now_ms - time_ms > client.trusting_period_ms:
        raise ClientFault("header-too-old", f"{time_ms} ms, now {now_ms} ms")
    if client.latest_hash is not None and time_ms <= client.latest_timestamp_ms:
        raise ClientFault("time-not-monotone", f"{time_ms}, latest {client.latest_timestamp_ms}")


def _require_set(validators: ValidatorSet, header: Header) -> None:
    if header.set_id != validators.set_id:
        raise ClientFault("wrong-set-id", f"{header.set_id}, client has {validators.set_id}")


def _following_set(
    validators: ValidatorSet, header: Header, next_set: ValidatorSet | None
) -> ValidatorSet:
    """The set after `header`: the same, or one that the old set certified by its hash."""
    if header.next_set_hash == validators.hash:
        if next_set is not None:
            raise ClientFault("unneeded-set", f"header {header.height} keeps set {header.set_id}")
        return validators
    if next_set is None:
        raise ClientFault("missing-set", f"header {header.height} hands over to another set")
    if next_set.hash != header.next_set_hash or next_set.set_id != validators.set_id + 1:
        raise ClientFault("wrong-set", f"not the set that header {header.height} hands over to")
    if not (next_set.members and next_set.is_well_formed()):
        raise ClientFault("wrong-set", "an empty set, or one with a repeated key")
    return next_set


def _require_final(
    client: ClientState,
    validators: ValidatorSet,
    certified: CertifiedHeader,
    verifier: Verifier,
) -> None:
    """The one place where another chain's header becomes believed."""
    header, proof = certified.header, certified.proof
    wanted = CommitCertificate if client.kind is ClientKind.PBFT else Justification
    if not isinstance(proof, wanted):
        raise ClientFault("wrong-proof-kind", f"{type(proof).__name__} for a {client.kind} chain")
    _require_set(validators, header)
    verify_finality(header, proof, validators, verifier)


def check_recovery(
    client: ClientState, header: Header, following: ValidatorSet, now_ms: int
) -> None:
    """Whether a client could go on from a header that its own chain's members vouch for.

    Args:
        client: the client as it stands.
        header: what is to become the latest header; no certificate speaks for it.
        following: the set that certifies what follows the header.
        now_ms: this chain's block time.

    Raises:
        ClientFault: the header is none of the chain's, or not later than what is believed.
    """
    _require_shape(client, header)
    if header.height <= client.latest_height:
        raise ClientFault("stale-header", f"height {header.height}, latest {client.latest_height}")
    _require_time(client, header, now_ms)
    if following.hash != header.next_set_hash or following.set_id < header.set_id:
        raise ClientFault("wrong-set", f"not the set that header {header.height} names")
    if not (following.members and following.is_well_formed()):
        raise ClientFault("wrong-set", "an empty set, or one with a repeated key")


def check_conflict(
    client: ClientState,
    known: ConsensusState,
    validators: ValidatorSet,
    certified: CertifiedHeader,
    verifier: Verifier,
) -> None:
    """Verify that a header other than the recorded one of its height is certified as well.

    Raises:
        RemoteFault: it is not, so nothing is proved.
    """
    _require_shape(client, certified.header)
    if certified.header.hash == known.header_hash or certified.header.height != known.height:
        raise ClientFault("no-conflict", f"height {known.height}")
    _require_final(client, validators, certified, verifier)


def check_misbehaviour(
    client: ClientState,
    first_set: ValidatorSet,
    second_set: ValidatorSet,
    evidence: Misbehaviour,
    verifier: Verifier,
) -> None:
    """Verify that two certified headers contradict each other.

    Raises:
        RemoteFault: they do not, or one is not certified.
    """
    first, second = evidence.first.header, evidence.second.header
    for header in (first, second):
        _require_shape(client, header)
    if not _contradict(first, second, evidence.ancestry):
        raise ClientFault("no-conflict", f"heights {first.height} and {second.height}")
    _require_final(client, first_set, evidence.first, verifier)
    _require_final(client, second_set, evidence.second, verifier)


def _contradict(first: Header, second: Header, ancestry: tuple[Header, ...]) -> bool:
    """Whether no honest chain holds both, given the headers that link the second downwards."""
    if second.height < first.height or second.hash == first.hash:
        return False
    if second.height > first.height and second.timestamp_ms <= first.timestamp_ms:
        return True
    tip = second
    for header in ancestry:
        if tip.parent != header.hash or header.height != tip.height - 1:
            return False
        tip = header
    return tip.height == first.height and tip.hash != first.hash
