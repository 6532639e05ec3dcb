"""`gtx relayers`: who may carry packets to the permissioned chains without a fee."""

import asyncio
from typing import Final

import click

from gridtokenx.consortium.relayers import SetRelayer
from gridtokenx.core.addresses import address
from gridtokenx.core.codec import decode_own
from gridtokenx.core.errors import LocalFault
from gridtokenx.lab.commands.tx import send_one
from gridtokenx.lab.commands.wallets import from_option, wallet_options
from gridtokenx.lab.wallet import Wallet
from gridtokenx.ledger.state import Map
from gridtokenx.oracle.chain.relayers import STANDING, ApproveRelayer, Standing

FREE_PER_WINDOW: Final = 1_200
"""As those of the local testnet's genesis have."""
_QUOTAS: Final = Map("relayers.quota", int)


@click.group()
def command() -> None:
    """Enrol relayers, and show who relays.

    A relayer pays GRID on the public chain (send it some: gtx tx transfer). On the consortium chain the
    operator's account enrols it; on the oracle chain, which takes no fees, a quorum of the oracles does.
    Enrolment buys room in blocks, never belief: what a relayer carries is judged by proofs.
    """


@command.command()
@click.option("--chain", type=click.Choice(("consortium", "oracle")), required=True)
@click.argument("account", required=False)
@wallet_options
def show(chain: str, account: str | None, wallet: Wallet) -> int:
    """Show, verified, who relays on the oracle chain, or what ACCOUNT may on the consortium chain."""
    if chain == "consortium" and account is None:
        raise LocalFault("the consortium chain is asked account by account: name one")
    return asyncio.run(_show(wallet, chain, None if account is None else wallet.key_of(account)))


@command.command()
@click.argument("account")
@click.option("--chain", type=click.Choice(("consortium", "oracle")), required=True)
@from_option
@click.option(
    "--per-minute",
    type=click.IntRange(1, 10**6),
    default=FREE_PER_WINDOW,
    show_default=True,
    help="Transactions without fee in a minute of network time; the consortium chain's quota.",
)
@wallet_options
def enrol(account: str, chain: str, sender: str, per_minute: int, wallet: Wallet) -> int:
    """Let ACCOUNT relay: as the consortium's operator, or with one oracle's voice.

    On the oracle chain each oracle says it with its own key (--keys .testnet/oracle-0/keys --from
    identity); it holds when a quorum has.
    """
    return asyncio.run(_set(wallet, sender, chain, account, per_minute))


@command.command()
@click.argument("account")
@click.option("--chain", type=click.Choice(("consortium", "oracle")), required=True)
@from_option
@wallet_options
def end(account: str, chain: str, sender: str, wallet: Wallet) -> int:
    """Let ACCOUNT relay no longer; who decides is as for `enrol`."""
    return asyncio.run(_set(wallet, sender, chain, account, 0))


async def _show(wallet: Wallet, chain: str, account: bytes | None) -> int:
    async with wallet.following(chain) as chains:
        if chain == "consortium":
            assert account is not None, "asked for above"
            key = _QUOTAS.key(account)
            raw = (await chains[chain].read((key,)))[key]
            quota = 0 if raw is None else decode_own(raw, int)
            click.echo(f"{address(account)}  {quota} transactions a minute without fee")
            return 0
        key = STANDING.key
        raw = (await chains[chain].read((key,)))[key]
        accounts = () if raw is None else decode_own(raw, Standing).accounts
        for each in accounts:
            if account in (None, each):
                click.echo(address(each))
        return 0 if account is None or account in accounts else 1


async def _set(wallet: Wallet, sender: str, chain: str, account: str, per_minute: int) -> int:
    named = wallet.key_of(account)
    if chain == "consortium":
        call: SetRelayer | ApproveRelayer = SetRelayer(account=named, free_per_window=per_minute)
    else:
        call = ApproveRelayer(account=named, enrolled=per_minute > 0)
    return await send_one(wallet, chain, sender, call)
