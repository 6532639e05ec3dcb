"""A real Mosquitto with the settings that we write: who gets in, who may say what, what is kept."""

import dataclasses
import ssl
import subprocess
from pathlib import Path

import pytest
from tests.mosquitto_world import (
    World,
    key_of,
    needs_mosquitto,
    received,
    refusal,
    running,
    seed_of,
)

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import Ed25519Signer, sha256
from gridtokenx.host.broker import broker_client, parse_broker
from gridtokenx.host.certificates import Authority, Role, load_chain, pem
from gridtokenx.lab.deploy.mosquitto import client_certificate, revocation_list, write_mosquitto
from gridtokenx.lab.deploy.mosquitto_process import MosquittoProcess, own_user
from gridtokenx.lab.ports import free_ports
from gridtokenx.ledger.readings import (
    ALL_BATCHES,
    ALL_READINGS,
    announce_topic,
    batch_topic,
    batch_watermark_topic,
    reading_topic,
    watermark_topic,
)

pytestmark = [pytest.mark.e2e, pytest.mark.slow, needs_mosquitto]
ZONE = 3
METER, OTHER, ORACLE, COLLECTOR = "meter", "other meter", "oracle", "collector"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, oracles=[key_of(ORACLE)], concentrators=[key_of(COLLECTOR)])


async def test_a_device_speaks_and_hears_under_its_own_name_only(world: World) -> None:
    mine, others = reading_topic(ZONE, key_of(METER)), reading_topic(ZONE, key_of(OTHER))
    async with running(world), world.client(ORACLE) as oracle, world.client(METER) as meter:
        await oracle.subscribe("gtx/v1/#", qos=1)
        await oracle.publish(watermark_topic(key_of(OTHER)), b"for the other", qos=1, retain=True)
        for topic in (
            others,
            announce_topic(ZONE, key_of(OTHER)),
            watermark_topic(key_of(METER)),
            watermark_topic(key_of(OTHER)),
            batch_topic(key_of(METER)),
            batch_topic(key_of(COLLECTOR)),
            "elsewhere",
        ):
            await meter.publish(topic, b"forged", qos=1)
        await meter.publish(mine, b"true", qos=1)
        await meter.publish(announce_topic(ZONE, key_of(METER)), b"here", qos=1)
        for filter_ in ("#", ALL_READINGS, others, watermark_topic(key_of(OTHER)), "gtx/v1/#"):
            await meter.subscribe(filter_, qos=1)
        await meter.subscribe(watermark_topic(key_of(METER)), qos=1)
        await oracle.publish(watermark_topic(key_of(METER)), b"for you", qos=1)
        heard = [pair for pair in await received(oracle, b"for you") if "watermark" not in pair[0]]
        assert heard == [(mine, b"true"), (announce_topic(ZONE, key_of(METER)), b"here")]
        assert await received(meter, b"for you") == [(watermark_topic(key_of(METER)), b"for you")]


async def test_a_concentrator_publishes_its_own_batches_only(world: World) -> None:
    own = batch_topic(key_of(COLLECTOR))
    async with running(world), world.client(ORACLE) as oracle, world.client(COLLECTOR) as collector:
        for filter_ in (ALL_BATCHES, ALL_READINGS):
            await oracle.subscribe(filter_, qos=1)
        await collector.publish(reading_topic(ZONE, key_of(METER)), b"forged", qos=1)
        await collector.publish(batch_topic(key_of(METER)), b"forged", qos=1)
        await collector.publish(own, b"x" * 60_000, qos=1)
        assert await received(oracle, b"x" * 60_000) == [(own, b"x" * 60_000)]
        answers = batch_watermark_topic(key_of(COLLECTOR), 7)
        await collector.subscribe(batch_watermark_topic(key_of(COLLECTOR), None), qos=1)
        await oracle.publish(answers, b"up to here", qos=1)
        assert await received(collector, b"up to here") == [(answers, b"up to here")]


async def test_a_session_cannot_be_taken_over(world: World) -> None:
    """Whatever client id is claimed, the broker takes the name in the certificate."""
    async with running(world), world.client(METER) as rightful:
        thief = world.client(OTHER)
        thief._client._client_id = key_of(METER).hex().encode()
        async with thief:
            await rightful.subscribe(watermark_topic(key_of(METER)), qos=1)
            await rightful.publish(reading_topic(ZONE, key_of(METER)), b"still here", qos=1)
    assert "already connected" not in world.broker.log


async def test_who_has_no_good_certificate_is_refused_with_the_reason(world: World) -> None:
    other_authority = Authority.create("another", sha256(b"another authority"))
    expired = world.authority.issue(key_of(METER), key_of(METER).hex(), Role.DEVICE, days=0)
    stolen = client_certificate(world.authority, key_of(METER))
    async with running(world):
        assert "set broker_certificate" in await refusal(world.client_at(METER, world.bare()))
        foreign = client_certificate(other_authority, key_of(METER))
        assert "another authority" in await refusal(world.client(METER, certificate=foreign))
        assert "expired" in await refusal(world.client(METER, certificate=expired))
        assert await refusal(world.client(METER, certificate=stolen)) == "it was let in"
        crl = revocation_list(world.authority, [stolen])
        (world.directory / "crl.pem").write_bytes(crl)
        await world.broker.reload()
        assert "revoked" in await refusal(world.client(METER, certificate=stolen))
        assert await refusal(world.client(METER)) == "it was let in"


async def test_a_broker_that_is_not_the_right_one_is_named(world: World, tmp_path: Path) -> None:
    another = tmp_path / "another.pem"
    another.write_bytes(pem(Authority.create("another", sha256(b"x")).certificate))
    async with running(world):
        assert "not issued by the authority" in await refusal(world.client(METER, ca=another))
        plain = parse_broker(f"mqtt://localhost:{world.port}", None, "5")
        assert "without answering" in await refusal(world.client_at(METER, plain))
    assert "nobody listens" in await refusal(world.client(METER))


async def test_a_broker_with_another_name_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path, oracles=[key_of(ORACLE)], hosts=("broker.example",))
    async with running(world):
        assert "is not for localhost" in await refusal(world.client(METER))


async def test_a_brokers_expired_certificate_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue = Authority.issue
    monkeypatch.setattr(
        Authority, "issue", lambda *args, **more: issue(*args, **{**more, "days": 0})
    )
    write_mosquitto(world.directory, world.plan)
    monkeypatch.undo()
    async with running(world):
        assert "its certificate has expired" in await refusal(world.client(METER))


async def test_what_waits_for_a_client_survives_a_restart_of_the_broker(world: World) -> None:
    topic = reading_topic(ZONE, key_of(METER))
    async with running(world):
        async with world.client(ORACLE) as oracle:
            await oracle.subscribe(ALL_READINGS, qos=1)
        async with world.client(METER) as meter:
            for number in range(3):
                await meter.publish(topic, bytes([number]), qos=1)
    async with running(world), world.client(ORACLE) as oracle:
        waited = await received(oracle, bytes([2]))
        assert waited == [(topic, bytes([number])) for number in range(3)]


def test_our_own_bad_files_are_refused_at_start(world: World) -> None:
    path, home = world.home / "meter.pem", world.home
    path.write_bytes(pem(client_certificate(world.authority, key_of(METER))))
    address = world.bare()
    assert address.with_certificate(path, seed_of(METER)).certified
    with pytest.raises(LocalFault, match="is for key"):
        address.with_certificate(path, seed_of(OTHER))
    with pytest.raises(LocalFault, match="is no PEM key of"):
        address.with_certificate(path, path)
    with pytest.raises(LocalFault, match="absent"):
        address.with_certificate(home / "absent.pem", seed_of(METER))
    with pytest.raises(LocalFault, match="needs a broker at mqtts"):
        parse_broker("mqtt://localhost").with_certificate(path, seed_of(METER))
    expired = world.authority.issue(key_of(METER), "x", Role.DEVICE, days=0)
    path.write_bytes(pem(expired))
    with pytest.raises(LocalFault, match="have it issued again"):
        address.with_certificate(path, seed_of(METER))


def test_a_certificate_can_be_loaded_into_any_context(world: World) -> None:
    context = ssl.create_default_context(cafile=world.ca)
    load_chain(context, client_certificate(world.authority, key_of(METER)), seed_of(METER))


async def test_both_versions_of_the_protocol_are_spoken(world: World) -> None:
    topic = reading_topic(ZONE, key_of(METER))
    async with running(world), world.client(ORACLE) as oracle:
        await oracle.subscribe(ALL_READINGS, qos=1)
        for version in ("3.1.1", "5"):
            address = dataclasses.replace(world.address(METER), version=version)
            async with world.client_at(METER, address) as meter:
                await meter.publish(topic, version.encode(), qos=1)
        assert [payload for _, payload in await received(oracle, b"5")] == [b"3.1.1", b"5"]


async def test_a_name_and_a_password_open_a_broker_of_anothers_making(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    make = ["mosquitto_passwd", "-b", "-c", "users", "me", "secret"]
    subprocess.run(make, cwd=tmp_path, check=True)  # noqa: ASYNC221 - nothing runs yet
    (tmp_path / "mosquitto.conf").write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous false\npassword_file users\nuser {own_user()}\n"
    )
    broker = MosquittoProcess(tmp_path, port)
    await broker.start()
    try:
        signer = Ed25519Signer(seed_of(METER))
        for version in ("3.1.1", "5"):
            for login, outcome in (
                ("me:secret@", "it was let in"),
                ("me:wrong@", "it refuses the login: Not authorized"),
                ("", "it refuses the login: Not authorized"),
            ):
                address = parse_broker(f"mqtt://{login}127.0.0.1:{port}", None, version)
                client = broker_client(address, signer, "x", keepalive_s=9, queued_messages=9)
                assert await refusal(client) == outcome
    finally:
        await broker.stop()
