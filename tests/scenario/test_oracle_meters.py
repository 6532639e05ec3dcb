"""Readings and closing intervals on the real ledger of the oracle chain."""

from random import Random

import pytest
from msgspec import structs
from tests.oracle_world import (
    CHAIN,
    FIRST,
    GRACE_MS,
    INTERVAL_NETWORK_MS,
    NETWORK_MS,
    OWNER,
    RELAYER,
    Device,
    OracleWorld,
)
from tests.stages import spread

from gridtokenx.core.codec import encode
from gridtokenx.core.keys import KeyedHashSigner, KeyedHashVerifier, sha256
from gridtokenx.core.merkle import merkle_root
from gridtokenx.interchain import calls
from gridtokenx.interchain.apps import registry
from gridtokenx.interchain.apps.meter_report import Quality
from gridtokenx.interchain.apps.registry import DeviceKind
from gridtokenx.interchain.packets import Delivered, Refused
from gridtokenx.ledger.readings import (
    FLAG_CLOCK_UNCERTAIN,
    FLAG_REPLACED,
    FLAG_ROLLED_OVER,
    RETAINED_BOUNDARIES,
)
from gridtokenx.ledger.runtime import TRANSACTION_WEIGHT, InvalidTransaction
from gridtokenx.ledger.transactions import Transaction, sign_transaction
from gridtokenx.oracle.chain.admission import READINGS_PER_INTERVAL, watermark
from gridtokenx.oracle.chain.dispatch import (
    EMPTY_QUEUE,
    QUEUES,
    RETRIES,
    RETRY_MS,
    Dispatch,
    PacketRefused,
)
from gridtokenx.oracle.chain.meters import (
    DEVICES_PER_BLOCK,
    OUTCOMES,
    SCHEDULE,
    IntervalClosed,
    last_closed,
)
from gridtokenx.oracle.chain.registry import DEVICES, ORDER
from gridtokenx.oracle.chain.relaying import (
    FAILING_TIMES,
    QUOTA_WINDOW_MS,
    WEIGHT_PER_WINDOW,
    used,
)

SOLAR = DeviceKind.SOLAR


@pytest.fixture
def world() -> OracleWorld:
    return OracleWorld()


@pytest.fixture
def meter(world: OracleWorld) -> Device:
    device = Device("meter")
    world.register(device)
    return device


# -- who counts ------------------------------------------------------------------------------------


def test_devices_come_by_packet_alone(world: OracleWorld) -> None:
    """A reading of a device that no packet registered is refused, by the pool and by a block."""
    stranger = Device("stranger")
    reading = stranger.reading(0)
    with pytest.raises(InvalidTransaction, match="unknown-device"):
        world.ledger.admit(world.state, reading, world.now_ms)
    assert world.block(reading) == ["refused"]
    world.register(stranger)
    assert world.block(reading) == ["ok"]


def test_a_registration_that_the_consortium_never_sent_is_refused(world: OracleWorld) -> None:
    device = Device("invented")
    update, receive = world.registry_packet([device.registration()])
    batch = registry.decode_registrations(receive.packet.payload)
    (registration,) = batch.registrations
    bolder = structs.replace(registration, rating_w=10**6)
    payload = encode(structs.replace(batch, registrations=(bolder,)))
    forged = structs.replace(receive, packet=structs.replace(receive.packet, payload=payload))
    assert world.block(world.relay(update, forged)) == ["ok", "bad-proof"]
    assert ORDER.length(world.state) == 0


def test_older_revisions_change_nothing(world: OracleWorld) -> None:
    device = Device("revised", rating_w=5_000)
    first = device.registration()
    device.rating_w = 7_000
    world.block(world.relay(*world.registry_packet([device.registration()])))
    world.block(world.relay(*world.registry_packet([first])))
    (held,) = [DEVICES.get(world.state, device.device)]
    assert held is not None
    assert held.registration.rating_w == 7_000
    assert ORDER.length(world.state) == 1


def test_a_key_change_keeps_the_device_and_retires_the_old_key(
    world: OracleWorld, meter: Device
) -> None:
    assert world.block(meter.reading(0, 100)) == ["ok"]
    old_key_reading = meter.reading(1, 150)
    meter.signer = KeyedHashSigner(sha256(b"new key"))
    world.register(meter)
    assert world.block(old_key_reading) == ["refused"]
    meter.sequence = 0
    world.run_to(INTERVAL_NETWORK_MS)
    assert world.block(meter.reading(1, 160)) == ["ok"]
    world.close(0)
    assert world.entry(meter, 0).import_wh == 60


def test_one_key_cannot_be_two_devices(world: OracleWorld, meter: Device) -> None:
    thief = Device("thief")
    thief.signer = meter.signer
    assert world.block(world.relay(*world.registry_packet([thief.registration()]))) == ["ok", "ok"]
    (event,) = world.events(calls.PacketReceived)
    assert isinstance(event.acknowledgement, Refused)
    assert event.acknowledgement.code == "key-in-use"


def test_a_withdrawn_device_is_settled_and_then_left_out(world: OracleWorld) -> None:
    solar = Device("withdrawn", SOLAR)
    world.register(solar)
    world.block(solar.reading(0))
    world.run_to(INTERVAL_NETWORK_MS)
    world.block(solar.reading(1, 0, 500))
    withdrawn = world.registry_packet([solar.registration(active=False)])
    assert world.block(world.relay(*withdrawn)) == ["ok", "ok"]
    assert world.block(solar.reading(1, 0, 500)) == ["refused"]
    world.close(7)
    assert {interval for _, interval in world.entries} == set(range(FIRST, FIRST + 5))
    assert [each.energy_wh for each in world.attested.values()] == [500]


# -- what a reading must be ------------------------------------------------------------------------


def altered(transaction: Transaction, old: bytes, new: bytes) -> Transaction:
    call = transaction.body.calls[0]
    assert old in call
    body = structs.replace(transaction.body, calls=(call.replace(old, new),))
    return Transaction(body, transaction.signature)


def test_an_altered_reading_has_no_valid_signature(world: OracleWorld, meter: Device) -> None:
    """Whoever carries a reading can drop it but not change it."""
    reading = meter.reading(0, 1_234)
    check = reading.signature_check()
    assert KeyedHashVerifier().verify(check.public_key, check.message, check.signature)
    check = altered(reading, encode(1_234), encode(1_235)).signature_check()
    assert not KeyedHashVerifier().verify(check.public_key, check.message, check.signature)


@pytest.mark.parametrize(
    ("code", "reading"),
    [
        ("off-boundary", {"boundary": 1, "skew_ms": -600_000}),
        ("before-registration", {"boundary": -1}),
        ("register-backwards", {"boundary": 1, "import_wh": 999}),
        ("beyond-rating", {"boundary": 1, "import_wh": 1_000_000}),
        ("conflicting-registers", {"boundary": 0, "import_wh": 1_001}),
    ],
)
def test_refused_readings(
    world: OracleWorld, meter: Device, code: str, reading: dict[str, int]
) -> None:
    """A refused reading changes nothing but its sequence, and the device goes on."""
    assert world.block(meter.reading(0, 1_000)) == ["ok"]
    world.run_to(INTERVAL_NETWORK_MS)
    assert world.block(meter.reading(**reading)) == [code]
    assert world.block(meter.reading(1, 1_300)) == ["ok"]
    world.close(0)
    assert world.entry(meter, 0).import_wh == 300
    assert world.entry(meter, 0).quality == Quality.GOOD
    assert watermark(world.state, meter.device).sequence == 3


def test_a_reading_ahead_of_time_waits_and_keeps_its_number(
    world: OracleWorld, meter: Device
) -> None:
    """It used to fail, its number was used up, and the meter never sent those registers again."""
    world.block(meter.reading(0, 1_000))
    ahead_ms = world.chain.meters._parameters.ahead_ms
    world.run_to(INTERVAL_NETWORK_MS - ahead_ms - 2_000)
    early = meter.reading(1, 1_300)
    world.ledger.admit(world.state, early, world.now_ms)
    assert not world.ledger.admission.ready(world.state, early.body)
    assert world.block(early, at_ms=INTERVAL_NETWORK_MS - ahead_ms - 1) == ["refused"]
    assert watermark(world.state, meter.device).sequence == 1
    assert world.block(early, at_ms=INTERVAL_NETWORK_MS - ahead_ms) == ["ok"]
    world.close(0)
    assert world.entry(meter, 0).quality == Quality.GOOD
    with pytest.raises(InvalidTransaction, match="premature"):
        world.ledger.admit(world.state, meter.reading(10, 5_000), world.now_ms)


def test_a_replayed_reading_is_refused(world: OracleWorld, meter: Device) -> None:
    reading = meter.reading(0, 5)
    assert world.block(reading, reading) == ["refused", "ok"]
    with pytest.raises(InvalidTransaction, match="nonce-used"):
        world.ledger.admit(world.state, reading, world.now_ms)
    other_chain = sign_transaction(meter.signer, sha256(b"other"), 9, [])
    with pytest.raises(InvalidTransaction, match="wrong-chain"):
        world.ledger.admit(world.state, other_chain, world.now_ms)


def test_a_flood_from_one_device_is_bounded(world: OracleWorld, meter: Device) -> None:
    flood = [meter.reading(0, 5) for _ in range(READINGS_PER_INTERVAL + 10)]
    world.check = False
    codes = world.block(*flood)
    assert codes.count("ok") == READINGS_PER_INTERVAL
    world.run_to(INTERVAL_NETWORK_MS + 1_000)
    assert world.block(meter.reading(1, 6)) == ["ok"]


def test_only_its_role_may_send(world: OracleWorld, meter: Device) -> None:
    reading = meter.reading(0).body.calls[0]
    assert reading
    relayed = world.registry_packet([meter.registration()])
    by_device = sign_transaction(meter.signer, CHAIN, 50, relayed)
    by_device_observation = structs.replace(world.observe(0, 0, 5).body, sender=meter.device)
    for transaction in (by_device, Transaction(by_device_observation, bytes(64))):
        with pytest.raises(InvalidTransaction):
            world.ledger.admit(world.state, transaction, world.now_ms)
    fee = sign_transaction(RELAYER, CHAIN, 60, relayed, fee=1)
    with pytest.raises(InvalidTransaction, match="fee-not-accepted"):
        world.ledger.admit(world.state, fee, world.now_ms)


def test_a_relayer_has_a_quota_and_failing_is_dear(world: OracleWorld) -> None:
    """Relaying was free without end, also of calls that can only fail."""
    update, _ = world.registry_packet([Device("any").registration()])
    unknown = structs.replace(update, client_id="nobody")
    failing = TRANSACTION_WEIGHT + FAILING_TIMES * calls.WEIGHTS[calls.UpdateClient]
    world.check = False
    allowed = -(-WEIGHT_PER_WINDOW // failing)
    codes = [world.block(world.relay(unknown), at_ms=100 * i)[0] for i in range(1, allowed + 2)]
    assert codes == ["unknown-client"] * allowed + ["refused"]
    with pytest.raises(InvalidTransaction, match="relayer-quota"):
        world.ledger.admit(world.state, world.relay(update), world.now_ms)
    world.run_to(2 * QUOTA_WINDOW_MS)
    world.block()
    assert world.block(world.relay(update)) == ["ok"]
    assert used(world.state, RELAYER.public_key) == calls.relay_weight([update])


# -- how intervals close ---------------------------------------------------------------------------


def test_an_interval_closes_with_the_difference_of_its_registers(
    world: OracleWorld, meter: Device
) -> None:
    world.block(meter.reading(0, 1_000, 2_000))
    world.run_to(INTERVAL_NETWORK_MS + 8_000)
    assert world.block(meter.reading(1, 1_250, 2_040)) == ["ok"]
    (closed,) = world.events(IntervalClosed)
    entry = world.entry(meter, 0)
    assert (entry.import_wh, entry.export_wh, entry.generation_wh) == (250, 40, None)
    assert entry.quality == Quality.GOOD
    assert closed.outcome.root == merkle_root([encode(entry)])
    assert closed.outcome == last_closed(world.state)
    assert world.now_ms == NETWORK_MS + INTERVAL_NETWORK_MS + GRACE_MS


def test_a_reading_that_a_leader_held_back_still_counts_within_the_grace(
    world: OracleWorld, meter: Device
) -> None:
    """The grace outlasts the request timer and a view change, so omission does not pay."""
    world.block(meter.reading(0))
    parameters = world.chain.meters._parameters
    included_ms = INTERVAL_NETWORK_MS + parameters.request_and_view_change_ms
    world.run_to(included_ms)
    world.block(meter.reading(1, 300))
    world.close(0)
    assert world.entry(meter, 0).quality == Quality.GOOD


def test_a_missing_boundary_is_estimated_and_trued_up(world: OracleWorld, meter: Device) -> None:
    world.block(meter.reading(0))
    world.run_to(INTERVAL_NETWORK_MS)
    world.block(meter.reading(1, 300, 50))
    world.close(1)
    estimated = world.entry(meter, 1)
    assert (estimated.import_wh, estimated.export_wh) == (300, 0)
    assert estimated.quality == Quality.SUBSTITUTED
    world.block(meter.reading(2, 700, 80))
    world.run_to(3 * INTERVAL_NETWORK_MS)
    world.block(meter.reading(3, 800, 90))
    world.close(2)
    corrected = world.entry(meter, 1)
    assert (corrected.import_wh, corrected.export_wh) == (400, 30)
    assert (corrected.quality, corrected.corrects) == (Quality.GOOD, FIRST + 1)
    assert world.total(meter, "import_wh") == 800


def test_a_lost_reading_loses_no_energy(world: OracleWorld, meter: Device) -> None:
    """Only later registers arrive: the sum is exact, the split interpolated."""
    world.block(meter.reading(0))
    world.close(1)
    world.run_to(3 * INTERVAL_NETWORK_MS)
    world.block(meter.reading(3, 901))
    world.close(2)
    assert [world.entry(meter, i).import_wh for i in range(3)] == [300, 300, 301]
    assert {world.entry(meter, i).quality for i in range(3)} == {Quality.UNCERTAIN}


def test_estimates_do_not_outlive_the_window_and_late_energy_is_booked_on_arrival(
    world: OracleWorld, meter: Device
) -> None:
    world.block(meter.reading(0))
    world.run_to(INTERVAL_NETWORK_MS)
    world.block(meter.reading(1, 300))
    world.close(3)
    assert [world.entry(meter, i).import_wh for i in range(4)] == [300] * 4
    world.close(4)
    assert [world.entry(meter, i).import_wh for i in range(5)] == [300, 0, 0, 0, 0]
    world.run_to(8 * INTERVAL_NETWORK_MS)
    for boundary in range(2, 9):
        world.block(meter.reading(boundary, 300 * boundary))
    world.close(7)
    assert world.entry(meter, 1).import_wh == 0
    assert world.entry(meter, 7).import_wh == 300 + 3 * 300
    assert world.entry(meter, 7).quality == Quality.UNCERTAIN
    assert world.total(meter, "import_wh") == 2_400


def test_a_meter_that_never_spoke_closes_with_nothing(world: OracleWorld, meter: Device) -> None:
    world.close(0)
    entry = world.entry(meter, 0)
    assert (entry.import_wh, entry.export_wh, entry.quality) == (0, 0, Quality.SUBSTITUTED)


def test_an_empty_network_reports_empty_intervals(world: OracleWorld) -> None:
    world.close(1)
    assert [report.interval for report in world.reports] == [FIRST, FIRST + 1]
    assert all(report.entries == () for report in world.reports)


def test_flags_and_stamps_lower_the_quality(world: OracleWorld) -> None:
    doubtful, skewed, overloaded = Device("doubtful"), Device("skewed"), Device("overloaded")
    world.register(doubtful, skewed, overloaded)
    world.block(*(device.reading(0) for device in (doubtful, skewed, overloaded)))
    world.run_to(INTERVAL_NETWORK_MS)
    world.block(
        doubtful.reading(1, 10, flags=FLAG_CLOCK_UNCERTAIN),
        skewed.reading(1, 10, skew_ms=60_000),
        overloaded.reading(1, 7_000),
    )
    world.close(0)
    assert world.entry(doubtful, 0).quality == Quality.UNCERTAIN
    assert world.entry(skewed, 0).quality == Quality.UNCERTAIN
    assert world.entry(overloaded, 0).quality == Quality.BAD


def test_replacement_and_rollover_are_explicit(world: OracleWorld) -> None:
    replaced, rolled = Device("replaced"), Device("rolled")
    world.register(replaced, rolled)
    world.block(replaced.reading(0, 5_000), rolled.reading(0, 99_999_800))
    world.run_to(INTERVAL_NETWORK_MS)
    world.block(
        replaced.reading(1, 7, flags=FLAG_REPLACED),
        rolled.reading(1, 100, flags=FLAG_ROLLED_OVER),
    )
    world.run_to(2 * INTERVAL_NETWORK_MS)
    world.block(replaced.reading(2, 57), rolled.reading(2, 150))
    world.close(1)
    assert [world.entry(replaced, i).import_wh for i in range(2)] == [0, 50]
    assert [world.entry(rolled, i).import_wh for i in range(2)] == [300, 50]


def test_after_a_silence_of_the_chain_meters_get_one_more_grace(
    world: OracleWorld, meter: Device
) -> None:
    """The first block after an outage closes nothing: what meters kept comes in first."""
    world.block(meter.reading(0))
    stopped_ms = 4 * INTERVAL_NETWORK_MS
    world.block(at_ms=stopped_ms)
    assert world.reports == []
    for boundary in range(1, 5):
        world.block(meter.reading(boundary, 100 * boundary))
    world.run_to(stopped_ms + GRACE_MS + 3_000)
    assert [world.entry(meter, i).import_wh for i in range(3)] == [100] * 3
    assert {world.entry(meter, i).quality for i in range(3)} == {Quality.GOOD}


def test_a_chain_with_rare_blocks_keeps_up(world: OracleWorld) -> None:
    """Every block follows a silence here; each second one closes what is due, several at once."""
    for minute in range(1, 31):
        world.block(at_ms=60_000 * minute)
    passed = 30 * 60_000 // INTERVAL_NETWORK_MS
    assert SCHEDULE.get(world.state).interval >= FIRST + passed - 4


# -- generation ------------------------------------------------------------------------------------


def test_generation_is_attested_once_after_the_window_as_trued_up(world: OracleWorld) -> None:
    solar = Device("solar", SOLAR)
    world.register(solar)
    world.block(solar.reading(0, 0, 1_000))
    world.run_to(INTERVAL_NETWORK_MS)
    world.block(solar.reading(1, 3, 1_400))
    world.close(1)
    assert world.entry(solar, 1).generation_wh == 0
    world.block(solar.reading(2, 3, 2_000))
    world.close(2)
    assert world.attested == {}
    entry = world.entry(solar, 1)
    assert (entry.generation_wh, entry.import_wh, entry.export_wh) == (600, 0, 0)
    world.close(3)
    (first,) = world.attested.values()
    assert (first.device, first.interval, first.energy_wh) == (solar.device, FIRST, 400)
    assert (first.owner, first.zone, first.source) == (OWNER, 1, "ES100")
    world.close(8)
    assert [each.energy_wh for each in world.attested.values()] == [400, 600]


def test_unbelievable_generation_is_never_attested(world: OracleWorld) -> None:
    solar = Device("tampered", SOLAR, rating_w=1_000)
    world.register(solar)
    world.block(solar.reading(0))
    world.run_to(INTERVAL_NETWORK_MS)
    world.block(solar.reading(1, 0, 900))
    world.run_to(2 * INTERVAL_NETWORK_MS)
    world.block(solar.reading(2, 0, 1_000))
    world.close(5)
    assert world.entry(solar, 0).quality == Quality.BAD
    assert [each.energy_wh for each in world.attested.values()] == [100]


def test_storage_and_sensors_are_recorded_but_not_reported(world: OracleWorld) -> None:
    battery = Device("battery", DeviceKind.BATTERY)
    world.register(battery)
    assert world.block(battery.reading(0, 5, 5)) == ["ok"]
    world.close(0)
    assert world.entries == {}
    assert watermark(world.state, battery.device).sequence == 1


# -- reports on their way --------------------------------------------------------------------------


def test_large_networks_report_in_chunks_over_several_blocks() -> None:
    world = OracleWorld(check=False)
    devices = [Device(f"meter {i}") for i in range(DEVICES_PER_BLOCK + 300)]
    world.register(*devices)
    world.run_to(INTERVAL_NETWORK_MS + GRACE_MS)
    assert world.reports == []
    assert SCHEDULE.get(world.state).position == DEVICES_PER_BLOCK
    world.block()
    assert [report.chunk for report in world.reports] == list(range(6))
    assert {report.chunks for report in world.reports} == {6}
    entries = [entry for report in world.reports for entry in report.entries]
    assert {report.root for report in world.reports} == {merkle_root([encode(e) for e in entries])}
    assert [e.device for e in entries] == sorted(device.device for device in devices)
    assert world.ledger.check_invariants(world.head.state) == []


def test_a_report_that_cannot_leave_waits(
    world: OracleWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interchain takes only so many open packets: nothing is lost, and order is kept."""
    monkeypatch.setattr("gridtokenx.interchain.module.MAX_OPEN_PER_PORT", 2)
    world.close(3)
    assert [report.interval for report in world.reports] == [FIRST, FIRST + 1]
    queue = QUEUES.read(world.state, EMPTY_QUEUE, "consortium")
    assert queue.tail - queue.head == 2
    monkeypatch.setattr("gridtokenx.interchain.module.MAX_OPEN_PER_PORT", 512)
    world.block()
    assert [report.interval for report in world.reports] == [FIRST + i for i in range(4)]


def test_a_refused_report_is_sent_again_some_times_and_then_given_up(world: OracleWorld) -> None:
    """It was not sent again at all: one refusal by the consortium lost an interval's energy."""
    world.run_to(INTERVAL_NETWORK_MS + GRACE_MS)
    (sent,) = world.events(calls.PacketSent)
    app = world.chain.interchain._apps[sent.packet.port]
    (dispatch,) = (module for module in world.ledger.modules if isinstance(module, Dispatch))
    ctx = _context(world)
    left = []
    for _ in range(RETRIES + 1):
        dispatch.end_block(ctx)
        ctx.events.clear()
        app.on_acknowledge(ctx, sent.packet, Refused(code="unknown-device", message="why"))
        left += [event.retries_left for event in ctx.events if isinstance(event, PacketRefused)]
        dispatch.end_block(ctx)
        assert not [event for event in ctx.events if isinstance(event, calls.PacketSent)]
        ctx.timestamp_ms += RETRY_MS
        dispatch.end_block(ctx)
        again = [event.packet for event in ctx.events if isinstance(event, calls.PacketSent)]
        assert [packet.payload for packet in again] == [sent.packet.payload] * bool(left[-1])
    assert left == [3, 2, 1, 0]
    assert list(dispatch.check_invariants(ctx.state)) == []


def test_a_refused_report_that_arrives_after_all_is_forgotten(world: OracleWorld) -> None:
    world.run_to(INTERVAL_NETWORK_MS + GRACE_MS)
    (sent,) = world.events(calls.PacketSent)
    app = world.chain.interchain._apps[sent.packet.port]
    ctx = _context(world)
    for ack in (Refused(code="no", message="why"), Delivered(b"")) * 2:
        app.on_acknowledge(ctx, sent.packet, ack)
    assert [event.retries_left for event in ctx.events] == [3, 3]


def test_a_lost_report_is_sent_again_and_a_refused_one_recorded(world: OracleWorld) -> None:
    world.run_to(INTERVAL_NETWORK_MS + GRACE_MS)
    (sent,) = world.events(calls.PacketSent)
    app = world.chain.interchain._apps[sent.packet.port]
    ctx = _context(world)
    app.on_timeout(ctx, sent.packet)
    queue = QUEUES.read(ctx.state, EMPTY_QUEUE, "consortium")
    assert queue.tail == queue.head + 1
    app.on_acknowledge(ctx, sent.packet, Refused(code="no", message="why"))
    assert [type(event) for event in ctx.events] == [PacketRefused]


def _context(world: OracleWorld):
    from gridtokenx.ledger.runtime import Context

    return Context(CHAIN, world.head.height, 0, world.now_ms, world.state)


# -- watermarks ------------------------------------------------------------------------------------


def test_the_watermark_is_what_is_committed_without_gap(world: OracleWorld, meter: Device) -> None:
    assert watermark(world.state, meter.device).sequence == 0
    readings = [meter.reading(0, 0, skew_ms=i) for i in range(4)]
    world.block(readings[2], readings[0])
    assert watermark(world.state, meter.device).sequence == 1
    world.block(readings[1])
    assert watermark(world.state, meter.device).sequence == 3


def test_a_gap_that_no_device_can_fill_is_passed_over(world: OracleWorld, meter: Device) -> None:
    world.block(meter.reading(0, sequence=1))
    world.block(meter.reading(0, sequence=RETAINED_BOUNDARIES + 10))
    assert watermark(world.state, meter.device).sequence == 10
    world.block(meter.reading(0, sequence=11))
    assert watermark(world.state, meter.device).sequence == 11


# -- a long day ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", spread(range(3), 1))
def test_a_day_of_loss_delay_doubling_and_disorder(seed: int) -> None:
    """Hundreds of blocks; at the end every device's reports are exactly its registers' movement."""
    random = Random(seed)
    world = OracleWorld()
    meters = [Device(f"meter {i}") for i in range(3)]
    panels = [Device(f"panel {i}", SOLAR) for i in range(2)]
    world.register(*meters, *panels)
    days, pending = 14, []
    registers = {
        device.name: (random.randrange(10**6), random.randrange(10**6))
        for device in (*meters, *panels)
    }
    start, end = dict(registers), {}
    for boundary in range(days + 1):
        for device in (*meters, *panels):
            imported, exported = registers[device.name]
            solar = device.kind is SOLAR
            registers[device.name] = (
                imported + (0 if solar else random.randrange(2_000)),
                exported + random.randrange(3_000),
            )
            reading = device.reading(boundary, imported, exported)
            end[device.name] = (imported, exported)
            must_arrive = boundary in (0, days)
            if must_arrive or random.random() < 0.7:
                delay = 0 if must_arrive else random.choice([0, 0, 0, 5, 40, 150])
                pending += [(boundary * 30 + delay + random.randrange(6), reading)] * random.choice(
                    [1, 2]
                )
    while world.now_ms < NETWORK_MS + (days + 10) * INTERVAL_NETWORK_MS + GRACE_MS:
        second = (world.now_ms - NETWORK_MS) // 1_000
        arriving = [reading for at, reading in pending if at <= second]
        pending = [(at, reading) for at, reading in pending if at > second]
        random.shuffle(arriving)
        codes = world.block(*arriving)
        assert set(codes) <= {"ok", "refused"}, codes
    assert len(world.blocks) > 500
    for device in meters:
        (imported, exported), (imported_then, exported_then) = end[device.name], start[device.name]
        assert world.total(device, "import_wh") == imported - imported_then
        assert world.total(device, "export_wh") == exported - exported_then
    for device in panels:
        moved = end[device.name][1] - start[device.name][1]
        assert world.total(device, "generation_wh") == moved
        assert (
            sum(a.energy_wh for (d, _), a in world.attested.items() if d == device.device) == moved
        )
    assert len([1 for _ in OUTCOMES.scan(world.state)]) == days + 10
