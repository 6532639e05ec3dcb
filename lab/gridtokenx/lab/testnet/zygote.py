"""The fork server: one small single-threaded process that has imported what every node needs.

A forked node costs about 6 MiB of its own instead of 17 to 40, because the interpreter's and the
libraries' pages stay shared. Stores, loops, threads and sockets open after the fork, in the child.

Protocol, one JSON object per line::

    stdin   {"name": ..., "argv": [...], "environment": {...}, "log": path}
    stdout  {"event": "started", "name": ..., "pid": ...}
            {"event": "exited", "name": ..., "pid": ..., "status": ...}   status < 0: signal number

When its standard input ends, because the supervisor stopped or died, it ends its children: politely
first, then by force. A child whose zygote dies is told by the kernel (Linux) to stop.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

from gridtokenx.core.errors import RemoteFault

PRELOADED: Final = (
    "gridtokenx.lab.cli",
    "gridtokenx.lab.commands.node",
    "gridtokenx.lab.commands.node_consortium",
    "gridtokenx.lab.commands.node_oracle",
    "gridtokenx.lab.commands.node_public",
    "aiohttp.web",
    # What these would import when they are first used: private to each process, 11 MiB in all.
    "encodings.idna",
    "prometheus_client",
    "structlog",
    "uvloop",
)
GRACE_S: Final = 8.0
"""How long children may take to stop before they are killed."""
_OWN_SIGNALS: Final = (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM)
"""What the zygote handles in its own way, and its children do not."""
_PR_SET_PDEATHSIG: Final = 1


def serve(more: Sequence[str] = ()) -> None:
    """Fork what standard input asks for until it ends.

    Args:
        more: modules to import besides.
    """
    for module in (*PRELOADED, *more):
        importlib.import_module(module)
    _rehearse()
    gc.collect()
    gc.freeze()
    _Zygote().run()


def _rehearse() -> None:
    """Do once what every child does first: what libraries set up then is shared as well."""
    from gridtokenx.core.codec import decode  # noqa: PLC0415 - these after the modules above
    from gridtokenx.host import follow_messages, keyfile, security  # noqa: PLC0415
    from gridtokenx.host.certificates import Authority, Role, pem  # noqa: PLC0415
    from gridtokenx.pbft import messages  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="gtx-rehearsal-") as directory:
        home, seed = Path(directory), bytes(32)
        keyfile.KeyRing.create(home, "rehearsal", scrypt_n=1024)
        public_key = keyfile.KeyRing.open(home, "rehearsal").put("rehearsal", seed)
        authority = Authority.create("rehearsal", seed)
        (home / "ca.pem").write_bytes(pem(authority.certificate))
        (home / "own.pem").write_bytes(pem(authority.issue(public_key, "rehearsal", Role.PEER)))
        security.mutual_security(seed, home / "own.pem", home / "ca.pem")
    for type_ in (messages.Message, follow_messages.Ask, follow_messages.Answer):
        with contextlib.suppress(RemoteFault):
            decode(b"", cast("type[object]", type_))  # builds the decoder, and refuses


class _Zygote:
    def __init__(self) -> None:
        self._children: dict[int, str] = {}
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _close_input)
        signal.set_wakeup_fd(self._wake_write)

    def run(self) -> None:
        pending = b""
        self._say({"event": "ready"})
        while True:
            try:
                ready, _, _ = select.select([0, self._wake_read], [], [])
                if self._wake_read in ready:
                    self._drain_wakeups()
                    self._reap()
                if 0 not in ready:
                    continue
                chunk = os.read(0, 65_536)
            except OSError:  # standard input was closed by SIGTERM
                break
            if not chunk:
                break
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                self._start(json.loads(line))
        self._stop_all()

    def _drain_wakeups(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, 4096):
                pass

    def _start(self, request: dict[str, Any]) -> None:
        parent = os.getpid()
        # Who is told to end at once must not take it for the zygote's own end: it waits until a child
        # has its own signals.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _OWN_SIGNALS)
        pid = os.fork()
        if pid == 0:
            _become(request, parent, (self._wake_read, self._wake_write))
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._children[pid] = request["name"]
        self._say({"event": "started", "name": request["name"], "pid": pid})

    def _reap(self) -> None:
        while self._children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            name = self._children.pop(pid)
            self._say({"event": "exited", "name": name, "pid": pid, "status": code})

    def _stop_all(self) -> None:
        for signum, grace_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, 5.0)):
            for pid in self._children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)
                    os.kill(pid, signal.SIGCONT)  # one that is stopped hears nothing else
            deadline = time.monotonic() + grace_s
            while self._children and time.monotonic() < deadline:
                self._reap()
                time.sleep(0.02)

    @staticmethod
    def _say(message: dict[str, object]) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(1, json.dumps(message).encode() + b"\n")


def _become(request: dict[str, Any], parent: int, close: tuple[int, ...]) -> None:
    """In the child: leave the zygote's descriptors and signals, then be the requested command."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for signum in _OWN_SIGNALS:
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OWN_SIGNALS)
        os.setsid()
        _die_with(parent)
        for descriptor in close:
            os.close(descriptor)
        null = os.open(os.devnull, os.O_RDONLY)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(request["environment"])
        sys.argv = ["gtx", *request["argv"]]
        code = _run(request["argv"])
    except BaseException:  # noqa: BLE001 - the last line of a process: nothing is above it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(argv: list[str]) -> int:
    from gridtokenx.lab.cli import main  # noqa: PLC0415 - preloaded; a cycle at import time

    try:
        main(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _close_input(*_: object) -> None:
    """End as if the supervisor had gone; a second time changes nothing."""
    with contextlib.suppress(OSError):
        os.close(0)


def _die_with(parent: int) -> None:
    if Path("/proc").is_dir():
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the kernel knew
        os._exit(1)


if __name__ == "__main__":
    serve(sys.argv[1:])
