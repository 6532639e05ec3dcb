"""What a testnet's people do beside trading: claim certificates, and send GRID over the bridge.

Retiring: of the certificates that appear, some owners claim some energy. Transfers, round after
round: some GRID leaves with a timeout shorter than finality, which cannot arrive in time, and must
come back by a proof that it never arrived; other GRID goes to the consortium and comes home again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from gridtokenx.core.codec import Wire, decode_own
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.units import GRID
from gridtokenx.host.chains import Account, ChainAccess
from gridtokenx.host.clock import NetworkClock
from gridtokenx.host.logs import Logger
from gridtokenx.host.metrics import Metrics
from gridtokenx.interchain.apps.transfer import SendTransfer, voucher
from gridtokenx.ledger.tokens import Tokens
from gridtokenx.public import rec
from gridtokenx.public.staking import GRID_DENOM

PUBLIC_VALID_MS: Final = 60_000
CONSORTIUM_VALID_MS: Final = 30_000
RETIRE_ONE_IN: Final = 3
"""One in so many certificates is claimed, by the number of its issue."""
OLDEST_CERTIFICATES: Final = 64
"""How far back a new process looks for certificates that nobody claimed yet."""
TRANSFER_NGRID: Final = 5 * GRID
EXPIRING_NGRID: Final = 3 * GRID
TRANSFER_TIMEOUT_MS: Final = 600_000
HURRY_MS: Final = 100
"""First guess of how long after the beginning of its slot the hopeless transfer expires: the block
that is made there must still take it, and finality, a relayer and another chain's block must not
fit."""
LONGEST_HURRY_MS: Final = 1_600
HURRIES: Final = 12
"""Attempts at a transfer that expires, each with a better guess."""
LEAD_MS: Final = 500
"""How long before its slot the hopeless transfer is submitted; well below the length of a slot."""
ARRIVAL_PATIENCE_S: Final = 300.0
BETWEEN_ROUNDS_S: Final = 120.0
AFTER_FAULT_S: Final = 10.0


class Retirer:
    """Claims some of the certificates of accounts that this process holds.

    Args:
        public: the public chain.
        accounts: by public key, with the name under which each claims.
        metrics: counts ``certificates_claimed`` and ``claims_refused`` by reason.
        log: of the process.
    """

    def __init__(
        self,
        public: ChainAccess,
        accounts: Mapping[bytes, tuple[str, Account]],
        metrics: Metrics,
        log: Logger,
    ) -> None:
        self._public: Final = public
        self._accounts: Final = accounts
        self._metrics: Final = metrics
        self._log: Final = log
        self._next: int | None = None
        """The first certificate that was not looked at."""

    async def run(self) -> None:
        """Look for new certificates until cancelled."""
        while True:
            try:
                await self.look()
            except RemoteFault as fault:
                self._metrics.count("claims_refused", reason=fault.reason)
                self._log.debug("nothing claimed", why=str(fault))
                await asyncio.sleep(AFTER_FAULT_S)
            await self._public.news()

    async def look(self) -> None:
        """Claim from the certificates that appeared since the last look.

        Raises:
            RemoteFault: the chain cannot be read, or a claim could not be included; what was not
                done is done by the next look.
        """
        length_key = rec.NUMBERS.length_key()
        raw = (await self._public.read([length_key]))[length_key]
        issued = 0 if raw is None else decode_own(raw, int)
        if self._next is None:
            self._next = max(0, issued - OLDEST_CERTIFICATES)
        while self._next < issued:
            if self._next % RETIRE_ONE_IN == 0:
                await self._claim(self._next)
            self._next += 1

    async def _claim(self, number: int) -> None:
        listed = await self._value(rec.NUMBERS.item_key(number))
        if listed is None:
            return
        name = decode_own(listed, bytes)
        raw = await self._value(rec.CERTIFICATES.key(name))
        if raw is None:
            return
        certificate = rec.CERTIFICATES.decode(raw)
        known = self._accounts.get(certificate.owner)
        if known is None:
            return
        held = await self._value(rec.HOLDINGS.key(name, certificate.owner))
        if held is None or certificate.retired_wh:
            return
        beneficiary, account = known
        claim = rec.Retire(
            certificate=name,
            energy_wh=max(1, rec.HOLDINGS.decode(held) // 2),
            beneficiary=beneficiary,
            reason="own consumption",
        )
        await self._send(account, claim)

    async def _send(self, account: Account, claim: rec.Retire) -> None:
        inclusion = await account.call([claim], PUBLIC_VALID_MS)
        if inclusion.ok:
            self._metrics.count("certificates_claimed")
            self._metrics.count("certificates_claimed_wh", claim.energy_wh)
        else:
            self._metrics.count("claims_refused", reason=inclusion.results[0].code)

    async def _value(self, key: bytes) -> bytes | None:
        return (await self._public.read([key]))[key]


@dataclass(frozen=True, slots=True)
class Route:
    """The bridge between the public and the consortium chain, as both name it."""

    to_consortium: str
    """The public chain's client of the consortium."""
    to_public: str
    """The consortium's client of the public chain."""


class Traveller:
    """Sends GRID there and back, and some on a journey that it cannot finish.

    Args:
        public: the public chain, with the account that sends.
        consortium: the consortium chain, with the same key's account.
        route: between them.
        slot_ms: length of the public chain's slots.
        clock: network time.
        metrics: counts ``transfers`` by stage, and ``transfer_faults`` by reason.
        log: of the process.
    """

    def __init__(
        self,
        public: tuple[ChainAccess, Account],
        consortium: tuple[ChainAccess, Account],
        route: Route,
        slot_ms: int,
        clock: NetworkClock,
        metrics: Metrics,
        log: Logger,
    ) -> None:
        self._public, self._home = public
        self._consortium, self._abroad = consortium
        self._route: Final = route
        self._slot_ms: Final = slot_ms
        self._clock: Final = clock
        self._metrics: Final = metrics
        self._log: Final = log
        self._tokens: Final = Tokens()
        self._voucher: Final = voucher(route.to_public, GRID_DENOM)

    async def run(self) -> None:
        """Travel until cancelled. An expiring transfer goes first: it takes longest to end."""
        while True:
            try:
                await self.expire()
                await self.there_and_back()
            except RemoteFault as fault:
                self._metrics.count("transfer_faults", reason=fault.reason)
                self._log.info("transfer given up", why=str(fault))
                await asyncio.sleep(AFTER_FAULT_S)
            else:
                await asyncio.sleep(BETWEEN_ROUNDS_S)

    async def there_and_back(self) -> None:
        """Send GRID to the consortium, and home again what is there.

        Raises:
            RemoteFault: a step was refused, or nothing arrived for a long time.
        """
        there_before = await self._held_abroad()
        await self._leave(TRANSFER_NGRID, self._clock.now_ms() + TRANSFER_TIMEOUT_MS)
        await self._until(self._consortium, self._held_abroad, lambda held: held > there_before)
        self._stage("arrived")
        back = SendTransfer(
            client_id=self._route.to_public,
            denom=self._voucher,
            amount=await self._held_abroad(),
            receiver=self._home.public_key,
            timeout_ms=self._clock.now_ms() + TRANSFER_TIMEOUT_MS,
        )
        before = await self._held_at_home()
        await self._sent(self._abroad, back, CONSORTIUM_VALID_MS)
        self._stage("sent-back")
        await self._until(self._public, self._held_at_home, lambda held: held > before)
        self._stage("returned")

    async def expire(self) -> None:
        """Send GRID with too little time, and wait until it is refunded.

        How little is too little depends on the machine: who hurries too much is refused by the
        block, who hurries too little arrives.

        Raises:
            RemoteFault: it was refused, or not refunded for a long time.
        """
        hurry_ms = HURRY_MS
        for _ in range(HURRIES):
            there_before = await self._held_abroad()
            try:
                await self._leave_late(hurry_ms)
            except RemoteFault as fault:
                if fault.reason not in {"bad-timeout", "expired"}:
                    raise
                hurry_ms = min(2 * hurry_ms, LONGEST_HURRY_MS)
                continue
            if await self._comes_back(there_before):
                self._stage("refunded")
                return
            hurry_ms = max(1, hurry_ms // 2)
        raise RemoteFault("never-expired", f"in {HURRIES} attempts")

    async def _leave_late(self, hurry_ms: int) -> None:
        """Submit just before a slot what expires just after the slot's beginning."""
        slot = (self._clock.now_ms() + LEAD_MS) // self._slot_ms + 1
        start_ms = slot * self._slot_ms
        await asyncio.sleep((start_ms - LEAD_MS - self._clock.now_ms()) / 1000)
        await self._leave(EXPIRING_NGRID, start_ms + hurry_ms)

    async def _comes_back(self, there_before: int) -> bool:
        """Wait for the end of a transfer: True for a refund, False for an arrival."""
        left = await self._held_at_home()
        back = False

        async def ended() -> int:
            nonlocal back
            back = await self._held_at_home() > left
            return int(back or await self._held_abroad() > there_before)

        await self._until(self._public, ended, bool)
        return back

    async def _leave(self, amount: int, timeout_ms: int) -> None:
        call = SendTransfer(
            client_id=self._route.to_consortium,
            denom=GRID_DENOM,
            amount=amount,
            receiver=self._abroad.public_key,
            timeout_ms=timeout_ms,
        )
        valid_ms = min(PUBLIC_VALID_MS, timeout_ms - self._clock.now_ms())
        await self._sent(self._home, call, valid_ms)
        self._stage("sent")

    async def _sent(self, account: Account, call: Wire, valid_ms: int) -> None:
        inclusion = await account.call([call], valid_ms)
        if not inclusion.ok:
            result = inclusion.results[0]
            raise RemoteFault(result.code, result.message)

    def _stage(self, stage: str) -> None:
        self._metrics.count("transfers", stage=stage)
        self._log.debug("transfer", stage=stage)

    async def _held_at_home(self) -> int:
        return await self._balance(self._public, GRID_DENOM, self._home.public_key)

    async def _held_abroad(self) -> int:
        return await self._balance(self._consortium, self._voucher, self._abroad.public_key)

    async def _balance(self, chain: ChainAccess, denom: str, account: bytes) -> int:
        key = self._tokens.balances.key(denom, account)
        raw = (await chain.read([key]))[key]
        return 0 if raw is None else self._tokens.balances.decode(raw)

    async def _until(
        self,
        chain: ChainAccess,
        look: Callable[[], Awaitable[int]],
        enough: Callable[[int], bool],
    ) -> None:
        try:
            async with asyncio.timeout(ARRIVAL_PATIENCE_S):
                while not enough(await look()):
                    await chain.news()
        except TimeoutError:
            raise RemoteFault("not-arrived", f"after {ARRIVAL_PATIENCE_S:.0f} s") from None
