"""Who is a member and who a guest, and that a changing set moves links instead of breaking them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.unit.host_network import LOOPBACK, Node, addresses, signer, until

from gridtokenx.core.errors import RemoteFault
from gridtokenx.host.framing import Channel
from gridtokenx.host.transport import NetworkLimits
from gridtokenx.lab.ports import free_ports


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for node in nodes:
            await node.network.close()


def host_of(*members: int, guests: int = 2) -> Node:
    """A listening node whose set holds `members`; they have no process of their own."""
    host = Node(
        0, addresses(members, free_ports(len(members))), limits=NetworkLimits(guests=guests)
    )
    host.network.start(LOOPBACK)
    return host


def dialer(number: int, host: Node) -> Node:
    node = Node(number, [host.address])
    node.network.start(None)
    return node


async def test_a_guest_hears_broadcasts_and_is_heard() -> None:
    host = host_of(1)
    guest = dialer(7, host)
    async with running(host, guest):
        await until(lambda: host.network.guests == (guest.key,) and guest.network.peers)
        host.network.broadcast(Channel.MACHINE, b"block")
        guest.network.send(host.key, Channel.MACHINE, b"ask")
        await until(lambda: guest.recorder.frames and host.recorder.frames)
        assert host.recorder.frames == [(guest.key, Channel.MACHINE, b"ask")]
        assert host.network.members == ()
        assert guest.network.members == (host.key,)


async def test_guests_are_bounded_and_members_are_not() -> None:
    host = host_of(1, guests=1)
    first = dialer(7, host)
    await until(lambda: host.network.guests)
    second, member = dialer(8, host), dialer(1, host)
    async with running(host, first, second, member):
        await until(lambda: second.dial_failures.get("too-many-guests"))
        await until(lambda: host.network.members == (member.key,))
        assert host.network.guests == (first.key,)


async def test_a_set_that_changes_keeps_its_links() -> None:
    host = host_of(1)
    old, new = dialer(1, host), dialer(2, host)
    async with running(host, old, new):
        await until(lambda: host.network.members and host.network.guests)
        host.network.set_members([host.key, new.key])
        assert host.network.members == (new.key,)
        assert host.network.guests == (old.key,)
        limits = host.parts.limits
        assert host.network._links[new.key].limits == limits.link
        assert host.network._links[old.key].limits == limits.guest
        assert not host.recorder.down


async def test_who_left_goes_first_where_guests_are_too_many() -> None:
    host = host_of(1, guests=1)
    guest, member = dialer(7, host), dialer(1, host)
    async with running(host, guest, member):
        await until(lambda: host.network.members and host.network.guests)
        host.network.set_members([])
        assert host.network.guests == (guest.key,)
        await until(lambda: member.dial_failures.get("too-many-guests"))


async def test_a_guest_is_banned_sooner() -> None:
    host = host_of(1)
    guest, member = dialer(7, host), dialer(1, host)
    async with running(host, guest, member):
        await until(lambda: host.network.members and host.network.guests)
        for _ in range(20):
            host.network.fault(guest.key, RemoteFault("stale-vote"))
            host.network.fault(member.key, RemoteFault("stale-vote"))
        assert host.network.peers == (member.key,)


async def test_links_are_dropped_by_what_they_are() -> None:
    host = host_of(1, 2)
    first, second = dialer(1, host), dialer(2, host)
    async with running(host, first, second):
        await until(lambda: len(host.network.peers) == 2)
        dropped = host.network.drop(
            lambda link: link.identity == signer(1).public_key, RemoteFault("revoked", "serial 7")
        )
        assert dropped == 1
        await until(
            lambda: any("revoked: serial 7" in link.close_reason for link in first.recorder.links)
        )
        assert second.key in host.network.peers
        assert host.faults == {"revoked": 1}
