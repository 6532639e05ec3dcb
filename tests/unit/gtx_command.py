"""`gtx` inside the test's process: what it says, what it asks, and its exit code."""

import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from gridtokenx.host.keyfile import KeyRing
from gridtokenx.lab import cli, passwords


@dataclass(frozen=True, slots=True)
class Said:
    """A finished command."""

    code: int
    out: str
    err: str

    def done(self) -> str:
        """Assert that it did its work; returns what it printed."""
        assert self.code == 0, (self.code, self.out, self.err)
        return self.out

    def refused(self, *words: str) -> None:
        """Assert that it was refused with one line that has these words."""
        assert self.code == 2, (self.code, self.out, self.err)
        (line,) = self.err.splitlines()
        assert line.startswith("error: "), line
        for word in words:
            assert word in line, line


class Gtx:
    """Runs commands; nothing of the real environment reaches them."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], home: Path
    ) -> None:
        self._patch, self._capfd = monkeypatch, capfd
        self.asked: list[str] = []
        for name in os.environ:
            if name.startswith("GTX_"):
                monkeypatch.delenv(name)
        monkeypatch.chdir(home)
        for costly in (KeyRing.create, KeyRing.change_password):
            function = getattr(costly, "__func__", costly)
            monkeypatch.setitem(function.__kwdefaults__, "scrypt_n", 1024)

    def __call__(
        self,
        *arguments: str | Path,
        stdin: bytes = b"",
        answers: Sequence[str] | None = None,
        **environment: str,
    ) -> Said:
        """Run a command.

        Args:
            arguments: of `gtx`.
            stdin: what is piped in.
            answers: what a person types; None: there is no terminal.
            environment: variables for this command.
        """
        typed = iter(answers or ())

        def ask(prompt: str) -> str:
            self.asked.append(prompt)
            return next(typed)

        with self._patch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            patch.setattr(passwords, "on_terminal", lambda: answers is not None)
            patch.setattr(click.termui, "hidden_prompt_func", ask)
            patch.setattr(click.termui, "visible_prompt_func", ask)
            with pytest.raises(SystemExit) as ended:
                cli.main([str(each) for each in arguments])
        said = self._capfd.readouterr()
        assert next(typed, None) is None, "not everything was asked for"
        return Said(int(ended.value.code or 0), said.out, said.err)


@pytest.fixture
def gtx(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Gtx:
    """Runs `gtx` in an empty directory."""
    return Gtx(monkeypatch, capfd, tmp_path)
