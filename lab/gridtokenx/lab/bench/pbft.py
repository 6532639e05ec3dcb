"""A PBFT chain of real processes under load: throughput, latency, processor time and memory.

`scripts/bench pbft` measures all parts, `--part` one of them, `--seconds 10` quickly:

==========  ====================================================================================
n4          four replicas, 1 s blocks: single transfers
n4-batches  the same, batches of 20 orders
fast        four replicas, block time 0: throughput, and latency at 100 tx/s
n21         twenty-one replicas, 1 s blocks: idle, then single transfers
memory      four replicas with 10,000 accounts, nearly idle
==========  ====================================================================================

Every replica is a process that the lab's fork server made; they talk over loopback TLS, and each checks
every signature. `--maximum` adds a search for the highest rate that is carried.
"""

import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import msgspec

from gridtokenx.core.keys import Ed25519Verifier
from gridtokenx.lab.bench.network import row
from gridtokenx.lab.bench.pbft_load import ORDERS, Plan, Report
from gridtokenx.lab.bench.pbft_network import PbftNetwork, Shape, Usage, signer

ACCOUNTS: Final = 10_000
GATHER_MS: Final = 10
BLOCK_MS: Final = 1_000
QUANTILES: Final = 20
WARM_UP_S: Final = 3.0
STEP_SECONDS: Final = 10.0
"""Of one rate in the search for the highest."""
STEP: Final = 1.25
LOWEST_SHARE: Final = 4
"""The search begins at the aim divided by this."""
SLOWEST_MS: Final = 2_000.0
"""A rate at which the median is above this is not carried."""
CARRIED: Final = 0.95
"""Nor is one of which less than this is committed while it lasts."""

N4_TX_PER_S: Final = 1_500.0
N4_ORDERS_PER_S: Final = 6_000.0
N4_P50_MS: Final = 900.0
N4_P95_MS: Final = 1_400.0
FAST_TX_PER_S: Final = 100.0
FAST_P50_MS: Final = 30.0
N21_TX_PER_S: Final = 200.0
N21_P50_MS: Final = 1_500.0
N21_INTERVAL_S: Final = 1.05
N21_IDLE_CORES: Final = 0.4
MEMORY_MIB: Final = 25.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    seconds: float
    maximum: bool
    n21_rate: float


@dataclass(slots=True)
class Bench:
    """One network, and how much was sent to it."""

    network: PbftNetwork
    sent: int = 0

    async def load(
        self, rate_per_s: float, seconds: float, *, orders: bool = False, gather_ms: int = GATHER_MS
    ) -> tuple[Report, Usage]:
        """Offer transactions at a rate; what became of them, and what the replicas used for it."""
        plan = Plan(
            home=str(self.network.home),
            nodes=tuple(f"127.0.0.1:{port}" for port in self.network.ports),
            accounts=self.network.shape.accounts,
            rate_per_s=rate_per_s,
            seconds=seconds,
            first=self.sent,
            orders=orders,
            gather_ms=gather_ms,
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gridtokenx.lab.bench.pbft_load",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 30,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(plan) + b"\n")
            assert await process.stdout.readline() == b"ready\n", "the load process failed"
            before = await self.network.usage(ended=False)
            process.stdin.write(b"go\n")
            report = msgspec.json.decode(await process.stdout.readline(), type=Report)
        finally:
            if process.returncode is None and process.stdin is not None:
                process.stdin.close()
            await process.wait()
        self.sent += report.sent
        return report, (await self.network.usage(ended=True)).since(before)


@asynccontextmanager
async def network_of(shape: Shape) -> AsyncIterator[Bench]:
    """A network in a temporary directory, running and warm."""
    with tempfile.TemporaryDirectory(prefix="gtx-bench-") as directory:
        network = PbftNetwork(Path(directory), shape)
        async with network.running():
            await asyncio.sleep(WARM_UP_S)
            yield Bench(network)


# -- parts -----------------------------------------------------------------------------------------


async def _n4(options: Options) -> None:
    async with network_of(Shape(4, BLOCK_MS, ACCOUNTS)) as bench:
        report, usage = await bench.load(N4_TX_PER_S, options.seconds)
        _tell_throughput("signed tx/s", report, N4_TX_PER_S, 1)
        _tell_latency(report, N4_P50_MS, N4_P95_MS)
        _tell_stages(usage, report, bench)
    if options.maximum:
        await _search("signed tx/s", Shape(4, BLOCK_MS, ACCOUNTS), N4_TX_PER_S, 1)


async def _n4_batches(options: Options) -> None:
    rate = N4_ORDERS_PER_S / ORDERS
    shape = Shape(4, BLOCK_MS, ACCOUNTS, meters=True)
    async with network_of(shape) as bench:
        report, usage = await bench.load(rate, options.seconds, orders=True)
        _tell_throughput("orders/s", report, N4_ORDERS_PER_S, ORDERS)
        _tell_latency(report, N4_P50_MS, N4_P95_MS)
        _tell_stages(usage, report, bench)
    if options.maximum:
        await _search("orders/s", shape, N4_ORDERS_PER_S, ORDERS)


async def _fast(options: Options) -> None:
    async with network_of(Shape(4, 0, ACCOUNTS)) as bench:
        report, usage = await bench.load(FAST_TX_PER_S, options.seconds, gather_ms=0)
        _tell_throughput("signed tx/s", report, FAST_TX_PER_S, 1)
        _tell_latency(report, FAST_P50_MS, None)
        _tell_stages(usage, report, bench)
        report, usage = await bench.load(N4_TX_PER_S, options.seconds)
        _tell_throughput("signed tx/s", report, N4_TX_PER_S, 1)
        _tell_latency(report, None, None)
        _tell_stages(usage, report, bench)


async def _n21(options: Options) -> None:
    shape = Shape(21, BLOCK_MS, ACCOUNTS // 5)
    async with network_of(shape) as bench:
        report, usage = await bench.load(0, options.seconds)
        stamps = [block.timestamp_ms for block in report.blocks]
        if len(stamps) > 1:
            interval_s = (stamps[-1] - stamps[0]) / (len(stamps) - 1) / 1_000
            print(row("idle: mean block interval", interval_s, N21_INTERVAL_S, "s", "limit"))
        print(row("idle: processor", usage.cpu_s / usage.at_s, N21_IDLE_CORES, "cores", "limit"))
        _tell_stages(usage, report, bench)
        report, usage = await bench.load(options.n21_rate, options.seconds)
        _tell_throughput("signed tx/s", report, options.n21_rate, 1)
        _tell_latency(report, N21_P50_MS, None)
        _tell_stages(usage, report, bench)
    if options.maximum:
        await _search("signed tx/s", shape, N21_TX_PER_S, 1)


async def _memory(options: Options) -> None:
    async with network_of(Shape(4, BLOCK_MS, ACCOUNTS, stages=False)) as bench:
        await bench.load(10, min(options.seconds, 10))
        _tell_memory(bench.network)


async def _search(unit: str, shape: Shape, aim: float, calls: int) -> None:
    """Raise the rate, in a new network, until it is not carried.

    Never further, nor down again: what was not carried leaves accounts with a nonce that never comes.
    """
    carried, rate = 0.0, aim / LOWEST_SHARE
    async with network_of(shape) as bench:
        while True:
            report, _ = await bench.load(rate / calls, STEP_SECONDS, orders=calls > 1)
            good = _is_carried(report)
            p50_ms = statistics.median(report.latencies_ms or (float("nan"),))
            print(
                f"    {rate:7.0f} {unit}: {'carried' if good else 'not carried'}"
                f" ({len(report.latencies_ms)} of {report.sent},"
                f" {calls * report.committed_per_s:.0f}/s, p50 {p50_ms:.0f} ms)",
                flush=True,
            )
            if not good:
                break
            carried, rate = rate, rate * STEP
    print(row(f"highest rate carried, {unit}", carried, aim, "/s", "aim"))


def _is_carried(report: Report) -> bool:
    whole = len(report.latencies_ms) == report.sent
    in_step = report.committed_per_s >= CARRIED * report.offered_per_s
    return whole and in_step and statistics.median(report.latencies_ms) <= SLOWEST_MS


# -- telling ---------------------------------------------------------------------------------------


def _tell_throughput(unit: str, report: Report, aim: float, calls: int) -> None:
    offered, committed = calls * report.offered_per_s, calls * report.committed_per_s
    late = [each for each in report.latencies_ms if each > SLOWEST_MS]
    print(row(f"committed of {offered:.0f} {unit} offered", committed, aim, "/s", "aim"))
    if late:
        print(f"    {len(late)} of {report.sent} took longer than {SLOWEST_MS / 1_000:.0f} s")
    if report.failed or report.refusals:
        print(
            f"    refused, or not answered, and offered again: {report.refusals}, failed calls: {report.failed}"
        )


def _tell_latency(report: Report, p50_ms: float | None, p95_ms: float | None) -> None:
    if len(report.latencies_ms) < QUANTILES:
        print("    too few were committed to tell their latency")
        return
    found = statistics.quantiles(report.latencies_ms, n=QUANTILES)
    for name, measured, limit in (("p50", found[9], p50_ms), ("p95", found[18], p95_ms)):
        title = f"due to verified commit, {name}"
        if limit is not None:
            print(row(title, measured, limit, "ms", "limit"))
        else:
            print(f"{title:<44} {measured:10.2f} ms")
    print(f"{'due to verified commit, longest':<44} {max(report.latencies_ms):10.2f} ms")


def _tell_stages(usage: Usage, report: Report, bench: Bench) -> None:
    """Processor time of all replicas together, and of one for one committed transaction and block."""
    replicas, blocks = bench.network.shape.replicas, max(1, len(report.blocks))
    committed = len(report.latencies_ms)
    cores = usage.cpu_s / usage.at_s
    print(
        f"processor: {usage.cpu_s:.1f} s in {usage.at_s:.1f} s by {replicas} replicas"
        f" ({cores:.2f} cores), {blocks} blocks; load process {report.cpu_s:.1f} s"
    )
    print(f"    {'stage':<16} {'s':>7} {'%':>5} {'ms/block':>10} {'us/tx':>8}   (of one replica)")
    stages = sorted(usage.stages_s.items(), key=lambda each: -each[1])
    for name, seconds in (*stages, ("all", usage.cpu_s)):
        per_block_ms = 1e3 * seconds / replicas / blocks
        per_tx = f"{1e6 * seconds / replicas / committed:8.0f}" if committed else f"{'-':>8}"
        share = 100 * seconds / usage.cpu_s if usage.cpu_s else 0.0
        print(f"    {name:<16} {seconds:7.2f} {share:5.1f} {per_block_ms:10.2f} {per_tx}")


def _tell_memory(network: PbftNetwork) -> None:
    largest_mib = max(network.memory_mib())
    title = f"private memory, {network.shape.accounts} accounts"
    print(row(title, largest_mib, MEMORY_MIB, "MiB", "limit"))


def _tell_machine() -> None:
    verifier, own, message = Ed25519Verifier(), signer("machine"), bytes(220)
    signature = own.sign(message)
    before_s = os.times().user
    for _ in range(2_000):
        verifier.verify(own.public_key, message, signature)
    check_us = (os.times().user - before_s) / 2_000 * 1e6
    print(
        f"machine: {os.cpu_count()} cores, of which others want {os.getloadavg()[0]:.1f};"
        f" one Ed25519 check {check_us:.0f} us; Python {sys.version.split()[0]}"
    )


# -- command ---------------------------------------------------------------------------------------

PARTS: Final[dict[str, Callable[[Options], Awaitable[None]]]] = {
    "n4": _n4,
    "n4-batches": _n4_batches,
    "fast": _fast,
    "n21": _n21,
    "memory": _memory,
}


@click.command()
@click.option("--part", "parts", multiple=True, type=click.Choice(list(PARTS)), help="Only this.")
@click.option(
    "--seconds",
    type=click.IntRange(1, 3_600),
    default=60,
    show_default=True,
    help="Of load in each part.",
)
@click.option("--maximum", is_flag=True, help="Search for the highest rate that is carried, too.")
@click.option(
    "--n21-rate",
    type=click.IntRange(1, 10_000),
    default=int(N21_TX_PER_S),
    show_default=True,
    help="For 21 replicas.",
)
def command(parts: Sequence[str], seconds: int, *, maximum: bool, n21_rate: int) -> None:
    """Measure a PBFT chain of real processes."""
    options = Options(seconds, maximum, n21_rate)
    _tell_machine()
    for part in parts or PARTS:
        print(f"\n{part}:", flush=True)
        asyncio.run(_measure(part, options))


async def _measure(part: str, options: Options) -> None:
    await PARTS[part](options)


def run(arguments: Sequence[str] = ()) -> None:
    """Measure, and print."""
    command.main(args=list(arguments), prog_name="scripts/bench pbft", standalone_mode=False)
