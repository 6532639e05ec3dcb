"""One run of a whole network: two phases, under the eyes of the checkers, and the audit at the end.

After healing (`sim/run.py` has the phases) every node of every chain must go on within the bound, every
packet that was under way must end, and an interval that closed afterwards be settled.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.gridtime import interval_at
from gridtokenx.core.machine import Committed, NodeId, Reader
from gridtokenx.lab.faults import Behave, RoundMutation, byzantine
from gridtokenx.lab.manifest import Manifest as Network
from gridtokenx.lab.sim.history import History, ViewPoint
from gridtokenx.lab.sim.inject import Injector
from gridtokenx.lab.sim.manifest import Manifest
from gridtokenx.lab.sim.network import Envelope
from gridtokenx.lab.sim.outcome import Outcome, Violation
from gridtokenx.lab.sim.run import Measured, SimulatedRun, profile_of
from gridtokenx.lab.sim.store import SimulatedStore
from gridtokenx.lab.sim.streams import stream
from gridtokenx.lab.sim.testnet.checkers import NetworkCheckers
from gridtokenx.lab.sim.testnet.naming import BROKER, DEVICES, node_names
from gridtokenx.lab.sim.testnet.network import Neighbourhood, Testnet, make_neighbourhood
from gridtokenx.lab.sim.testnet.processes import Life, Process
from gridtokenx.lab.sim.testnet.tally import Tally
from gridtokenx.lab.sim.testnet.variants import network_variant
from gridtokenx.lab.sim.world import START_MS, SimulatedNode
from gridtokenx.lab.testnet.audit import StoppedChain, audit_chains
from gridtokenx.lab.testnet.summary import Summary, summarise_chains
from gridtokenx.ledger.records import final_height
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.rotation import PERIOD_VIEWS, turn_of

_FULL_CHECKS: Final = 40
"""At so many heights of each chain the ledgers' invariants are looked at: they walk the whole state."""
_STAND_MS: Final = 10_000
"""How often a run says how far it is."""
_LEADING: Final = "consortium"
"""Of the three chains the one that `leader`, heights and views in faults are about."""


@cache
def neighbourhood_of(network: Network) -> Neighbourhood:
    """Made once for all seeds of a process."""
    return make_neighbourhood(network)


def _opened(store: SimulatedStore) -> AbstractContextManager[Reader]:
    return nullcontext(store)


class TestnetRun(SimulatedRun):
    """A network under test.

    Args:
        manifest: resolved, with a network.
        note: hears, with the virtual time since the start, of what happens.
    """

    def __init__(self, manifest: Manifest, note: Callable[[int, str], None] | None = None) -> None:
        super().__init__(manifest, note)
        if manifest.testnet is None:
            raise AssertionError("a run of one chain is `PbftRun`")
        self.network: Final = manifest.testnet
        self.testnet: Final = Testnet(
            self.network,
            stream(self.seed, "world").getrandbits(64),
            profile=profile_of(manifest.network),
            disk_ms=manifest.network.disk_ms,
            neighbourhood=neighbourhood_of(self.network),
            variant=manifest.chain.variant,
            faults=manifest.fault,
            draws=self.seed,
        )
        self.world = self.testnet.world
        processes, twins = self.testnet.processes, self.testnet.twins
        self.places: Final[Sequence[NodeId]] = [each.id for each in (*processes, *twins.values())]
        self._numbers: Final = {each.id: number for number, each in enumerate(processes)}
        self._numbers.update((twin.id, number) for number, twin in twins.items())
        nodes = sum(map(len, self.testnet.nodes.values()))
        self.byzantine = frozenset(number for number in byzantine(manifest.fault) if number < nodes)
        self.checkers: Final = NetworkCheckers(
            self.testnet.facts,
            self._numbers,
            self.byzantine,
            self.testnet.verifier,
            self.testnet.chains["public"].validators_of,
            network_variant(manifest.chain.variant).rule,
        )
        self.tally: Final = Tally()
        self._view = self._views = self._told_ms = 0
        self._summary: Summary | None = None
        self._view_points: list[ViewPoint] = []
        world = self.world
        self.injector = Injector(
            world, self, manifest.fault, stream(self.seed, "faults"), self.note
        )
        self.testnet.on_committed = self._on_committed
        world.on_emitted = self._on_emitted
        world.on_stepped = self._on_stepped
        world.on_halted = self._on_halted
        self.testnet.wires.on_failure = self._on_failure
        for meddler in self.testnet.traitors.meddlers:
            self.testnet.wires.meddlers.setdefault(self.places[meddler.node], []).append(meddler)

    # -- what faults ask (`Subject`) ---------------------------------------------------------------

    def leader(self) -> int:
        """Of the consortium."""
        return self._leading(0)

    def next_leader(self) -> int:
        """Of the consortium."""
        return self._leading(1)

    def _leading(self, ahead: int) -> int:
        replicas = self.testnet.nodes[_LEADING]
        return self._numbers[replicas[(turn_of(self._view) + ahead) % len(replicas)].id]

    def height(self) -> int:
        """Of the consortium."""
        return self.checkers.heights()[_LEADING]

    def view(self) -> int:
        """Of the consortium."""
        return self._view

    def holds(self, condition: str) -> bool:
        """For an honest replica of a PBFT chain."""
        if condition == "catching-up":
            heights = self.checkers.heights()
            return any(
                node.life > 1
                and node.alive
                and (final_height(node.store) or 0) + 1 < heights[chain]
                for chain, node in self._honest()
            )
        machines = [node.machine for _, node in self._honest()]
        replicas = [machine for machine in machines if isinstance(machine, Replica)]
        if condition == "prepared":
            return any(replica.prepared_above_head() for replica in replicas)
        return condition == "view-change" and any(not replica.active for replica in replicas)

    def round_of(self, envelope: Envelope) -> int | None:  # noqa: ARG002 - a network has none
        """No round is one of three chains."""
        return None

    def view_of(self, envelope: Envelope) -> tuple[int, int] | None:  # noqa: ARG002
        """No view is one of three chains."""
        return None

    def misbehave(self, fault: Behave | RoundMutation, *, active: bool) -> None:
        """Switch a behaviour on or off."""
        if isinstance(fault, RoundMutation):
            raise TypeError("the manifest was checked: no round is one of three chains")
        if fault.behaviour == "twin":
            self._toggle_twin(self.testnet.twins[fault.node].id, active=active)
        self.testnet.traitors.switch(fault, active=active)

    def _toggle_twin(self, place: NodeId, *, active: bool) -> None:
        alive = self.world.nodes[place].alive
        if active and not alive:
            self.testnet.traitors.told["twin"] += 1
            self.world.start(place)
        elif not active and alive:
            self.world.crash(place)

    def _honest(self) -> list[tuple[str, SimulatedNode]]:
        return [
            (chain, process.node)
            for chain, processes in self.testnet.nodes.items()
            for process in processes
            if self._numbers[process.id] not in self.byzantine
        ]

    def _honest_nodes(self) -> list[SimulatedNode]:
        return [node for _, node in self._honest()]

    # -- what the world tells ----------------------------------------------------------------------

    def _on_committed(self, node: SimulatedNode, effect: Committed) -> None:
        now = self.world.now
        first = self.checkers.committed(node, effect, now)
        if first is not None:
            self.tally.take(self.testnet.facts[node.network], first, now)
            self.injector.observe()
            self._tell_stand(now - START_MS)

    def _tell_stand(self, since_start_ms: int) -> None:
        """How far everything is, from time to time: a day takes a minute of somebody's."""
        if since_start_ms < self._told_ms + _STAND_MS:
            return
        self._told_ms = since_start_ms - since_start_ms % _STAND_MS
        heights = ", ".join(f"{chain} {high}" for chain, high in self.checkers.heights().items())
        tally = self.tally
        self.note(
            f"heights: {heights}; {tally.auctions} auctions, {tally.settlements} settlements,"
            f" {sum(tally.ended.values())} packets ended, {len(tally.open_packets)} under way"
        )

    def _on_emitted(self, node: SimulatedNode, message: Wire) -> None:
        self.checkers.emitted(node, message)

    def _on_stepped(self, node: SimulatedNode) -> None:
        if node.misbehaviours and self._numbers[node.id] not in self.byzantine:
            self.noticed.update(report.kind for report in node.misbehaviours)
        self.checkers.stepped(node)
        machine = node.machine
        if node.network == _LEADING and isinstance(machine, Replica) and machine.view > self._view:
            self._view, attempt = machine.view, machine.view % PERIOD_VIEWS
            self._views = max(self._views, attempt)
            if attempt:
                self.note(f"the consortium is in view {self._view}")
            self._note_view(machine)
            self.injector.observe()
        elif self.injector.watches:
            self.injector.observe()

    def _note_view(self, replica: Replica) -> None:
        members = replica.validators
        point = ViewPoint(
            at_ms=self.since_start_ms,
            set_id=members.set_id,
            view=self._view % PERIOD_VIEWS,
            members=tuple(self._numbers[key] for key in members.members),
        )
        self._view_points.append(point)

    def _on_halted(self, node: SimulatedNode, error: Exception) -> None:
        name = self._process(node).name
        self.note(f"{name} ends: {error}")
        self._process(node).ended()
        store = node.store
        excused = isinstance(error, LocalFault) and (store.full or store.fails or store.damaged)
        if self._numbers[node.id] not in self.byzantine and not excused:
            raise Violation("survival", f"{name} ended: {type(error).__name__}: {error}")

    def _on_failure(self, life: Life, error: BaseException) -> None:
        if isinstance(error, Violation) or not isinstance(error, Exception):
            raise error
        raise Violation(
            "survival", f"{life.name} ended: {type(error).__name__}: {error}"
        ) from error

    def _process(self, node: SimulatedNode) -> Process:
        return self.testnet.wires.processes[node.id]

    # -- phases ------------------------------------------------------------------------------------

    def _safety(self) -> None:
        self.injector.begin()
        self.testnet.start()
        self.world.run_for(self.manifest.safety.duration_ms)

    def _liveness(self) -> int:
        """Heal everything and let it go on; returns how long that took."""
        phase, world = self.manifest.liveness, self.world
        if not phase.bound_ms:
            return -1
        self._heal()
        for process in self.testnet.processes:
            if not process.node.alive and not process.node.store.damaged:
                world.start(process.id)
        self.note("healed")
        start_ms, waiting = world.now, frozenset(self.tally.open_packets)
        targets = {name: height + phase.blocks for name, height in self.checkers.heights().items()}
        interval = interval_at(self.testnet.facts["oracle"].clock.grid_ms(start_ms))

        def live() -> bool:
            return not self._missing(targets, waiting, interval)

        if not world.run_until(live, phase.bound_ms):
            missing = "; ".join(self._missing(targets, waiting, interval))
            raise Violation("liveness", f"{phase.bound_ms} ms after healing: {missing}")
        return world.now - start_ms

    def _missing(
        self, targets: dict[str, int], waiting: frozenset[bytes], interval: int
    ) -> list[str]:
        """What has not happened yet; first what is soonest told."""
        if self.tally.settled < interval:
            return [f"interval {interval} is not settled, {self.tally.settled} is the last"]
        left = waiting & self.tally.open_packets.keys()
        if left:
            return [f"{len(left)} packets that were under way have not ended"]
        return [
            f"{self._process(node).name} is at height {height}, not {targets[chain]}"
            for chain, node in self._honest()
            if (height := final_height(node.store) or 0) < targets[chain] and not node.store.damaged
        ]

    def _judge(self) -> None:
        """Everything executed again; raises at the first invariant that does not hold."""
        chains = {
            name: StoppedChain(
                self.testnet.facts[name],
                {
                    process.name: partial(_opened, process.node.store)
                    for process in processes
                    if self._numbers[process.id] not in self.byzantine
                    and not process.node.store.damaged
                },
            )
            for name, processes in self.testnet.nodes.items()
        }
        audited = audit_chains(chains, self.testnet.verifier, _FULL_CHECKS)
        for name, against in audited.verdicts.against.items():
            if against:
                raise Violation(f"audit: {name}", against[0])
        self._summary = self._told(summarise_chains(audited))

    # -- telling -----------------------------------------------------------------------------------

    def _measured(self) -> Measured:
        self.noticed.update(self.tally.refused)
        return Measured(
            trace=self.testnet.trace_digest(),
            replicas=sum(map(len, self.testnet.nodes.values())),
            handovers=0,
            blocks=sum(self.checkers.heights().values()),
            views=self._views,
            transactions=self.tally.transactions,
            latencies_ms=self.tally.travelled_ms,
            deliveries=self.world.delivered + self.testnet.wires.carried,
            summary=self._summary,
        )

    def run(self, commit: str) -> Outcome:
        """See `SimulatedRun`; afterwards no coroutine is left."""
        try:
            return super().run(commit)
        finally:
            self.testnet.close()

    def history(self) -> History:
        """What happened, to be drawn."""
        return History(
            bands=self.injector.bands(START_MS, [each.name for each in self.testnet.processes]),
            blocks=tuple(self.tally.blocks),
            views=tuple(self._view_points),
            packets=tuple(self.tally.packets),
            healed_ms=self._healed_ms,
            ended_ms=self.since_start_ms,
        )

    def _told(self, audited: Summary) -> Summary:
        """As `./scripts/up --summary` prints it."""
        published = self.testnet.parts.count(DEVICES).value("readings_published")
        rejected = sum(
            self.testnet.parts.count(name).value("readings_rejected")
            for name in node_names(self.network, "oracle")
        )
        readings = audited["readings"]
        return {
            "network": self.network.name,
            "seconds": self.since_start_ms / 1_000,
            **audited,
            "readings": {
                "published": published,
                "verified": readings["verified"],
                "rejected": readings["rejected"] + rejected,
            },
        }

    def voided(self) -> tuple[str, ...]:
        """Promises that nobody gave."""
        return (*self._overrun(), *self._withheld())

    def _overrun(self) -> Iterator[str]:
        """Sets with more traitors than they tolerate: what they say the other chains believe."""
        for chain, sets in self.checkers.sets().items():
            for set_id, members in sorted(sets.items()):
                bad = sum(self._numbers[key] in self.byzantine for key in members.members)
                if bad > members.faulty:
                    where = f" in set {set_id}" if set_id else ""
                    told = f"{bad} of {members.size} {chain} nodes are Byzantine{where}"
                    yield f"safety: {told}, {members.faulty} tolerated"
                    yield f"liveness: {told}, {members.faulty} tolerated"

    def _withheld(self) -> Iterator[str]:
        """Those who are trusted for liveness, and break it: a behaviour does not heal."""
        liars = {fault.node for fault in self.manifest.fault if isinstance(fault, Behave)}
        names = {self.testnet.processes[number].name for number in liars}
        if all(f"relayer-{each}" in names for each in range(self.network.bridge.relayers)):
            yield "liveness: every relayer misbehaves"
        for name in sorted(names & {BROKER, DEVICES}):
            yield f"liveness: {name} misbehaves"
