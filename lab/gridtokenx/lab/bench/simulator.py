"""How fast the simulator is: virtual seconds per second of one chain, and schedules per second.

The first figure is of processor time and of wall time, because a simulation uses one processor and
nothing else: on a machine that does other things at the same time the two differ.
"""

import os
import time
from typing import Final

from gridtokenx.lab.sim.execute import commit, execute
from gridtokenx.lab.sim.manifest import Chain, Liveness, Manifest, Safety, Swarm, Workload
from gridtokenx.lab.sim.sweep import run_all

SIZES: Final = (4, 7, 21)
VIRTUAL_MS: Final = 60_000
SCHEDULES: Final = 40


def run() -> None:
    """Measure and print."""
    print(f"simulator at commit {commit()}: 1 s blocks, 10 transactions/s, {VIRTUAL_MS // 1000} s")
    print("replicas  virtual s per CPU s  per wall s  messages per CPU s")
    for replicas in SIZES:
        _print_chain(replicas)
    jobs = min(2, os.cpu_count() or 1)
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
    print(f"{rate:.1f} swarm schedules per s (n=4, 60 virtual s, {jobs} jobs); {broken} violations")


def _print_chain(replicas: int) -> None:
    manifest = Manifest(
        chain=Chain(replicas=replicas),
        workload=Workload(transactions_per_s=10),
        safety=Safety(duration_ms=VIRTUAL_MS),
        liveness=Liveness(bound_ms=0),
    )
    wall, cpu = time.perf_counter(), time.process_time()
    outcome = execute(manifest, 1)
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    virtual_s = outcome.virtual_ms / 1_000
    print(
        f"{replicas:8d}  {virtual_s / cpu_s:19.0f}  {virtual_s / wall_s:10.0f}"
        f"  {outcome.deliveries / cpu_s:18.0f}"
    )
