"""The real public ledger under consensus, with short eras, and what must hold at every handover."""

from collections.abc import Callable, Iterable

from msgspec.structs import replace
from tests.public_ledger import VALIDATORS, account, key, public_genesis

from gridtokenx.core.codec import Wire, decode_own
from gridtokenx.core.gridtime import GridClock
from gridtokenx.core.keys import KeyedHashVerifier
from gridtokenx.core.machine import Committed, Machine, Reader
from gridtokenx.core.units import GRID
from gridtokenx.finality.justifications import Justification, Stage
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.interchain.clients import (
    CertifiedHeader,
    ClientGenesis,
    ClientKind,
    ClientState,
    check_update,
    initial_state,
)
from gridtokenx.lab.sim.network import Envelope, LinkProfile
from gridtokenx.lab.sim.world import START_MS, SimulatedNode, World
from gridtokenx.ledger.blocks import EventRecord
from gridtokenx.ledger.identity import derive_chain_id
from gridtokenx.ledger.records import SETS, final_height, load_block, load_finality
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import sign_transaction
from gridtokenx.public.chain import Balance, PublicChain, PublicGenesis, public_chain
from gridtokenx.public.checkpoint import Checkpoint
from gridtokenx.public.grandpa.messages import Votes
from gridtokenx.public.machine import NodeKeys, PublicConfig, PublicNode
from gridtokenx.public.messages import NewBlock
from gridtokenx.public.slots import KeyedHashVrf, KeyedHashVrfVerifier
from gridtokenx.public.staking import EraBegan, Stand, prove_session_key

SLOT_MS = 2_000
ERA_SLOTS = 8
JOINERS = ("fay", "gus")
"""They hold GRID, run nodes, and have no candidacy at genesis."""
NAMES = (*VALIDATORS, *JOINERS)
OTHER = bytes(range(32))
YEAR_MS = 365 * 86_400_000


def era_genesis(**changes: object) -> PublicGenesis:
    clock = GridClock(network_genesis_ms=START_MS, grid_epoch_ms=START_MS, time_scale=60)
    base = public_genesis(clock=clock, slot_ms=SLOT_MS, epoch_slots=5, era_slots=ERA_SLOTS)
    joiners = tuple(Balance(account=key(name), amount_ngrid=9_000 * GRID) for name in JOINERS)
    made = replace(
        base,
        chain_id=bytes(32),
        unbonding_eras=2,
        balances=(*base.balances, *joiners),
        **changes,
    )
    return replace(made, chain_id=derive_chain_id(made))


class EraNetwork:
    """Seven nodes, four seats; nobody is started yet."""

    def __init__(
        self,
        seed: int,
        *,
        names: Iterable[str] = NAMES,
        profile: LinkProfile | None = None,
        genesis: PublicGenesis | None = None,
        checkpoint: Checkpoint | None = None,
        wrap: dict[str, Callable[[Machine], Machine]] | None = None,
    ) -> None:
        self.names = tuple(names)
        self.genesis = genesis or era_genesis()
        self.public: PublicChain = public_chain(self.genesis, KeyedHashVerifier())
        self.checkpoint = checkpoint
        self.wrap = wrap or {}
        self.world = World(seed, KeyedHashVerifier(), profile=profile)
        self.chain: dict[int, ExecutedBlock] = {0: self.public.genesis_block()}
        self.said: dict[tuple[bytes, int, int, Stage], bytes] = {}
        self.authored: dict[tuple[bytes, int], bytes] = {}
        self.nonces: dict[str, int] = {}
        self.world.on_committed = self._on_committed
        self.world.network.rules.append(self._overhear)
        for name in self.names:
            self.world.add(self.id(name), self._builder(name))

    @staticmethod
    def id(name: str) -> bytes:
        return key(f"{name} session")

    def _builder(self, name: str) -> Callable[[Reader], Machine]:
        own = account(f"{name} session")
        keys = NodeKeys(own, KeyedHashVrf(own.public_key), KeyedHashVrfVerifier())

        def build(reader: Reader) -> Machine:
            node = PublicNode(
                self.public.ledger,
                self.public.genesis_block(),
                self.genesis.validator_set,
                keys,
                PublicConfig(self.genesis.slot_rules, 200, self.checkpoint),
                reader,
                self.public.staking.validators_of,
            )
            wrap = self.wrap.get(name)
            return node if wrap is None else wrap(node)

        return build

    # -- laws ----------------------------------------------------------------------------------

    def _on_committed(self, node: SimulatedNode, effect: Committed) -> None:
        executed = effect.value
        assert isinstance(executed, ExecutedBlock)
        known = self.chain.setdefault(effect.height, executed)
        assert known.hash == executed.hash, f"two final blocks at height {effect.height}"
        parent = self.chain[effect.height - 1].header
        header = executed.header
        due = self.public.staking.following.get(State(self.chain[effect.height - 1].state))
        assert (header.set_id, parent.next_set_hash) == (due.set_id, due.hash)
        if self.hands_over(executed):
            assert load_finality(node.store, header.height) is not None, "handovers are justified"

    def _overhear(self, envelope: Envelope) -> None:
        """Nobody honest ever contradicts himself."""
        if envelope.sender in map(self.id, self.wrap):
            return
        match envelope.message:
            case Votes(votes):
                for vote in votes:
                    self._note_vote(envelope.sender, vote.set_id, vote.round, vote)
            case NewBlock(block):
                slot = (envelope.sender, block.header.round)
                known = self.authored.setdefault(slot, block.header.hash)
                assert known == block.header.hash

    def _note_vote(self, sender: bytes, set_id: int, round_: int, vote: Wire) -> None:
        machine = self.world.nodes[sender].machine
        own = machine.validators.index_of(sender) if isinstance(machine, PublicNode) else None
        if own != getattr(vote, "authority", None):
            return
        place = (sender, set_id, round_, Stage(getattr(vote, "stage", 0)))
        target = getattr(vote, "target_hash", b"")
        assert self.said.setdefault(place, target) == target, "a validator contradicts itself"

    def hands_over(self, executed: ExecutedBlock) -> bool:
        header = executed.header
        return self.set_after(executed).set_id != header.set_id

    def set_after(self, executed: ExecutedBlock) -> ValidatorSet:
        return self.public.staking.validators_of(executed.state)

    def handovers(self) -> list[int]:
        return [h for h in sorted(self.chain) if h and self.hands_over(self.chain[h])]

    def check(self) -> None:
        """Disks, the ledger's laws, and a light client that sees nothing but handovers."""
        assert self.public.ledger.check_invariants(self.chain[max(self.chain)].state) == []
        for name in (name for name in self.names if name not in self.wrap):
            store = self.world.nodes[self.id(name)].store
            for height in range(1, self.committed(name) + 1):
                block = load_block(store, height)
                assert block is not None
                assert block.hash == self.chain[height].hash
                following = self.set_after(self.chain[height])
                if following.set_id != block.header.set_id:
                    raw = store.get(SETS, following.set_id.to_bytes(8, "big"))
                    assert raw is not None, "whoever asks later is told the set"
                    assert decode_own(raw, ValidatorSet) == following
            if self.committed(name) > 0:
                self.follow_as_client(name)

    def follow_as_client(self, name: str) -> ClientState:
        """What another chain believes that hears only the handovers, and the head, of one node."""
        store, genesis = self.world.nodes[self.id(name)].store, self.genesis
        client = initial_state(
            ClientGenesis(
                client_id="public",
                counterparty="public",
                chain_id=genesis.chain_id,
                kind=ClientKind.GRANDPA,
                set_id=0,
                validators=genesis.validator_set.members,
                trusting_period_ms=YEAR_MS,
                clock_drift_ms=1_000,
            ),
            OTHER,
            START_MS,
        )
        validators = genesis.validator_set
        last = self.committed(name)
        newest = next(h for h in range(last, 0, -1) if load_finality(store, h) is not None)
        for height in sorted({*self.handovers(), newest}):
            if height > newest:
                break
            header, raw = self.chain[height].header, load_finality(store, height)
            assert raw is not None
            following = self.set_after(self.chain[height])
            changed = following if following.set_id != validators.set_id else None
            proof = CertifiedHeader(header, decode_own(raw, Justification))
            validators = check_update(
                client, validators, proof, changed, self.world.now, KeyedHashVerifier()
            )
            client = replace(
                client,
                set_id=validators.set_id,
                latest_height=height,
                latest_timestamp_ms=header.timestamp_ms,
                latest_hash=header.hash,
            )
        return client

    # -- looking -------------------------------------------------------------------------------

    def node(self, name: str) -> PublicNode:
        machine = self.world.nodes[self.id(name)].machine
        assert isinstance(machine, PublicNode)
        return machine

    def up(self) -> list[str]:
        return [
            name
            for name in self.names
            if self.world.nodes[self.id(name)].alive and name not in self.wrap
        ]

    def final(self, name: str) -> int:
        return final_height(self.world.nodes[self.id(name)].store) or 0

    def committed(self, name: str) -> int:
        """As far as its disk and the chain that all agreed on go together."""
        return min(self.final(name), max(self.chain))

    def seated(self) -> set[str]:
        """Who validates the children of the last final block."""
        members = self.set_after(self.chain[max(self.chain)]).members
        return {name for name in self.names if self.id(name) in members}

    def rejections(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for node in self.world.nodes.values():
            for reason, count in node.rejections.items():
                found[reason] = found.get(reason, 0) + count
        return found

    def eras(self) -> list[EraBegan]:
        return [
            event
            for height in sorted(self.chain)
            for event in self.events(height)
            if isinstance(event, EraBegan)
        ]

    def events(self, height: int) -> list[Wire]:
        union = self.public.ledger.event_union
        records = (decode_own(raw, EventRecord) for raw in self.chain[height].events)
        return [decode_own(record.data, union) for record in records]

    # -- doing ---------------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        self.world.start(*map(self.id, names))

    def crash(self, name: str) -> None:
        if self.world.nodes[self.id(name)].alive:
            self.world.crash(self.id(name))

    def call(self, by: str, *calls: Wire, to: Iterable[str] | None = None) -> None:
        """One transaction, handed to some nodes (all that are up)."""
        nonce = self.nonces.get(by, 0)
        self.nonces[by] = nonce + 1
        signed = sign_transaction(account(by), self.genesis.chain_id, nonce, calls, fee=GRID)
        for name in self.up() if to is None else to:
            self.world.submit(self.id(name), [signed])

    def stand(self, name: str) -> Stand:
        own = account(f"{name} session")
        proof = prove_session_key(own, self.genesis.chain_id, key(name))
        return Stand(session_key=own.public_key, proof=proof)

    def run_slots(self, slots: int) -> None:
        self.world.run_for(slots * SLOT_MS)

    def run_to(self, height: int, slots: int) -> bool:
        return self.world.run_until(
            lambda: all(self.final(name) >= height for name in self.up()), slots * SLOT_MS
        )

    def settle(self, further: int = 4, slots: int = 60) -> None:
        """Whatever happened before: all must go on, together."""
        self.world.network.heal()
        self.world.start()
        goal = max(self.chain) + further
        assert self.run_to(goal, slots), (
            f"no progress to {goal}: finals {[(n, self.final(n)) for n in self.up()]}, "
            f"best {[self.node(n).best.height for n in self.up()]}, "
            f"sets {[self.node(n).validators.set_id for n in self.up()]}, "
            f"rounds {[self.node(n).round for n in self.up()]}"
        )
        self.check()
