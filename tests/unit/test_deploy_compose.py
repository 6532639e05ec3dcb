"""The compose file: what is in the repository is what is generated, and it holds what was promised."""

from pathlib import Path

import pytest
import yaml

from gridtokenx.lab.deploy.compose import Where, compose_file, machine_of
from gridtokenx.lab.deploy.plan import EDGE, Plan, plan_network, process_names
from gridtokenx.lab.manifest import Consortium, Manifest, load_manifest, parse_manifest

COMPOSE = Path(__file__).parents[2] / "compose"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_network(load_manifest(COMPOSE / "manifests" / "local.toml"))


@pytest.fixture(scope="module")
def document(plan: Plan):
    return yaml.safe_load(compose_file(plan))


def bundled(machines: tuple[str, ...] = ()):
    manifest = Manifest()
    parts = dict.fromkeys(process_names(manifest), 1) | {"devices": 2}
    where = Where(bundles=Path("/secrets"), machines=machines)
    return yaml.safe_load(compose_file(plan_network(manifest, parts), where))


def test_the_file_in_the_repository_is_the_generated_one(plan: Plan):
    written = (COMPOSE / "testnet.yaml").read_text(encoding="utf-8")
    assert written == compose_file(plan), (
        "write it again: gtx testnet compose --manifest compose/manifests/local.toml"
        " > compose/testnet.yaml"
    )


def test_every_service_is_shut_in(document):
    for name, service in document["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}, name
        assert service["logging"]["options"]["max-size"], name
        assert service["stop_grace_period"], name
        assert service["restart"] == (
            "no" if name in ("init", "audit", "wallet") else "unless-stopped"
        )


def test_nothing_is_published_but_on_loopback(document):
    published = {
        name: service["ports"]
        for name, service in document["services"].items()
        if "ports" in service
    }
    assert published.keys() == {"gateway", "prometheus", "grafana"}
    assert published["gateway"] == ["127.0.0.1:${GTX_GATEWAY_PORT:-18080}:18080"]
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    internal = {name for name, network in document["networks"].items() if network.get("internal")}
    assert internal == set(document["networks"]) - {EDGE}


def test_processes_wait_for_init_which_waits_for_nobody(document):
    services = document["services"]
    assert "depends_on" not in services["init"]
    for name in process_names(Manifest()):
        assert services[name]["depends_on"]["init"] == {
            "condition": "service_completed_successfully"
        }


def test_each_image_is_built_once_and_before_it_is_used(document):
    builders = {
        n: s["build"]["args"]["ROLE"] for n, s in document["services"].items() if "build" in s
    }
    assert builders == {"init": "full", "heartbeat": "validator"}
    for name in process_names(Manifest()):
        if name != "broker":
            assert "heartbeat" in document["services"][name]["depends_on"]


def test_init_is_told_the_manifest(plan: Plan, document):
    text = document["services"]["init"]["environment"]["GTX_MANIFEST"]
    assert parse_manifest(text.replace("$$", "$"), "compose") == plan.manifest
    other = plan_network(Manifest(name="other", consortium=Consortium(replicas=7)))
    assert "replicas = 7" in compose_file(other)


def test_with_bundles_a_swarm_takes_the_file_too():
    """`docker stack deploy` knows neither profiles, nor conditions, nor security options."""
    document = bundled()
    parts = {"broker-000", "devices-000", "devices-001", "public-0-000"}
    assert parts <= document["secrets"].keys()
    assert document["secrets"]["devices-001"] == {"file": "/secrets/parts/devices.001"}
    for name, service in document["services"].items():
        assert not {"profiles", "depends_on", "security_opt", "build"} & service.keys(), name
        if name != "broker":
            process = service["environment"]["GTX_PROCESS"]
            assert all(part["target"].startswith(f"{process}.") for part in service["secrets"])


def test_a_service_stays_on_its_machine():
    document = bundled(("a", "b", "zone=c"))

    def where(name: str) -> list[str]:
        return document["services"][name]["deploy"]["placement"]["constraints"]

    assert where("public-0") == where("public-3") == ["node.hostname == a"]
    assert where("consortium-1") == ["node.hostname == b"]
    assert where("oracle-2") == ["node.labels.zone == c"]
    assert where("broker") == where("broker-home") == ["node.hostname == a"]
    for size in (1, 2, 3, 5):
        machines = tuple("abcde"[:size])
        spread = [machine_of(f"public-{i}", machines) for i in range(20)]
        assert max(map(spread.count, machines)) - min(map(spread.count, machines)) <= 1
