"""`gtx members`: who runs the consortium and the oracle chain, and how that is changed."""

import asyncio
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import click
import msgspec
from msgspec import Meta

from gridtokenx.core.addresses import address, parse_address
from gridtokenx.core.codec import Wire, decode_own
from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.keys import Ed25519Verifier
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.chains import ChainAccess, read_chain
from gridtokenx.host.config import parse_toml
from gridtokenx.host.files import read_file, write_file
from gridtokenx.lab.commands.keys import password_option
from gridtokenx.lab.commands.tx import FAILED_EXIT
from gridtokenx.lab.commands.wallets import from_option, wallet_options
from gridtokenx.lab.passwords import open_ring
from gridtokenx.lab.wallet import VALID_FOR_MS, Wallet
from gridtokenx.ledger.runtime import CallFailed
from gridtokenx.pbft.membership import (
    CURRENT,
    LABELS,
    NEXT,
    OPEN,
    AddMember,
    ApproveChange,
    Change,
    OpenProposal,
    ProposeChange,
    RemoveMember,
    ReplaceMember,
    WithdrawChange,
    changed,
    possession_bytes,
)

CHAINS: Final = ("consortium", "oracle")
KEY_BYTES: Final = 32

chain_option = click.option(
    "--chain", type=click.Choice(CHAINS), required=True, help="Whose replicas: one of these two."
)


class SeatFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a joining operator hands to a member: the key that wants a seat, and its consent."""

    chain: str
    chain_id: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    set_id: Annotated[int, Meta(ge=0)]
    """The set that is to be changed; after any change of it this file is worth nothing."""
    key: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    label: Annotated[str, Meta(max_length=64)]
    replaces: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None
    """Whose seat it takes over; null: a seat of its own."""
    proof: Annotated[str, Meta(pattern="^[0-9a-f]{128}$")]
    """Signature by the key over all this."""

    @property
    def change(self) -> AddMember | ReplaceMember:
        """The change that the key agrees to."""
        key = bytes.fromhex(self.key)
        if self.replaces is None:
            return AddMember(key=key, label=self.label)
        return ReplaceMember(key=bytes.fromhex(self.replaces), by=key, label=self.label)


def _password_file_of(node: Path) -> Path | None:
    """What the node's own configuration names, so that its operator need not say it twice."""
    config = node / "config.toml"
    if not config.is_file():
        return None
    try:
        named = parse_toml(config.read_text(encoding="utf-8")).get("keys_password_file")
    except ValueError as error:
        raise LocalFault(f"{config}: cannot be read: {error}") from None
    return node / named if isinstance(named, str) else None


@click.group()
def command() -> None:
    """Show and change who runs the consortium chain or the oracle chain.

    The members of the present set decide, by a quorum (3 of 4, 5 of 7, 14 of 21), one change at a time.
    A node whose key has no seat observes: it follows and checks everything, and begins to vote with the
    first block of the set that names its key.

    \b
    How an operator joins:
      1. the chain's authority enrols the key        gtx ca ...
      2. start the node; it follows as an observer   gtx node consortium ...
      3. agree to the seat, with the node's own key  gtx members prove --home NODE --set N
      4. a member proposes it                        gtx members propose add FILE --from ...
      5. a quorum of members approve                 gtx members approve NUMBER --from ...
    """  # noqa: D301 - click's mark for a paragraph that keeps its lines


@command.command()
@chain_option
@wallet_options
def show(chain: str, wallet: Wallet) -> int:
    """Show, verified, the present set, and what is proposed to change it."""
    return asyncio.run(_show(wallet, chain))


@command.command()
@chain_option
@click.option(
    "--home",
    "node",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Home of the node that wants the seat: its keys and the chain's genesis are read there.",
)
@click.option(
    "--set",
    "set_id",
    type=click.IntRange(0),
    required=True,
    help="Number of the present set, as `gtx members show` and the node's /health tell.",
)
@click.option("--label", required=True, help="Whose it is, for people; on the chain for ever.")
@click.option("--replaces", help="Take over the seat of this key (64 hex digits, or grid1...).")
@click.option("--key", "name", default="identity", show_default=True, help="Name of the key.")
@click.option(
    "--genesis",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The chain's genesis; the default is HOME/genesis/CHAIN.json, or the testnet's.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write; the default is HOME/CHAIN-seat.json.",
)
@password_option
def prove(
    chain: str,
    node: Path,
    set_id: int,
    label: str,
    replaces: str | None,
    name: str,
    genesis: Path | None,
    out: Path | None,
    password_file: Path | None,
) -> None:
    """Agree, with the joining node's own key, to a seat in the set.

    The file that is written goes to a member, with the enrolment or after it. It holds no secret. It
    is good for one change of set N only: when the set changes first, make another.

    To rotate a key: make a home with the new key, let the authority enrol it, and prove it here with
    --replaces OLD-KEY.
    """
    facts = read_chain(chain, _genesis_of(node, chain) if genesis is None else genesis)
    signer = open_ring(node / "keys", password_file or _password_file_of(node)).signer(name)
    old = None if replaces is None else _parse_key(replaces, None)
    change: AddMember | ReplaceMember = (
        AddMember(key=signer.public_key, label=_label(label))
        if old is None
        else ReplaceMember(key=old, by=signer.public_key, label=_label(label))
    )
    seat = SeatFile(
        chain=chain,
        chain_id=facts.chain_id.hex(),
        set_id=set_id,
        key=signer.public_key.hex(),
        label=change.label,
        replaces=None if old is None else old.hex(),
        proof=signer.sign(possession_bytes(facts.chain_id, set_id, change)).hex(),
    )
    path = node / f"{chain}-seat.json" if out is None else out
    write_file(path, msgspec.json.format(msgspec.json.encode(seat), indent=2) + b"\n", mode=0o644)
    kind = "add" if old is None else "replace"
    click.echo(f"wrote {path}; a member of set {set_id} proposes it with:")
    click.echo(f"  gtx members propose {kind} {shlex.quote(str(path))} --chain {chain} --from KEY")


@command.group()
def propose() -> None:
    """Propose one change, as a member; it counts as your approval too."""


@propose.command("add")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@chain_option
@from_option
@wallet_options
def propose_add(file: Path, chain: str, sender: str, wallet: Wallet) -> int:
    """Give the key in FILE (of `gtx members prove`) a seat of its own."""
    return _propose_seat(wallet, chain, sender, file, AddMember)


@propose.command("replace")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@chain_option
@from_option
@wallet_options
def propose_replace(file: Path, chain: str, sender: str, wallet: Wallet) -> int:
    """Give the key in FILE (of `gtx members prove --replaces`) the seat of the key that it replaces."""
    return _propose_seat(wallet, chain, sender, file, ReplaceMember)


@propose.command("remove")
@click.argument("key")
@chain_option
@from_option
@wallet_options
def propose_remove(key: str, chain: str, sender: str, wallet: Wallet) -> int:
    """Take the seat of KEY: 64 hex digits, an address (grid1...), or the number of the seat.

    Its node goes on as an observer. At least four members must remain.
    """
    return asyncio.run(_propose_removal(wallet, chain, sender, key))


@command.command()
@click.argument("proposal", type=click.IntRange(1))
@chain_option
@from_option
@wallet_options
def approve(proposal: int, chain: str, sender: str, wallet: Wallet) -> int:
    """Stand for PROPOSAL (its number, see `gtx members show`), as a member.

    When a quorum does, that block is the present set's last, and the next one is the new set's. All
    other proposals are void then: they were about the set that has ended.
    """
    call = ApproveChange(proposal=proposal)
    return asyncio.run(_decide(wallet, chain, sender, call, proposal))


@command.command()
@click.argument("proposal", type=click.IntRange(1))
@chain_option
@from_option
@wallet_options
def withdraw(proposal: int, chain: str, sender: str, wallet: Wallet) -> int:
    """Take your approval of PROPOSAL back; as its proposer, the whole proposal."""
    call = WithdrawChange(proposal=proposal)
    return asyncio.run(_decide(wallet, chain, sender, call, proposal))


# -- doing it --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Standing:
    """What the chain says of its set, verified."""

    current: ValidatorSet
    following: ValidatorSet | None
    open: tuple[OpenProposal, ...]

    def find(self, number: int) -> OpenProposal | None:
        """An open proposal."""
        return next((each for each in self.open if each.proposal == number), None)


async def _standing(access: ChainAccess) -> _Standing:
    values = await access.read((CURRENT.key(), NEXT.key(), OPEN.key))
    current, following, open_ = (values[key] for key in (CURRENT.key(), NEXT.key(), OPEN.key))
    if current is None:
        raise LocalFault("this chain keeps no set of members; it was made by an older program")
    return _Standing(
        decode_own(current, ValidatorSet),
        None if following is None else decode_own(following, ValidatorSet),
        () if open_ is None else OPEN.decode(open_),
    )


async def _show(wallet: Wallet, chain: str) -> int:
    async with wallet.following(chain) as chains:
        access = chains[chain]
        standing = await _standing(access)
        current = standing.current
        labels = await access.read([LABELS.key(key) for key in current.members])
        click.echo(
            f"set {current.set_id} of the {chain} chain: {current.size} members,"
            f" quorum {current.quorum}, tolerates {current.faulty} faulty"
        )
        for seat, key in enumerate(current.members):
            raw = labels[LABELS.key(key)]
            label = "" if raw is None else f"  {LABELS.decode(raw)}"
            click.echo(f"  {seat:>2}  {key.hex()}  {address(key)}{label}")
        if standing.following is not None:
            click.echo(f"set {standing.following.set_id} begins with the next block")
        for proposal in standing.open:
            click.echo(_describe(proposal, current))
        if not standing.open:
            click.echo("nothing is proposed")
    return 0


def _describe(proposal: OpenProposal, current: ValidatorSet) -> str:
    voices = [voice.member for voice in proposal.ballot.voices if voice.member in current.members]
    seats = ", ".join(str(current.index_of(member)) for member in voices)
    return (
        f"proposal {proposal.proposal}: {_said(proposal.change)};"
        f" {len(voices)} of {current.quorum} approvals (seats {seats})"
    )


def _said(change: Change) -> str:
    match change:
        case AddMember(key=key, label=label):
            return f"add {key.hex()} ({label})"
        case RemoveMember(key=key):
            return f"remove {key.hex()}"
        case ReplaceMember(key=key, by=by, label=label):
            return f"replace {key.hex()} by {by.hex()} ({label})"


def _propose_seat(
    wallet: Wallet,
    chain: str,
    sender: str,
    file: Path,
    kind: type[AddMember] | type[ReplaceMember],
) -> int:
    seat = _read_seat(file)
    if seat.chain != chain:
        raise LocalFault(f"{file}: is for the {seat.chain} chain; say --chain {seat.chain}")
    if not isinstance(seat.change, kind):
        right = "add" if seat.replaces is None else "replace"
        raise LocalFault(f"{file}: say `gtx members propose {right}` for what this key agreed to")
    return asyncio.run(_propose(wallet, chain, sender, seat))


async def _propose(wallet: Wallet, chain: str, sender: str, seat: SeatFile) -> int:
    async with wallet.following(chain) as chains:
        access = chains[chain]
        standing = await _standing(access)
        _check_seat(seat, access, standing.current)
        call = ProposeChange(change=seat.change, proof=bytes.fromhex(seat.proof))
        return await _carry_out(wallet, access, sender, call, seat.change)


async def _propose_removal(wallet: Wallet, chain: str, sender: str, text: str) -> int:
    async with wallet.following(chain) as chains:
        access = chains[chain]
        standing = await _standing(access)
        members = standing.current.members
        if text.isdecimal() and len(text) < KEY_BYTES:
            if int(text) >= len(members):
                raise LocalFault(f"seat {text}: set {standing.current.set_id} has {len(members)}")
            key = members[int(text)]
        else:
            key = _parse_key(text, wallet)
        call = ProposeChange(change=RemoveMember(key=key), proof=None)
        return await _carry_out(wallet, access, sender, call, call.change)


async def _decide(
    wallet: Wallet, chain: str, sender: str, call: ApproveChange | WithdrawChange, number: int
) -> int:
    async with wallet.following(chain) as chains:
        access = chains[chain]
        standing = await _standing(access)
        proposal = standing.find(number)
        if proposal is None:
            known = ", ".join(str(each.proposal) for each in standing.open) or "none"
            raise LocalFault(
                f"proposal {number} is not open on the {chain} chain (open: {known}); it was agreed,"
                " withdrawn, expired, or void since the set changed"
            )
        click.echo(f"proposal {number}: {_said(proposal.change)}")
        return await _carry_out(wallet, access, sender, call, proposal.change)


async def _carry_out(
    wallet: Wallet, access: ChainAccess, sender: str, call: Wire, change: Change
) -> int:
    """Send a member's call, and tell where the change stands then."""
    standing = await _standing(access)
    before = standing.current
    signer = wallet.signer(sender)
    if before.index_of(signer.public_key) is None:
        raise LocalFault(
            f"key {sender!r} ({signer.public_key.hex()[:16]}) has no seat in set {before.set_id} of the"
            f" {access.facts.name} chain: sign with a member's key (--keys DIR --from NAME)"
        )
    if isinstance(call, ProposeChange):
        _check_change(standing, change)
    inclusion = await access.account(signer).call([call], VALID_FOR_MS)
    (result,) = inclusion.results
    if result.code != "ok":
        click.echo(f"refused in block {inclusion.height}: {result.message}")
        return FAILED_EXIT
    head = await access.follower.wait_beyond(inclusion.height - 1)
    standing = await _standing(access)
    click.echo(f"final in block {inclusion.height} of the {access.facts.name} chain")
    click.echo(_outcome(standing, before, change, head.header.height))
    return 0


def _outcome(standing: _Standing, before: ValidatorSet, change: Change, height: int) -> str:
    after = changed(before, change)
    if after in (standing.current, standing.following):
        return f"agreed: set {after.set_id} has {after.size} members, quorum {after.quorum}"
    proposal = next((each for each in standing.open if each.change == change), None)
    if proposal is None:
        return f"no longer open at block {height}"
    return _describe(proposal, standing.current)


# -- files and keys --------------------------------------------------------------------------------


def _read_seat(file: Path) -> SeatFile:
    try:
        return msgspec.json.decode(read_file(file), type=SeatFile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LocalFault(f"{file}: is no file of `gtx members prove`: {error}") from None


def _check_seat(seat: SeatFile, access: ChainAccess, current: ValidatorSet) -> None:
    """Say what is wrong with a seat file before the chain does, and what to do."""
    if bytes.fromhex(seat.chain_id) != access.facts.chain_id:
        raise LocalFault(
            f"the seat file is for another {seat.chain} chain ({seat.chain_id[:16]}...)"
        )
    if seat.set_id != current.set_id:
        raise LocalFault(
            f"the seat file is for set {seat.set_id}, the chain is at set {current.set_id}: ask for"
            f" another, made with: gtx members prove --set {current.set_id}"
        )
    what = possession_bytes(access.facts.chain_id, seat.set_id, seat.change)
    if not Ed25519Verifier().verify(bytes.fromhex(seat.key), what, bytes.fromhex(seat.proof)):
        raise LocalFault("the seat file's proof does not verify: it was changed after it was made")


def _check_change(standing: _Standing, change: Change) -> None:
    current = standing.current
    try:
        changed(current, change)
    except CallFailed as refusal:
        raise LocalFault(f"set {current.set_id} does not allow it: {refusal.message}") from None
    for proposal in standing.open:
        if proposal.change == change:
            raise LocalFault(
                f"this is proposal {proposal.proposal} already; stand for it with:"
                f" gtx members approve {proposal.proposal}"
            )


def _genesis_of(node: Path, chain: str) -> Path:
    """In the node's own home, or in that of the testnet around it."""
    own, around = (directory / "genesis" / f"{chain}.json" for directory in (node, node.parent))
    return own if own.is_file() or not around.is_file() else around


def _parse_key(text: str, wallet: Wallet | None) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) == KEY_BYTES:
        return key
    if wallet is not None:
        return wallet.key_of(text)
    try:
        return parse_address(text)
    except RemoteFault:
        raise LocalFault(f"{text!r} is no key: 64 hex digits, or an address (grid1...)") from None


def _label(text: str) -> str:
    if not text.strip() or len(text) > 64 or not text.isprintable():
        raise LocalFault(f"--label {text!r}: 1 to 64 printable characters")
    return text.strip()
