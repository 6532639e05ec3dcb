"""A Mosquitto of one's own on this machine, for tests and benchmarks."""

import asyncio
import os
import pwd
import shutil
import signal
import time
from pathlib import Path
from typing import Final

from gridtokenx.core.errors import LocalFault

PATIENCE_S: Final = 10.0
_PLACES: Final = "/usr/sbin:/usr/local/sbin"


def find_mosquitto() -> str | None:
    """Where the program is; None if it is not installed."""
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:{_PLACES}")


def own_user() -> str:
    """The user that this process is, for `MosquittoPlan.run_as`: it must read its own files."""
    return pwd.getpwuid(os.geteuid()).pw_name


class MosquittoProcess:
    """One broker, started in the directory that `write_mosquitto` wrote.

    Args:
        directory: holds ``mosquitto.conf``; the log is appended to ``mosquitto.log``.
        host: where it listens, and
        port: as its settings say.
    """

    def __init__(self, directory: Path, port: int, host: str = "127.0.0.1") -> None:
        self._directory: Final = directory
        self._host: Final = host
        self._port: Final = port
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None, "start it first"
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has written."""
        return (self._directory / "mosquitto.log").read_text(encoding="utf-8")

    async def start(self) -> None:
        """Start, and wait until it accepts connections.

        Raises:
            LocalFault: it is not installed, or ended at once.
        """
        program = find_mosquitto()
        if program is None:
            raise LocalFault("mosquitto is not installed")
        with (self._directory / "mosquitto.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                program, "-c", "mosquitto.conf", cwd=self._directory, stdout=log, stderr=log
            )
        deadline_s = time.monotonic() + PATIENCE_S
        while not await self._listens():
            if self._process.returncode is not None or time.monotonic() > deadline_s:
                raise LocalFault(f"mosquitto did not start: {self.log[-500:]}")
            await asyncio.sleep(0.05)

    async def reload(self) -> None:
        """Let it read the revocation list and the access list anew."""
        os.kill(self.pid, signal.SIGHUP)
        await asyncio.sleep(0.3)

    async def stop(self) -> None:
        """End it in order: it writes down what waits for clients that are away."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """End it at once."""
        await self._end(signal.SIGKILL)

    async def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.send_signal(number)
        if process is not None:
            await process.wait()

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            return False
        writer.close()
        return True
