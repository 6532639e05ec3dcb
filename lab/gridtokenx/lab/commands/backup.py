"""`gtx backup`: copies of a process's home, and what may be done with them."""

from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import click

from gridtokenx.lab.backup.archive import DamagedArchive, FileEntry, Manifest, read_archive
from gridtokenx.lab.backup.create import create as create_backup
from gridtokenx.lab.backup.restore import reset as reset_store
from gridtokenx.lab.backup.restore import restore as restore_backup

home_option = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The process's directory: config.toml, keys, data.",
)


@click.group()
def command() -> None:
    """Back up a process's home, check a backup, restore it.

    A backup holds configuration, keys (encrypted, as they are), certificates, and the store or index
    as it was at one moment. It is a secret like the home itself.

    A node that is restored has forgotten what it signed after the backup. Signing again from there
    could contradict it, which is what Byzantine nodes do. So a restored node follows first, and signs
    again by itself once that is impossible: its peers have said where they are, and the chain is far
    enough beyond. Never start a copied data directory in another way.
    """


@command.command()
@home_option
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The archive to write; it must not exist.",
)
@click.option(
    "--final",
    is_flag=True,
    help="Move: the (stopped) node will not start here again, and signs at once where it is restored.",
)
def create(home: Path, target: Path, *, final: bool) -> None:
    """Back up the home of a running or stopped process into one file outside it.

    The archive is put together beside its place, in `.gtx-backup-...`, which needs twice the home's
    size for a while. What a killed command leaves there is cleared by the next one in that directory.
    """
    manifest = create_backup(home, target, final=final)
    click.echo(f"{target}: {_describe(manifest)}")
    if any(entry.path.endswith("development-password.txt") for entry in manifest.files):
        click.echo("note: it holds a development password beside the keys that it opens", err=True)
    if final:
        click.echo(f"{home} is retired: its node will not start there again", err=True)


@command.command()
@click.argument("archive", type=click.Path(path_type=Path, dir_okay=False))
@home_option
@click.option(
    "--sign-at-once",
    is_flag=True,
    help="Dangerous. Only if this key has certainly signed nothing after the backup.",
)
def restore(archive: Path, home: Path, *, sign_at_once: bool) -> None:
    """Make a home of ARCHIVE, in a directory that is empty or does not exist.

    A node follows first; with n members, n - q + f + 1 others (three of four) must run and sign for it
    to sign again. So restore at most f nodes of a chain at a time. Where more are lost at once, those
    who run the network must agree on where it goes on; only then, and only where nothing was signed
    after the backups, --sign-at-once is right.
    """
    manifest, lines = restore_backup(archive, home, sign_at_once=sign_at_once)
    click.echo(f"{home}: restored {_describe(manifest)}")
    for line in lines:
        click.echo(line)


@command.command()
@click.argument("archive", type=click.Path(path_type=Path, dir_okay=False))
def check(archive: Path) -> int:
    """Check that ARCHIVE is whole, and say what it is of. The exit code is 1 if it is damaged."""
    try:
        manifest = read_archive(archive, _nowhere)
    except DamagedArchive as damage:
        click.echo(str(damage))
        return 1
    click.echo(f"{archive}: {_describe(manifest)}: whole")
    return 0


@command.command()
@home_option
def reset(home: Path) -> None:
    """Put a stopped node's store away and start an empty one that follows before it signs.

    For a store that is damaged when there is no backup. Deleting the data directory by hand instead
    would also delete the high-water marks, and let the node contradict what it signed.
    """
    kept = reset_store(home)
    where = "there was no store" if kept is None else f"the old store is now {kept}"
    click.echo(f"{home}: reset; {where}")
    click.echo("at its next start it fetches the chain, and signs once that is safe (see /ready)")


def _describe(manifest: Manifest) -> str:
    made = datetime.fromtimestamp(manifest.made_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    size = sum(entry.size for entry in manifest.files)
    what = manifest.kind
    if manifest.kind == "node":
        at = "nothing" if manifest.height < 0 else f"block {manifest.height}"
        what = f"{manifest.chain} node at {at}"
    final = ", final" if manifest.final else ""
    key = f", key {manifest.identity[:16]}" if manifest.identity else ""
    return f"{what}{key}, made {made}{final}, {len(manifest.files)} files, {size} bytes"


class _Nowhere:
    """Takes everything and keeps nothing."""

    def write(self, data: bytes, /) -> int:
        return len(data)


def _nowhere(_entry: FileEntry) -> AbstractContextManager[_Nowhere]:
    return nullcontext(_Nowhere())
