"""From a manifest and a seed to an outcome: the one way to run anything simulated."""

import subprocess
from collections.abc import Callable, Iterable
from functools import cache
from hashlib import sha256
from pathlib import Path

import msgspec

import gridtokenx
from gridtokenx.lab.sim.draw import resolve
from gridtokenx.lab.sim.history import History
from gridtokenx.lab.sim.manifest import Manifest
from gridtokenx.lab.sim.outcome import Outcome
from gridtokenx.lab.sim.pbft.run import PbftRun
from gridtokenx.lab.sim.run import SimulatedRun

Note = Callable[[int, str], None]
"""Hears of what happens: virtual milliseconds since the start, and a line."""


def execute(
    manifest: Manifest, seed: int, note: Note | None = None, program: str | None = None
) -> Outcome:
    """Run one seed of a manifest (a resolved manifest has its own).

    Args:
        manifest: what to run.
        seed: of everything that is drawn.
        note: hears of the timeline.
        program: the commit, if somebody has asked already.
    """
    return tell(manifest, seed, note, program)[0]


def tell(
    manifest: Manifest, seed: int, note: Note | None = None, program: str | None = None
) -> tuple[Outcome, History]:
    """As `execute`, with what happened on the way."""
    resolved = resolve(manifest, seed)
    if resolved.testnet is not None:
        from gridtokenx.lab.sim.testnet.run import TestnetRun  # noqa: PLC0415 - all hosts are in it

        run: SimulatedRun = TestnetRun(resolved, note)
    else:
        run = PbftRun(resolved, note)
    return run.run(program or commit()), run.history()


@cache
def commit() -> str:
    """Which program this is: the commit, or `unknown` outside of git.

    With a + and a digest of the program's files where those may differ from the commit's: two states of
    a working tree are two programs.
    """
    here = Path(__file__).resolve().parent
    head = _git(here, "rev-parse", "--short=12", "HEAD")
    changed = _git(here, "status", "--porcelain", "--untracked-files=no", "--", ":/*.py")
    if head and changed == "":
        return head
    return f"{head or 'unknown'}+{_digest(map(Path, gridtokenx.__path__))}"


def _digest(roots: Iterable[Path]) -> str:
    """Of every module below: its place in the package, and its text."""
    found: dict[str, bytes] = {}
    for root in roots:
        for path in root.rglob("*.py"):
            found.setdefault(path.relative_to(root).as_posix(), path.read_bytes())
    return sha256(msgspec.msgpack.encode(sorted(found.items()))).hexdigest()[:12]


def _git(where: Path, *arguments: str) -> str | None:
    """What git says; None: there is no git, it failed, or it took too long."""
    try:
        done = subprocess.run(
            ("git", "-C", str(where), *arguments),
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
