"""Where a node's processor time goes, by stage; only where somebody asks for it.

Law of the file: **a nanosecond is counted once, and nothing at all is done without the variable.**
With ``GTX_COUNT_CPU=1`` the methods below are wrapped when the process starts; each call reads the
thread's clock twice (about a microsecond in all), and a stage stands still while another one runs
inside it. What the event loop's thread spends outside of all of them is the loop itself, which with
uvloop contains TLS and the sockets; what other threads spend is the store's writer.
"""

import functools
import gc
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from gridtokenx.core.keys import Ed25519Signer
from gridtokenx.core.state_tree import StateTree
from gridtokenx.host.checking import CachingVerifier
from gridtokenx.host.driver import Driver
from gridtokenx.host.follow_service import FollowService
from gridtokenx.host.link import Link
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.storage import Store
from gridtokenx.ledger.runtime import Ledger
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.requests import Requests

VARIABLE: Final = "GTX_COUNT_CPU"
LOOP: Final = "tls"
WRITER: Final = "disk thread"

Method = Callable[..., Any]
"""Whatever a wrapped method takes and returns, it goes on taking and returning."""

STAGES: Final[dict[str, tuple[tuple[type, tuple[str, ...]], ...]]] = {
    "ingress": (
        (FollowService, ("_judge",)),
        (Requests, ("add", "committed", "overdue", "gossip")),
    ),
    "signatures": (
        (CachingVerifier, ("verify", "check_uncached")),
        (Ed25519Signer, ("sign",)),
    ),
    "execution": ((Ledger, ("build", "execute")),),
    "state tree": ((StateTree, ("update",)),),
    "disk": ((Store, ("submit", "_on_durable")),),
    "consensus": ((Replica, ("step", "verification")),),
    "messages": (
        (Link, ("data_received",)),
        (Driver, ("_take", "_show")),
    ),
    "clients": ((FollowService, ("_look_up", "_reply")),),
    LOOP: ((Link, ("_flush",)),),
}
"""Stage -> classes and their methods."""


class Stages:
    """Counts the processor time of one thread, the one that makes it."""

    def __init__(self) -> None:
        self._totals_ns: dict[str, int] = dict.fromkeys((*STAGES, "collector"), 0)
        self._running: list[str] = []
        self._since_ns = time.thread_time_ns()

    def enter(self, stage: str) -> None:
        """A stage begins; the one around it stands still."""
        self._switch()
        self._running.append(stage)

    def leave(self) -> None:
        """It ends."""
        self._switch()
        self._running.pop()

    def _switch(self) -> None:
        now_ns = time.thread_time_ns()
        if self._running:
            self._totals_ns[self._running[-1]] += now_ns - self._since_ns
        self._since_ns = now_ns

    def seconds(self, stage: str) -> float:
        """What a stage has used so far."""
        if stage == WRITER:
            return max(0.0, time.process_time() - time.thread_time())
        total_ns = self._totals_ns[stage]
        if stage == LOOP:
            total_ns += time.thread_time_ns() - sum(self._totals_ns.values())
        return total_ns / 1e9

    def names(self) -> Iterator[str]:
        """All stages."""
        yield from self._totals_ns
        yield WRITER

    def wrap(self, owner: type, name: str, stage: str) -> None:
        """Count the calls of a method under a stage."""
        inner: Method = owner.__dict__[name]
        plain = inner.__func__ if isinstance(inner, staticmethod) else inner

        @functools.wraps(plain)
        def counted(*args: object, **kwargs: object) -> object:
            self.enter(stage)
            try:
                return plain(*args, **kwargs)
            finally:
                self.leave()

        setattr(owner, name, staticmethod(counted) if plain is not inner else counted)

    def watch_collector(self) -> None:
        """Count what the garbage collector takes, too."""
        gc.callbacks.append(self._on_collection)

    def _on_collection(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self.enter("collector")
        else:
            self.leave()


def count_stages(metrics: Metrics) -> None:
    """Wrap what is to be counted, and show it, if the environment asks for it; once per process."""
    if not os.environ.get(VARIABLE):
        return
    stages = Stages()
    for stage, methods in STAGES.items():
        for owner, names in methods:
            for name in names:
                stages.wrap(owner, name, stage)
    stages.watch_collector()
    for name in stages.names():
        metrics.gauge("stage_seconds", functools.partial(stages.seconds, name), stage=name)
    metrics.describe("stage_seconds", "Processor time by stage (only with GTX_COUNT_CPU=1).")
