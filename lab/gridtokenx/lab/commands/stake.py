"""`gtx stake`: take part in electing the public chain's validators, or become one."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from gridtokenx.core.addresses import address, parse_address
from gridtokenx.core.codec import Wire, decode_own
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import Signer
from gridtokenx.core.units import GRID
from gridtokenx.host.chains import ChainAccess
from gridtokenx.host.files import read_file
from gridtokenx.host.keyfile import PASSWORD_VARIABLE
from gridtokenx.lab.commands.tx import amount_option, send_one
from gridtokenx.lab.commands.wallets import from_option, wallet_options
from gridtokenx.lab.passwords import open_ring
from gridtokenx.lab.wallet import Wallet, parse_amount, render_amount
from gridtokenx.ledger.identity import parse_genesis
from gridtokenx.public.chain import PublicGenesis
from gridtokenx.public.checkpoint import Checkpoint
from gridtokenx.public.staking import (
    GRID_DENOM,
    Bond,
    Chill,
    Nominate,
    Seat,
    SetSessionKey,
    Staking,
    Stand,
    Unbond,
    Withdraw,
    prove_session_key,
)
from gridtokenx.public.staking.calls import MAX_TARGETS
from gridtokenx.public.staking.roll import Roll

PUBLIC: Final = "public"

session_keys_option = click.option(
    "--session-keys",
    type=click.Path(path_type=Path, file_okay=False),
    help="The validator's own directory of keys, if it is on this machine (HOME/public-4/keys).",
)
session_key_option = click.option(
    "--session-key",
    default="identity",
    show_default=True,
    help="Name of the session key in that directory: the node's `key` setting.",
)
proof_option = click.option(
    "--proof",
    help="Instead: what `gtx stake prove` printed on the validator's machine.",
)
password_option = click.option(
    "--session-password-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Password of the session key's directory; else {PASSWORD_VARIABLE}, or your terminal.",
)


@click.group()
def command() -> None:
    """Elect the validators of the public chain, or become one.

    Stake is GRID that you lock (bond). It backs candidates that you name (nominate), or yourself
    (stand). At the first block of every era the chain elects its validators anew from all stakes; who
    won is in `gtx stake show`. What you unbond stays locked for some eras, then you withdraw it.

    \b
    To become a validator of a running network:
      1. start a full node: gtx node public ... (docs/public-chain.md, "Joining")
      2. gtx stake bond  --from NAME --amount 1000
      3. gtx stake stand --from NAME --session-keys DIR
      4. wait for the next era: gtx stake show
    """  # noqa: D301 - click's mark before a paragraph that keeps its lines


@command.command()
@click.argument("who", required=False)
@wallet_options
def show(who: str | None, wallet: Wallet) -> int:
    """Show era, set and candidates; or all about WHO: a key of the wallet, or an address.

    Everything is proved by the nodes under a final block. A seat is as elected: what its backers did
    since then counts from the next era on.
    """
    account = None if who is None else wallet.key_of(who)
    return asyncio.run(_show(wallet, account))


@command.command()
@from_option
@amount_option
@wallet_options
def bond(sender: str, amount: str, wallet: Wallet) -> int:
    """Lock GRID as stake; with stake already, add to it."""
    return _send(wallet, sender, Bond(amount_ngrid=_positive(amount)))


@command.command()
@from_option
@amount_option
@wallet_options
def unbond(sender: str, amount: str, wallet: Wallet) -> int:
    """Take stake out of play: it counts no more, and can be withdrawn after the unbonding period."""
    return _send(wallet, sender, Unbond(amount_ngrid=_positive(amount)))


@command.command()
@from_option
@wallet_options
def withdraw(sender: str, wallet: Wallet) -> int:
    """Get back all that was unbonded and whose period is over."""
    return _send(wallet, sender, Withdraw())


@command.command()
@click.argument("candidates", nargs=-1, required=True)
@from_option
@wallet_options
def nominate(candidates: tuple[str, ...], sender: str, wallet: Wallet) -> int:
    """Put your whole stake behind CANDIDATES: keys of the wallet, or addresses; at most 16.

    The election divides it among those who win, so that seats are backed evenly. It replaces what you
    named before; your stake stays yours.
    """
    if len(candidates) > MAX_TARGETS:
        raise LocalFault(f"{len(candidates)} candidates named; at most {MAX_TARGETS} are allowed")
    return _send(wallet, sender, Nominate(targets=tuple(map(wallet.key_of, candidates))))


@command.command()
@from_option
@session_keys_option
@session_key_option
@proof_option
@password_option
@wallet_options
def stand(
    sender: str,
    session_keys: Path | None,
    session_key: str,
    proof: str | None,
    session_password_file: Path | None,
    wallet: Wallet,
) -> int:
    """Stand for election with a session key; your stake backs yourself.

    The session key is your node's own key: it signs blocks and votes, and shows by a proof that it
    works for your account. The account's key, which holds the stake, stays off the validator.

    Let the node catch up first: a seat without a running node is a faulty validator, and too many of
    them stop finality.
    """
    holder = _signer(session_keys, session_key, session_password_file)
    return _send_with_key(wallet, sender, Stand, holder, proof)


@command.command("session-key")
@from_option
@session_keys_option
@session_key_option
@proof_option
@password_option
@wallet_options
def set_session_key(
    sender: str,
    session_keys: Path | None,
    session_key: str,
    proof: str | None,
    session_password_file: Path | None,
    wallet: Wallet,
) -> int:
    """Change the session key, from the next era on.

    Start a second node with the new key, let it catch up, and run this. When the era changes the seat
    moves from the old node to the new one; then stop the old one. Never run two nodes with one key.
    """
    holder = _signer(session_keys, session_key, session_password_file)
    return _send_with_key(wallet, sender, SetSessionKey, holder, proof)


@command.command()
@from_option
@wallet_options
def chill(sender: str, wallet: Wallet) -> int:
    """Stand down, and nominate nobody; the stake stays bonded.

    A validator keeps its seat until the next election: let its node run until `gtx stake show` no
    longer lists it, since the old set finalises the block that hands over to the next one.
    """
    return _send(wallet, sender, Chill())


@command.command()
@click.option("--account", "who", required=True, help="The account (grid1...) that is to stand.")
@click.option(
    "--genesis",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Genesis file of the public chain.",
)
@click.option(
    "--session-keys",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The validator's own directory of keys.",
)
@session_key_option
@password_option
def prove(
    who: str,
    genesis: Path,
    session_keys: Path,
    session_key: str,
    session_password_file: Path | None,
) -> int:
    """Print the proof that a session key may validate for an account.

    Run it on the validator's machine; `stand` and `session-key` take what it prints as --proof. It is
    no secret, and of no use to any other account.
    """
    chain_id = parse_genesis(read_file(genesis), PublicGenesis, str(genesis)).chain_id
    holder = _signer(session_keys, session_key, session_password_file)
    assert holder is not None, "a directory is required"
    proof = prove_session_key(holder, chain_id, parse_address(who))
    click.echo(f"{holder.public_key.hex()}:{proof.hex()}")
    return 0


@command.command()
@wallet_options
def checkpoint(wallet: Wallet) -> int:
    """Print the newest final block as HEIGHT:HASH, for the `checkpoint` setting of a new node.

    It was verified from genesis, or from what this home trusts. Whoever joins should have it from
    somebody that they trust, by another way than from the nodes that they will sync from.
    """
    return asyncio.run(_checkpoint(wallet))


# -- doing it --------------------------------------------------------------------------------------


def _positive(amount: str) -> int:
    parsed = parse_amount(amount, GRID_DENOM)
    if not parsed:
        raise LocalFault(f"amount {amount!r}: it must be more than nothing")
    return parsed


def _signer(directory: Path | None, name: str, password_file: Path | None) -> Signer | None:
    if directory is None:
        return None
    return open_ring(directory, password_file).signer(name)


def _send(wallet: Wallet, sender: str, call: Wire) -> int:
    return asyncio.run(send_one(wallet, PUBLIC, sender, call))


def _send_with_key(
    wallet: Wallet,
    sender: str,
    kind: type[Stand] | type[SetSessionKey],
    holder: Signer | None,
    proof: str | None,
) -> int:
    if (holder is None) == (proof is None):
        raise LocalFault("give --session-keys, or --proof: one of the two")
    if holder is None:
        key, signed = _parse_proof(proof or "")
    else:
        chain_id = wallet.access(PUBLIC).facts.chain_id
        account = wallet.signer(sender).public_key
        key, signed = holder.public_key, prove_session_key(holder, chain_id, account)
    return asyncio.run(send_one(wallet, PUBLIC, sender, kind(session_key=key, proof=signed)))


def _parse_proof(text: str) -> tuple[bytes, bytes]:
    key, _, signature = text.strip().partition(":")
    try:
        parsed = bytes.fromhex(key), bytes.fromhex(signature)
    except ValueError:
        parsed = b"", b""
    if tuple(map(len, parsed)) != (32, 64):
        raise LocalFault(
            "--proof is not what `gtx stake prove` prints: KEY:SIGNATURE in hexadecimal"
        )
    return parsed


async def _checkpoint(wallet: Wallet) -> int:
    async with wallet.following(PUBLIC) as chains:
        head = await chains[PUBLIC].follower.wait_beyond(0)
        click.echo(str(Checkpoint(head.header.height, head.header.hash)))
    return 0


async def _show(wallet: Wallet, account: bytes | None) -> int:
    async with wallet.following(PUBLIC) as chains:
        reader = await _Reader.at_head(chains[PUBLIC])
        if account is None:
            await _show_chain(wallet, reader)
        else:
            await _show_account(wallet, reader, account)
    return 0


class _Reader:
    """The staking module's state under one final block."""

    def __init__(self, access: ChainAccess, height: int, time_ms: int) -> None:
        self._access = access
        self._height = height
        self.time_ms = time_ms
        self.staking = next(
            module for module in access.facts.ledger.modules if isinstance(module, Staking)
        )

    @staticmethod
    async def at_head(access: ChainAccess) -> "_Reader":
        head = await access.follower.wait_beyond(0)
        return _Reader(access, head.header.height, head.header.timestamp_ms)

    async def values(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Verified values in the order of their keys."""
        found = await self._access.follower.get(keys, self._height) if keys else {}
        return [found[key].value for key in keys]

    async def roll(self, roll: Roll) -> list[bytes]:
        """Everybody on a list."""
        (raw,) = await self.values([roll.length.key])
        count = 0 if raw is None else decode_own(raw, int)
        entries = await self.values([roll.entries.key(place) for place in range(count)])
        return [decode_own(entry, bytes) for entry in entries if entry is not None]

    async def bonds(self, accounts: Sequence[bytes]) -> list[int]:
        """What accounts have in play."""
        raws = await self.values([self.staking.bonded.key(account) for account in accounts])
        return [0 if raw is None else decode_own(raw, int) for raw in raws]

    async def seats(self, accounts: Sequence[bytes]) -> list[Seat | None]:
        """The seats of accounts."""
        raws = await self.values([self.staking.seats.key(account) for account in accounts])
        return [None if raw is None else self.staking.seats.decode(raw) for raw in raws]

    async def head_line(self) -> str:
        """Era and set."""
        staking, rules = self.staking, self.staking.rules
        raw_era, raw_set = await self.values([staking.era.key, staking.following.key])
        if raw_era is None or raw_set is None:
            raise AssertionError("genesis writes both")
        era, members = staking.era.decode(raw_era), staking.following.decode(raw_set)
        genesis = self._access.facts.genesis
        slot_ms = genesis.slot_ms if isinstance(genesis, PublicGenesis) else 0
        left_s = max(0, rules.first_slot_of(era.index + 1) * slot_ms - self.time_ms) // 1000
        return (
            f"era {era.index}, set {members.set_id}, {members.size} seats; block {self._height}; "
            f"next election in {left_s // 60} min {left_s % 60} s; "
            f"unbonding takes {rules.unbonding_eras} x {rules.era_slots} slots"
        )


async def _show_chain(wallet: Wallet, reader: _Reader) -> None:
    staking, names = reader.staking, wallet.names()
    click.echo(await reader.head_line())
    (raw,) = await reader.values([staking.seated.key])
    seated = () if raw is None else staking.seated.decode(raw)
    standing = await reader.roll(staking.candidates)
    accounts = [*seated, *(account for account in standing if account not in seated)]
    bonds, seats = await reader.bonds(accounts), await reader.seats(accounts)
    click.echo(
        f"{'seat':>4}  {'candidate':<14} {'bonded':>18} {'support':>18}  backers  session key"
    )
    for place, (account, bonded, seat) in enumerate(zip(accounts, bonds, seats, strict=True)):
        shown = "-" if seat is None else str(place)
        name = names.get(account, address(account)[:12] + "..")
        support = "" if seat is None else _grid(seat.support_ngrid)
        backers = "" if seat is None else str(len(seat.backing))
        key = "" if seat is None else seat.session_key.hex()[:16]
        note = "" if account in standing else "  (stands down)"
        click.echo(
            f"{shown:>4}  {name:<14} {_grid(bonded):>18} {support:>18}  {backers:>7}  {key}{note}"
        )
    (raw,) = await reader.values([staking.voters.length.key])
    click.echo(
        f"{len(standing)} candidates, {0 if raw is None else decode_own(raw, int)} nominators; a "
        f"candidate needs {render_amount(staking.rules.minimum_stake_ngrid, GRID_DENOM)} of its own"
    )


async def _show_account(wallet: Wallet, reader: _Reader, account: bytes) -> None:
    staking, names = reader.staking, wallet.names()
    click.echo(await reader.head_line())
    click.echo(address(account))
    (bonded,) = await reader.bonds([account])
    click.echo(f"  bonded      {render_amount(bonded, GRID_DENOM)}")
    waiting, targets, key = await reader.values(
        [
            staking.unlocking.key(account),
            staking.targets.key(account),
            staking.session_keys.key(account),
        ]
    )
    for each in () if waiting is None else staking.unlocking.decode(waiting):
        amount = render_amount(each.amount_ngrid, GRID_DENOM)
        click.echo(f"  unbonding   {amount}, free from era {each.ready_era} on")
    for target in () if targets is None else staking.targets.decode(targets):
        click.echo(f"  nominates   {names.get(target, address(target))}")
    if key is not None:
        click.echo(f"  stands with session key {staking.session_keys.decode(key).hex()}")
    (seat,) = await reader.seats([account])
    if seat is None:
        return
    support = render_amount(seat.support_ngrid, GRID_DENOM)
    click.echo(f"  has a seat  session key {seat.session_key.hex()}, support {support}")
    for backing in seat.backing:
        backer = names.get(backing.voter, address(backing.voter))
        click.echo(f"    backed by {backer}: {render_amount(backing.stake_ngrid, GRID_DENOM)}")


def _grid(amount_ngrid: int) -> str:
    """Whole GRID for a column."""
    return f"{amount_ngrid // GRID:,} GRID"
