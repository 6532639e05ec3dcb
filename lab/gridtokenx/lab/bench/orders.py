"""From signing an order to knowing that it is final, through real processes and light clients."""

import asyncio
import statistics
import time
from collections.abc import Sequence

from gridtokenx.consortium.market.auction import Side
from gridtokenx.consortium.market.messages import PlaceOrder
from gridtokenx.core.gridtime import interval_at
from gridtokenx.host.chains import Account, ChainAccess
from gridtokenx.lab.bench.network import quiet_network, row
from gridtokenx.lab.testnet.layout import Layout
from gridtokenx.lab.testnet.up import run as run_network
from gridtokenx.lab.wallet import Wallet

WARM_UP_S = 15.0
HOUSEHOLDS = 12
ROUNDS = 6
PAUSE_S = 0.37
"""Not a divisor of the block time, so that orders meet every phase of a block."""
LIMIT_MS = 900.0


def run() -> None:
    """Place orders on a running network and print their latencies."""
    with quiet_network() as layout:
        latencies_ms = asyncio.run(_measure(layout))
    block_ms = layout.manifest.consortium.block_time_ms
    quantiles = statistics.quantiles(latencies_ms, n=20)
    print()
    print(f"{len(latencies_ms)} orders, blocks every {block_ms} ms")
    median_ms = statistics.median(latencies_ms)
    print(row("order to verified final commit, p50", median_ms, LIMIT_MS, "ms", "limit"))
    print(row("order to verified final commit, p50", median_ms, block_ms, "ms", "block time"))
    print(row("order to verified final commit, p95", quantiles[18], block_ms, "ms", "block time"))


async def _measure(layout: Layout) -> Sequence[float]:
    network = asyncio.create_task(run_network(layout, None, fresh=True, open_page=False))
    await asyncio.sleep(WARM_UP_S)
    try:
        wallet = Wallet(layout.home, layout.directory("agents") / "keys")
        async with wallet.following("consortium") as chains:
            access = chains["consortium"]
            accounts = [access.account(wallet.signer(f"h{n:02}")) for n in range(HOUSEHOLDS)]
            return await _place(access, accounts)
    finally:
        network.cancel()
        await asyncio.gather(network, return_exceptions=True)


async def _place(access: ChainAccess, accounts: Sequence[Account]) -> list[float]:
    latencies_ms: list[float] = []

    async def one(account: Account, number: int) -> None:
        head = await access.follower.wait_beyond(0)
        interval = interval_at(access.facts.clock.grid_ms(head.header.timestamp_ms)) + 4
        order = PlaceOrder(
            client_order_id=number,
            zone=0,
            interval=interval,
            side=Side.BUY,
            limit_uwatt_per_kwh=4_500_000,
            energy_wh=100,
        )
        started_s = time.perf_counter()
        inclusion = await account.call([order], 30_000)
        latencies_ms.append((time.perf_counter() - started_s) * 1000)
        if not inclusion.ok:
            print(f"refused: {inclusion.results[0].message}")

    tasks: list[asyncio.Task[None]] = []
    for number in range(1, ROUNDS + 1):
        for account in accounts:
            tasks.append(asyncio.create_task(one(account, number)))
            await asyncio.sleep(PAUSE_S)
    await asyncio.gather(*tasks)
    return latencies_ms
