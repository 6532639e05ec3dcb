"""Clients of a chain under test: they transfer WATT at a steady rate, and believe only what is proved.

A transaction is acknowledged when a verified final block says so, as any client would have it
(`host/client.py`); what was acknowledged must be there whatever happens later.
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gridtokenx.consortium.custody import TREASURY, WATT_DENOM
from gridtokenx.core.errors import RemoteFault
from gridtokenx.host.chains import Account, ClientParts, open_access
from gridtokenx.host.clock import NetworkClock
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.lab.chaos.layout import Laid
from gridtokenx.ledger.tokens import Transfer

VALID_MS: Final = 120_000


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """One transaction that a client knows to be final."""

    transaction_id: bytes
    height: int
    sent_s: float
    """Monotonic time."""
    done_s: float

    @property
    def latency_ms(self) -> int:
        """From signing to knowing."""
        return round((self.done_s - self.sent_s) * 1_000)


class Load:
    """All clients.

    Args:
        laid: the chain.
        rate: transactions a second, of all together.
        on_done: hears of each acknowledgement.
    """

    def __init__(self, laid: Laid, rate: int, on_done: Callable[[Acknowledged], None]) -> None:
        self._laid: Final = laid
        self._rate: Final = rate
        self._on_done: Final = on_done
        self.acknowledged: Final[list[Acknowledged]] = []
        self.failed: Final = Counter[str]()
        """Transactions that expired or were refused, by reason."""
        self._numbers = itertools.count(1)

    async def run(self) -> None:
        """Send until cancelled."""
        parts = ClientParts(self._laid.client_seed, NetworkClock(), Metrics(), NullLogger())
        access = open_access(self._laid.facts(), self._laid.link(), parts)
        accounts = [access.account(signer) for signer in self._laid.accounts]
        async with asyncio.TaskGroup() as group:
            group.create_task(access.follower.run(), name="follower")
            for index, account in enumerate(accounts if self._rate else ()):
                group.create_task(self._client(index, account), name=f"client {index}")

    async def _client(self, index: int, account: Account) -> None:
        """One account: a transaction in each period, as long as the last one is done by then."""
        period_s = len(self._laid.accounts) / self._rate
        next_s = time.monotonic() + period_s * index / len(self._laid.accounts)
        while True:
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
            next_s = max(next_s + period_s, time.monotonic())
            await self._send(account)

    async def _send(self, account: Account) -> None:
        call = Transfer(denom=WATT_DENOM, to=TREASURY, amount=next(self._numbers))
        sent_s = time.monotonic()
        try:
            inclusion = await account.call([call], VALID_MS)
        except RemoteFault as fault:
            self.failed[fault.reason] += 1
            await asyncio.sleep(1.0)
            return
        if not inclusion.ok:
            self.failed["failed in its block"] += 1
            return
        done = Acknowledged(inclusion.transaction_id, inclusion.height, sent_s, time.monotonic())
        self.acknowledged.append(done)
        self._on_done(done)
