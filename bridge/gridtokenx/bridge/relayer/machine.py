"""The relayer: carries packets, acknowledgements and timeouts between chains.

Law of the file: **a relayer decides nothing.** It finds what waits, proves it by headers that were
verified, and submits; the chains judge. It keeps nothing that it could not read again, several run
at once, and one that lies, stalls or dies costs the others a delay.

One round per destination chain::

    survey     read what is open on each chain (`book.py`) whenever the chain was touched
    plan       tasks that are due (`work.py`), of all clients of the chain together
    prove      one read per client, at the one height that proves all its tasks (`plan.py`)
    submit     updates first, then tasks: one transaction in flight per chain

*A client is updated only when packets wait* (or before it would expire, or when its chain's validator
set has changed), and then to the newest header; as one transaction is in flight at a time, at most
once per destination block.

*Several relayers* share the lanes (a lane is one client of one chain): each lane has an order of
relayers; the first acts at once, the k-th only on what has waited k staggers. So duplicates are
rare while all live, and a silent relayer costs one stagger.

*Retry*: each task has its own exponential back-off, forgotten when the task is gone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gridtokenx.bridge.relayer.book import Book, ChainSpec
from gridtokenx.bridge.relayer.edge import (
    Advanced,
    Asked,
    FetchHandover,
    HandedOver,
    Heard,
    Proven,
    Read,
    ReadDone,
    ReadFailed,
    Settled,
    Submit,
    WakeAt,
    Woke,
)
from gridtokenx.bridge.relayer.plan import LanePlan, MissingHandover, batch, plan_lane
from gridtokenx.bridge.relayer.work import Task, open_inbound, tasks
from gridtokenx.core.keys import sha256
from gridtokenx.core.machine import Instant, Log
from gridtokenx.interchain.clients import ClientState


@dataclass(frozen=True, slots=True)
class Options:
    """How one of several relayers behaves."""

    position: int = 0
    """Which of the relayers this is, from 0."""
    relayers: int = 1
    first_retry_ms: int = 2_000
    last_retry_ms: int = 60_000


@dataclass(slots=True)
class _Patience:
    """What is remembered of a task while it waits."""

    seen_ms: Instant
    tries: int = 0
    next_ms: Instant = 0


@dataclass(frozen=True, slots=True)
class _Survey:
    """A read for a book."""

    chain: str
    height: int
    changing: bool
    """Whether it covers everything that can change."""


@dataclass(frozen=True, slots=True)
class _Proving:
    """A read for a plan."""

    chain: str
    lane: LanePlan


_Read = _Survey | _Proving
_TaskName = tuple[str, str, str, int]
_UPKEEP: Final = ("renew", "cross")
"""Names of what is done for a client without a packet."""


class Relayer:
    """See the head of the file.

    Args:
        chains: every chain of the routes that are served; whom their clients face is among them.
        options: this relayer among others.
    """

    def __init__(self, chains: Sequence[ChainSpec], options: Options) -> None:
        self._books: Final = {spec.name: Book(spec) for spec in chains}
        self._options: Final = options
        self._patience: dict[_TaskName, _Patience] = {}
        self._reads: dict[int, _Read] = {}
        self._plans: dict[str, list[LanePlan]] = {}
        self._flights: dict[str, int] = {}
        self._handovers: dict[tuple[str, int], HandedOver] = {}
        self._fetched_ms: dict[tuple[str, int], Instant] = {}
        self._must_update: set[tuple[str, str]] = set()
        self._survey_at: dict[str, Instant] = {}
        self._last_token = 0
        self._wake_ms: Instant | None = None
        self._asked: list[Asked] = []

    def step(self, now: Instant, heard: Heard) -> Sequence[Asked]:
        """Take in one thing heard; return what is asked of the driver, in order."""
        match heard:
            case Advanced():
                self._advanced(heard)
            case ReadDone(token=token, values=values):
                self._read_done(token, values)
            case ReadFailed(token=token, reason=reason):
                self._read_failed(now, token, reason)
            case HandedOver(chain=chain, certified=certified):
                self._handovers[chain, certified.header.set_id] = heard
            case Settled():
                self._settled(heard)
            case Woke():
                self._wake_ms = None
        self._go_on(now)
        asked, self._asked = self._asked, []
        return asked

    @property
    def waiting(self) -> int:
        """Tasks that are known and not done; for metrics."""
        return sum(name[2] not in _UPKEEP for name in self._patience)

    # -- hearing -----------------------------------------------------------------------------------

    def _advanced(self, heard: Advanced) -> None:
        book = self._books[heard.chain]
        height = heard.certified.header.height
        if book.head is not None and height <= book.height:
            return
        book.head, book.next_set = heard.certified, heard.next_set
        if heard.touched:
            book.touched_at = height

    def _read_done(self, token: int, values: Mapping[bytes, Proven]) -> None:
        read = self._reads.pop(token, None)
        match read:
            case _Survey(chain=chain, height=height, changing=changing):
                book = self._books[chain]
                book.note(height, values, open_inbound(book, self._books))
                if changing:
                    book.read_at = max(book.read_at, height)
            case _Proving(lane=lane):
                lane.values = values

    def _read_failed(self, now: Instant, token: int, reason: str) -> None:
        """Let it rest; a proof that was asked at a recorded height is next tried at the head."""
        read = self._reads.pop(token, None)
        match read:
            case _Proving(chain=chain, lane=lane):
                self._must_update.add((chain, lane.client_id))
                self._plans[chain].remove(lane)
                self._back_off(now, chain, lane)
                self._log("info", "proof-not-served", chain=chain, reason=reason)
            case _Survey(chain=chain):
                self._survey_at[chain] = now + self._options.first_retry_ms
                self._log("info", "read-failed", chain=chain, reason=reason)

    def _settled(self, heard: Settled) -> None:
        for chain, token in self._flights.items():
            if token == heard.token:
                del self._flights[chain]
                break
        else:
            return
        if heard.height is not None:
            book = self._books[chain]
            book.touched_at = max(book.touched_at, heard.height)
        self._log("debug", "settled", chain=chain, height=heard.height, detail=heard.detail)

    # -- going on ----------------------------------------------------------------------------------

    def _go_on(self, now: Instant) -> None:
        wake = [at_ms for at_ms in self._survey_at.values() if at_ms > now]
        for book in self._books.values():
            self._survey(now, book)
        self._forget_ended()
        for book in self._books.values():
            wake += self._plan(now, book)
            self._launch(now, book)
        self._wake(now, wake)

    def _survey(self, now: Instant, book: Book) -> None:
        """Read what this chain's book lacks, one read at a time."""
        name = book.spec.name
        busy = any(
            isinstance(read, _Survey) and read.chain == name for read in self._reads.values()
        )
        rests = now < self._survey_at.get(name, now)
        if book.head is None or busy or rests or book.height < book.touched_at:
            return
        changing = book.stale
        keys = book.changing_keys() if changing else iter(())
        wanted = [*keys, *book.missing_keys(open_inbound(book, self._books))]
        if wanted:
            self._read(name, book.height, wanted, _Survey(name, book.height, changing))

    def _forget_ended(self) -> None:
        """Let go of answers and patience for what is no longer open."""
        wanted: set[_TaskName] = set()
        for book in self._books.values():
            book.forget_answers(set(open_inbound(book, self._books)))
            for client_id in book.spec.clients:
                wanted |= {self._name(book, task) for task in self._tasks(book, client_id)}
                wanted.add(_renewal(book, client_id))
                wanted |= set(self._crossing(book, client_id))
        for name in [name for name in self._patience if name not in wanted]:
            del self._patience[name]

    def _plan(self, now: Instant, book: Book) -> Iterator[Instant]:
        """Begin the chain's next transaction if none is under way; yields when to look again."""
        name = book.spec.name
        if name in self._plans or name in self._flights or book.stale or book.head is None:
            return
        lanes: list[LanePlan] = []
        for client_id, client in book.clients.items():
            due, later = self._due(now, book, client_id)
            yield from later
            crossing_ms = self._crossing_ms(now, book, client)
            if crossing_ms is not None and crossing_ms > now:
                yield crossing_ms
            renew = self._must_renew(now, book, client) or (crossing_ms or now + 1) <= now
            if client.frozen or not (due or renew):
                continue
            lane = self._lane(now, book, client, due, must_update=renew)
            if lane is not None:
                lanes.append(lane)
        if lanes:
            self._plans[name] = lanes
            for lane in lanes:
                self._prove(book, lane)

    def _lane(
        self,
        now: Instant,
        book: Book,
        client: ClientState,
        due: tuple[Task, ...],
        *,
        must_update: bool,
    ) -> LanePlan | None:
        other = self._other(book, client.client_id)
        key = (book.spec.name, client.client_id)
        planned = plan_lane(
            client, other, due, self._handovers, must_update=must_update or key in self._must_update
        )
        if isinstance(planned, MissingHandover):
            self._fetch(now, planned)
            return None
        if planned is not None and planned.updates:
            self._must_update.discard(key)
        return planned

    def _prove(self, book: Book, lane: LanePlan) -> None:
        other = self._other(book, lane.client_id)
        if not lane.tasks:
            lane.values = {}
            return
        keys = (task.key for task in lane.tasks)
        self._read(other.spec.name, lane.proof_height, keys, _Proving(book.spec.name, lane))

    def _launch(self, now: Instant, book: Book) -> None:
        """Submit the chain's plan once all its proofs are here."""
        name = book.spec.name
        lanes = self._plans.get(name)
        if lanes is None or any(lane.values is None for lane in lanes):
            return
        del self._plans[name]
        if not lanes:
            return
        others = {client_id: self._other(book, client_id) for client_id in book.spec.clients}
        calls, carried = batch(lanes, book, others)
        for lane in lanes:
            self._back_off(now, name, lane)
        if not calls:
            for other in others.values():
                other.touched_at = other.height
            return
        token = self._token()
        self._flights[name] = token
        self._asked.append(Submit(name, token, calls, now + book.spec.retry_ms))
        self._log("debug", "submitted", chain=name, calls=len(calls), packets=len(carried))

    # -- time --------------------------------------------------------------------------------------

    def _due(
        self, now: Instant, book: Book, client_id: str
    ) -> tuple[tuple[Task, ...], list[Instant]]:
        """The lane's tasks whose time has come, oldest first; and when the others' will."""
        wait_ms = self._rank(book, client_id) * book.spec.stagger_ms
        due: list[tuple[Instant, Task]] = []
        later: list[Instant] = []
        for task in self._tasks(book, client_id):
            patience = self._patience.setdefault(self._name(book, task), _Patience(now))
            at_ms = max(patience.seen_ms + wait_ms, patience.next_ms)
            if at_ms <= now:
                due.append((patience.seen_ms, task))
            else:
                later.append(at_ms)
        due.sort(key=lambda pair: (pair[0], pair[1].name))
        return tuple(task for _, task in due), later

    def _rank(self, book: Book, client_id: str) -> int:
        """How many relayers go before this one on a lane."""
        lane = sha256(b"relayer lane", book.spec.name.encode(), b"/", client_id.encode())
        return (lane[0] + self._options.position) % self._options.relayers

    def _must_renew(self, now: Instant, book: Book, client: ClientState) -> bool:
        """Whether a client was idle for so long that it must be updated without need."""
        idle_ms = book.time_ms - client.latest_timestamp_ms
        parts, rank = 8 + 2 * self._options.relayers, self._rank(book, client.client_id)
        if idle_ms * parts <= client.trusting_period_ms * (4 + rank):
            return False
        name = _renewal(book, client.client_id)
        return self._patience.setdefault(name, _Patience(now)).next_ms <= now

    def _crossing(self, book: Book, client_id: str) -> Iterator[_TaskName]:
        """The name of taking a client to the present set of its chain, while it trusts an older one."""
        client, other = book.clients.get(client_id), self._other(book, client_id)
        if client is not None and other.head is not None:
            present = other.head.header.set_id
            if client.set_id < present and not client.frozen:
                yield (book.spec.name, client_id, "cross", present)

    def _crossing_ms(self, now: Instant, book: Book, client: ClientState) -> Instant | None:
        """When to do that, packets or not: former members have nothing to lose by lying to it."""
        for name in self._crossing(book, client.client_id):
            patience = self._patience.setdefault(name, _Patience(now))
            wait_ms = self._rank(book, client.client_id) * book.spec.stagger_ms
            return max(patience.seen_ms + wait_ms, patience.next_ms)
        return None

    def _back_off(self, now: Instant, chain: str, lane: LanePlan) -> None:
        """Let what was just tried rest, longer each time."""
        options, book = self._options, self._books[chain]
        names = [self._name(book, task) for task in lane.tasks]
        names = names or [_renewal(book, lane.client_id)]
        for name in (*names, *self._crossing(book, lane.client_id)):
            patience = self._patience.get(name)
            if patience is not None:
                pause_ms = options.first_retry_ms << min(patience.tries, 16)
                patience.tries += 1
                patience.next_ms = now + min(options.last_retry_ms, pause_ms)

    def _wake(self, now: Instant, times: list[Instant]) -> None:
        at_ms = min((time for time in times if time > now), default=None)
        if at_ms is not None and at_ms != self._wake_ms:
            self._wake_ms = at_ms
            self._asked.append(WakeAt(at_ms))

    def _fetch(self, now: Instant, missing: MissingHandover) -> None:
        key = (missing.chain, missing.set_id)
        if now - self._fetched_ms.get(key, -self._options.last_retry_ms) >= (
            self._options.first_retry_ms
        ):
            self._fetched_ms[key] = now
            self._asked.append(FetchHandover(missing.chain, missing.set_id))

    # -- parts -------------------------------------------------------------------------------------

    def _tasks(self, book: Book, client_id: str) -> Iterator[Task]:
        return tasks(book, client_id, self._other(book, client_id))

    def _other(self, book: Book, client_id: str) -> Book:
        return self._books[book.spec.clients[client_id].chain]

    @staticmethod
    def _name(book: Book, task: Task) -> _TaskName:
        return (book.spec.name, *task.name)

    def _read(self, chain: str, height: int, keys: Iterable[bytes], read: _Read) -> None:
        token = self._token()
        self._reads[token] = read
        self._asked.append(Read(chain, token, height, tuple(dict.fromkeys(keys))))

    def _token(self) -> int:
        self._last_token += 1
        return self._last_token

    def _log(self, level: str, event: str, **fields: object) -> None:
        self._asked.append(Log(level, event, fields))


def _renewal(book: Book, client_id: str) -> _TaskName:
    """Under which name the renewal of an idle client is remembered."""
    return (book.spec.name, client_id, "renew", 0)
