"""The first program of a container: wait for the process's own home, then become `gtx`.

Law of the file: **a process never starts with half a home.** Its files come from elsewhere, from
`gtx testnet prepare` on the same machine or from its bundle, and not every engine starts containers
in order; so the container waits, and says for what.

==================  ===========================================================================
``GTX_PROCESS``     name of the process, and of its directory below ``home``; unset: no waiting
``GTX_BUNDLE``      directory of its bundle's parts; unpacked once into an empty home
``GTX_CLOCK``       directory of the network clock, where the network has one
==================  ===========================================================================
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from gridtokenx.core.errors import LocalFault
from gridtokenx.lab.deploy.bundle import is_home, unpack
from gridtokenx.lab.deploy.clock import is_current

HOME: Final = Path("/home/gridtokenx/home")
LOOK_S: Final = 0.5
SAY_AGAIN_S: Final = 30.0
MISUSE_EXIT: Final = 2
STOPPED_EXIT: Final = 128 + signal.SIGTERM


@dataclass(frozen=True, slots=True)
class Process:
    """What a container was told about itself."""

    home: Path
    """Of the network; the process's own directory lies in it."""
    name: str
    bundle: Path | None = None
    clock: Path | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str], home: Path = HOME) -> "Process | None":
        """From the environment; None where the container is no process of a network."""
        name = environment.get("GTX_PROCESS")
        if not name:
            return None
        bundle, clock = environment.get("GTX_BUNDLE"), environment.get("GTX_CLOCK")
        return cls(home, name, Path(bundle) if bundle else None, Path(clock) if clock else None)

    def missing(self) -> str | None:
        """What the process has to wait for, or None."""
        facts = self.home / "genesis" / "network.json"  # written last of all
        if not facts.is_file():
            return f"{facts}: not there yet; `gtx testnet prepare` writes it"
        if not is_home(self.home, self.name):
            return f"{self.home / self.name}: no home of {self.name} yet"
        if self.clock is not None and not is_current(self.clock):
            return f"{self.clock}: the clock of this machine's last life; the heartbeat sets it"
        return None


def wait_for_home(
    process: Process, say: Callable[[str], None], sleep: Callable[[float], None] = time.sleep
) -> None:
    """Return when everything that the process reads at its start is there.

    Raises:
        LocalFault: its bundle is damaged, or does not fit; its volume cannot be read.
    """
    try:
        _wait_for_home(process, say, sleep)
    except OSError as error:  # a volume of another user, or one that cannot be written
        raise LocalFault(f"{error.filename}: {error.strerror}") from None


def _wait_for_home(
    process: Process, say: Callable[[str], None], sleep: Callable[[float], None]
) -> None:
    if process.bundle is not None and unpack(process.bundle, process.name, process.home):
        say(f"unpacked the home of {process.name}")
    said, waited_s = "", 0.0
    while (missing := process.missing()) is not None:
        if missing != said or waited_s >= SAY_AGAIN_S:
            say(f"waiting: {missing}")
            said, waited_s = missing, 0.0
        sleep(LOOK_S)
        waited_s += LOOK_S


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _stop(_number: int, _frame: FrameType | None) -> None:
    """As process 1 of a container a signal without a handler would be ignored."""
    sys.exit(STOPPED_EXIT)


def main() -> None:
    """Wait if need be, then run `gtx` with the container's command."""
    process = Process.of(os.environ)
    if process is not None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        try:
            wait_for_home(process, _say)
        except LocalFault as error:
            _say(f"error: {error}")
            sys.exit(MISUSE_EXIT)
    from gridtokenx.lab.cli import main as gtx  # noqa: PLC0415 - not before the waiting is over

    gtx(sys.argv[1:])


if __name__ == "__main__":
    main()
