"""What runs have in common, whatever is under test: two phases, a verdict, an outcome.

Law of the file: **a resolved manifest determines the run.** First the safety phase, in which anything may
happen; then all that must go on is healed, and goes on within the bound while traitors are traitors still.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from gridtokenx.lab.sim.history import History
from gridtokenx.lab.sim.inject import Injector
from gridtokenx.lab.sim.manifest import Links, Manifest
from gridtokenx.lab.sim.network import LinkProfile
from gridtokenx.lab.sim.outcome import Finding, Outcome, Violation, percentile
from gridtokenx.lab.sim.world import START_MS, SimulatedNode, World


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to, in its own terms; see `Outcome` for each."""

    trace: str
    replicas: int
    handovers: int
    blocks: int
    views: int
    transactions: int
    latencies_ms: list[int]
    deliveries: int
    refused: tuple[str, ...] = ()
    summary: dict[str, Any] | None = None


def profile_of(links: Links) -> LinkProfile:
    """How links behave while no fault says otherwise."""
    return LinkProfile(
        delay_ms=(links.least_delay_ms, links.delay_ms),
        spread=links.spread,
        loss=links.loss,
        duplicate=links.duplicate,
        reorder=links.reorder,
    )


class SimulatedRun(ABC):
    """Something under test.

    Args:
        manifest: resolved.
        note: hears, with the virtual time since the start, of what happens.
    """

    world: World
    injector: Injector
    byzantine: frozenset[int]

    def __init__(self, manifest: Manifest, note: Callable[[int, str], None] | None = None) -> None:
        if manifest.seed is None:
            raise AssertionError("resolve the manifest first (draw.resolve)")
        self.manifest: Final = manifest
        self.seed: Final = manifest.seed
        self.noticed: Final[Counter[str]] = Counter()
        """What honest nodes reported of others, by kind; and, at the end, what they refused."""
        self._note_to = note
        self._healed_ms = -1

    @property
    def since_start_ms(self) -> int:
        """Virtual time of the run."""
        return self.world.now - START_MS

    def note(self, text: str) -> None:
        """Put a line on the timeline."""
        if self._note_to is not None:
            self._note_to(self.since_start_ms, text)

    def run(self, commit: str) -> Outcome:
        """Both phases and the last look; never raises a `Violation`."""
        finding, recovery_ms = None, -1
        try:
            self._safety()
            recovery_ms = self._liveness()
            self._judge()
        except Violation as violation:
            finding = Finding(
                checker=violation.checker, detail=violation.detail, at_ms=self.since_start_ms
            )
            self.note(f"violation: {violation}")
        for node in self._honest_nodes():
            self.noticed.update(node.rejections)
        return self._outcome(commit, finding, recovery_ms)

    def _heal(self) -> None:
        """End all faults but treason; delays are bounded from now on."""
        phase = self.manifest.liveness
        self._healed_ms = self.since_start_ms
        self.injector.heal()
        self.world.network.profile = LinkProfile((phase.least_delay_ms, phase.delay_ms))

    def _outcome(self, commit: str, finding: Finding | None, recovery_ms: int) -> Outcome:
        voided, measured = self.voided(), self._measured()
        return Outcome(
            name=self.manifest.name,
            seed=self.seed,
            commit=commit,
            verdict=verdict_of(finding, voided),
            finding=finding,
            voided=voided,
            refused=measured.refused,
            trace=measured.trace,
            replicas=measured.replicas,
            handovers=measured.handovers,
            byzantine=tuple(sorted(self.byzantine)),
            faults=len(self.manifest.fault),
            blocks=measured.blocks,
            views=measured.views,
            transactions=measured.transactions,
            latency_p50_ms=percentile(measured.latencies_ms, 50),
            latency_p95_ms=percentile(measured.latencies_ms, 95),
            recovery_ms=recovery_ms,
            virtual_ms=self.since_start_ms,
            deliveries=measured.deliveries,
            noticed=dict(sorted(self.noticed.items())),
            summary=measured.summary,
        )

    @abstractmethod
    def _safety(self) -> None:
        """The first phase."""

    @abstractmethod
    def _liveness(self) -> int:
        """The second; returns how long everybody took to go on, -1 if there is none."""

    @abstractmethod
    def _judge(self) -> None:
        """What can be looked at only when all is over."""

    @abstractmethod
    def voided(self) -> tuple[str, ...]:
        """Which promises this run never had: each begins with `safety` or `liveness`."""

    @abstractmethod
    def history(self) -> History:
        """What happened, to be drawn."""

    @abstractmethod
    def _measured(self) -> Measured: ...

    @abstractmethod
    def _honest_nodes(self) -> Iterable[SimulatedNode]: ...


def verdict_of(finding: Finding | None, voided: Sequence[str]) -> str:
    """`ok`, `violation`, or `voided`: what broke had not been promised."""
    if finding is None:
        return "ok"
    promise = "liveness" if finding.checker == "liveness" else "safety"
    return "voided" if any(line.startswith(promise) for line in voided) else "violation"
