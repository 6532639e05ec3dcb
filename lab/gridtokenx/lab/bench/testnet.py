"""What the default network costs while nobody trades, beside the limits that it was built to."""

import asyncio

from gridtokenx.lab.bench.network import quiet_network, row
from gridtokenx.lab.testnet.up import run as run_network

DURATION_S = 60.0
FINALITY_LIMIT_S = 20.0
MEMORY_LIMIT_MIB = 900.0
PROCESSOR_LIMIT_CORES = 0.7


def run() -> None:
    """Run the network for a minute and print what it took."""
    with quiet_network() as layout:
        outcome = asyncio.run(run_network(layout, DURATION_S, fresh=True, open_page=False))
    watched = outcome.processes.watched.values()
    cores = sum(one.cpu_s for one in watched) / outcome.elapsed_s
    print()
    if len(outcome.first_final_s) == 3:
        slowest_s = max(outcome.first_final_s.values())
        print(
            row("start to all three chains finalising", slowest_s, FINALITY_LIMIT_S, "s", "limit")
        )
    else:
        print(f"only {sorted(outcome.first_final_s)} finalised within {DURATION_S:.0f} s")
    memory_mib = outcome.processes.peak_memory_kib / 1024
    print(row("memory of all processes (PSS)", memory_mib, MEMORY_LIMIT_MIB, "MiB", "limit"))
    print(row("processor, start included", cores, PROCESSOR_LIMIT_CORES, "cores", "limit"))
    for one in sorted(watched, key=lambda one: -one.cpu_s):
        print(f"    {one.spec.name:<16} {one.cpu_s:6.2f} s {one.peak_memory_kib / 1024:7.1f} MiB")
