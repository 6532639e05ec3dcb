"""Two relayer processes between three real chains, over sockets."""

import asyncio
import time
from pathlib import Path

import pytest
from tests.e2e.relayer_network import CHAINS, NODES, Network, Wallet, running, seed_of

from gridtokenx.core.codec import decode_own
from gridtokenx.core.keys import Ed25519Signer
from gridtokenx.interchain import stores
from gridtokenx.interchain.apps.transfer import SEND_WEIGHT, SendTransfer
from gridtokenx.ledger.runtime import TRANSACTION_WEIGHT
from gridtokenx.ledger.state import Map
from gridtokenx.ledger.tokens import Tokens
from gridtokenx.public.staking import GRID_DENOM

pytestmark = pytest.mark.e2e

ALICE = Ed25519Signer(seed_of("alice")).public_key
BOB = Ed25519Signer(seed_of("bob")).public_key
BALANCES: Map[int] = Tokens().balances
WEIGHT = TRANSACTION_WEIGHT + SEND_WEIGHT
"""Of one transfer in a transaction of its own."""


def amount(raw: bytes | None) -> int:
    return 0 if raw is None else decode_own(raw, int)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("dead", [None, 0])
async def test_registrations_and_transfers_cross_and_an_expired_one_returns(
    tmp_path: Path, dead: int | None
) -> None:
    network = Network(tmp_path)
    nodes = [network.node(chain, index) for chain in CHAINS for index in range(NODES)]
    relayers = [network.relayer(index) for index in range(2) if index != dead]
    wallets = {chain: network.wallet(chain) for chain in ("public", "consortium")}
    followers = [wallet.follower.run for wallet in wallets.values()]
    async with asyncio.timeout(150), running(*nodes, *followers):
        public, consortium = wallets["public"], wallets["consortium"]
        voucher = BALANCES.key(f"public/{GRID_DENOM}", BOB)
        before = amount(await public.follower.value(BALANCES.key(GRID_DENOM, ALICE)))
        async with running(*relayers):
            await consortium.wait_for(stores.CHANNELS.key("oracle"), lambda raw: delivered(raw) > 0)
            kept = SendTransfer("consortium", GRID_DENOM, 5_000, BOB, now_ms() + 3_600_000)
            assert (await public.call([kept], WEIGHT)).ok
            await consortium.wait_for(voucher, lambda raw: amount(raw) == 5_000)
        sent = 1 + await send_what_expires(public, consortium)
        async with running(*relayers):
            books = await public.wait_for(
                stores.CHANNELS.key("consortium"),
                lambda raw: raw is not None and stores.CHANNELS.decode(raw).open_packets == 0,
            )
        assert books is not None
        ended = stores.CHANNELS.decode(books)
        assert (ended.delivered, ended.timed_out) == (1, 1)
        assert amount(await consortium.follower.value(voucher)) == 5_000
        after = amount(await public.follower.value(BALANCES.key(GRID_DENOM, ALICE)))
        assert after == before - 5_000 - sent * public.fee_per_weight * WEIGHT


def delivered(raw: bytes | None) -> int:
    return 0 if raw is None else stores.CHANNELS.decode(raw).delivered


async def send_what_expires(public: Wallet, consortium: Wallet) -> int:
    """Send a transfer that nobody relays until the chain that it goes to has passed its timeout.

    Returns how many transactions it took: one that is included too late is refused, with its fee.
    """
    for tries in range(1, 20):
        timeout_ms = now_ms() + 3_000 * tries
        expires = SendTransfer("consortium", GRID_DENOM, 7_000, BOB, timeout_ms)
        inclusion = await public.call([expires], WEIGHT)
        if inclusion.ok:
            await consortium.passed(timeout_ms)
            return tries
        assert inclusion.results[0].code == "bad-timeout"
    raise AssertionError("no timeout was long enough to be included")
