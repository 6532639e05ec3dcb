"""A person's keys in a testnet's home, and access to its chains with them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from gridtokenx.core.addresses import parse_address
from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.keys import Signer
from gridtokenx.core.units import GRID, INT64_MAX, WATT
from gridtokenx.host.chains import ChainAccess, ClientParts, open_access, read_chain
from gridtokenx.host.clock import NetworkClock
from gridtokenx.host.keyfile import public_key_of
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.settings import LinkSettings
from gridtokenx.lab.network import NETWORK_FILE, read_network
from gridtokenx.lab.passwords import open_ring
from gridtokenx.lab.testnet.heartbeat import Heartbeat

VALID_FOR_MS: Final = 60_000
CONNECT_S: Final = 20.0
_UNITS: Final = {"GRID": GRID, "WATT": WATT}


class Wallet:
    """The keys of `HOME/wallet` and the network of `HOME`.

    Args:
        home: of the testnet.
        keys: another directory of keys to sign with.
        password_file: of the keys that sign.

    Raises:
        LocalFault: no testnet there.
    """

    def __init__(
        self, home: Path, keys: Path | None = None, password_file: Path | None = None
    ) -> None:
        self._home: Final = home
        self._directory: Final = home / "wallet"
        self._own_keys: Final = self._directory / "keys"
        self._keys: Final = keys or self._own_keys
        self._password_file: Final = password_file
        places = (home / NETWORK_FILE, home / "genesis" / NETWORK_FILE)  # containers' is the latter
        facts = next((path for path in places if path.is_file()), None)
        if facts is None:
            raise LocalFault(
                f"{home} holds no testnet; make one with: gtx testnet init --home {home}"
            )
        self._facts: Final = facts
        self._network = read_network(self._facts)

    def key_of(self, name: str) -> bytes:
        """The public key behind an address, or behind the name of a key of this wallet.

        Raises:
            LocalFault: neither.
        """
        if (self._keys / f"{name}.key").exists():
            return public_key_of(self._keys / f"{name}.key")
        try:
            return parse_address(name)
        except RemoteFault:
            known = ", ".join(sorted(path.stem for path in self._keys.glob("*.key")))
            raise LocalFault(
                f"{name!r} is no address (grid1...) and no key here; keys: {known}"
            ) from None

    def names(self) -> dict[bytes, str]:
        """The keys of this wallet by public key, to show people names."""
        return {public_key_of(path): path.stem for path in sorted(self._keys.glob("*.key"))}

    def signer(self, name: str) -> Signer:
        """The signer of a key of this wallet.

        Raises:
            LocalFault: no such key, or no password that opens it.
        """
        return open_ring(self._keys, self._password_file).signer(name)

    def access(self, chain: str) -> ChainAccess:
        """Access to a chain; its follower is not running yet."""
        entry = self._network.chains[chain]
        permissioned = chain != "public"
        link = LinkSettings(
            genesis=self._facts.parent / entry.genesis,
            nodes=entry.nodes,
            certificate=self._directory / f"{chain}-certificate.pem" if permissioned else None,
            authority=self._home / "genesis" / f"{chain}-authority.pem" if permissioned else None,
        )
        password_file = self._password_file if self._keys == self._own_keys else None
        parts = ClientParts(
            seed=open_ring(self._own_keys, password_file).seed("identity"),
            clock=NetworkClock(self._offset_ms()),
            metrics=Metrics(),
            log=NullLogger(),
        )
        return open_access(read_chain(chain, link.genesis), link, parts)

    def _offset_ms(self) -> int:
        """A running network's heartbeat is at most a second old, so it shows its offset, nearly."""
        for path in (self._home / "heartbeat", self._home / "clock" / "heartbeat"):
            if path.is_file():
                return Heartbeat.resume(path).offset_ms
        return 0  # of several machines, which keep wall time

    @asynccontextmanager
    async def following(self, *chains: str) -> AsyncIterator[dict[str, ChainAccess]]:
        """Access to chains whose followers run while the context lasts.

        Raises:
            LocalFault: no node of a chain could be reached in time.
        """
        accesses = {chain: self.access(chain) for chain in chains}
        runs = [asyncio.create_task(access.follower.run()) for access in accesses.values()]
        try:
            for chain, access in accesses.items():
                await self._reach(chain, access, runs)
            yield accesses
        finally:
            for run in runs:
                run.cancel()
            await asyncio.gather(*runs, return_exceptions=True)

    async def _reach(
        self, chain: str, access: ChainAccess, runs: "list[asyncio.Task[None]]"
    ) -> None:
        reached = asyncio.ensure_future(access.follower.wait_beyond(0))
        try:
            await asyncio.wait(
                {reached, *runs}, timeout=CONNECT_S, return_when=asyncio.FIRST_COMPLETED
            )
            for run in runs:
                if run.done():
                    run.result()
            if not reached.done():
                raise LocalFault(
                    f"no node of the {chain} chain shows a verified block within {CONNECT_S:.0f} s; "
                    f"is the testnet running? start it with: gtx testnet up --home {self._home}"
                )
        finally:
            reached.cancel()


def parse_amount(text: str, denom: str) -> int:
    """An amount in whole tokens, such as ``12.5``, in the smallest unit.

    Raises:
        LocalFault: no number, negative, or finer than the token's decimals.
    """
    unit = _UNITS.get(denom.rpartition("/")[2], 1)
    whole, _, fraction = text.strip().replace("_", "").partition(".")
    decimals = len(str(unit)) - 1
    if not (whole.isdecimal() and (fraction.isdecimal() or not fraction)):
        raise LocalFault(f"amount {text!r} is no number; write for example 12.5")
    if len(fraction) > decimals:
        raise LocalFault(f"amount {text!r}: {denom} has {decimals} decimals")
    amount = int(whole) * unit + int((fraction or "0").ljust(decimals, "0") or "0")
    if amount > INT64_MAX:
        raise LocalFault(f"amount {text!r}: more {denom} than there can be")
    return amount


def render_amount(amount: int, denom: str) -> str:
    """An amount for people."""
    unit = _UNITS.get(denom.rpartition("/")[2], 1)
    decimals = len(str(unit)) - 1
    whole, rest = divmod(amount, unit)
    fraction = f"{rest:0{decimals}}".rstrip("0") if decimals else ""
    return f"{whole:,}{'.' + fraction if fraction else ''} {denom}"
