"""The agents at two real chains: households bid, GRID travels and comes back, one transfer expires."""

import asyncio
from datetime import date
from pathlib import Path

import pytest
from tests.e2e.relayer_network import CHAINS, NODES, Network, running, seed_of

from gridtokenx.core.gridtime import INTERVAL_MS
from gridtokenx.devices.fleet.agents import AgentsSettings, open_agents
from gridtokenx.devices.fleet.profiles import make_profiles, plan_neighbourhood
from gridtokenx.devices.fleet.roster import make_roster
from gridtokenx.devices.models.forecast import make_forecast
from gridtokenx.devices.models.profiles import pack_profiles
from gridtokenx.host.keyfile import KeyRing, create_development_password
from gridtokenx.host.role import Role, open_role

pytestmark = pytest.mark.e2e


NEIGHBOURHOOD = plan_neighbourhood(3, 8, 4, 2)


def settings_of(network: Network) -> AgentsSettings:
    profiles = make_profiles(3, date(2026, 4, 22), 1, NEIGHBOURHOOD)
    roster = make_roster(NEIGHBOURHOOD.specs, [0] * 8)
    forecasts = [
        make_forecast(profile, b"s", index, 50_000, 50_000)
        for index, profile in enumerate(profiles)
    ]
    (network.path / "agents.json").write_bytes(roster.encode())
    (network.path / "forecasts.bin").write_bytes(
        pack_profiles(forecasts[0].start_grid_ms, INTERVAL_MS, forecasts)
    )
    keys = network.path / "agents-keys"
    ring = KeyRing.create(keys, create_development_password(keys), scrypt_n=1024)
    ring.put("identity", seed_of("alice"))
    for name in ("workload", *(entry.name for entry in roster.households)):
        ring.put(name, seed_of(name))
    return AgentsSettings(
        keys=keys,
        key="identity",
        log_level="debug",
        roster=network.path / "agents.json",
        forecasts=network.path / "forecasts.bin",
        public=network.link("public", "alice"),
        consortium=network.link("consortium", "alice"),
    )


async def until(role: Role, name: str, count: int, **labels: str) -> None:
    while role.metrics.value(name, **labels) < count:  # noqa: ASYNC110 - counters make no events
        await asyncio.sleep(0.2)


@pytest.mark.slow
async def test_households_bid_and_grid_travels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.e2e.relayer_network.SPECS", NEIGHBOURHOOD.specs)
    network = Network(tmp_path)
    settings = settings_of(network)
    role = open_role(settings, "agents")
    agents = open_agents(settings, role)
    nodes = [network.node(chain, index) for chain in CHAINS for index in range(NODES)]
    relayers = [network.relayer(index) for index in range(2)]
    async with asyncio.timeout(150), running(*nodes, *relayers, agents.run):
        await until(role, "orders_placed", 8)
        await until(role, "orders_placed", 1, side="sell")
        await until(role, "transfers", 1, stage="refunded")
        await until(role, "transfers", 1, stage="returned")
    assert role.metrics.value("orders_refused") == 0
