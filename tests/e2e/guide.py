"""A guide run as a reader would: its shell blocks, in order, in one shell and some more terminals.

=====================  =============================================================================
in the guide           what is done
=====================  =============================================================================
```sh                  typed into the reader's shell; every command must succeed
```sh terminal=NAME    typed into a terminal of its own, where it goes on
```sh refused          every line is refused: exit code 2 and one line that begins with ``error:``
<!-- ctrl-c: NAME -->  Ctrl-C in that terminal; its command must end well, and soon
```console             shown only: what a command prints
=====================  =============================================================================
"""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gridtokenx.host.process import AGAIN_EXIT

_LOG: Final = logging.getLogger(__name__)
BLOCK_S: Final = 300.0
STOP_S: Final = 20.0
_PART: Final = re.compile(
    r"^```sh(?: (?P<kind>terminal|refused)(?:=(?P<name>[\w-]+))?)?\n(?P<text>.*?)^```$"
    r"|^<!-- ctrl-c: (?P<stop>[\w-]+) -->$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Part:
    """Something that the reader does."""

    kind: str
    """``shell``, ``terminal``, ``refused`` or ``ctrl-c``."""
    name: str
    """Of the terminal."""
    text: str
    line: int


def parts_of(guide: str) -> Iterator[Part]:
    """What a reader of the guide does, in order."""
    for found in _PART.finditer(guide):
        line = guide.count("\n", 0, found.start()) + 1
        if found["stop"]:
            yield Part("ctrl-c", found["stop"], "", line)
        else:
            yield Part(found["kind"] or "shell", found["name"] or "", found["text"], line)


class Reader:
    """Somebody who follows a guide in a directory.

    Args:
        directory: where the shells start.
        replacing: texts of the guide and what stands for them here (ports, say).
    """

    def __init__(self, directory: Path, replacing: Mapping[str, str]) -> None:
        self.directory: Final = directory
        self._replacing: Final = dict(replacing)
        self._terminals: dict[str, subprocess.Popen[bytes]] = {}
        tools = Path(sys.executable).parent
        self._environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
        self._kept = directory / ".shell"
        """What the reader exported, and where he stands."""

    def follow(self, guide: str) -> None:
        """Do everything that the guide says.

        Raises:
            AssertionError: with the line of the guide and what was printed.
        """
        for part in parts_of(guide):
            began = time.monotonic()
            match part.kind:
                case "shell":
                    self._type(part)
                case "refused":
                    self._expect_refusals(part)
                case "terminal":
                    self._open_terminal(part)
                case "ctrl-c":
                    self._interrupt(part)
            took_s = time.monotonic() - began
            _LOG.info("line %d: %s %s %.1f s", part.line, part.kind, part.name, took_s)

    def close(self) -> None:
        """Close all terminals."""
        for terminal in self._terminals.values():
            if terminal.poll() is None:
                os.killpg(terminal.pid, signal.SIGINT)
        for terminal in self._terminals.values():
            try:
                terminal.wait(STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(terminal.pid, signal.SIGKILL)
                terminal.wait()

    def said(self, name: str) -> str:
        """What was printed in a terminal."""
        return (self.directory / f".terminal-{name}").read_text(errors="replace")

    # -- the kinds of part -------------------------------------------------------------------------

    def _type(self, part: Part) -> None:
        """Runs a block; what it exports and where it ends are kept for the next one."""
        script = (
            "set -euo pipefail\n"
            f"if [ -e {self._kept} ]; then . {self._kept}; fi\n"
            f"{self._here(part)}\n"
            f"{{ export -p; printf 'cd %q\\n' \"$PWD\"; }} > {self._kept}\n"
        )
        done = self._bash(script)
        assert done.returncode == 0, (
            f"guide, line {part.line}: exit code {done.returncode}\n{part.text}\n"
            f"{done.stdout}\n{self._terminals_said()}"
        )

    def _expect_refusals(self, part: Part) -> None:
        for line in self._here(part).replace("\\\n", " ").splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            done = self._bash(line)
            errors = [said for said in done.stdout.splitlines() if said.startswith("error: ")]
            assert done.returncode == 2, (part.line, line, done.returncode, done.stdout)
            assert len(errors) == 1, (part.line, line, done.stdout)
            assert "Traceback" not in done.stdout, (part.line, line, done.stdout)

    def _open_terminal(self, part: Part) -> None:
        with (self.directory / f".terminal-{part.name}").open("ab") as screen:
            self._terminals[part.name] = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", self._here(part)],
                cwd=self.directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _interrupt(self, part: Part) -> None:
        terminal = self._terminals.pop(part.name)
        if terminal.poll() == AGAIN_EXIT:
            return  # a restored node that has caught up ends by itself, sooner or later than its reader
        assert terminal.poll() is None, f"line {part.line}: {self.said(part.name)[-2000:]}"
        os.killpg(terminal.pid, signal.SIGINT)
        code = terminal.wait(STOP_S)
        assert code in (0, 130, -signal.SIGINT, AGAIN_EXIT), (
            part.name,
            code,
            self.said(part.name)[-2000:],
        )

    # -- internals ---------------------------------------------------------------------------------

    def _here(self, part: Part) -> str:
        text = part.text
        for wanted, here in self._replacing.items():
            text = text.replace(wanted, here)
        return text

    def _bash(self, script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", script],
            check=False,
            cwd=self.directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BLOCK_S,
        )

    def _terminals_said(self) -> str:
        return "\n".join(f"-- {name}:\n{self.said(name)[-1500:]}" for name in self._terminals)
