"""Links over real sockets: who gets one, what a bad or slow peer can do, and that meshes heal."""

import asyncio
import secrets
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from tests.unit.host_network import (
    CHAIN,
    GENESIS,
    LOOPBACK,
    Node,
    addresses,
    issue,
    quick,
    seed,
    signer,
    until,
)

from gridtokenx.core.codec import encode
from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.keys import Ed25519Verifier
from gridtokenx.host.addresses import HostPort, NodeAddress
from gridtokenx.host.bans import Bans
from gridtokenx.host.certificates import Authority, Role, anonymous_client_context
from gridtokenx.host.framing import Channel, FrameFault, Splitter, frame
from gridtokenx.host.handshake import Dialer, LinkIdentity, Ping, read_control
from gridtokenx.host.link import Link, LinkLimits
from gridtokenx.host.security import LinkSecurity, open_security
from gridtokenx.host.transport import NetworkLimits, dial
from gridtokenx.lab.ports import free_ports


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for node in nodes:
            await node.network.close()


async def mesh(count: int, **options: object) -> list[Node]:
    ports = free_ports(count)
    known = addresses(range(count), ports)
    nodes = [Node(number, known, **options) for number in range(count)]  # type: ignore[arg-type]
    for node, port in zip(nodes, ports, strict=True):
        node.network.start(HostPort("127.0.0.1", port))
    await until(lambda: all(len(node.network.peers) == count - 1 for node in nodes))
    return nodes


async def raw_connection(
    node: Node,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(
        "127.0.0.1", node.network.port, ssl=anonymous_client_context(), server_hostname=""
    )


async def test_a_full_mesh_forms_and_carries_frames() -> None:
    nodes = await mesh(4)
    async with running(*nodes):
        nodes[0].network.broadcast(Channel.MACHINE, b"to all")
        assert nodes[1].network.send(nodes[2].key, Channel.MACHINE, b"x" * 3_000_000)
        await until(
            lambda: all((nodes[0].key, 1, b"to all") in n.recorder.frames for n in nodes[1:])
        )
        await until(lambda: any(len(body) == 3_000_000 for *_, body in nodes[2].recorder.frames))
        assert not nodes[0].network.send(signer(99).public_key, Channel.MACHINE, b"")


async def test_frames_of_one_peer_arrive_in_order() -> None:
    first, second = await mesh(2)
    async with running(first, second):
        for number in range(5000):
            first.network.send(second.key, Channel.MACHINE, number.to_bytes(4, "big"))
        await until(lambda: len(second.recorder.frames) == 5000)
        assert [int.from_bytes(body, "big") for *_, body in second.recorder.frames] == list(
            range(5000)
        )


async def test_simultaneous_dials_leave_one_link_that_both_ends_keep() -> None:
    first, second = await mesh(2)
    async with running(first, second):
        for _ in range(20):
            await asyncio.gather(
                first.network._dial_peer(second.address),
                second.network._dial_peer(first.address),
                return_exceptions=True,  # one of them is refused as a duplicate, mostly
            )
        await until(lambda: first.network.peers and second.network.peers)
        for one, other in ((first, second), (second, first)):
            link = one.network._links[other.key]
            assert link.dialed == (one.key < other.key)
            assert one.network.send(other.key, Channel.MACHINE, b"still here")
        await until(lambda: first.recorder.frames and second.recorder.frames)


async def test_a_restarted_peer_is_found_again() -> None:
    first, second = await mesh(2)
    port = second.network.port
    await second.network.close()
    await until(lambda: not first.network.peers)
    again = Node(1, [first.address])
    again.network.start(HostPort("127.0.0.1", port))
    async with running(first, again):
        await until(lambda: first.network.peers == (again.key,))
        assert first.recorder.down == [again.key]


async def test_a_ping_before_the_link_is_up_does_not_keep_its_reader_from_waiting() -> None:
    """Regression: its frame was taken from the inbox, but not the news of its arrival. Who then waited
    for the next one never did, and kept everybody else of the process from running."""
    host = Node(0, takes=False)
    host.network.start(LOOPBACK)
    link = Link(quick())
    async with running(host):
        await asyncio.get_running_loop().create_connection(
            lambda: link, "127.0.0.1", host.network.port, ssl=anonymous_client_context()
        )
        own = LinkIdentity(signer(1), "client", CHAIN, GENESIS)
        dialer = Dialer(own, secrets.token_bytes(32), link.certificate or b"", None)
        link.send(Channel.CONTROL, dialer.hello())
        proof = dialer.prove(read_control((await link.receive())[1]), Ed25519Verifier())
        ping = encode(Ping(number=1))
        link.transport.write(frame(Channel.CONTROL, proof) + frame(Channel.CONTROL, ping))
        await until(lambda: host.recorder.links)
        served = host.recorder.links[0]
        looks = 0

        def take() -> tuple[Channel, bytes] | None:
            nonlocal looks
            looks += 1
            assert looks < 100, "it looks again and again instead of waiting"
            return Link.take(served)

        served.take = take  # type: ignore[method-assign]  # counts what would never end
        reading = asyncio.create_task(served.receive())
        await asyncio.sleep(0)
        link.transport.write(frame(Channel.REQUEST, b"a question"))
        assert await reading == (Channel.REQUEST, b"a question")
        link.abort("done")


# -- who is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chain": bytes(32)}, "wrong-chain"),
        ({"genesis": bytes(32)}, "wrong-genesis"),
    ],
)
async def test_another_chain_or_genesis_is_refused_with_one_reason(
    change: dict[str, bytes], reason: str
) -> None:
    host = Node(0, addresses([1], free_ports(1)))
    host.network.start(LOOPBACK)
    stranger = Node(1, [host.address], **change)  # type: ignore[arg-type]
    stranger.network.start(None)
    async with running(host, stranger):
        await until(lambda: host.faults.get(reason))
        await until(lambda: stranger.dial_failures.get(reason))
        assert set(host.faults) == {reason}
        assert not host.network.peers


async def test_a_key_outside_the_list_gets_no_peer_link_where_guests_are_unwelcome() -> None:
    host = Node(0, addresses([1], free_ports(1)), limits=NetworkLimits(guests=0))
    host.network.start(LOOPBACK)
    stranger = Node(7, [host.address])
    stranger.network.start(None)
    async with running(host, stranger):
        await until(lambda: stranger.dial_failures.get("not-a-member"))
        assert not host.network.peers


async def test_addresses_need_no_keys_and_may_contain_our_own() -> None:
    """All nodes may be given one and the same list of hosts and ports."""
    ports = free_ports(3)
    places = [NodeAddress(HostPort("127.0.0.1", port)) for port in ports]
    members = [signer(number).public_key for number in range(3)]
    nodes = [Node(number, places, members=members) for number in range(3)]
    for node, port in zip(nodes, ports, strict=True):
        node.network.start(HostPort("127.0.0.1", port))
    async with running(*nodes):
        await until(lambda: all(len(node.network.peers) == 2 for node in nodes))
        await asyncio.sleep(0.3)
        assert all(set(node.network.peers) == set(members) - {node.key} for node in nodes)


async def test_the_wrong_node_at_an_address_is_noticed() -> None:
    host = Node(0, addresses([1], free_ports(1)))
    host.network.start(LOOPBACK)
    wanted = NodeAddress(HostPort("127.0.0.1", host.network.port), signer(5).public_key)
    dialer = Node(1, [wanted])
    dialer.network.start(None)
    async with running(host, dialer):
        await until(lambda: dialer.dial_failures.get("wrong-identity"))


async def connect(node: Node, client: Node) -> Link:
    link = Link(client.parts.limits.link)
    try:
        await dial(client.parts, node.address, link)
    except BaseException:
        link.close("test")
        raise
    link.raise_up(node.key, "node")
    return link


async def test_clients_are_served_up_to_a_bound() -> None:
    host = Node(0, limits=NetworkLimits(clients=2))
    host.network.start(LOOPBACK)
    async with running(host):
        links = [await connect(host, Node(number, role="client")) for number in (1, 2)]
        with pytest.raises(RemoteFault, match="too-many-clients"):
            await connect(host, Node(3, role="client"))
        links[0].close("done")
        await until(lambda: host.network.clients == 1)
        links.append(await connect(host, Node(3, role="client")))
        links[2].send(Channel.REQUEST, b"hello")
        await until(lambda: host.recorder.frames == [(signer(3).public_key, 2, b"hello")])
        for link in links:
            link.close("done")


async def test_certificates_of_the_authority_are_asked_for(tmp_path: Path) -> None:
    authority = Authority.create("chain", seed(100))
    ports = free_ports(2)
    known = addresses([0, 1], ports)
    nodes = [Node(n, known, security=issue(tmp_path, authority, n)) for n in (0, 1)]
    for node, port in zip(nodes, ports, strict=True):
        node.network.start(HostPort("127.0.0.1", port))
    async with running(*nodes):
        await until(lambda: nodes[0].network.peers and nodes[1].network.peers)


@pytest.mark.parametrize("case", ["other authority", "no certificate", "other key", "client's"])
async def test_a_wrong_certificate_is_refused(tmp_path: Path, case: str) -> None:
    authority = Authority.create("chain", seed(100))
    host = Node(0, addresses([1], free_ports(1)), security=issue(tmp_path, authority, 0))
    host.network.start(LOOPBACK)
    good = issue(tmp_path, authority, 1)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.load_verify_locations(tmp_path / "ca.pem")
    security = {
        "other authority": lambda: issue(tmp_path, Authority.create("chain", seed(101)), 1),
        "no certificate": lambda: LinkSecurity(trusting, None, b"", mutual=True),
        "other key": lambda: issue(tmp_path, authority, 2),
        "client's": lambda: issue(tmp_path, authority, 1, Role.CLIENT),
    }[case]()
    if case == "other authority":  # it trusts the right one, but shows a certificate of another
        security.client.load_verify_locations(cadata=_pem(good, tmp_path, authority))
    stranger = Node(1, [host.address], security=security)
    stranger.network.start(None)
    async with running(host, stranger):
        await until(lambda: stranger.dial_failures)
        await until(lambda: host.faults)
        assert not host.network.peers
        expected = {"other key": "wrong-certificate", "client's": "wrong-certificate"}
        assert set(host.faults) <= {expected.get(case, "wrong-certificate"), "tls-failed"}


async def test_only_members_may_listen(tmp_path: Path) -> None:
    authority = Authority.create("chain", seed(100))
    host = Node(0, security=issue(tmp_path, authority, 0, Role.CLIENT))
    host.network.start(LOOPBACK)
    async with running(host):
        client = Node(1, role="client", security=issue(tmp_path, authority, 1, Role.CLIENT))
        with pytest.raises(RemoteFault, match="wrong-certificate: its certificate is a client's"):
            await connect(host, client)


def _pem(_security: LinkSecurity, directory: Path, authority: Authority) -> str:
    from gridtokenx.host.certificates import pem

    return pem(authority.certificate).decode()


async def test_a_machine_in_the_middle_cannot_pass_the_handshake_on() -> None:
    """It ends TLS with its own certificate and forwards the frames; the signed claim differs."""
    host = Node(0, addresses([1], free_ports(1)))
    host.network.start(LOOPBACK)
    middle = open_security()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await raw_connection(host)

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
            sink.close()

        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    server = await asyncio.start_server(forward, "127.0.0.1", 0, ssl=middle.server)
    where = HostPort("127.0.0.1", server.sockets[0].getsockname()[1])
    dialer = Node(1, [NodeAddress(where, host.key)])
    dialer.network.start(None)
    async with running(host, dialer):
        await until(lambda: dialer.dial_failures.get("bad-signature"))
        assert not host.network.peers
        assert not dialer.network.peers
    server.close()


def test_a_recorded_handshake_cannot_be_replayed() -> None:
    """Fresh nonces: an old `Welcome` does not answer a new `Hello`."""
    from gridtokenx.host.handshake import Listener, read_control

    listener = Listener(LinkIdentity(signer(0), "peer", CHAIN, GENESIS), bytes(32), b"cert")
    own = LinkIdentity(signer(1), "peer", CHAIN, GENESIS)
    old = Dialer(own, b"\x01" * 32, b"cert", None)
    recorded = read_control(listener.welcome(read_control(old.hello())))
    old.prove(recorded, Ed25519Verifier())
    fresh = Dialer(own, b"\x02" * 32, b"cert", None)
    with pytest.raises(RemoteFault, match="bad-signature"):
        fresh.prove(recorded, Ed25519Verifier())


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (frame(Channel.CONTROL, b"\xff\xff"), "malformed"),
        (struct.pack(">IB", 0x7FFFFFFF, 0), "frame-too-large"),
        (struct.pack(">IB", 5000, 0), "frame-too-large"),  # nobody has proven anything yet
        (struct.pack(">IB", 0, 0), "bad-frame"),
        (struct.pack(">IB", 5, 200), "bad-frame"),
        (b"GET / HTTP/1.1\r\n\r\n", "bad-frame"),
    ],
)
async def test_malformed_frames_are_counted_and_end_the_link(data: bytes, reason: str) -> None:
    host = Node(0)
    host.network.start(LOOPBACK)
    async with running(host):
        reader, writer = await raw_connection(host)
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), 5)
        assert reason.encode() in answer  # told why
        assert host.faults.get(reason, 0) >= 1
        writer.close()


async def test_plain_text_and_silence_before_tls_cost_little() -> None:
    host = Node(0, limits=NetworkLimits(handshakes=3))
    host.network.start(LOOPBACK)
    async with running(host):
        silent = [await asyncio.open_connection("127.0.0.1", host.network.port) for _ in range(3)]
        await until(lambda: len(host.network._pending) == 3)
        link = await connect(host, Node(1, role="client"))  # the oldest makes way
        link.close("done")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await silent[0][0].readexactly(1)
        assert host.faults == {"too-many-handshakes": 1}
        talker = await asyncio.open_connection("127.0.0.1", host.network.port)
        talker[1].write(b"GET / HTTP/1.1\r\n\r\n")
        await until(lambda: host.faults.get("tls-failed"))
        link = await connect(host, Node(1, role="client"))  # and it still serves
        link.close("done")
        for _, writer in (*silent, talker):
            writer.close()


async def test_silence_before_tls_is_given_up() -> None:
    host = Node(0, limits=NetworkLimits(link=quick(handshake_s=0.3)))
    host.network.start(LOOPBACK)
    async with running(host):
        silent = [await asyncio.open_connection("127.0.0.1", host.network.port) for _ in range(2)]
        await until(lambda: sum(host.faults.values()) == 2)
        assert set(host.faults) <= {"timeout", "unreachable"}
        assert not host.network._pending
        for _, writer in silent:
            writer.close()


async def test_an_oversized_frame_after_the_handshake_is_refused() -> None:
    host = Node(0, limits=NetworkLimits(link=quick(), client=quick(frame_bytes=10_000)))
    host.network.start(LOOPBACK)
    async with running(host):
        link = await connect(host, Node(1, role="client"))
        link.send(Channel.REQUEST, bytes(10_001))
        await until(lambda: link.closed)
        assert "frame-too-large" in link.close_reason
        assert host.faults == {"frame-too-large": 1}


async def test_a_frame_that_dribbles_in_is_given_up() -> None:
    host = Node(0, limits=NetworkLimits(client=quick(frame_s=0.5)))
    host.network.start(LOOPBACK)
    async with running(host):
        link = await connect(host, Node(1, role="client"))
        link.send_frame(struct.pack(">IB", 1000, 2))
        for _ in range(50):
            link.send_frame(b"x")
            await asyncio.sleep(0.1)
            if link.closed:
                break
        assert host.faults == {"slow-frame": 1}


async def test_silent_links_are_cut_and_idle_ones_kept_by_pings() -> None:
    times = quick(ping_s=0.5, silence_s=2.5)
    limits = NetworkLimits(link=times, client=times)
    first, second = await mesh(2, limits=limits)
    client = Node(9, role="client", limits=limits)
    link = await connect(first, client)
    link.transport.pause_reading()  # nobody tends this one, and it answers no pings
    async with running(first, second):
        await until(lambda: not first.network.clients)
        assert first.network.peers == (second.key,)
    link.abort("done")


async def test_repeated_faults_ban_a_key_for_a_while() -> None:
    host = Node(0, limits=NetworkLimits(fault_points=10))
    host.network.start(LOOPBACK)
    async with running(host):
        client = Node(1, role="client")
        link = await connect(host, client)
        for _ in range(9):
            host.network.fault(client.key, RemoteFault("stale-vote"))
        assert not link.closed
        host.network.fault(client.key, RemoteFault("malformed"))
        await until(lambda: link.closed)
        assert "banned" in link.close_reason
        with pytest.raises(RemoteFault, match="banned"):
            await connect(host, client)
        other = await connect(host, Node(2, role="client"))
        host.network._bans._records[client.key].until -= host.parts.limits.ban_s
        again = await connect(host, client)
        for each in (other, again):
            each.close("done")


def test_bans_grow_and_faults_are_forgiven() -> None:
    bans = Bans(points=60, ban_s=60)
    assert not bans.record(b"k", 50, now=0)
    assert not bans.record(b"k", 50, now=59)  # nearly all of the first is forgiven
    assert bans.record(b"k", 50, now=60)
    assert bans.banned_for(b"k", 61) == pytest.approx(59)
    assert bans.record(b"k", 60, now=200)
    assert bans.banned_for(b"k", 200) == 120
    for number in range(5000):
        bans.record(number.to_bytes(2, "big"), 1, now=300)
    assert len(bans._records) == Bans.REMEMBERED


# -- pressure --------------------------------------------------------------------------------------


async def test_a_slow_peer_is_dropped_and_the_others_are_not() -> None:
    limits = NetworkLimits(client=LinkLimits(send_queue_bytes=4_000_000))
    host, good = await mesh(2, limits=limits)
    slow = Node(2, role="client", takes=False)
    link = await connect(host, slow)
    link.transport.pause_reading()
    async with running(host, good):
        for number in range(200):
            host.network._clients and host.recorder.links[-1].send(Channel.REPLY, bytes(200_000))
            host.network.send(good.key, Channel.MACHINE, number.to_bytes(4, "big"))
            await asyncio.sleep(0.001)
        await until(lambda: not host.network.clients)
        assert host.faults == {"slow-peer": 1}
        await until(lambda: len(good.recorder.frames) == 200)
        link.abort("done")


async def test_a_reader_that_is_behind_pushes_back_instead_of_filling_memory() -> None:
    bounds = LinkLimits(receive_queue_bytes=100_000, send_queue_bytes=1 << 30)
    limits = NetworkLimits(link=bounds, client=bounds)
    host = Node(0, takes=False, limits=limits)
    host.network.start(LOOPBACK)
    async with running(host):
        link = await connect(host, Node(1, role="client", limits=limits))
        for _ in range(500):
            link.send(Channel.REQUEST, bytes(50_000))
        await until(lambda: host.recorder.links)
        served = host.recorder.links[0]
        await until(lambda: served._read_paused)
        await asyncio.sleep(0.3)
        assert served._inbox_bytes < 1_000_000
        assert link.unsent_bytes > 10_000_000
        taken = 0
        while taken < 500:  # and nothing was lost
            if served.take() is None:
                await asyncio.sleep(0.005)
            else:
                taken += 1
        link.close("done")


async def test_a_flood_is_slowed_to_its_allowance() -> None:
    limits = NetworkLimits(client=LinkLimits(frames_per_s=1000))
    host = Node(0, limits=limits)
    host.network.start(LOOPBACK)
    async with running(host):
        link = await connect(host, Node(1, role="client"))
        for _ in range(3000):
            link.send(Channel.REQUEST, b"x" * 1000)
        began = asyncio.get_running_loop().time()
        await until(lambda: len(host.recorder.frames) == 3000)
        assert asyncio.get_running_loop().time() - began > 1.2
        link.close("done")


# -- small parts -----------------------------------------------------------------------------------


def test_the_splitter_gives_the_same_frames_however_the_stream_is_cut() -> None:
    stream = (
        frame(Channel.MACHINE, b"one")
        + frame(Channel.REQUEST, b"")
        + frame(Channel.REPLY, b"three" * 100)
    )
    expected = [(1, b"one"), (2, b""), (3, b"three" * 100)]
    for step in (1, 2, 5, 7, 100, len(stream)):
        splitter = Splitter(1000)
        found = [
            item
            for start in range(0, len(stream), step)
            for item in splitter.feed(stream[start : start + step])
        ]
        assert found == expected
        assert not splitter.unfinished
    with pytest.raises(FrameFault, match="frame-too-large"):
        list(Splitter(10).feed(frame(Channel.MACHINE, bytes(11))))


@pytest.mark.parametrize("text", ["host", "host:", ":80", "h:99999", "h:-1", "zz@h:1", "00@h:1"])
def test_bad_addresses_are_refused(text: str) -> None:
    with pytest.raises(LocalFault, match="is not allowed"):
        NodeAddress.parse(text)


def test_addresses_are_read_as_they_are_written() -> None:
    for text in ("127.0.0.1:80", "[::1]:80", f"{'ab' * 32}@node.example:1"):
        assert str(NodeAddress.parse(text)) == text


@pytest.mark.parametrize(
    "scenario",
    [
        test_frames_of_one_peer_arrive_in_order,
        test_simultaneous_dials_leave_one_link_that_both_ends_keep,
        test_a_restarted_peer_is_found_again,
        test_clients_are_served_up_to_a_bound,
        test_a_machine_in_the_middle_cannot_pass_the_handshake_on,
        test_plain_text_and_silence_before_tls_cost_little,
        test_silence_before_tls_is_given_up,
        test_an_oversized_frame_after_the_handshake_is_refused,
        test_a_slow_peer_is_dropped_and_the_others_are_not,
        test_a_reader_that_is_behind_pushes_back_instead_of_filling_memory,
    ],
)
def test_the_same_on_uvloop(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    """The nodes run on uvloop, whose streams and TLS are not asyncio's."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


async def test_a_tls_handshake_that_never_ends_is_counted_as_slow() -> None:
    """asyncio ends it with an error that is no timeout by its type."""
    host = Node(0, limits=NetworkLimits(link=LinkLimits(tls_s=0.2)))
    host.network.start(LOOPBACK)
    async with running(host):
        _, writer = await asyncio.open_connection("127.0.0.1", host.network.port)
        writer.write(b"\x16")
        await until(lambda: host.faults == {"timeout": 1})
        writer.close()
