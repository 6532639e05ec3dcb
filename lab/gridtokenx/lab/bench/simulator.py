"""How fast the simulator is: virtual seconds per second of one chain, and schedules per second.

The first figure is of processor time and of wall time, because a simulation uses one processor and
nothing else: on a machine that does other things at the same time the two differ. The table says where
that time goes; it is sampled in a run of its own, so that the figures are not.
"""

import os
import time
from typing import Final

from gridtokenx.lab.bench.sampling import Stage, sampled
from gridtokenx.lab.sim.execute import commit, execute
from gridtokenx.lab.sim.manifest import Chain, Liveness, Manifest, Safety, Swarm, Workload
from gridtokenx.lab.sim.outcome import Outcome
from gridtokenx.lab.sim.sweep import run_all

SIZES: Final = (4, 7, 21)
VIRTUAL_MS: Final = 60_000
SCHEDULES: Final = 40
SAMPLED: Final = 10
AIM_VIRTUAL: Final = 100
"""Virtual seconds per second of a chain of four with 1 s blocks and 10 transactions/s."""
AIM_SCHEDULES: Final = 5
"""Schedules of 60 virtual seconds per second, over two processors."""
STAGES: Final = (
    Stage("checkers", ("lab/sim/pbft/checkers.py", "lab/sim/pbft/follower.py")),
    Stage("trace", ("lab/sim/world.py",), frozenset({"_note_event"})),
    Stage("signatures", ("pbft/verification.py",)),
    Stage("signatures", ("lab/sim/world.py",), frozenset({"_holds"})),
    Stage("signatures", ("core/keys.py", "pbft/marks.py"), frozenset({"sign"})),
    Stage("execution", ("ledger/runtime.py",), frozenset({"build", "execute"})),
    Stage("submissions", ("pbft/requests.py", "ledger/pool.py")),
    Stage("records", ("lab/sim/store.py", "ledger/records.py", "pbft/journal.py")),
    Stage("network", ("lab/sim/network.py",)),
    Stage("network", ("lab/sim/world.py",), frozenset({"_send"})),
    Stage("consensus", ("gridtokenx/pbft/",)),
    Stage("clients", ("lab/sim/pbft/chain.py",)),
    Stage("clients", ("lab/sim/pbft/run.py",), frozenset({"_work", "_retry"})),
    Stage("faults", ("lab/sim/inject.py", "lab/sim/pbft/traitors.py")),
    Stage("events and timers", ("lab/sim/world.py", "core/outbox.py")),
)
"""The first that fits anything on the stack counts: execution for a checker is the checker's."""


def run() -> None:
    """Measure and print."""
    print(f"simulator at commit {commit()}: 1 s blocks, 10 transactions/s, {VIRTUAL_MS // 1000} s")
    print("replicas  virtual s per CPU s  per wall s  messages per CPU s  of the aim")
    for replicas in SIZES:
        _print_chain(replicas)
    _print_schedules(min(2, os.cpu_count() or 1))
    _print_stages(SIZES[0])
    _print_stages(SIZES[-1])


def _chain(replicas: int) -> Manifest:
    return Manifest(
        chain=Chain(replicas=replicas),
        workload=Workload(transactions_per_s=10),
        safety=Safety(duration_ms=VIRTUAL_MS),
        liveness=Liveness(bound_ms=0),
    )


def _print_chain(replicas: int) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    outcome = execute(_chain(replicas), 1)
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    virtual_s = outcome.virtual_ms / 1_000
    aim = f"{virtual_s / cpu_s / AIM_VIRTUAL:9.2f}x" if replicas == SIZES[0] else ""
    print(
        f"{replicas:8d}  {virtual_s / cpu_s:19.0f}  {virtual_s / wall_s:10.0f}"
        f"  {outcome.deliveries / cpu_s:18.0f}  {aim}"
    )


def _print_schedules(jobs: int) -> None:
    """A swarm over all jobs, with the start of their processes; then a part of it in this one."""
    manifest = Manifest(
        workload=Workload(transactions_per_s=1),
        safety=Safety(duration_ms=VIRTUAL_MS),
        liveness=Liveness(bound_ms=180_000),
        swarm=Swarm(replicas=(4,), block_time_ms=(1_000,)),
    )
    started = time.perf_counter()
    outcomes = list(run_all(((manifest, seed) for seed in range(SCHEDULES)), jobs))
    rate = len(outcomes) / (time.perf_counter() - started)
    broken = sum(outcome.failed for outcome in outcomes)
    print(
        f"{rate:.1f} swarm schedules per s (n=4, {jobs} jobs, {rate / AIM_SCHEDULES:.2f}x the aim);"
        f" {broken} violations"
    )
    cpu = time.process_time()
    virtual_ms = sum(execute(manifest, seed).virtual_ms for seed in range(SAMPLED))
    cpu_s = time.process_time() - cpu
    print(
        f"{SAMPLED / cpu_s:.1f} per CPU s, set-up and checkers included; with what the second phase"
        f" takes they have {virtual_ms / 1_000 / SAMPLED:.0f} virtual s each:"
        f" {virtual_ms / 1_000 / cpu_s:.0f} virtual s per CPU s"
    )


def _print_stages(replicas: int) -> None:
    outcomes: list[Outcome] = []
    started = time.process_time()
    with sampled(STAGES) as samples:
        outcomes += (execute(_chain(replicas), seed) for seed in range(2))
    cpu_ms = 1_000 * (time.process_time() - started)
    blocks = sum(outcome.blocks for outcome in outcomes)
    print(f"n={replicas}: {'stage':<20} share  CPU ms per block")
    for name, share in samples.shares():
        print(f"      {name:<20} {100 * share:4.1f}%  {share * cpu_ms / blocks:16.2f}")
