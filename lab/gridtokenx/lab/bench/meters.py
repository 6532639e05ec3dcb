"""Ten thousand meters, one reading each at every boundary, through concentrators and four oracles.

Real processes: a Mosquitto (or the embedded broker), four oracle nodes that form the oracle chain. The
meters and their concentrators live in this process, with the project's own outboxes, batches and
connection; what they cost is told apart. A reading counts as done when its watermark, which speaks of
a certified block, is back in its meter's outbox.

``GTX_BENCH_METERS``, ``GTX_BENCH_BOUNDARIES`` and ``GTX_BENCH_CONCENTRATORS`` change the size.
"""

import asyncio
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gridtokenx.core.codec import encode
from gridtokenx.core.gridtime import INTERVAL_MS
from gridtokenx.core.keys import Ed25519Signer
from gridtokenx.devices.fleet.concentrator import FleetConcentrator
from gridtokenx.devices.fleet.journal import SignedReading
from gridtokenx.devices.fleet.outbox import Outbox
from gridtokenx.host.broker import BrokerState, broker_client
from gridtokenx.host.clock import wall_ms
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.storage import Store
from gridtokenx.interchain.apps.registry import DeviceKind, DeviceRegistration
from gridtokenx.lab.bench.network import row
from gridtokenx.lab.bench.oracles import GRID_EPOCH_MS, TIME_SCALE, OracleBench, seed, signer
from gridtokenx.lab.bench.reading_stages import stages
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.readings import SubmitReading, reading_topic
from gridtokenx.ledger.records import final_height, load_block
from gridtokenx.ledger.transactions import sign_transaction

METERS: Final = int(os.environ.get("GTX_BENCH_METERS", "10000"))
BOUNDARIES: Final = int(os.environ.get("GTX_BENCH_BOUNDARIES", "4"))
CONCENTRATORS: Final = int(os.environ.get("GTX_BENCH_CONCENTRATORS", "4"))
PERIOD_S: Final = INTERVAL_MS / TIME_SCALE / 1_000
GRACE_MS: Final = 25_000
BLOCK_TIME_MS: Final = 1_000
SIGN_CHUNK: Final = 200
SINGLE_MESSAGES: Final = 2_000
ZONE: Final = 1
LONER: Final = signer("loner")
"""A device with a connection of its own, for the reference."""
OWNER: Final = bytes(31) + b"\x01"
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Meter:
    """One meter: it signs, and keeps what it has signed."""

    signer: Ed25519Signer
    outbox: Outbox
    sequence: int = 0

    def sign(self, chain_id: bytes, boundary: int) -> None:
        """The reading of a boundary, into the outbox."""
        self.sequence += 1
        stamp_ms = GRID_EPOCH_MS + boundary * INTERVAL_MS
        call = SubmitReading(stamp_ms, 300 * boundary, 0, 600, 0, 0)
        signed = sign_transaction(self.signer, chain_id, self.sequence, [call])
        key = self.signer.public_key
        self.outbox.add(SignedReading(key, self.sequence, stamp_ms, signed.encoded))

    @property
    def registration(self) -> DeviceRegistration:
        """The consortium's decision about it."""
        key = self.signer.public_key
        return DeviceRegistration(key, key, OWNER, ZONE, DeviceKind.METER, 10_000, 1, active=True)


@dataclass(slots=True)
class Boundary:
    """How one boundary's readings fared."""

    signed_s: float
    """How long signing took: it shares the processor with everybody else."""
    lags_s: list[float] = field(default_factory=list)
    """From the end of signing until so many were committed: each tenth."""
    done_s: float | None = None
    """From the end of signing to the last watermark; None if it did not come in time."""


def run() -> None:
    """Measure, and print."""
    with tempfile.TemporaryDirectory(prefix="gtx-bench-") as directory:
        asyncio.run(_run(Path(directory)))


async def _run(home: Path) -> None:
    loner = {"loner": LONER.public_key}
    bench = OracleBench(home, GRACE_MS, BLOCK_TIME_MS, CONCENTRATORS, loner)
    kind = "Mosquitto, TLS 1.3" if bench.mosquitto else "embedded broker"
    print(f"{METERS} meters, {CONCENTRATORS} concentrators, 4 oracles, {kind};", end=" ")
    print(
        f"a boundary every {PERIOD_S:.0f} s, {os.cpu_count()} cores, of which others want"
        f" {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    meters = [_meter(index) for index in range(METERS)]
    async with bench.running() as pids:
        started_s = time.monotonic()
        await bench.register([meter.registration for meter in meters])
        print(f"registered in {time.monotonic() - started_s:.1f} s", flush=True)
        fleet = _fleet(bench, meters)
        running = [asyncio.create_task(each.run()) for each in fleet]
        try:
            result = await _boundaries(bench, meters, fleet, pids)
            await _transport(bench, meters[0], pids)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
    _tell(result, home)
    stages(bench.genesis, [meter.signer for meter in meters[:512]])


def _meter(index: int) -> Meter:
    own = signer("meter", index)
    return Meter(own, Outbox(own.public_key, ()))


def _fleet(bench: OracleBench, meters: Sequence[Meter]) -> list[FleetConcentrator]:
    """The meters, dealt out to the concentrators."""
    return [
        FleetConcentrator(
            bench.login(f"c{index}", seed("concentrator", index)),
            own,
            [meter.outbox for meter in meters[index::CONCENTRATORS]],
            BrokerState(NullLogger()),
            Metrics(),
        )
        for index, own in enumerate(bench.concentrators)
    ]


# -- boundaries ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """What was seen."""

    boundaries: Sequence[Boundary]
    cpu_s: Mapping[str, float]
    """By process, over all boundaries; ``meters`` is this one."""
    memory_mib: Mapping[str, float]
    elapsed_s: float


async def _boundaries(
    bench: OracleBench,
    meters: Sequence[Meter],
    fleet: Sequence[FleetConcentrator],
    pids: Mapping[str, int],
) -> Result:
    clock = bench.genesis.clock
    boundary = (clock.grid_ms(wall_ms()) - GRID_EPOCH_MS) // INTERVAL_MS + 1
    await _sleep_until(clock.network_ms(GRID_EPOCH_MS + boundary * INTERVAL_MS))
    before, began_s = _cpu(pids), time.monotonic()
    seen: list[Boundary] = []
    for offset in range(BOUNDARIES):
        due_ms = clock.network_ms(GRID_EPOCH_MS + (boundary + offset) * INTERVAL_MS)
        await _sleep_until(due_ms)
        seen.append(await _one(bench.genesis.chain_id, boundary + offset, meters, fleet))
        print(f"  boundary {offset + 1}: {_sentence(seen[-1])}", flush=True)
    await _sleep_until(clock.network_ms(GRID_EPOCH_MS + (boundary + BOUNDARIES) * INTERVAL_MS))
    elapsed_s = time.monotonic() - began_s
    cpu_s = {name: used - before[name] for name, used in _cpu(pids).items()}
    return Result(seen, cpu_s, {name: _memory_mib(pid) for name, pid in pids.items()}, elapsed_s)


async def _one(
    chain_id: bytes, boundary: int, meters: Sequence[Meter], fleet: Sequence[FleetConcentrator]
) -> Boundary:
    began_s = time.monotonic()
    for cut in range(0, len(meters), SIGN_CHUNK):
        for meter in meters[cut : cut + SIGN_CHUNK]:
            meter.sign(chain_id, boundary)
        for each in fleet:
            each.wake()
        await asyncio.sleep(0)
    seen = Boundary(time.monotonic() - began_s)
    signed_s = time.monotonic()
    while (passed_s := time.monotonic() - began_s) < PERIOD_S - 1:
        waiting = sum(meter.outbox.waiting > 0 for meter in meters)
        done = 10 * (len(meters) - waiting) // len(meters)
        seen.lags_s += [time.monotonic() - signed_s] * (done - len(seen.lags_s))
        if not waiting:
            seen.done_s = time.monotonic() - signed_s
            break
        await asyncio.sleep(min(0.1, PERIOD_S - passed_s))
    return seen


def _sentence(seen: Boundary) -> str:
    if seen.done_s is None:
        share = 10 * len(seen.lags_s)
        return f"only {share} % committed and acknowledged before the next one"
    median_s = seen.lags_s[4]
    return f"half back after {median_s:.1f} s, all after {seen.done_s:.1f} s"


async def _sleep_until(due_ms: int) -> None:
    await asyncio.sleep(max(0, due_ms - wall_ms()) / 1_000)


# -- reference -------------------------------------------------------------------------------------


async def _transport(bench: OracleBench, meter: Meter, pids: Mapping[str, int]) -> None:
    """What batches save on the way to the broker: the same bytes, one message a reading."""
    payload = meter.outbox.after(0)[-1:] or [_last(meter, bench.genesis.chain_id)]
    reading = payload[0].transaction
    own = LONER
    client = broker_client(
        bench.login("loner", seed("loner")), own, own.public_key.hex(),
        keepalive_s=30, queued_messages=10,
    )  # fmt: skip
    topic = reading_topic(ZONE, own.public_key)
    broker = {"broker": pids["broker"]}
    async with client:
        before, began_s = _cpu(broker), time.monotonic()
        for _ in range(0, SINGLE_MESSAGES, 64):
            await asyncio.gather(*(client.publish(topic, reading, qos=1) for _ in range(64)))
        single_s = time.monotonic() - began_s
        broker_s = _cpu(broker)["broker"] - before["broker"]
        self_s = _cpu(broker)["meters"] - before["meters"]
        print(
            f"reference, one message a reading: {SINGLE_MESSAGES / single_s:.0f} readings/s to the"
            f" broker; per reading broker {1e6 * broker_s / SINGLE_MESSAGES:.0f} us, client"
            f" {1e6 * self_s / SINGLE_MESSAGES:.0f} us (four oracles read along)"
        )


def _last(meter: Meter, chain_id: bytes) -> SignedReading:
    call = SubmitReading(GRID_EPOCH_MS, 0, 0, 0, 0, 0)
    signed = sign_transaction(meter.signer, chain_id, meter.sequence, [call])
    return SignedReading(meter.signer.public_key, meter.sequence, GRID_EPOCH_MS, signed.encoded)


# -- telling ---------------------------------------------------------------------------------------


def _tell(result: Result, home: Path) -> None:
    readings = METERS * len(result.boundaries)
    late = [each for each in result.boundaries if each.done_s is None]
    print(f"keeps up: {'yes' if not late else f'NO, {len(late)} boundaries were late'}")
    done = [each.done_s for each in result.boundaries if each.done_s is not None]
    if done:
        print(row("last reading of a boundary acknowledged", max(done), PERIOD_S, "s", "period"))
        rate = METERS / statistics.mean(done)
        print(row("readings/s through a burst", rate, METERS / PERIOD_S, "/s", "mean load"))
    cores = sum(result.cpu_s.values()) / result.elapsed_s
    print(f"processor, {result.elapsed_s:.0f} s, {cores:.2f} cores in all:")
    for name, used_s in sorted(result.cpu_s.items()):
        per_us = 1e6 * used_s / readings
        memory = result.memory_mib.get(name)
        shown = f" {memory:7.1f} MiB" if memory is not None else ""
        cores = used_s / result.elapsed_s
        print(f"    {name:<12} {used_s:7.2f} s  {cores:5.2f} cores {per_us:6.0f} us/reading{shown}")
    _tell_blocks(home)


def _tell_blocks(home: Path) -> None:
    """Sizes and pace of the blocks that hold readings, from the first oracle's disk."""
    store = Store.open(home / "oracle-0" / "data")
    try:
        blocks = [
            block
            for height in range(1, (final_height(store) or 0) + 1)
            if (block := load_block(store, height)) is not None
        ]
    finally:
        store.close()
    full = [block for block in blocks if len(block.transactions) > METERS // 100]
    if not full:
        print("no block holds readings")
        return
    sizes = [len(block.transactions) for block in full]
    kib = [len(encode(block)) / 1024 for block in full]
    gaps_s = _gaps_s(blocks)
    print(
        f"blocks: {len(blocks)}; those with readings hold {statistics.mean(sizes):.0f} of them on"
        f" average, at most {max(sizes)} ({max(kib):.0f} KiB); time between blocks"
        f" {statistics.median(gaps_s):.2f} s median, {max(gaps_s):.2f} s at most;"
        f" views {blocks[-1].header.round + 1}"
    )


def _gaps_s(blocks: Sequence[Block]) -> list[float]:
    stamps = [block.header.timestamp_ms for block in blocks]
    return [(later - earlier) / 1_000 for earlier, later in itertools.pairwise(stamps)]


def _cpu(pids: Mapping[str, int]) -> dict[str, float]:
    """Processor seconds of each process, and of this one as ``meters``."""
    used = {name: _read_cpu(pid) for name, pid in pids.items()}
    return used | {"meters": time.process_time()}


def _read_cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _memory_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
