"""A fleet and four oracle nodes at a real Mosquitto, while brokers and oracles are killed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec import structs
from tests.e2e.test_devices_fleet import ZONE, Home, clock, committed, ended, until_committed
from tests.mosquitto_world import needs_mosquitto

from gridtokenx.devices.fleet.fleet import Fleet, FleetSettings, open_fleet
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.interchain.apps.registry import DeviceKind, DeviceRegistration
from gridtokenx.lab.bench.oracles import OracleBench, seed

pytestmark = [pytest.mark.e2e, pytest.mark.slow, needs_mosquitto]
PATIENCE_S = 180
TIME_SCALE = 360
"""A half hour of grid time every five seconds."""
OWNER = bytes(31) + b"\x01"


class Network:
    """The bench's oracles and broker, and the fleet's home."""

    def __init__(self, path: Path) -> None:
        (path / "fleet").mkdir()
        (path / "network").mkdir()
        self.home = Home(path / "fleet")
        self.home.ring.put("concentrator", seed("concentrator"))
        keys = {
            device.stem: self.home.ring.signer(device.stem).public_key
            for device in (path / "fleet" / "keys").glob("*.key")
        }
        self.bench = OracleBench(path / "network", 8_000, 500, 1, keys, TIME_SCALE)

    def settings(self, *, concentrator: bool) -> FleetSettings:
        genesis = self.bench.genesis
        return structs.replace(
            self.home.settings(0),
            broker=self.bench.broker_url,
            broker_protocol="5",
            broker_authority=self.bench.home / "broker-ca.pem",
            broker_certificates=self.bench.home / "clients",
            concentrator="concentrator" if concentrator else None,
            chain_id=genesis.chain_id.hex(),
            network_genesis_ms=genesis.clock.network_genesis_ms,
            grid_epoch_ms=genesis.clock.grid_epoch_ms,
            time_scale=TIME_SCALE,
        )

    def registrations(self) -> list[DeviceRegistration]:
        return [
            DeviceRegistration(
                key, key, OWNER, ZONE, DeviceKind[kind.upper()], 20_000, 1, active=True
            )
            for key, (_, kind) in self.home.devices.items()
        ]

    @asynccontextmanager
    async def fleet(self, *, concentrator: bool) -> AsyncIterator[Fleet]:
        settings = self.settings(concentrator=concentrator)
        async with open_fleet(settings, clock, Metrics(), NullLogger()) as devices:
            task = asyncio.create_task(devices.run())
            try:
                yield devices
            finally:
                await ended(task)


@pytest.mark.parametrize("concentrator", [False, True])
async def test_readings_reach_blocks_though_brokers_and_oracles_are_killed(
    tmp_path: Path, *, concentrator: bool
) -> None:
    network = Network(tmp_path)
    bench = network.bench
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(bench.running())
        await bench.register(network.registrations())
        fleet = await stack.enter_async_context(network.fleet(concentrator=concentrator))
        await until_committed(fleet, 2, PATIENCE_S)
        await bench.broker.kill()
        async with asyncio.timeout(PATIENCE_S):
            while "nobody listens" not in str(fleet.readiness):  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.05)
        assert fleet.readiness.reasons[0].startswith("broker unreachable since")
        await bench.broker.start()
        await bench.kill_oracle(0)
        await until_committed(fleet, committed(fleet) + 2, PATIENCE_S)
        await bench.start_oracle(0)
        await until_committed(fleet, committed(fleet) + 1, PATIENCE_S)
        assert fleet.readiness.ready
    # A fleet that starts again learns from retained watermarks what it need not send.
    async with bench.running(), network.fleet(concentrator=concentrator) as again:
        await until_committed(again, 5, PATIENCE_S)
