"""The smallest schedule that still fails.

Law of the file: **every step is a run that broke the same promise.** First whole faults go (delta
debugging: halves, quarters, ..., single ones), then what is left is made simpler, then the run shorter.
What remains is a resolved manifest, a regression from then on.
"""

from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from gridtokenx.lab.faults import Fault, OnLinks
from gridtokenx.lab.sim.execute import execute
from gridtokenx.lab.sim.manifest import Links, Manifest
from gridtokenx.lab.sim.outcome import Outcome

Tell = Callable[[int, Manifest], None]
"""Hears of every smaller run: how many were tried, and it."""
_SHORTEST_MS: Final = 1_000


class Shrinker:
    """Makes a failing run smaller.

    Args:
        manifest: resolved; it fails.
        outcome: how.
        most_runs: when to be content.
        tell: hears of progress.
    """

    def __init__(
        self, manifest: Manifest, outcome: Outcome, most_runs: int = 300, tell: Tell | None = None
    ) -> None:
        if outcome.finding is None:
            raise AssertionError("only a run that failed can be made smaller")
        self._checker: Final = outcome.finding.checker
        self._most: Final = most_runs
        self._tell = tell
        self.best = manifest
        self.outcome = outcome
        self.runs = 0

    def run(self) -> Manifest:
        """The smallest that was found."""
        self._cut_short()
        before = None
        while before != self.best and self.runs < self._most:
            before = self.best
            self._drop_faults()
            self._try_all(_plainer)
            self._try_all(_simpler_faults)
        self._cut_short()
        return self.best

    def _fails(self, candidate: Manifest) -> bool:
        """Whether a candidate breaks the same promise; keeps it if so."""
        if self.runs >= self._most or candidate == self.best:
            return False
        self.runs += 1
        outcome = execute(candidate, candidate.seed or 0)
        if outcome.finding is None or outcome.finding.checker != self._checker:
            return False
        if not outcome.failed:
            return False
        self.best, self.outcome = candidate, outcome
        if self._tell is not None:
            self._tell(self.runs, candidate)
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

    def _try_all(self, candidates: Callable[[Manifest], Iterator[Manifest]]) -> None:
        """Take every simplification that still fails; start over after each."""
        found = True
        while found and self.runs < self._most:
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
    if workload.transactions_per_s:
        yield replace(manifest, workload=replace(workload, transactions_per_s=0))
    if chain.window > 1:
        yield replace(manifest, chain=replace(chain, window=1))
    highest = max((_highest(fault) for fault in manifest.fault), default=-1)
    members = max(manifest.liveness.members, default=-1)
    for replicas in range(4, chain.replicas):
        if replicas > max(highest, members):
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
    share = getattr(fault, "share", 1.0)
    if share < 1.0:
        yield replace(fault, share=1.0)
    for unit_ms in (10_000, 1_000, 100):
        rounded = fault.at_ms // unit_ms * unit_ms
        if rounded != fault.at_ms:
            yield replace(fault, at_ms=rounded)
            break
