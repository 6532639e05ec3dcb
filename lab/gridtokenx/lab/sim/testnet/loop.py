"""An event loop whose time is a world's: the hosts' coroutines run on it unchanged.

Law of the file: **everything passes through the world's one queue.** A callback is something that the
world does at a time, in the order in which it was asked for; a thread is a call; nothing waits for
anything outside. So what coroutines do is as repeatable as what machines do.

A loop belongs to one life of one process. What is asked of it after that life's end never happens, as
after a kill; what is asked of it in a pause happens when the pause is over.
"""

import asyncio
import contextvars
from asyncio import events
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from math import ceil
from typing import Any, Final, TypeVar, cast

T = TypeVar("T")
_NEARLY_NOTHING_MS: Final = 1e-6
"""Less than this beyond a whole millisecond is an error of the seconds' fractions."""

At = Callable[[int, Callable[[], None]], None]
"""Does something after so many milliseconds, if the life still lasts."""


class VirtualLoop:
    """As much of an event loop as coroutines without sockets use; see the head of the file.

    Args:
        after: does things later.
        now_s: the world's time in seconds.
        on_error: hears of exceptions that nobody awaits.
    """

    def __init__(
        self, after: At, now_s: Callable[[], float], on_error: Callable[[BaseException], None]
    ) -> None:
        self._after: Final = after
        self._now_s: Final = now_s
        self._on_error: Final = on_error
        self.tasks: Final[dict[asyncio.Task[Any], None]] = {}
        """Those that have not ended. They are held here, so that those of a life that was killed are not
        collected, which would let their coroutines run on."""

    @property
    def own(self) -> asyncio.AbstractEventLoop:
        """Itself, as asyncio's own classes take it."""
        return cast("asyncio.AbstractEventLoop", self)

    # -- time and callbacks ------------------------------------------------------------------------

    def time(self) -> float:
        """The world's time in seconds."""
        return self._now_s()

    def call_soon(
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Call something at this very millisecond, after what was asked for before."""
        handle = asyncio.Handle(callback, args, self.own, context)
        self._after(0, lambda: self.run(handle))
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call something so many seconds from now; a wait is a millisecond at least, or none."""
        handle = asyncio.TimerHandle(self.time() + delay, callback, args, self.own, context)
        delay_ms = max(1, ceil(delay * 1_000 - _NEARLY_NOTHING_MS)) if delay > 0 else 0
        self._after(delay_ms, lambda: self.run(handle))
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call something at a time of this loop."""
        return self.call_later(when - self.time(), callback, *args, context=context)

    def run(self, handle: asyncio.Handle) -> None:
        """Carry out one callback, as the loop that runs."""
        if handle.cancelled():
            return
        before = events._get_running_loop()  # noqa: SLF001 - what a loop calls to be one
        events._set_running_loop(self.own)  # noqa: SLF001
        try:
            handle._run()  # noqa: SLF001
        finally:
            events._set_running_loop(before)  # noqa: SLF001

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A cancelled handle is passed over when its time comes."""

    # -- what tasks need ---------------------------------------------------------------------------

    def create_future(self) -> "asyncio.Future[Any]":
        """A future of this loop."""
        return asyncio.Future(loop=self.own)

    def create_task(
        self,
        coro: Any,
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> "asyncio.Task[Any]":
        """A task of this loop."""
        task = asyncio.Task(coro, loop=self.own, name=name, context=context)
        self.tasks[task] = None
        task.add_done_callback(self.tasks.pop)
        return task

    def run_in_executor(
        self, _executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> "asyncio.Future[T]":
        """A thread's work takes no virtual time, and is done at once."""
        done: asyncio.Future[T] = asyncio.Future(loop=self.own)
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - as a thread would, it goes to who waits
            done.set_exception(error)
        return done

    def get_debug(self) -> bool:
        """Never: it would look at the wall's clock."""
        return False

    def is_running(self) -> bool:
        """As far as anybody here can ask, yes."""
        return True

    def is_closed(self) -> bool:
        """Never; a life that is over just does nothing more."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Tell of what went wrong where nobody waits."""
        error = context.get("exception")
        if isinstance(error, BaseException):
            self._on_error(error)


def drive(loop: VirtualLoop, coro: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
    """Begin a coroutine on a loop from outside of it."""
    before = events._get_running_loop()  # noqa: SLF001 - as in `VirtualLoop.run`
    events._set_running_loop(loop.own)  # noqa: SLF001
    try:
        return loop.create_task(coro, name=name)
    finally:
        events._set_running_loop(before)  # noqa: SLF001
