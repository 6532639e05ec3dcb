"""What every process does around its own work: signals, one-line errors, exit codes.

The first SIGTERM or SIGINT asks it to stop: it takes no more work, closes its links, makes durable what
it was about to, and ends, within `DRAIN_S` at the latest. A second signal does not wait for that.
Either way nothing that was acknowledged is lost: that was durable before it was said.

====  ==================================================================================
code  meaning
====  ==================================================================================
0     stopped as asked (SIGTERM, SIGINT, or its work is done)
1     a failure that nobody expected: a bug; the traceback is printed
2     the configuration, a key, a file or the data directory is wrong: one line says what
70    a machine halted: nothing more was sent; the traceback is printed
74    the store could not write (see `storage`): one line
75    it wants to be started again: a restored node has caught up (see `restored`)
130   asked twice to stop, or stopping took too long: ended at once
====  ==================================================================================
"""

import asyncio
import contextlib
import errno
import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Final, NoReturn

import click

from gridtokenx.core.errors import GridTokenXError, LocalFault
from gridtokenx.host.crashpoints import arm_crash_points
from gridtokenx.host.driver import MachineHalted

BUG_EXIT: Final = 1
FAULT_EXIT: Final = 2
HALT_EXIT: Final = 70
_SURROUNDINGS: Final = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
    }
)
"""What an operator can mend, wherever it comes up; no other failure of the system is expected."""
DRAIN_S: Final = 7.0
"""How long stopping may take; fork server, container engines and service managers wait longer."""
AT_ONCE_EXIT: Final = 130
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
SWITCH_S: Final = 0.0005
"""How long the interpreter may keep a thread waiting for another; Python's: 5 ms. The store's writer
takes it back some fifteen times for a large block, and votes wait for what it writes."""
AGAIN_EXIT: Final = 75
"""EX_TEMPFAIL of sysexits.h: start it again."""


class StartAgain(LocalFault):
    """All is well, and this process must be started again: what it reads at its start has changed."""


def main(command: click.Command, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a click command as this process, and end the process with the right code and line."""
    sys.exit(run_command(command, arguments))


def run_command(command: click.Command, arguments: Sequence[str] | None = None) -> int:
    """Run a click command; errors become one line on stderr and a code."""
    with _one_line_errors() as outcome:
        result = command.main(
            args=None if arguments is None else list(arguments), standalone_mode=False
        )
        outcome.append(result if isinstance(result, int) else 0)
    return outcome[-1]


def serve(work: Callable[[], Coroutine[object, object, None]]) -> int:
    """Run a process's main coroutine until it ends or a signal asks it to; return the exit code.

    A signal cancels the coroutine, which then has `DRAIN_S` to close what it opened; another signal
    ends the process. Call it after any fork: the event loop begins here.
    """
    faulthandler.enable()
    sys.setswitchinterval(SWITCH_S)
    with _one_line_errors() as outcome:
        arm_crash_points()
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            runner.run(_until_signal(work))
        outcome.append(0)
    return outcome[-1]


async def _until_signal(work: Callable[[], Coroutine[object, object, None]]) -> None:
    loop = asyncio.get_running_loop()
    task = loop.create_task(work(), name="main")
    asked = False
    limit = _TimeLimit()
    # After the first step of the work, which may fork (`prepare_genesis`): no thread may be there then.
    loop.call_soon(limit.start)

    def stop() -> None:
        nonlocal asked
        asked = True
        for number in _STOP_SIGNALS:  # from now on not by the loop, which may be held up
            loop.remove_signal_handler(number)
            signal.signal(number, lambda *_: _end_at_once("asked again to stop"))
        task.cancel()

    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop)
        signal.signal(number, limit.begin)  # in place of a handler that does nothing
    try:
        await task
    except asyncio.CancelledError:
        if not asked:
            raise
    finally:
        limit.lift()
        for number in _STOP_SIGNALS:
            if not loop.remove_signal_handler(number):
                signal.signal(number, signal.SIG_DFL)


class _TimeLimit:
    """Ends the process if it has not stopped `DRAIN_S` after it was asked to.

    A thread, which is there before, because what holds the stop up may hold the event loop up, too:
    then the loop never hears of the signal, but the interpreter calls `begin` all the same.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._lifted = threading.Event()
        self._begun = False
        self._watched = False

    def start(self) -> None:
        """Begin to watch; at the latest when a signal has come."""
        if not self._watched:
            self._watched = True
            threading.Thread(target=self._wait, name="time limit", daemon=True).start()

    def begin(self, *_: object) -> None:
        """A signal has come."""
        if not self._begun:  # setting an event while it is being set would wait for ever
            self._begun = True
            self._asked.set()
            self.start()

    def lift(self) -> None:
        """It has stopped."""
        self._lifted.set()
        self.begin()

    def _wait(self) -> None:
        self._asked.wait()
        if not self._lifted.wait(DRAIN_S):
            _end_at_once(f"not stopped within {DRAIN_S:.0f} s")


def _end_at_once(why: str) -> NoReturn:
    """End without closing anything: as after a crash, the next start goes on from what is durable."""
    _say(f"{why}: ending at once; nothing acknowledged is lost")
    os._exit(AT_ONCE_EXIT)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415 - absent on some systems
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


@contextlib.contextmanager
def _one_line_errors() -> Iterator[list[int]]:
    """Turn what escapes into a line and a code; the body appends its own code when it is done."""
    outcome = [BUG_EXIT]
    try:
        yield outcome
    except click.exceptions.Exit as done:
        outcome.append(done.exit_code)
    except click.Abort:
        outcome.append(130)
    except click.ClickException as error:
        _say(f"error: {error.format_message()}")
        outcome.append(FAULT_EXIT)
    except BaseException as error:  # noqa: BLE001 - the last place where it can be told
        outcome.append(_tell(error))


def _tell(error: BaseException) -> int:
    error = _innermost(error)
    if isinstance(error, MachineHalted):
        traceback.print_exception(error)
        _say(f"fatal: {error}; nothing more was sent; start again to resume from the last commit")
        return HALT_EXIT
    if isinstance(error, StartAgain):
        _say(str(error))
        return AGAIN_EXIT
    if isinstance(error, GridTokenXError):
        _say(f"error: {error}")
        return FAULT_EXIT
    if isinstance(error, OSError) and error.errno in _SURROUNDINGS:
        _say(f"error: {error.filename or 'the system'}: {error.strerror}")
        return FAULT_EXIT
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else BUG_EXIT
    traceback.print_exception(error)
    _say(f"fatal: unexpected {type(error).__name__}: {error}")
    return BUG_EXIT


def _innermost(error: BaseException) -> BaseException:
    """The first real error of a task group's."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # a full disk or a closed pipe must not change the code
        sys.stderr.write(" ".join(line.split("\n")) + "\n")
        sys.stderr.flush()
