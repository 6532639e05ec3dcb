"""The smallest schedule that still fails.

Law of the file: **every step is a run that broke the same promise.** First whole faults go (delta
debugging: halves, quarters, ..., single ones), then what is left is made simpler, then the run shorter.
What remains is a resolved manifest, a regression from then on.

A smaller schedule changes what the seed draws in it, so it may fail with another seed only: after one
pass with the run's own seed, every candidate is tried with a handful of others, and the seed that
showed it is in the manifest.
"""

import time
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from gridtokenx.lab.faults import Fault, OnLinks
from gridtokenx.lab.sim.execute import execute
from gridtokenx.lab.sim.manifest import Chain, Links, Liveness, Manifest, contradictions
from gridtokenx.lab.sim.outcome import Outcome

Tell = Callable[[int, Manifest], None]
"""Hears of every smaller run: how many were tried, and it."""
_SHORTEST_MS: Final = 1_000
_HABITS: Final = (
    "window",
    "rotation_blocks",
    "checkpoint_blocks",
    "snapshot_distance",
    "part_bytes",
    "view_timeout_ms",
    "request_timeout_ms",
    "block_time_ms",
)
"""What a chain may do otherwise than usual; a smaller schedule has less of it."""
_USUAL: Final = Chain()
_PHASE: Final = Liveness()


class Shrinker:
    """Makes a failing run smaller.

    Args:
        manifest: resolved; it fails.
        outcome: how.
        most_runs: when to be content.
        tell: hears of progress.
        other_seeds: with how many more seeds a candidate is tried.
        most_s: when to be content, in seconds of real time; None: whenever.
    """

    def __init__(
        self,
        manifest: Manifest,
        outcome: Outcome,
        most_runs: int = 300,
        tell: Tell | None = None,
        *,
        other_seeds: int = 4,
        most_s: float | None = None,
    ) -> None:
        if outcome.finding is None:
            raise AssertionError("only a run that failed can be made smaller")
        self._checker: Final = outcome.finding.checker
        self._most: Final = most_runs
        self.tell = tell
        self.heard: Callable[[int], None] | None = None
        """Hears of every run: how many there were."""
        self._other_seeds: Final = other_seeds
        self._tries = 1
        self._ends_s: Final = None if most_s is None else time.monotonic() + most_s
        self.best = manifest
        self.outcome = outcome
        self.runs = 0

    def run(self) -> Manifest:
        """The smallest that was found."""
        self._cut_short()
        for tries in dict.fromkeys((1, 1 + self._other_seeds)):
            self._tries = tries
            before = None
            while before != self.best and not self.done:
                before = self.best
                self._drop_faults()
                self._drop_changes()
                self._try_all(_plainer)
                self._try_all(_simpler_faults)
        self._cut_short()
        return self.best

    @property
    def done(self) -> bool:
        """Whether runs or time are used up."""
        late = self._ends_s is not None and time.monotonic() >= self._ends_s
        return late or self.runs >= self._most

    def _fails(self, candidate: Manifest) -> bool:
        """Whether a candidate breaks the same promise, with one of a few seeds; keeps it if so."""
        if candidate == self.best or any(contradictions(candidate)):
            return False  # such as a partition of a twin that was left out
        own = candidate.seed or 0
        others = [seed for seed in range(self._tries) if seed != own][: self._tries - 1]
        return any(
            self._fails_with(msgspec.structs.replace(candidate, seed=seed))
            for seed in (own, *others)
        )

    def _fails_with(self, candidate: Manifest) -> bool:
        if self.done:
            return False
        self.runs += 1
        if self.heard is not None:
            self.heard(self.runs)
        outcome = execute(candidate, candidate.seed or 0)
        if outcome.finding is None or outcome.finding.checker != self._checker:
            return False
        if not outcome.failed:
            return False
        self.best, self.outcome = candidate, outcome
        if self.tell is not None:
            self.tell(self.runs, candidate)
        return True

    def _drop_faults(self) -> None:
        """Leave out as many faults at once as possible (ddmin)."""
        size = len(self.best.fault)
        while size >= 1:
            start = 0
            while start < len(self.best.fault):
                faults = self.best.fault
                fewer = (*faults[:start], *faults[start + size :])
                if not self._fails(msgspec.structs.replace(self.best, fault=fewer)):
                    start += size
            size = min(size, len(self.best.fault) + 1) // 2

    def _drop_changes(self) -> None:
        """Leave out changes of the replica set, the last first."""
        for place in reversed(range(len(self.best.change))):
            changes = self.best.change
            fewer = (*changes[:place], *changes[place + 1 :])
            self._fails(msgspec.structs.replace(self.best, change=fewer))

    def _try_all(self, candidates: Callable[[Manifest], Iterator[Manifest]]) -> None:
        """Take every simplification that still fails; start over after each."""
        found = True
        while found and not self.done:
            found = any(self._fails(candidate) for candidate in candidates(self.best))

    def _cut_short(self) -> None:
        """End the safety phase just after the violation, if it shows there."""
        finding = self.outcome.finding
        if finding is None or self._checker == "liveness":
            self._try_all(_shorter)
            return
        end_ms = min(self.best.safety.duration_ms, finding.at_ms + 1)
        safety = msgspec.structs.replace(self.best.safety, duration_ms=end_ms)
        self._fails(msgspec.structs.replace(self.best, safety=safety))


def _shorter(manifest: Manifest) -> Iterator[Manifest]:
    duration_ms = manifest.safety.duration_ms
    for shorter_ms in (duration_ms // 2, duration_ms * 3 // 4):
        if shorter_ms >= _SHORTEST_MS:
            safety = msgspec.structs.replace(manifest.safety, duration_ms=shorter_ms)
            yield msgspec.structs.replace(manifest, safety=safety)


def _plainer(manifest: Manifest) -> Iterator[Manifest]:
    """A quieter network, fewer clients, one height in flight, fewer replicas."""
    replace = msgspec.structs.replace
    workload, chain = manifest.workload, manifest.chain
    yield replace(manifest, network=Links(delay_ms=manifest.network.delay_ms))
    for name in ("loss", "duplicate", "reorder"):
        if getattr(manifest.network, name):
            yield replace(manifest, network=replace(manifest.network, **{name: 0.0}))
    if manifest.testnet is not None:
        return  # the rest is about one chain
    if workload.transactions_per_s:
        yield replace(manifest, workload=replace(workload, transactions_per_s=0))
    for name in _HABITS:
        usual = getattr(_USUAL, name)
        if getattr(chain, name) != usual:
            yield replace(manifest, chain=replace(chain, **{name: usual}))
    phase = manifest.liveness
    if (phase.least_delay_ms, phase.delay_ms) != (_PHASE.least_delay_ms, _PHASE.delay_ms):
        usual_phase = replace(phase, least_delay_ms=_PHASE.least_delay_ms, delay_ms=_PHASE.delay_ms)
        yield replace(manifest, liveness=usual_phase)
    named = [*manifest.liveness.members, *(_highest(fault) for fault in manifest.fault)]
    named += [node for change in manifest.change for node in change.nodes]
    highest = max(named, default=-1)
    for observers in range(chain.observers):
        if highest < chain.replicas + observers:
            yield replace(manifest, chain=replace(chain, observers=observers))
    for replicas in range(4, chain.replicas):
        if highest < replicas and not chain.observers:
            yield replace(manifest, chain=replace(chain, replicas=replicas))


def _highest(fault: Fault) -> int:
    """The greatest index that a fault names."""
    named = [getattr(fault, "node", -1)]
    for name in ("nodes", "senders", "receivers", "victims"):
        named += [index for index in getattr(fault, name, ()) if isinstance(index, int)]
    named += [index for side in getattr(fault, "sides", ()) for index in side]
    return max(named)


def _simpler_faults(manifest: Manifest) -> Iterator[Manifest]:
    """One fault with fewer nodes, wider scope, round numbers, or less."""
    for number, fault in enumerate(manifest.fault):
        for simpler in _simpler(fault):
            faults = (*manifest.fault[:number], simpler, *manifest.fault[number + 1 :])
            yield msgspec.structs.replace(manifest, fault=faults)


def _simpler(fault: Fault) -> Iterator[Fault]:
    replace = msgspec.structs.replace
    if isinstance(fault, OnLinks):
        for name in ("messages", "senders", "receivers"):
            if getattr(fault, name):
                yield replace(fault, **{name: ()})
    nodes = getattr(fault, "nodes", ())
    if len(nodes) > 1:
        for position in range(len(nodes)):
            yield replace(fault, nodes=nodes[:position] + nodes[position + 1 :])
    if len(getattr(fault, "victims", ())) > 1:
        yield replace(fault, victims=())
    share = getattr(fault, "share", 1.0)
    if share < 1.0:
        yield replace(fault, share=1.0)
    for unit_ms in (10_000, 1_000, 100):
        rounded = fault.at_ms // unit_ms * unit_ms
        if rounded != fault.at_ms:
            yield replace(fault, at_ms=rounded)
            break
