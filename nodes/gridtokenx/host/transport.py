"""The links of one process on one chain: listening, dialing, who is who, and who is unwelcome.

Law of the file: **at most one link per peer, and both ends agree which.** Of two links between the same
two keys the one that the smaller key dialed stays; a second one in the same direction replaces the
first (its end was lost). The larger key therefore waits a little before it dials.

A node keeps a link to whoever answers at the addresses that it was given, and dials again with back-off.
Who is linked as a peer is a **member** (its key is in the set that finalises the next block, which
changes with the chain: `Network.set_members`) or a **guest** (an observer, a full node, a replica that
has left): both exchange the machine's messages, but guests are few and bear less. Clients (gateways,
relayers, agents) only dial; a node bounds how many it serves. Faults are counted by reason; whoever
repeats them is cut off and refused for a while, by key and never by address, because all of a
laptop's processes share one address. Two processes with one key are told apart: see `twins`.
"""

import asyncio
import functools
import random
import secrets
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from gridtokenx.core.codec import encode
from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.keys import Verifier
from gridtokenx.core.quorum import max_faulty
from gridtokenx.host.addresses import HostPort, NodeAddress
from gridtokenx.host.bans import Bans
from gridtokenx.host.clock import wall_ms
from gridtokenx.host.framing import Channel, frame
from gridtokenx.host.handshake import (
    IN_USE,
    OURSELVES,
    Accepted,
    Dialer,
    Hello,
    LinkIdentity,
    LinkRefused,
    Listener,
    Refused,
    read_control,
)
from gridtokenx.host.link import KIBIBYTE, Link, LinkClosed, LinkLimits
from gridtokenx.host.logs import Logger, SparseLog
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.peer_clock import PeerClock
from gridtokenx.host.security import LinkSecurity
from gridtokenx.host.tasks import Tasks
from gridtokenx.host.twins import PROBE_S, Twins

_TEND_S: Final = 1.0
_BACKLOG: Final = 128
_ACCEPT_PAUSE_S: Final = 0.2
_FIRST_BACKOFF_S: Final = 0.2
_LARGER_KEY_WAITS_S: Final = 1.0
_GUEST_POINTS: Final = 4
_SERIOUS: Final = frozenset({"bad-frame", "frame-too-large", "malformed", "bad-signature"})


def client_limits() -> LinkLimits:
    """A client asks little, and is answered at length."""
    return LinkLimits(
        frame_bytes=1024 * KIBIBYTE,
        send_queue_bytes=8 * 1024 * KIBIBYTE,
        receive_queue_frames=64,
        frames_per_s=500,
        bytes_per_s=4 * 1024 * KIBIBYTE,
    )


def guest_limits() -> LinkLimits:
    """A guest may need whole blocks of us, and has little to tell."""
    return LinkLimits(frames_per_s=500, bytes_per_s=4 * 1024 * KIBIBYTE)


@dataclass(frozen=True, slots=True)
class NetworkLimits:
    """Bounds of one process's links on one chain."""

    link: LinkLimits = field(default_factory=LinkLimits)
    client: LinkLimits = field(default_factory=client_limits)
    guest: LinkLimits = field(default_factory=guest_limits)
    clients: int = 64
    guests: int = 8
    """Peers that are not members, at once; with 0 only members are linked as peers."""
    same_client: int = 4
    """Processes that are served at once as clients with one and the same key."""
    handshakes: int = 64
    """Unfinished handshakes at once; the oldest makes way for a further one."""
    backoff_s: float = 5.0
    """The longest pause between two attempts to reach a peer."""
    fault_points: int = 64
    """Points within a minute that ban; a fault of form is worth 8, any other 1; a guest's fourfold."""
    ban_s: float = 60.0
    """The first ban; each further one is twice as long, up to an hour."""


class LinkHandler(Protocol):
    """What the process above the links wants to hear. Calls must be short."""

    def link_up(self, link: Link) -> None:
        """A handshake has finished."""

    def link_down(self, link: Link) -> None:
        """A link that was up has ended."""

    def frames_ready(self, link: Link) -> None:
        """A frame can be taken from a link that is up."""


@dataclass(frozen=True, slots=True)
class NetworkParts:
    """What a `Network` is made of; all of it is shared with the rest of the process."""

    own: LinkIdentity
    security: LinkSecurity
    verifier: Verifier
    metrics: Metrics
    log: Logger
    limits: NetworkLimits = field(default_factory=NetworkLimits)
    now_ms: Callable[[], int] = wall_ms
    """Network time, to compare with the others'."""


class _Pause:
    """Growing pauses between attempts, a little different for everyone."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._next_s = _FIRST_BACKOFF_S
        self.fresh = True
        """Nothing was tried since the beginning, or since the link was lost."""

    def lengthen(self) -> float:
        """The pause to make now; the next one is longer."""
        self.fresh = False
        now_s, self._next_s = self._next_s, min(self._longest_s, self._next_s * 1.6)
        return now_s * random.uniform(0.7, 1.0)  # noqa: S311 - spreads attempts

    def reset(self) -> None:
        """Begin anew."""
        self._next_s, self.fresh = _FIRST_BACKOFF_S, True


class Network:
    """All links of this process on one chain."""

    def __init__(
        self,
        parts: NetworkParts,
        members: Collection[bytes],
        peers: Sequence[NodeAddress],
        handler: LinkHandler,
    ) -> None:
        self._parts = parts
        self._handler = handler
        self._own_key = parts.own.signer.public_key
        self._members = frozenset(members) - {self._own_key}
        self._peers = tuple(peer for peer in peers if peer.identity != self._own_key)
        self._links: dict[bytes, Link] = {}
        self._clients: dict[bytes, Link] = {}
        self._pending: dict[Link, asyncio.Task[None]] = {}
        """Handshakes with those who dialed us, oldest first."""
        self._dialing: set[Link] = set()
        self._unreached: dict[NodeAddress, str] = {}
        self._down: dict[bytes, asyncio.Event] = {}
        self._bans = Bans(parts.limits.fault_points, parts.limits.ban_s)
        self._log = SparseLog(parts.log)
        self._twins = Twins(self._own_key, self._log, parts.metrics)
        self._clock = PeerClock(parts.log, parts.metrics)
        self._tasks = Tasks()
        self._listener: socket.socket | None = None
        self._closing = False

    # -- life --------------------------------------------------------------------------------------

    def start(self, listen: HostPort | None) -> None:
        """Listen, and begin to dial every peer.

        Raises:
            LocalFault: the address cannot be had.
        """
        if listen is not None:
            self._listen(listen)
        for peer in self._peers:
            self._tasks.spawn(self._keep_dialing(peer), f"dial {peer.where}")
        self._tasks.spawn(self._tend(), "tend links")

    @property
    def port(self) -> int:
        """The port that is listened on."""
        assert self._listener is not None, "not listening"
        return int(self._listener.getsockname()[1])

    async def close(self) -> None:
        """Tell everyone, close everything; a second time changes nothing."""
        self._closing = True
        if self._listener is not None and self._listener.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._listener)
        for link in (
            *self._links.values(),
            *self._clients.values(),
            *self._pending,
            *self._dialing,
        ):
            link.close("this node is stopping")
        await self._tasks.close()
        if self._listener is not None:
            self._listener.close()

    async def watch(self) -> None:
        """Wait for a bug in a task of the network, and raise it."""
        await self._tasks.watch()

    # -- use ---------------------------------------------------------------------------------------

    @property
    def peers(self) -> tuple[bytes, ...]:
        """Members and guests to which a link is up."""
        return tuple(self._links)

    @property
    def members(self) -> tuple[bytes, ...]:
        """Members to which a link is up."""
        return tuple(key for key in self._links if key in self._members)

    @property
    def guests(self) -> tuple[bytes, ...]:
        """Peers to which a link is up and which are not members."""
        return tuple(key for key in self._links if key not in self._members)

    @property
    def clients(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    @property
    def unreached(self) -> Counter[str]:
        """Addresses that we dial in vain, by the reason of the last attempt."""
        return Counter(self._unreached.values())

    async def settle(self) -> None:
        """Hold until enough members have answered to know that nobody else runs with our key.

        Raises:
            LocalFault: somebody does.
        """
        needed = min(self.tolerated + 1, len(self._members))
        await self._twins.settle(lambda: len(self.members), needed, self.tolerated)

    def reasons(self) -> Iterator[str]:
        """Why this process is not ready, as far as links tell."""
        yield from self._twins.reasons(self.tolerated)
        yield from self._clock.reasons()

    def set_members(self, keys: Collection[bytes]) -> None:
        """Other keys are the members from now on.

        Links stay up: a guest whose key has come in bears a member's load, a member whose key has
        left becomes a guest. If that makes too many guests, those that have just left go first.
        """
        before, self._members = self._members, frozenset(keys) - {self._own_key}
        left = before - self._members
        spare = len(self.guests) - self._parts.limits.guests
        for key, link in sorted(self._links.items(), key=lambda each: each[0] not in left):
            if key in self._members:
                if key not in before:
                    link.restrict(self._parts.limits.link)
            elif spare > 0:
                spare -= 1
                link.refuse(RemoteFault("not-a-member", "this key has left the set of this chain"))
            elif key in left:
                link.restrict(self._parts.limits.guest)

    def drop(self, predicate: Callable[[Link], bool], fault: RemoteFault) -> int:
        """Refuse, with a reason, every link that is up and of which `predicate` holds.

        Returns:
            How many those were.
        """
        found = [
            link for link in (*self._links.values(), *self._clients.values()) if predicate(link)
        ]
        for link in found:
            self._parts.metrics.count("remote_faults", reason=fault.reason)
            link.refuse(fault)
        return len(found)

    def send(self, peer: bytes, channel: Channel, body: bytes) -> bool:
        """Queue a frame for a member or a guest; False if no link to it is up."""
        link = self._links.get(peer)
        return link is not None and link.send(channel, body)

    def broadcast(self, channel: Channel, body: bytes) -> None:
        """Queue a frame for every member and guest to which a link is up."""
        data = frame(channel, body)
        for link in tuple(self._links.values()):
            link.send_frame(data)

    def fault(self, identity: bytes, fault: RemoteFault) -> None:
        """Count a fault of a link's other end; enough of them ban it."""
        self._parts.metrics.count("remote_faults", reason=fault.reason)
        if identity:
            self._log.info("remote fault", fault.reason, peer=identity.hex()[:16], fault=str(fault))
        points = 8 if fault.reason in _SERIOUS else 1
        if identity in self._links and identity not in self._members:
            points *= _GUEST_POINTS
        if not identity or not self._bans.record(identity, points, time.monotonic()):
            return
        self._parts.metrics.count("bans")
        peer = identity.hex()[:16]
        self._log.warning("peer banned", peer, peer=peer, fault=str(fault))
        for link in (*self._links.values(), *self._clients.values()):
            if link.identity == identity:
                link.refuse(RemoteFault("banned", f"after repeated faults, last: {fault.reason}"))

    @property
    def tolerated(self) -> int:
        """How many members may be faulty, if this process is one of them."""
        return max_faulty(len(self._members) + 1)

    # -- listening ---------------------------------------------------------------------------------

    def _listen(self, listen: HostPort) -> None:
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        try:
            self._listener = socket.create_server(
                (listen.host, listen.port), family=family, backlog=_BACKLOG
            )
        except OSError as error:
            raise LocalFault(f"cannot listen on {listen}: {error.strerror or error}") from None
        self._listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._take_connections(self._listener)

    def _take_connections(self, listener: socket.socket) -> None:
        """Have `_accept` called whenever somebody waits."""
        if not self._closing:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Take a connection, without asyncio's server: a failed TLS handshake is seen and counted.

        It is no task, so that none can be cancelled between taking a connection and having it.
        """
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # gone before we took it
        except OSError as error:  # out of descriptors
            self._parts.metrics.count("remote_faults", reason="accept-failed")
            self._log.warning("cannot take a connection", "", why=str(error))
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(_ACCEPT_PAUSE_S, self._take_connections, listener)
            return
        connection.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._make_room()
        link = self._new_link()
        welcome = self._tasks.spawn(self._welcome(connection, link), "welcome")
        welcome.add_done_callback(functools.partial(_let_go, connection, link))
        self._pending[link] = welcome

    def _make_room(self) -> None:
        """End the oldest unfinished handshake if there are too many: best one without TLS yet."""
        if len(self._pending) < self._parts.limits.handshakes:
            return
        silent = (link for link in self._pending if not link.connected)
        link = next(silent, next(iter(self._pending)))
        self._parts.metrics.count("remote_faults", reason="too-many-handshakes")
        self._log.info("link refused", "too-many-handshakes", fault="too-many-handshakes")
        self._pending.pop(link).cancel()

    def _new_link(self) -> Link:
        return Link(
            self._parts.limits.link,
            on_ready=self._handler.frames_ready,
            on_fault=lambda link, fault: self.fault(link.identity, fault),
            on_closed=self._link_closed,
            now_ms=self._parts.now_ms,
        )

    async def _welcome(self, connection: socket.socket, link: Link) -> None:
        limits, security = self._parts.limits.link, self._parts.security
        server, shown = security.server, security.certificate_der  # both may be renewed meanwhile
        try:
            async with asyncio.timeout(limits.handshake_s):
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: link,
                    connection,
                    ssl=server,
                    ssl_handshake_timeout=min(limits.tls_s, limits.handshake_s),
                )
                await self._answer(link, shown)
        except (RemoteFault, OSError, TimeoutError) as error:
            fault = as_fault(error)
            if fault.reason not in ("duplicate", "closed"):
                self.fault(b"", fault)
                who = link.identity.hex()[:16] or "unproven"
                self._log.info(
                    "link refused",
                    f"{who} {fault.reason}",
                    peer=who,
                    fault=str(fault),
                    where=link.where,
                )
            link.refuse(fault)
        except asyncio.CancelledError:
            link.abort("given up")
            raise
        finally:
            self._pending.pop(link, None)

    async def _answer(self, link: Link, shown: bytes) -> None:
        """The listener's half of the handshake; `shown` is the certificate of its TLS session."""
        parts = self._parts
        half = Listener(parts.own, secrets.token_bytes(32), shown)
        link.send(Channel.CONTROL, half.welcome(read_control((await link.receive())[1])))
        hello = half.accept(read_control((await link.receive())[1]), parts.verifier)
        parts.security.check_certificate(link.certificate, hello.identity, hello.role)
        link.identity, link.instance = hello.identity, hello.instance
        self._check_ban(hello.identity)
        if hello.role == "peer":
            self._check_ourselves(hello, link)
            await self._replace_dead(hello.identity, hello.instance)
        self._admit(hello)
        link.send(Channel.CONTROL, encode(Accepted(twin=self._twin_of(hello))))
        self._link_up(link, hello.identity, hello.role)

    def _admit(self, hello: Hello) -> None:
        """Whether one who has proven its key may have a link.

        Raises:
            RemoteFault: not a member, too many clients, or the other link is the better.
        """
        if hello.role == "peer":
            self._check_room(hello.identity)
            self._check_duplicate(hello.identity, dialed=False)
            return
        limits = self._parts.limits
        if hello.identity + hello.instance in self._clients:
            return
        if len(self._clients) >= limits.clients:
            raise RemoteFault("too-many-clients", f"at most {limits.clients}")
        same = [link for link in self._clients.values() if link.identity == hello.identity]
        if len(same) >= limits.same_client:
            raise RemoteFault(IN_USE, f"{len(same)} processes with this key are linked")

    def _check_ban(self, identity: bytes) -> None:
        banned_s = self._bans.banned_for(identity, time.monotonic())
        if banned_s > 0:
            raise RemoteFault("banned", f"for {banned_s:.0f} more seconds")

    def _check_ourselves(self, hello: Hello, link: Link) -> None:
        if hello.identity != self._own_key:
            return
        if hello.instance == self._parts.own.instance:
            raise RemoteFault(OURSELVES, "the address is our own")
        self._twins.met(link.where)
        raise RemoteFault(IN_USE, "it answered at the address that was dialed")

    async def _replace_dead(self, identity: bytes, instance: bytes) -> None:
        """Make way for another process of a key, unless the one that is linked shows that it lives.

        Raises:
            RemoteFault: it does.
        """
        while (known := self._links.get(identity)) is not None and known.instance != instance:
            if await known.answers(PROBE_S):
                raise RemoteFault(IN_USE, f"linked from {known.where}")
            known.abort("gave no sign of life, and another process with its key came")

    def _twin_of(self, hello: Hello) -> str:
        """Where another process with a client's key is linked from; they sign no votes, and stay."""
        for link in self._clients.values():
            if link.identity == hello.identity and link.instance != hello.instance:
                return link.where
        return ""

    def _check_room(self, identity: bytes) -> None:
        """Whether a key may be linked as a peer: a member always, a guest while there is room."""
        if identity in self._members or identity in self._links:
            return
        limit = self._parts.limits.guests
        if limit == 0:
            raise RemoteFault("not-a-member", f"key {identity.hex()} is not of this chain's set")
        if len(self.guests) >= limit:
            raise RemoteFault("too-many-guests", f"at most {limit} that are not of the set")

    # -- dialing -----------------------------------------------------------------------------------

    async def _keep_dialing(self, peer: NodeAddress) -> None:
        """Keep a link to whoever answers at an address."""
        identity, pause = peer.identity, _Pause(self._parts.limits.backoff_s)
        complaint = ""
        while not self._closing:
            if identity in self._links:
                await self._until_down(identity)
                pause.reset()
            elif identity is not None and self._own_key > identity and pause.fresh:
                pause.lengthen()
                await asyncio.sleep(_LARGER_KEY_WAITS_S)
                continue
            try:
                identity, complaint = await self._dial_peer(peer), ""
                self._unreached.pop(peer, None)
            except (RemoteFault, OSError, TimeoutError) as error:
                fault = as_fault(error)
                if fault.reason == OURSELVES:
                    return
                self._unreached[peer] = fault.reason
                complaint = self._not_reached(peer, fault, complaint)
                await asyncio.sleep(pause.lengthen())

    def _not_reached(self, peer: NodeAddress, fault: RemoteFault, complaint: str) -> str:
        """Say why, unless it was said; return what was said last."""
        self._parts.metrics.count("dial_failures", reason=fault.reason)
        if fault.reason != complaint:
            where = str(peer.where)
            self._log.info(
                "peer not reached", f"{where} {fault.reason}", peer=where, why=str(fault)
            )
        return fault.reason

    async def _until_down(self, identity: bytes) -> None:
        while identity in self._links:
            await self._down.setdefault(identity, asyncio.Event()).wait()

    async def _dial_peer(self, peer: NodeAddress) -> bytes:
        """Make a link to an address, if there is none yet, and return who is there."""
        link = self._new_link()
        self._dialing.add(link)
        try:
            await dial(self._parts, peer, link)
            await self._replace_dead(link.identity, link.instance)
            self._check_room(link.identity)
            self._check_duplicate(link.identity, dialed=True)
            self._link_up(link, link.identity, "peer")
        except RemoteFault as fault:
            if not isinstance(fault, LinkRefused):
                link.refuse(fault)
            elif fault.reason == IN_USE:
                self._told_of_twin(link.identity, fault.detail)
            link.close(str(fault))
            if fault.reason != "duplicate":
                raise
            await asyncio.sleep(_FIRST_BACKOFF_S)  # the other link may still be in its handshake
        except BaseException as error:
            link.close(str(error) or type(error).__name__)
            raise
        finally:
            self._dialing.discard(link)
        return link.identity

    def _told_of_twin(self, identity: bytes, detail: str) -> None:
        if identity in self._members or identity == self._own_key:
            self._twins.told(identity, detail)

    # -- the table of links ------------------------------------------------------------------------

    def _check_duplicate(self, identity: bytes, *, dialed: bool) -> None:
        """Whether a new link to `identity` may stand, or replace the one that is up.

        Raises:
            RemoteFault: the one that is up is the better.
        """
        known = self._links.get(identity)
        own_dials_best = self._own_key < identity
        if known is not None and dialed != own_dials_best and known.dialed != dialed:
            raise RemoteFault("duplicate", "the link in the other direction stays")

    def _link_up(self, link: Link, identity: bytes, role: str) -> None:
        links, slot = self._slot(role, identity, link.instance)
        old = links.pop(slot, None)
        if old is not None:
            old.refuse(RemoteFault("duplicate", "replaced by a newer link"))
        if link.closed:
            return
        link.identity, link.role = identity, role
        links[slot] = link
        if role == "client":
            link.restrict(self._parts.limits.client)
        elif identity not in self._members:
            link.restrict(self._parts.limits.guest)
        else:
            self._twins.linked(identity)
        peer = identity.hex()[:16]
        self._log.info("link up", peer, peer=peer, role=role, dialed=link.dialed)
        self._handler.link_up(link)
        link.raise_up(identity, role)
        link.ping()

    def _slot(self, role: str, identity: bytes, instance: bytes) -> tuple[dict[bytes, Link], bytes]:
        """The table of a link, and its key in it: one link per peer, and per process of a client."""
        return (self._links, identity) if role == "peer" else (self._clients, identity + instance)

    def _link_closed(self, link: Link) -> None:
        links, slot = self._slot(link.role, link.identity, link.instance)
        if links.get(slot) is not link:
            return
        del links[slot]
        if not self._closing:
            peer = link.identity.hex()[:16]
            self._log.info("link down", peer, peer=peer, role=link.role, why=link.close_reason)
        if link.refusal is not None and link.refusal.reason == IN_USE:
            self._told_of_twin(link.identity, link.refusal.detail)
        if link.role == "peer" and (waited_for := self._down.pop(link.identity, None)) is not None:
            waited_for.set()
        self._handler.link_down(link)

    async def _tend(self) -> None:
        security = self._parts.security
        looked = security.generation
        while True:
            await asyncio.sleep(_TEND_S)
            security.refresh()
            if security.generation != looked:
                looked = security.generation
                self._end_objectionable()
            now = time.monotonic()
            for link in (*self._links.values(), *self._clients.values()):
                link.tend(now)
            self._log.flush()
            self._compare_clocks()

    def _compare_clocks(self) -> None:
        offsets_ms = [
            link.offset_ms
            for key, link in self._links.items()
            if key in self._members and link.offset_ms is not None
        ]
        self._clock.look(offsets_ms, self.tolerated)

    def _end_objectionable(self) -> None:
        """Refuse links whose certificate was revoked or has expired since they were made."""
        for link in (*self._links.values(), *self._clients.values()):
            fault = self._parts.security.objection(link.certificate)
            if fault is not None:
                self._parts.metrics.count("remote_faults", reason=fault.reason)
                link.refuse(fault)


def _let_go(connection: socket.socket, link: Link, task: asyncio.Task[None]) -> None:
    """Close a connection whose task was cancelled before it could take hold of it."""
    if task.cancelled() and not link.connected:
        connection.close()


async def dial(parts: NetworkParts, address: NodeAddress, link: Link) -> Accepted:
    """Connect, and do the dialer's half of the handshake; the link's limits are still low then.

    Raises:
        RemoteFault: refused, or the other end is not acceptable.
        OSError: not reached.
        TimeoutError: not in time.
    """
    limits = parts.limits.link
    loop = asyncio.get_running_loop()
    link.dialed = True
    async with asyncio.timeout(limits.handshake_s):
        await loop.create_connection(
            lambda: link,
            address.where.host,
            address.where.port,
            ssl=parts.security.client,
            ssl_handshake_timeout=limits.handshake_s,
        )
        shown = link.certificate
        half = Dialer(parts.own, secrets.token_bytes(32), shown or b"", address.identity)
        link.send(Channel.CONTROL, half.hello())
        proof = half.prove(read_control((await link.receive())[1]), parts.verifier)
        link.instance = half.instance
        link.send(Channel.CONTROL, proof)
        parts.security.check_certificate(shown, half.listener, "peer")  # only members listen
        link.identity = half.listener
        link.accept_full_frames()
        reply = read_control((await link.receive())[1])
    if isinstance(reply, Refused):
        raise LinkRefused(reply.reason, reply.detail)
    if not isinstance(reply, Accepted):
        raise LinkRefused("bad-handshake", f"{type(reply).__name__} in place of Accepted")
    return reply


def as_fault(error: Exception) -> RemoteFault:
    """One name for everything that can go wrong while a link is made."""
    if isinstance(error, LinkClosed):
        return RemoteFault("closed", error.detail)
    if isinstance(error, RemoteFault):
        return error
    if isinstance(error, ssl.SSLCertVerificationError):
        return RemoteFault("wrong-certificate", error.verify_message)
    if isinstance(error, ssl.SSLError):
        return RemoteFault("tls-failed", error.reason or str(error))
    if isinstance(error, TimeoutError | ConnectionAbortedError):  # the latter is asyncio's, of TLS
        return RemoteFault("timeout", "the handshake took too long")
    if isinstance(error, ConnectionRefusedError):
        return RemoteFault("unreachable", "nobody listens there")
    return RemoteFault("unreachable", str(error))
