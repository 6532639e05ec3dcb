"""One run of a whole network: two phases, under the eyes of the checkers, and the audit at the end.

Law of the file: **a resolved manifest determines the run**, as of a chain by itself (`sim/pbft/run.py`).
First anything may happen. Then all is healed, and within the bound every node of every chain has gone
on, every packet that was under way has ended, and an interval that closed afterwards is settled.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.gridtime import interval_at
from gridtokenx.core.machine import Committed, NodeId, Reader
from gridtokenx.core.quorum import max_faulty
from gridtokenx.lab.faults import Behave, RoundMutation, byzantine
from gridtokenx.lab.manifest import Manifest as Network
from gridtokenx.lab.sim.inject import Injector
from gridtokenx.lab.sim.manifest import Manifest
from gridtokenx.lab.sim.network import Envelope, LinkProfile
from gridtokenx.lab.sim.outcome import Finding, Outcome, Violation, percentile
from gridtokenx.lab.sim.pbft.run import stream
from gridtokenx.lab.sim.store import SimulatedStore
from gridtokenx.lab.sim.testnet.checkers import NetworkCheckers
from gridtokenx.lab.sim.testnet.meddling import Meddler
from gridtokenx.lab.sim.testnet.naming import BROKER, CHAINS, DEVICES, node_names
from gridtokenx.lab.sim.testnet.network import Neighbourhood, Testnet, make_neighbourhood
from gridtokenx.lab.sim.testnet.processes import Life, Process
from gridtokenx.lab.sim.testnet.tally import Tally
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


class TestnetRun:
    """A network under test.

    Args:
        manifest: resolved, with a network.
        note: hears, with the virtual time since the start, of what happens.
    """

    def __init__(self, manifest: Manifest, note: Callable[[int, str], None] | None = None) -> None:
        if manifest.seed is None or manifest.testnet is None:
            raise AssertionError("resolve the manifest first (draw.resolve)")
        self.manifest: Final = manifest
        self._note_to = note
        seed, links = manifest.seed, manifest.network
        self.network: Final = manifest.testnet
        profile = LinkProfile(
            delay_ms=(links.least_delay_ms, links.delay_ms),
            spread=links.spread,
            loss=links.loss,
            duplicate=links.duplicate,
            reorder=links.reorder,
        )
        self.testnet: Final = Testnet(
            self.network,
            stream(seed, "world").getrandbits(64),
            profile=profile,
            disk_ms=links.disk_ms,
            neighbourhood=neighbourhood_of(self.network),
        )
        self.places: Final[Sequence[NodeId]] = [each.id for each in self.testnet.processes]
        self._numbers: Final = {id_: number for number, id_ in enumerate(self.places)}
        traitors = (fault for fault in manifest.fault if not isinstance(fault, Behave))
        self.byzantine: Final = byzantine(traitors)
        self.checkers: Final = NetworkCheckers(
            self.testnet.facts, self._numbers, self.byzantine, self.testnet.verifier
        )
        self.tally: Final = Tally()
        self._meddlers: Final = {
            number: Meddler(fault, stream(seed, f"meddler {number}"))
            for number, fault in enumerate(manifest.fault)
            if isinstance(fault, Behave)
        }
        self._view = self._views = self._told_ms = 0
        world = self.testnet.world
        self.injector: Final = Injector(
            world, self, manifest.fault, stream(seed, "faults"), self.note
        )
        self.testnet.on_committed = self._on_committed
        world.on_emitted = self._on_emitted
        world.on_stepped = self._on_stepped
        world.on_halted = self._on_halted
        self.testnet.wires.on_failure = self._on_failure
        for meddler in self._meddlers.values():
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
        for meddler in self._meddlers.values():
            if meddler.fault is fault:
                meddler.active = active

    def _honest(self) -> list[tuple[str, SimulatedNode]]:
        return [
            (chain, process.node)
            for chain, processes in self.testnet.nodes.items()
            for process in processes
            if self._numbers[process.id] not in self.byzantine
        ]

    # -- what the world tells ----------------------------------------------------------------------

    def _on_committed(self, node: SimulatedNode, effect: Committed) -> None:
        now = self.testnet.world.now
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
        self.checkers.stepped(node)
        machine = node.machine
        if node.network == _LEADING and isinstance(machine, Replica) and machine.view > self._view:
            self._view, attempt = machine.view, machine.view % PERIOD_VIEWS
            self._views = max(self._views, attempt)
            if attempt:
                self.note(f"the consortium is in view {self._view}")
            self.injector.observe()
        elif self.injector.watches:
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
        raise Violation(
            "survival", f"{life.name} ended: {type(error).__name__}: {error}"
        ) from error

    def _process(self, node: SimulatedNode) -> Process:
        return self.testnet.wires.processes[node.id]

    def note(self, text: str) -> None:
        """Put a line on the timeline; faults by their numbers, processes by name."""
        if self._note_to is not None:
            self._note_to(self.testnet.world.now - START_MS, text)

    # -- phases ------------------------------------------------------------------------------------

    def run(self, commit: str) -> Outcome:
        """Both phases and the audit; never raises a `Violation`."""
        finding, recovery_ms, summary = None, -1, None
        try:
            self._safety()
            recovery_ms = self._liveness()
            summary = self._audit()
        except Violation as violation:
            at_ms = self.testnet.world.now - START_MS
            finding = Finding(checker=violation.checker, detail=violation.detail, at_ms=at_ms)
            self.note(f"violation: {violation}")
        outcome = self._outcome(commit, finding, recovery_ms, summary)
        self.testnet.close()
        return outcome

    def _safety(self) -> None:
        self.injector.begin()
        self.testnet.start()
        self.testnet.world.run_for(self.manifest.safety.duration_ms)

    def _liveness(self) -> int:
        """Heal everything and let it go on; returns how long that took."""
        phase, world = self.manifest.liveness, self.testnet.world
        if not phase.bound_ms:
            return -1
        self.injector.heal()
        world.network.profile = LinkProfile((phase.least_delay_ms, phase.delay_ms))
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

    def _audit(self) -> Summary:
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
        return summarise_chains(audited)

    # -- telling -----------------------------------------------------------------------------------

    def _outcome(
        self, commit: str, finding: Finding | None, recovery_ms: int, summary: Summary | None
    ) -> Outcome:
        voided = tuple(self._voided())
        verdict = "ok" if finding is None else "voided" if voided else "violation"
        travelled = self.tally.travelled_ms
        return Outcome(
            name=self.manifest.name,
            seed=self.manifest.seed or 0,
            commit=commit,
            verdict=verdict,
            finding=finding,
            voided=voided,
            trace=self.testnet.trace_digest(),
            replicas=sum(map(len, self.testnet.nodes.values())),
            byzantine=tuple(sorted(self.byzantine)),
            faults=len(self.manifest.fault),
            blocks=sum(self.checkers.heights().values()),
            views=self._views,
            transactions=self.tally.transactions,
            latency_p50_ms=percentile(travelled, 50),
            latency_p95_ms=percentile(travelled, 95),
            recovery_ms=recovery_ms,
            virtual_ms=self.testnet.world.now - START_MS,
            deliveries=self.testnet.world.delivered + self.testnet.wires.carried,
            summary=self._summary(summary),
        )

    def _summary(self, audited: Summary | None) -> Summary | None:
        """As `./scripts/up --summary` prints it."""
        if audited is None:
            return None
        published = self.testnet.parts.count(DEVICES).value("readings_published")
        rejected = sum(
            self.testnet.parts.count(name).value("readings_rejected")
            for name in node_names(self.network, "oracle")
        )
        readings = audited["readings"]
        return {
            "network": self.network.name,
            "seconds": (self.testnet.world.now - START_MS) / 1_000,
            **audited,
            "readings": {
                "published": published,
                "verified": readings["verified"],
                "rejected": readings["rejected"] + rejected,
            },
        }

    def _voided(self) -> list[str]:
        """Promises that nobody gave."""
        found = list(self._withheld())
        for chain in CHAINS:
            nodes = self.testnet.nodes[chain]
            bad = sum(self._numbers[process.id] in self.byzantine for process in nodes)
            if bad > max_faulty(len(nodes)):
                found.append(f"{chain}: {bad} of {len(nodes)} nodes are Byzantine")
        return found

    def _withheld(self) -> Iterator[str]:
        """Those who are trusted for liveness, and break it: a behaviour does not heal."""
        names = {self.testnet.processes[meddler.node].name for meddler in self._meddlers.values()}
        if all(f"relayer-{each}" in names for each in range(self.network.bridge.relayers)):
            yield "liveness: every relayer misbehaves"
        for name in sorted(names & {BROKER, DEVICES}):
            yield f"liveness: {name} misbehaves"
