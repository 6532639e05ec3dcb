"""A network for tests of the gateway: three genesis files, and blocks with whatever events a test needs.

`Story` makes blocks whose events are invented (the index takes verified blocks as they are); `RealChain`
executes and certifies real ones, for tests that verify.
"""

from msgspec.structs import replace

from gridtokenx.consortium.chain import Account, Attestation, ConsortiumGenesis, consortium_ledger
from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.gridtime import GridClock, interval_at
from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier, sha256
from gridtokenx.core.merkle import merkle_root
from gridtokenx.core.state_tree import EMPTY_ROOT
from gridtokenx.core.units import GRID, WATT
from gridtokenx.finality.proofs import FinalityProof
from gridtokenx.gateway.facts import CONSORTIUM, ORACLE, PUBLIC, NetworkFacts, network_facts
from gridtokenx.gateway.ports import VerifiedBlock
from gridtokenx.host.chains import ChainFacts
from gridtokenx.interchain.clients import ClientGenesis, ClientKind
from gridtokenx.ledger.blocks import PROTOCOL_VERSION, EventRecord, Header, transaction_root
from gridtokenx.ledger.identity import derive_chain_id
from gridtokenx.ledger.runtime import ExecutedBlock, Ledger, Proposal
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.oracle.chain.ledger import OracleGenesis, oracle_ledger
from gridtokenx.oracle.chain.parameters import FeedSpec
from gridtokenx.public.chain import Balance, PublicGenesis, public_ledger
from gridtokenx.public.slots import SECONDARY, SlotClaim, encoded_claim
from gridtokenx.public.staking import Candidate, Nomination
from tests.interchain_chains import certificate, justification

NETWORK_MS = 1_800_000_000_000
GRID_EPOCH_MS = 1_776_823_200_000
"""2026-04-22 09:00 in Bangkok."""
CLOCK = GridClock(NETWORK_MS, GRID_EPOCH_MS, 60)
FIRST = interval_at(GRID_EPOCH_MS)
UNNAMED = bytes(32)


def signer(name: str) -> Ed25519Signer:
    return Ed25519Signer(sha256(b"gateway test", name.encode()))


def key(name: str) -> bytes:
    return signer(name).public_key


def members(chain: str) -> list[Ed25519Signer]:
    return [signer(f"{chain}-{index}") for index in range(4)]


def _client(name: str, us: str, genesis: object, kind: ClientKind) -> ClientGenesis:
    return ClientGenesis(
        client_id=name,
        counterparty=us,
        chain_id=genesis.chain_id,
        kind=kind,
        set_id=0,
        validators=genesis.validator_set.members,
        trusting_period_ms=14 * 86_400_000,
        clock_drift_ms=30_000,
    )


def make_genesis(
    salt: int = 0,
) -> tuple[PublicGenesis, ConsortiumGenesis, OracleGenesis]:
    """Three chains that know each other; another `salt` makes another network."""
    clock = replace(CLOCK, network_genesis_ms=NETWORK_MS + salt)
    public = _public(clock)
    consortium = _consortium(clock)
    oracle = OracleGenesis(
        chain_id=UNNAMED,
        validators=tuple(each.public_key for each in members(ORACLE)),
        relayers=(key("relayer"),),
        clock=clock,
        clients=(),
        feeds=(FeedSpec(feed="energy-price", unit="uWATT/kWh", minimum=0, maximum=10**8),),
    )
    public, consortium, oracle = (
        replace(each, chain_id=derive_chain_id(each)) for each in (public, consortium, oracle)
    )
    kinds = {
        PUBLIC: (public, ClientKind.GRANDPA),
        CONSORTIUM: (consortium, ClientKind.PBFT),
        ORACLE: (oracle, ClientKind.PBFT),
    }

    def clients(us: str) -> tuple[ClientGenesis, ...]:
        return tuple(_client(n, us, *facts) for n, facts in kinds.items() if n != us)

    return (
        replace(public, clients=clients(PUBLIC)),
        replace(consortium, clients=clients(CONSORTIUM)),
        replace(oracle, clients=clients(ORACLE)),
    )


def _public(clock: GridClock) -> PublicGenesis:
    candidates = tuple(
        Candidate(account=key(f"stake-{n}"), session_key=each.public_key)
        for n, each in enumerate(members(PUBLIC))
    )
    return PublicGenesis(
        chain_id=UNNAMED,
        clock=clock,
        validators=4,
        candidates=candidates,
        nominations=tuple(
            Nomination(
                voter=each.account, stake_ngrid=(9 - n) * 100 * GRID, targets=(each.account,)
            )
            for n, each in enumerate(candidates)
        ),
        balances=tuple(
            Balance(account=account, amount_ngrid=1_000 * GRID)
            for account in (*(each.account for each in candidates), key("alice"), key("bob"))
        ),
        clients=(),
    )


def _consortium(clock: GridClock) -> ConsortiumGenesis:
    return ConsortiumGenesis(
        chain_id=UNNAMED,
        validators=tuple(each.public_key for each in members(CONSORTIUM)),
        clock=clock,
        operator=key("operator"),
        utility=key("utility"),
        utility_uwatt=1_000 * WATT,
        attestation=Attestation(
            custodian=key("custodian"), reserve_uwatt=10_000 * WATT, statement="test"
        ),
        accounts=tuple(
            Account(account=key(name), opening_uwatt=100 * WATT) for name in ("alice", "bob")
        ),
        devices=(),
        relayers=(),
        clients=(),
        zones=(0, 1),
    )


def make_facts(salt: int = 0) -> NetworkFacts:
    made = real_chains(salt)
    facts = {
        name: ChainFacts(name, chain.genesis, chain.ledger, chain.blocks[0], 0)
        for name, chain in made.items()
    }
    return network_facts("test", facts)


# -- invented blocks -------------------------------------------------------------------------------


class Story:
    """Blocks of one chain, each with the events that a test gives."""

    def __init__(self, facts: NetworkFacts, chain: str, block_ms: int = 1_000) -> None:
        self.facts = facts.chains[chain]
        self.height = 0
        self.parent = self.facts.facts.genesis_block.hash
        self.block_ms = block_ms
        self.now_ms = facts.clock.network_genesis_ms

    def block(self, *events: Wire, transactions: tuple[Transaction, ...] = ()) -> VerifiedBlock:
        self.height += 1
        self.now_ms += self.block_ms
        records = tuple(encode(EventRecord(origin=0, data=encode(event))) for event in events)
        claim = SlotClaim(self.height % 4, SECONDARY, bytes(64), bytes(80))
        header = Header(
            version=PROTOCOL_VERSION,
            chain_id=self.facts.chain_id,
            height=self.height,
            round=0,
            parent=self.parent,
            timestamp_ms=self.now_ms,
            transaction_root=transaction_root(transactions),
            state_root=EMPTY_ROOT,
            event_root=merkle_root(records),
            set_id=0,
            next_set_hash=self.facts.validators.hash,
            digest=encoded_claim(claim) if self.facts.name == PUBLIC else b"",
        )
        self.parent = header.hash
        return VerifiedBlock(header, records, transactions)


# -- real blocks -----------------------------------------------------------------------------------


class RealChain:
    """A ledger whose blocks the test's validators finalise."""

    def __init__(
        self, chain: str, genesis: PublicGenesis | ConsortiumGenesis | OracleGenesis, ledger: Ledger
    ) -> None:
        self.chain = chain
        self.ledger = ledger
        self.genesis = genesis
        self.validators = genesis.validator_set
        self.blocks: list[ExecutedBlock] = [ledger.genesis(genesis.clock.network_genesis_ms)]
        by_key = {each.public_key: each for each in members(chain)}
        self.signers = [by_key[each] for each in self.validators.members]

    @property
    def head(self) -> ExecutedBlock:
        return self.blocks[-1]

    def block(self, *transactions: Transaction, after_ms: int = 1_000) -> ExecutedBlock:
        now_ms = self.head.header.timestamp_ms + after_ms
        made, refused = self.ledger.build(self.head, Proposal(0, now_ms), transactions)
        assert refused == ()
        self.blocks.append(made)
        return made

    def proof(self, header: Header) -> FinalityProof:
        make = justification if self.chain == PUBLIC else certificate
        return make(header, self.validators, self.signers)


def real_chains(salt: int = 0) -> dict[str, RealChain]:
    public, consortium, oracle = make_genesis(salt)
    verifier = Ed25519Verifier()
    return {
        PUBLIC: RealChain(PUBLIC, public, public_ledger(public, verifier)),
        CONSORTIUM: RealChain(CONSORTIUM, consortium, consortium_ledger(consortium, verifier)),
        ORACLE: RealChain(ORACLE, oracle, oracle_ledger(oracle, verifier)),
    }
