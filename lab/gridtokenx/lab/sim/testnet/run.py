"""One run of a whole network: two phases, under the eyes of the checkers, and the audit at the end.

After healing (`sim/run.py` has the phases) every node of every chain must go on within the bound, every
packet that was under way must end, and an interval that closed afterwards be settled.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Final

from msgspec.structs import replace

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.gridtime import interval_at
from gridtokenx.core.machine import Committed, NodeId, Reader
from gridtokenx.interchain.stores import CLIENTS
from gridtokenx.lab.faults import Behave, Fault, RoundMutation, byzantine
from gridtokenx.lab.manifest import Manifest as Network
from gridtokenx.lab.sim.history import History, ViewPoint
from gridtokenx.lab.sim.inject import Injector
from gridtokenx.lab.sim.manifest import Change, Manifest
from gridtokenx.lab.sim.network import Envelope
from gridtokenx.lab.sim.outcome import Outcome, Violation
from gridtokenx.lab.sim.pbft.operators import Operators
from gridtokenx.lab.sim.run import Measured, SimulatedRun, profile_of
from gridtokenx.lab.sim.store import SimulatedStore
from gridtokenx.lab.sim.streams import stream
from gridtokenx.lab.sim.testnet.checkers import NetworkCheckers
from gridtokenx.lab.sim.testnet.naming import BROKER, DEVICES
from gridtokenx.lab.sim.testnet.network import (
    Neighbourhood,
    Testnet,
    make_neighbourhood,
    signer_of,
)
from gridtokenx.lab.sim.testnet.processes import Life, Process
from gridtokenx.lab.sim.testnet.tally import Tally
from gridtokenx.lab.sim.testnet.variants import network_variant
from gridtokenx.lab.sim.world import START_MS, SimulatedNode
from gridtokenx.lab.testnet.audit import StoppedChain, audit_chains
from gridtokenx.lab.testnet.summary import Summary, summarise_chains
from gridtokenx.ledger.records import final_height
from gridtokenx.ledger.state import State
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.rotation import PERIOD_VIEWS, primary_of

_FULL_CHECKS: Final = 40
"""At so many heights of each chain the ledgers' invariants are looked at: they walk the whole state."""
_STAND_MS: Final = 10_000
"""How often a run says how far it is."""
_LEADING: Final = "consortium"
"""Of the three chains the one that `leader`, heights and views in faults are about."""


_GOVERNED: Final = ("consortium", "oracle")
"""Chains whose sets their members change."""
_GOVERN_MS: Final = 1_500
"""How often operators look at their chain."""
_SENT_TO: Final = 2
"""They hand what they say to so many nodes."""


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
            observers=manifest.chain.observers,
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
            [each.name for each in processes],
        )
        self.tally: Final = Tally()
        self._govern_draw: Final = stream(self.seed, "clients")
        self._operators: Final = {chain: self._make_operators(chain) for chain in _GOVERNED}
        self._at = (0, 0)
        self._sets: dict[str, int] = {}
        self._views = self._told_ms = 0
        self._summary: Summary | None = None
        self._view_points: list[ViewPoint] = []
        world = self.world
        self.injector = Injector(
            world,
            self,
            manifest.fault,
            stream(self.seed, "faults"),
            self.note,
            [each.name for each in self.testnet.processes],
        )
        self.testnet.on_committed = self._on_committed
        world.on_emitted = self._on_emitted
        world.on_stepped = self._on_stepped
        world.on_halted = self._on_halted
        self.testnet.wires.on_failure = self._on_failure
        for meddler in self.testnet.traitors.meddlers:
            self.testnet.wires.meddlers.setdefault(self.places[meddler.node], []).append(meddler)

    def _make_operators(self, chain: str) -> Operators:
        """Of a PBFT chain: each change is of one, and is told to it by its own indices."""
        nodes = [self._numbers[process.id] for process in self.testnet.nodes[chain]]
        own = [_localised(each, nodes) for each in self.manifest.change if each.nodes[0] in nodes]
        return Operators(
            own,
            self.testnet.facts[chain].chain_id,
            lambda index: signer_of(self.testnet.nodes[chain][index].name),
            self.testnet.chains[chain].ledger.admission,
            stream(self.seed, f"operators of {chain}"),
            lambda line: self.note(f"{chain}: {line}"),
        )

    # -- what faults ask (`Subject`) ---------------------------------------------------------------

    def leader(self) -> int:
        """Of the consortium."""
        return self._leading(0)

    def next_leader(self) -> int:
        """Of the consortium."""
        return self._leading(1)

    def _leading(self, ahead: int) -> int:
        set_id, view = self._at
        members = self.checkers.pbft[_LEADING].sets[set_id]
        return self._numbers[members.members[primary_of(view + ahead, members)]]

    def height(self) -> int:
        """Of the consortium."""
        return self.checkers.heights()[_LEADING]

    def view(self) -> int:
        """Of the consortium: the highest, in whatever set."""
        return self._views

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
        if condition == "handover":
            return any(
                node.machine.validators.set_id < max(self.checkers.pbft[chain].sets)
                for chain, node in self._honest()
                if isinstance(node.machine, Replica)
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
            self._tell_sets(node.network)
            self.injector.observe()
            self._tell_stand(now - START_MS)

    def _tell_sets(self, chain: str) -> None:
        """A set that a block announced; the public chain's are the elections' business."""
        sets = self.checkers.sets()[chain]
        newest = max(sets)
        if chain in _GOVERNED and newest > self._sets.get(chain, 0):
            self._sets[chain] = newest
            names = [self._name_of(key) for key in sets[newest].members]
            self.note(f"set {newest} of {chain} is announced: {', '.join(names)}")

    def _name_of(self, key: NodeId) -> str:
        return self.testnet.processes[self._numbers[key]].name

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
        if node.network == _LEADING and isinstance(machine, Replica):
            self._look_at_view(machine, honest=self._numbers[node.id] not in self.byzantine)
        elif self.injector.watches:
            self.injector.observe()

    def _look_at_view(self, replica: Replica, *, honest: bool) -> None:
        """Whether an honest replica is further than any before: in views, or in sets."""
        members = replica.validators
        at = (members.set_id, replica.view)
        if not honest or at <= self._at or at[0] not in self.checkers.pbft[_LEADING].sets:
            if self.injector.watches:
                self.injector.observe()
            return
        seats = tuple(self._numbers[key] for key in members.members)
        attempt = at[1] % PERIOD_VIEWS
        if attempt:
            self.note(f"the consortium is in view {attempt}")
        self._at, self._views = at, max(self._views, attempt)
        point = ViewPoint(at_ms=self.since_start_ms, set_id=at[0], view=attempt, members=seats)
        self._view_points.append(point)
        self.injector.observe()

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
        if self._numbers[life.node.id] in self.byzantine:
            self.note(f"{life.name} ends: {error}")
            return
        raise Violation(
            "survival", f"{life.name} ended: {type(error).__name__}: {error}"
        ) from error

    def _process(self, node: SimulatedNode) -> Process:
        return self.testnet.wires.processes[node.id]

    # -- phases ------------------------------------------------------------------------------------

    def _safety(self) -> None:
        self.injector.begin()
        self.testnet.start()
        if self.manifest.change:
            self._govern()
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

    def _govern(self) -> None:
        """Let the operators say what is to be said, and come again."""
        for chain, operators in self._operators.items():
            head = self.checkers.pbft[chain].newest
            if self._healed_ms >= 0 and not operators.under_way(head):
                continue
            nodes = self.testnet.nodes[chain]
            up = [
                index
                for index, each in enumerate(nodes)
                if each.node.alive
                and not each.node.paused
                and self._numbers[each.id] not in self.byzantine
            ]
            for said in operators.say(head, up, self.since_start_ms):
                for index in self._govern_draw.sample(range(len(nodes)), _SENT_TO):
                    self.world.submit(nodes[index].id, [said])
        self.world.at(self.world.now + _GOVERN_MS, self._govern)

    def _unfollowed(self) -> Iterator[str]:
        """Which chain does not know yet by whom another one is certified."""
        newest = {name: each.newest for name, each in self.checkers.pbft.items()}
        newest["public"] = self.checkers.public.newest
        for chain, checkers in self.checkers.pbft.items():
            last = max(checkers.sets)
            for other, block in newest.items() if last else ():
                client = None if other == chain else CLIENTS.get(State(block.state), chain)
                if client is not None and client.set_id < last:
                    yield f"{other} knows set {client.set_id} of {chain}, {last} is the last"

    def _missing(
        self, targets: dict[str, int], waiting: frozenset[bytes], interval: int
    ) -> list[str]:
        """What has not happened yet; first what is soonest told."""
        if self.tally.settled < interval:
            return [f"interval {interval} is not settled, {self.tally.settled} is the last"]
        left = waiting & self.tally.open_packets.keys()
        if left:
            return [f"{len(left)} packets that were under way have not ended"]
        if unfollowed := list(self._unfollowed()):
            return unfollowed
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
            handovers=sum(max(checkers.sets) for checkers in self.checkers.pbft.values()),
            refused=tuple(
                f"{chain}: {line}"
                for chain, operators in self._operators.items()
                for line in operators.refused
            ),
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
            bands=self.injector.bands(START_MS),
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
            for name in self.testnet.node_names("oracle")
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
        """Those who are trusted for liveness, and break it for longer than the first phase."""
        duration_ms = self.manifest.safety.duration_ms
        liars = {
            fault.node
            for fault in self.manifest.fault
            if isinstance(fault, Behave) and not _ends_within(fault, duration_ms)
        }
        names = {self.testnet.processes[number].name for number in liars}
        if all(f"relayer-{each}" in names for each in range(self.network.bridge.relayers)):
            yield "liveness: every relayer misbehaves"
        for name in sorted(names & {BROKER, DEVICES}):
            yield f"liveness: {name} misbehaves"


def _ends_within(fault: Fault, duration_ms: int) -> bool:
    """Whether it is over by then for sure."""
    timed = not (fault.at_height or fault.at_view or fault.when)
    return timed and 0 < fault.for_ms <= duration_ms - fault.at_ms


def _localised(change: Change, nodes: Sequence[int]) -> Change:
    """A change with nodes by their index on their chain."""
    named = {
        key: nodes.index(node)
        for key in ("add", "remove", "replace", "by")
        if (node := getattr(change, key)) is not None
    }
    return replace(change, **named)
