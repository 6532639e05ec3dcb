"""`gtx verify`: does a process's disk hold what the rules make of it, and if not, what is to be done?"""

import time
from pathlib import Path
from typing import Final

import click

from gridtokenx.lab.verify.home import homes_in, verify_home

PROGRESS_S: Final = 5.0
"""How often a long replay says how far it is."""


@click.command()
@click.option(
    "--home",
    "homes",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    multiple=True,
    help="A stopped process's directory, or a testnet's; may be given several times.",
)
@click.option("--quiet", is_flag=True, help="Say nothing of the progress.")
def command(homes: tuple[Path, ...], *, quiet: bool) -> int:
    """Verify what stopped nodes and gateways keep, and say what is wrong, where, and what to do.

    A node: every record's checksum; every signature, block, event and proof of finality by
    re-execution from genesis; the stored state; the invariants of all modules; the tables beside the
    chain (head, hashes, sets, seals, randomness, unfinal blocks, evidence); votes in flight, and
    whether the high-water marks still forbid to contradict them. A gateway: its index.

    One line per finding. The exit code is 0 if everything agrees, 1 if not, 2 if an argument cannot
    be used (no home, still running, another chain's genesis).
    """
    every = [home for given in homes for home in homes_in(given)]
    return max((_verify(home, quiet=quiet) for home in every), default=0)


def _verify(home: Path, *, quiet: bool) -> int:
    verdict = verify_home(home, _Progress(home, quiet=quiet))
    for finding in verdict.findings:
        click.echo(f"{home}: {finding}")
    count = len(verdict.findings)
    outcome = "everything agrees" if not count else f"{count} finding{'s' if count > 1 else ''}"
    click.echo(f"{home}: {verdict.summary}: {outcome}")
    return 1 if count else 0


class _Progress:
    """Says now and then how far a replay is."""

    def __init__(self, home: Path, *, quiet: bool) -> None:
        self._home = home
        self._quiet = quiet
        self._next_s = time.monotonic() + PROGRESS_S

    def __call__(self, done: int, total: int) -> None:
        if self._quiet or time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + PROGRESS_S
        percent = 100 * done // max(total, 1)
        click.echo(f"{self._home}: block {done} of {total} ({percent} %)", err=True)
