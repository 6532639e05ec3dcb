"""Background tasks whose failure somebody hears of."""

import asyncio
from collections.abc import Coroutine


class Tasks:
    """Tasks of one owner: kept alive, cancelled together, and never failing in silence."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()

    def spawn(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        """Start a task."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._finished)
        return task

    async def watch(self) -> None:
        """Wait for the first failure, and raise it. Waits for ever if there is none."""
        await self._failed.wait()
        assert self._failure is not None, "set together with the event"
        raise self._failure

    async def close(self) -> None:
        """Cancel all, and wait for them."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and task.exception() is not None and self._failure is None:
            self._failure = task.exception()
            self._failed.set()
