"""One run of a PBFT chain: two phases (`sim/run.py`), under the eyes of the checkers.

Streams of randomness are apart (network and disks; faults; traitors; clients), so that leaving out a
fault changes as little as possible of the rest: it is what makes shrinking work.
"""

from collections.abc import Callable, Sequence
from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import KeyedHashVerifier, sha256
from gridtokenx.core.machine import Committed, Machine, NodeId, Reader
from gridtokenx.core.quorum import quorum
from gridtokenx.lab.faults import Behave, RoundMutation, byzantine
from gridtokenx.lab.sim.history import BlockPoint, History, ViewPoint
from gridtokenx.lab.sim.inject import Injector
from gridtokenx.lab.sim.manifest import Manifest
from gridtokenx.lab.sim.network import Envelope
from gridtokenx.lab.sim.outcome import Violation, percentile
from gridtokenx.lab.sim.pbft.behaviours import Traitors
from gridtokenx.lab.sim.pbft.chain import (
    Clients,
    SharedLedger,
    make_ledger,
    replica_signer,
    validators_of,
)
from gridtokenx.lab.sim.pbft.checkers import Checkers
from gridtokenx.lab.sim.pbft.messages import phase_of, round_of
from gridtokenx.lab.sim.pbft.operators import Operators
from gridtokenx.lab.sim.pbft.sharing import SharedChecks, sharing
from gridtokenx.lab.sim.pbft.traitors import Conspiracy, Puppet
from gridtokenx.lab.sim.pbft.variants import variant_named
from gridtokenx.lab.sim.run import Measured, SimulatedRun, profile_of
from gridtokenx.lab.sim.streams import stream
from gridtokenx.lab.sim.world import START_MS, SimulatedNode, World
from gridtokenx.ledger.records import final_height
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.pbft import membership
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.rotation import PERIOD_VIEWS, primary_of

_SENT_TO: Final = 2
"""Clients hand a transaction to so many replicas, as agents do."""
_RETRIES: Final = 32
_MOST_STEPS: Final = 20_000
"""Steps of all machines at one moment; the largest chain takes some hundreds."""
_GOVERN_MS: Final = 1_500
"""How often operators look at the chain."""


class PbftRun(SimulatedRun):
    """A chain under test.

    Args:
        manifest: resolved.
        note: hears, with the virtual time since the start, of what happens.
    """

    def __init__(self, manifest: Manifest, note: Callable[[int, str], None] | None = None) -> None:
        super().__init__(manifest, note)
        seed, chain, network = self.seed, manifest.chain, manifest.network
        self.nodes: Final = chain.nodes
        self.variant: Final = variant_named(chain.variant)
        self.validators: Final = validators_of(chain.replicas)
        self.keys: Final = tuple(replica_signer(index).public_key for index in range(self.nodes))
        self.byzantine = byzantine(manifest.fault)
        ledger = make_ledger(self.validators, manifest.workload.clients)
        self.genesis: Final = ledger.genesis(START_MS)
        self.ledger: Final = SharedLedger(ledger)
        world_seed = stream(seed, "world").getrandbits(64)
        verifier = KeyedHashVerifier()
        self.world = World(
            world_seed,
            verifier,
            profile=profile_of(network),
            disk_ms=(0, network.disk_ms),
            trace=True,
        )
        self.clients: Final = Clients(manifest.workload.clients, stream(seed, "amounts"))
        self._client_draw: Final = stream(seed, "clients")
        self.checkers: Final = Checkers(
            make_ledger(self.validators, manifest.workload.clients),
            self.genesis,
            self.validators,
            verifier,
            {key: index for index, key in enumerate(self.keys)},
            self.variant.rule,
        )
        self._operators: Final = Operators(
            manifest.change,
            self.ledger.chain_id,
            replica_signer,
            self.ledger.admission,
            stream(seed, "operators"),
            self.note,
        )
        self._traitors: Final = Traitors(manifest.fault, self._make_conspiracy(seed))
        self._checks: Final[SharedChecks] = {}
        self.places: list[NodeId] = []
        self._index: dict[NodeId, int] = {}
        self._honest: list[SimulatedNode] = []
        self._add_nodes()
        self._at = (0, 0)
        self._views = 0
        self._moment, self._steps = START_MS, 0
        self._block_points: list[BlockPoint] = []
        self._view_points: list[ViewPoint] = []
        self._sent = 0
        self.injector = Injector(
            self.world, self, manifest.fault, stream(seed, "faults"), self.note
        )
        self.world.on_committed = self._on_committed
        self.world.on_emitted = self._on_emitted
        self.world.on_stepped = self._on_stepped
        self.world.on_halted = self._on_halted

    # -- building ----------------------------------------------------------------------------------

    def _make_conspiracy(self, seed: int) -> Conspiracy:
        return Conspiracy(
            self.validators,
            {index: replica_signer(index) for index in sorted(self.byzantine)},
            self.ledger,
            self.manifest.chain.clock_bound_ms,
            stream(seed, "traitors"),
            self.keys,
        )

    def _add_nodes(self) -> None:
        for index, key in enumerate(self.keys):
            self._add(key, index)
        self._twins: dict[int, NodeId] = {}
        for fault in self.manifest.fault:
            twin = isinstance(fault, Behave) and fault.behaviour == "twin"
            if isinstance(fault, Behave) and twin and fault.node not in self._twins:
                place = sha256(b"gtx sim: twin", self.keys[fault.node])
                self._twins[fault.node] = place
                self._add(place, fault.node, twin=True)

    def _add(self, place: NodeId, index: int, *, twin: bool = False) -> None:
        identity = self.keys[index]
        node = self.world.add(place, self._builder(index, twin=twin), identity=identity)
        self.places.append(place)
        self._index[place] = index
        if index not in self.byzantine:
            self._honest.append(node)

    def _builder(self, index: int, *, twin: bool) -> Callable[[Reader], Machine]:
        def build(reader: Reader) -> Machine:
            rule = self.variant.rule  # the chain's: a traitor counts as all do
            honest = index not in self.byzantine
            replica_type = self.variant.replica if honest else self._traitors.replica_type(index)
            replica = sharing(replica_type).restore(
                reader,
                self.ledger,
                rule(self.validators),
                replica_signer(index),
                self.genesis,
                self.manifest.chain.timing,
                rotation_blocks=self.manifest.chain.rotation_blocks,
                validators_of=lambda tree: rule(membership.validators_of(tree)),
            )
            replica.shared = self._checks
            return self._traitors.play(replica, index, twin=twin)

        return build

    # -- what faults ask (`Subject`) ---------------------------------------------------------------

    def leader(self) -> int:
        """Index of the replica that leads the highest view of an honest one."""
        return self._primary(0)

    def next_leader(self) -> int:
        """Who leads after it."""
        return self._primary(1)

    def _primary(self, views: int) -> int:
        """Index of the one that leads so many views after the highest one of the newest set."""
        set_id, view = self._at
        members = self.checkers.sets[set_id]
        return self._index[members.members[primary_of(view + views, members)]]

    def height(self) -> int:
        """The highest committed height."""
        return self.checkers.height

    def view(self) -> int:
        """The highest view of an honest replica, in whatever set."""
        return self._views

    def holds(self, condition: str) -> bool:
        """Whether a condition holds for an honest replica."""
        replicas = [replica for node in self._honest if (replica := replica_in(node)) is not None]
        match condition:
            case "view-change":
                return any(not replica.active for replica in replicas)
            case "prepared":
                return any(replica.prepared_above_head() for replica in replicas)
            case "handover":
                newest = max(self.checkers.sets)
                return any(replica.validators.set_id < newest for replica in replicas)
            case _:
                return any(
                    node.life > 1 and (final_height(node.store) or 0) + 1 < self.height()
                    for node in self._honest
                    if node.alive
                )

    def round_of(self, envelope: Envelope) -> int | None:
        """See `messages.round_of`."""
        return round_of(envelope.message)

    def view_of(self, envelope: Envelope) -> tuple[int, int] | None:
        """See `messages.phase_of`."""
        return phase_of(envelope.message)

    def misbehave(self, fault: Behave | RoundMutation, *, active: bool) -> None:
        """Switch a behaviour on or off."""
        if isinstance(fault, Behave) and fault.behaviour == "twin":
            self._toggle_twin(self._twins[fault.node], active=active)
        self._traitors.switch(fault, active=active)

    def _toggle_twin(self, place: NodeId, *, active: bool) -> None:
        alive = self.world.nodes[place].alive
        if active and not alive:
            self.world.start(place)
        elif not active and alive:
            self.world.crash(place)

    # -- what the world tells ----------------------------------------------------------------------

    def _on_committed(self, node: SimulatedNode, effect: Committed) -> None:
        index = self._index[node.id]
        if index in self.byzantine:
            return
        first = self.checkers.committed(index, node, effect, self.world.now)
        if first is not None:
            heard = len(self.clients.latencies_ms)
            problem = self.clients.note_committed(first.block, self.world.now)
            self._note_block(first, self.clients.latencies_ms[heard:])
            if problem is not None:
                raise Violation("validity", problem)
            self.injector.observe()

    def _on_emitted(self, node: SimulatedNode, message: Wire) -> None:
        index = self._index[node.id]
        if index not in self.byzantine:
            self.checkers.emitted(index, message)

    def _on_stepped(self, node: SimulatedNode) -> None:
        index = self._index[node.id]
        self._steps += 1
        if self.world.now != self._moment:
            self._moment, self._steps = self.world.now, 1
        elif self._steps > _MOST_STEPS:
            raise Violation("survival", f"replica {index} spins: {_MOST_STEPS} steps in no time")
        replica = node.machine  # an honest one is in no wrapper
        if index in self.byzantine or not isinstance(replica, Replica):
            return
        self.checkers.stepped(index, node)
        if node.misbehaviours:
            self.noticed.update(report.kind for report in node.misbehaviours)
            self.checkers.accused(node, self.byzantine)
        at = replica.position
        if at > self._at and at[0] in self.checkers.sets:
            self._note_view(*at)
        elif self.injector.watches:
            self.injector.observe()

    def _note_block(self, executed: ExecutedBlock, latencies_ms: list[int]) -> None:
        point = BlockPoint(
            at_ms=self.world.now - START_MS,
            height=executed.height,
            transactions=len(executed.block.transactions),
            latency_ms=percentile(latencies_ms, 50),
        )
        self._block_points.append(point)

    def _note_view(self, set_id: int, view: int) -> None:
        """An honest replica is further than any before: in views, or in sets."""
        members = tuple(self._index[key] for key in self.checkers.sets[set_id].members)
        if set_id > self._at[0]:
            self.note(f"set {set_id}: {list(members)}")
        period, attempt = divmod(view, PERIOD_VIEWS)
        if attempt:
            where = (f" of set {set_id}" if set_id else "") + (
                f", period {period}" if period else ""
            )
            self.note(f"view {attempt}{where}")
        at_ms = self.world.now - START_MS
        point = ViewPoint(at_ms=at_ms, set_id=set_id, view=attempt, members=members)
        self._view_points.append(point)
        self._at, self._views = (set_id, view), max(self._views, attempt)
        self.injector.observe()

    def _on_halted(self, node: SimulatedNode, error: Exception) -> None:
        index = self._index[node.id]
        self.note(f"replica {index} ends: {error}")
        store = node.store
        excused = isinstance(error, LocalFault) and (store.full or store.fails or store.damaged)
        if index not in self.byzantine and not excused:
            raise Violation("survival", f"replica {index} ended: {type(error).__name__}: {error}")

    # -- clients -----------------------------------------------------------------------------------

    def _work(self) -> None:
        """Send one transaction, and come again."""
        transaction = self.clients.next(self.world.now)
        if transaction is not None:
            self._hand_in([transaction])
        rate = self.manifest.workload.transactions_per_s
        self._sent += 1
        self.world.at(START_MS + self._sent * 1_000 // rate, self._work)

    def _retry(self) -> None:
        retry_ms = self.manifest.workload.retry_ms
        overdue = list(self.clients.overdue(self.world.now, retry_ms))
        if overdue:
            self._hand_in(overdue[:_RETRIES])
        self.world.at(self.world.now + retry_ms, self._retry)

    def _hand_in(self, transactions: Sequence[Transaction]) -> None:
        count = min(_SENT_TO, self.nodes)
        for index in self._client_draw.sample(range(self.nodes), count):
            self.world.submit(self.keys[index], transactions)

    def _govern(self) -> None:
        """Let the operators say what is to be said, and come again."""
        head, since_start_ms = self.checkers.newest, self.world.now - START_MS
        if self._healed_ms < 0 or self._operators.under_way(head):
            up = [self._index[n.id] for n in self._honest if n.alive and not n.paused]
            for said in self._operators.say(head, up, since_start_ms):
                self.clients.note_sent(said, self.world.now)
                self._hand_in([said])
            self.world.at(self.world.now + _GOVERN_MS, self._govern)

    # -- phases ------------------------------------------------------------------------------------

    def _safety(self) -> None:
        self.injector.begin()
        self.world.start(*self.keys)
        if self.manifest.workload.transactions_per_s:
            self._work()
            self._retry()
        if self.manifest.change:
            self._govern()
        self.world.run_for(self.manifest.safety.duration_ms)

    def _liveness(self) -> int:
        """Heal the core and let it go on; returns how long that took."""
        phase = self.manifest.liveness
        if not phase.bound_ms:
            return -1
        core = self.core()
        self._heal()
        for node in self._honest:
            if node.id not in {member.id for member in core}:
                self.world.crash(node.id)
            elif not node.alive:
                self.world.start(node.id)
        self.note(f"healed; the core is {[self._index[node.id] for node in core]}")
        start_ms, probe = self.world.now, self.clients.probe(self.world.now)
        self.world.submit(core[0].id, [probe])
        target = self.height() + phase.blocks

        def live() -> bool:
            if probe.id not in self.clients.committed:
                return False
            return all((final_height(node.store) or 0) >= target for node in core)

        if not self.world.run_until(live, phase.bound_ms):
            raise Violation("liveness", self._stalled(core, target, probe, phase.bound_ms))
        return self.world.now - start_ms

    def _stalled(
        self, core: Sequence[SimulatedNode], target: int, probe: Transaction, bound_ms: int
    ) -> str:
        heights = {self._index[node.id]: final_height(node.store) or 0 for node in core}
        taken = "" if probe.id in self.clients.committed else "; a new transaction is in no block"
        return f"{bound_ms} ms after healing, height {target} is not reached: {heights}{taken}"

    def core(self) -> list[SimulatedNode]:
        """Who is healed: honest, with sound disks; a quorum of them, or all."""
        phase = self.manifest.liveness
        sound = [node for node in self._honest if not node.store.damaged]
        if phase.core == "quorum":
            named = [node for node in sound if self._index[node.id] in phase.members]
            sound = named or sound[: self.validators.quorum]
        return sound

    def _judge(self) -> None:
        for node in self._honest:
            if not node.store.damaged:
                self.checkers.check_disk(self._index[node.id], node)

    # -- the outcome -------------------------------------------------------------------------------

    def voided(self) -> tuple[str, ...]:
        """Which promises this run never had."""
        found: list[str] = []
        beyond = False
        for set_id, members in sorted(self.checkers.sets.items()):
            traitors = sum(self._index[key] in self.byzantine for key in members.members)
            beyond = traitors > members.faulty
            if beyond:
                where = f" in set {set_id}" if set_id else ""
                found.append(
                    f"safety: {traitors} Byzantine of {members.size}{where},"
                    f" {members.faulty} tolerated"
                )
        members = self.checkers.sets[max(self.checkers.sets)]
        core = sum(members.index_of(node.id) is not None for node in self.core())
        if beyond or core < quorum(members.size):
            found.append(
                f"liveness: a core of {core} sound honest replicas, {quorum(members.size)} needed"
            )
        return tuple(found)

    def history(self) -> History:
        """What happened, to be drawn."""
        return History(
            bands=self.injector.bands(START_MS),
            blocks=tuple(self._block_points),
            views=tuple(self._view_points),
            healed_ms=self._healed_ms,
            ended_ms=self.world.now - START_MS,
        )

    def _measured(self) -> Measured:
        return Measured(
            trace=self.world.trace_digest(),
            replicas=self.validators.size,
            handovers=max(self.checkers.sets),
            blocks=self.height(),
            views=self._views,
            transactions=len(self.clients.committed),
            latencies_ms=self.clients.latencies_ms,
            deliveries=self.world.delivered,
            refused=tuple(self._operators.refused),
        )

    def _honest_nodes(self) -> Sequence[SimulatedNode]:
        return self._honest


def replica_in(node: SimulatedNode) -> Replica | None:
    """The PBFT replica inside whatever wraps it; None if the node is down."""
    machine = node.machine
    while not isinstance(machine, Replica):
        if not isinstance(machine, Puppet):
            return None
        machine = machine.inner
    return machine
