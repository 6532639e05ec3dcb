"""The feed observer: reads its own source once a round, and signs what it saw.

Law of the file: **a bad or absent value is an observation that is not made**; the round closes without
it. An observation's nonce is its (round, feed), so a restarted oracle that observes a round again
cannot be counted twice.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Signer
from gridtokenx.host.logs import Logger
from gridtokenx.host.metrics import Metrics
from gridtokenx.ledger.transactions import Transaction, sign_transaction
from gridtokenx.oracle.chain.feeds import SubmitObservation
from gridtokenx.oracle.chain.parameters import FeedSpec
from gridtokenx.oracle.chain.rounds import round_at

MAX_SLEEP_S: Final = 5.0
"""The clock is looked at again this often: a laptop's sleep stops timers, not time."""
SETTLE_MS: Final = 1_500
"""Observe this long after a round began, so that block time has reached the round too."""


class Source(Protocol):
    """Where an observer looks; `oracle.feeds.source.HttpSource` is one."""

    @property
    def name(self) -> str:
        """For the record."""
        ...

    async def read(self) -> int:
        """The value now, in the feed's unit; raises `RemoteFault` if there is none."""
        ...


class Observer:
    """Observes one feed.

    Args:
        spec: the feed's rules.
        position: of the feed among the chain's feeds, and
        feeds: their number; together with the round they make nonces.
        genesis_ms: network time from which rounds are numbered.
        source: this oracle's own.
        signer: the oracle's key.
        chain_id: the oracle chain's.
        clock: network time.
        submit: takes signed transactions.
        metrics: counts ``observations`` by feed and ``observation_failures`` by reason.
        log: for failures.
    """

    def __init__(
        self,
        spec: FeedSpec,
        position: int,
        feeds: int,
        genesis_ms: int,
        source: Source,
        signer: Signer,
        chain_id: bytes,
        clock: Callable[[], int],
        submit: Callable[[Transaction], None],
        metrics: Metrics,
        log: Logger,
    ) -> None:
        self._spec: Final = spec
        self._position: Final = position
        self._feeds: Final = feeds
        self._genesis_ms: Final = genesis_ms
        self._source: Final = source
        self._signer: Final = signer
        self._chain_id: Final = chain_id
        self._clock: Final = clock
        self._submit: Final = submit
        self._metrics: Final = metrics
        self._log: Final = log

    async def run(self) -> None:
        """Observe every round, until cancelled."""
        settle_ms = min(SETTLE_MS, self._spec.deadline_ms // 3)
        last = round_at(self._spec, self._genesis_ms, self._clock() - settle_ms)
        while True:
            last = max(last + 1, round_at(self._spec, self._genesis_ms, self._clock() - settle_ms))
            start_ms = self._genesis_ms + last * self._spec.round_ms
            await self._sleep_until(start_ms + settle_ms)
            if self._clock() < start_ms + self._spec.deadline_ms:
                await self.observe(last)

    async def observe(self, round_: int) -> None:
        """Read the source, and submit what it says."""
        spec = self._spec
        try:
            value = await self._read()
        except RemoteFault as fault:
            self._metrics.count("observation_failures", feed=spec.feed, reason=fault.reason)
            self._log.warning("no observation", feed=spec.feed, round=round_, why=str(fault))
            return
        call = SubmitObservation(
            feed=spec.feed, round=round_, value=value, source=self._source.name[:64]
        )
        nonce = round_ * self._feeds + self._position
        self._submit(sign_transaction(self._signer, self._chain_id, nonce, [call]))
        self._metrics.count("observations", feed=spec.feed)

    async def _read(self) -> int:
        spec, value = self._spec, await self._source.read()
        if not spec.minimum <= value <= spec.maximum:
            raise RemoteFault("source-range", f"{value} {spec.unit}")
        return value

    async def _sleep_until(self, due_ms: int) -> None:
        while (early_ms := due_ms - self._clock()) > 0:  # noqa: ASYNC110 - no event tells the time
            await asyncio.sleep(min(early_ms / 1000, MAX_SLEEP_S))
