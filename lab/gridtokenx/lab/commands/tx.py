"""`gtx tx`: sign with a key of the testnet's wallet, send, and wait until it is final."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import click
import msgspec

from gridtokenx.consortium.market.auction import Side
from gridtokenx.consortium.market.messages import PlaceOrder
from gridtokenx.core.addresses import address
from gridtokenx.core.codec import Wire, decode_own
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.gridtime import interval_at
from gridtokenx.core.units import WATT
from gridtokenx.host.chains import ChainAccess
from gridtokenx.host.client import Inclusion
from gridtokenx.host.follow import FinalBlock
from gridtokenx.interchain.apps.transfer import (
    SendTransfer,
    TransferReceived,
    TransferRefunded,
    TransferSent,
    voucher,
)
from gridtokenx.lab.commands.testnet import Duration
from gridtokenx.lab.commands.wallets import from_option, wallet_options
from gridtokenx.lab.wallet import VALID_FOR_MS, Wallet, parse_amount, render_amount
from gridtokenx.ledger.blocks import EventRecord
from gridtokenx.ledger.tokens import Tokens, Transfer
from gridtokenx.public.rec import Retire
from gridtokenx.public.staking import GRID_DENOM

FAILED_EXIT: Final = 1
ROUTES: Final = {
    "public-consortium": GRID_DENOM,
    "consortium-public": voucher("public", GRID_DENOM),
}
BALANCES: Final = {
    "public": (GRID_DENOM,),
    "consortium": ("WATT", voucher("public", GRID_DENOM)),
}

to_option = click.option(
    "--to", "receiver", required=True, help="Name of a key in the wallet, or an address (grid1...)."
)
amount_option = click.option("--amount", required=True, help="Whole tokens, such as 12.5.")


@click.group()
def command() -> None:
    """Sign transactions with a key of the testnet's wallet, and wait until they are final.

    What is printed was verified: a transaction has happened when a block that carries a commit
    certificate or a justification says so.
    """


@command.command()
@click.argument("who")
@wallet_options
def balance(who: str, wallet: Wallet) -> int:
    """Show the verified balances of WHO: a key of the wallet, or an address."""
    return asyncio.run(_show_balances(wallet, wallet.key_of(who)))


@command.command()
@click.option("--chain", type=click.Choice(tuple(BALANCES)), default="public", show_default=True)
@from_option
@to_option
@amount_option
@click.option("--denom", help="Token; the default is GRID on the public chain, WATT on the other.")
@wallet_options
def transfer(
    chain: str, sender: str, receiver: str, amount: str, denom: str | None, wallet: Wallet
) -> int:
    """Give tokens to another account of the same chain."""
    token = denom or BALANCES[chain][0]
    call = Transfer(denom=token, to=wallet.key_of(receiver), amount=parse_amount(amount, token))
    return asyncio.run(send_one(wallet, chain, sender, call))


@command.command()
@click.option(
    "--route", type=click.Choice(tuple(ROUTES)), default="public-consortium", show_default=True
)
@from_option
@to_option
@amount_option
@click.option(
    "--timeout",
    "timeout_s",
    type=Duration(),
    default="5m",
    show_default=True,
    help="After this the GRID come back instead. A timeout shorter than finality always expires.",
)
@wallet_options
def bridge(
    route: str, sender: str, receiver: str, amount: str, timeout_s: float, wallet: Wallet
) -> int:
    """Send GRID over the bridge, and wait until they arrive or come back.

    From the public chain they are escrowed and a voucher appears on the consortium chain; sent back,
    the voucher is burned and the GRID are released.
    """
    source, _, destination = route.partition("-")
    denom = ROUTES[route]
    call = SendTransfer(
        client_id=destination,
        denom=denom,
        amount=parse_amount(amount, denom),
        receiver=wallet.key_of(receiver),
        timeout_ms=0,
    )
    return asyncio.run(_bridge(wallet, source, destination, sender, call, timeout_s))


@command.command()
@from_option
@click.option(
    "--certificate", required=True, help="Certificate id in hexadecimal (see /api/v1/recs)."
)
@click.option("--energy-wh", type=click.IntRange(1, 10**12), required=True, help="Wh to retire.")
@click.option(
    "--for", "beneficiary", required=True, help="For whom it is claimed; public for ever."
)
@click.option("--reason", default="own consumption", show_default=True)
@wallet_options
def retire(
    sender: str, certificate: str, energy_wh: int, beneficiary: str, reason: str, wallet: Wallet
) -> int:
    """Claim the energy of a certificate that you hold; nobody can claim it again."""
    try:
        certificate_id = bytes.fromhex(certificate)
    except ValueError:
        certificate_id = b""
    if len(certificate_id) != 32:
        raise LocalFault(f"--certificate {certificate!r} is not 64 hexadecimal digits")
    call = Retire(
        certificate=certificate_id, energy_wh=energy_wh, beneficiary=beneficiary, reason=reason
    )
    return asyncio.run(send_one(wallet, "public", sender, call))


@command.command()
@from_option
@click.option("--side", type=click.Choice(("buy", "sell")), required=True)
@click.option("--energy-wh", type=click.IntRange(1, 10**12), required=True)
@click.option("--limit", required=True, help="All-in limit in WATT per kWh, such as 4.2.")
@click.option(
    "--ahead",
    type=click.IntRange(1, 12),
    default=3,
    show_default=True,
    help="Delivery interval: so many half hours ahead of now.",
)
@wallet_options
def order(sender: str, side: str, energy_wh: int, limit: str, ahead: int, wallet: Wallet) -> int:
    """Bid for or offer energy in the next auctions.

    Only an account with an approved connection may trade: a household of the testnet, such as h03.
    """
    return asyncio.run(
        _order(
            wallet,
            sender,
            Side[side.upper()],
            energy_wh,
            parse_amount(limit, "WATT"),
            ahead,
        )
    )


# -- doing it --------------------------------------------------------------------------------------


async def _show_balances(wallet: Wallet, account: bytes) -> int:
    tokens = Tokens()
    click.echo(address(account))
    async with wallet.following(*BALANCES) as chains:
        for chain, denoms in BALANCES.items():
            keys = {denom: tokens.balances.key(denom, account) for denom in denoms}
            values = await chains[chain].read(tuple(keys.values()))
            for denom, key in keys.items():
                raw = values[key]
                held = 0 if raw is None else decode_own(raw, int)
                click.echo(f"  {chain:<11} {render_amount(held, denom)}")
    return 0


async def send_one(wallet: Wallet, chain: str, sender: str, call: Wire) -> int:
    """Send one call, wait until it is final, say what became of it; returns the exit code."""
    async with wallet.following(chain) as chains:
        return _told(chain, await _send(wallet, chains[chain], sender, [call]))


async def _send(
    wallet: Wallet, access: ChainAccess, sender: str, calls: Sequence[Wire]
) -> Inclusion:
    account = access.account(wallet.signer(sender))
    return await account.call(calls, VALID_FOR_MS)


def _told(chain: str, inclusion: Inclusion) -> int:
    for result in inclusion.results:
        if result.code != "ok":
            click.echo(
                f"refused in block {inclusion.height} of the {chain} chain: {result.message}"
            )
            return FAILED_EXIT
    click.echo(
        f"final in block {inclusion.height} of the {chain} chain "
        f"(transaction {inclusion.transaction_id.hex()[:16]}...)"
    )
    return 0


async def _order(
    wallet: Wallet, sender: str, side: Side, energy_wh: int, limit_uwatt: int, ahead: int
) -> int:
    async with wallet.following("consortium") as chains:
        access = chains["consortium"]
        head = await access.follower.wait_beyond(0)
        grid_ms = access.facts.clock.grid_ms(head.header.timestamp_ms)
        call = PlaceOrder(
            client_order_id=head.header.timestamp_ms,
            zone=0,
            interval=interval_at(grid_ms) + ahead,
            side=side,
            limit_uwatt_per_kwh=limit_uwatt,
            energy_wh=energy_wh,
        )
        click.echo(
            f"{side.name.lower()} {energy_wh} Wh at {limit_uwatt / WATT:.3f} WATT/kWh, "
            f"interval {call.interval}"
        )
        return _told("consortium", await _send(wallet, access, sender, [call]))


async def _bridge(
    wallet: Wallet,
    source: str,
    destination: str,
    sender: str,
    call: SendTransfer,
    timeout_s: float,
) -> int:
    async with wallet.following(source, destination) as chains:
        home, away = chains[source], chains[destination]
        head = await home.follower.wait_beyond(0)
        call = msgspec.structs.replace(
            call, timeout_ms=head.header.timestamp_ms + int(timeout_s * 1000)
        )
        watch = _Watch()
        home.follower.on_final(watch.listener(home, TransferSent, TransferRefunded))
        away.follower.on_final(watch.listener(away, TransferReceived))
        inclusion = await _send(wallet, home, sender, [call])
        if _told(source, inclusion):
            return FAILED_EXIT
        account = wallet.key_of(sender)
        sent = await watch.first(
            lambda event: isinstance(event, TransferSent) and event.sender == account
        )
        assert isinstance(sent, TransferSent), "the condition says so"
        click.echo(f"on its way to the {destination} chain (packet {sent.sequence}); waiting")
        end = await watch.first(
            lambda event: (
                isinstance(event, TransferReceived | TransferRefunded)
                and event.sequence == sent.sequence
                and event.sender == account
            )
        )
        amount = render_amount(call.amount, GRID_DENOM)
        if isinstance(end, TransferRefunded):
            click.echo(f"came back: {amount} refunded on the {source} chain ({end.reason})")
            return FAILED_EXIT
        click.echo(f"arrived: {amount} on the {destination} chain")
        return 0


class _Watch:
    """Events of followed chains, as they become final."""

    def __init__(self) -> None:
        self._seen: list[Wire] = []
        self._news = asyncio.Event()

    def listener(self, access: ChainAccess, *kinds: type[Wire]) -> Callable[[FinalBlock], None]:
        """Keeps events of these kinds."""
        union = access.facts.ledger.event_union

        def listen(block: FinalBlock) -> None:
            for raw in block.events:
                event = decode_own(decode_own(raw, EventRecord).data, union)
                if isinstance(event, kinds):
                    self._seen.append(event)
            self._news.set()

        return listen

    async def first(self, wanted: Callable[[Wire], bool]) -> Wire:
        """The first event, past or to come, that is wanted."""
        while True:
            for event in self._seen:
                if wanted(event):
                    return event
            self._news.clear()
            await self._news.wait()
