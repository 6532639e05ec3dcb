"""From a manifest to services: who is there, who meets whom, and what each one gets."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridtokenx.core.errors import LocalFault
from gridtokenx.lab.deploy.plan import (
    EDGE,
    HOME,
    NETWORKS,
    PLACES,
    Image,
    Life,
    Plan,
    family,
    plan_network,
    process_names,
)
from gridtokenx.lab.manifest import (
    Bridge,
    Consortium,
    Manifest,
    Oracle,
    Public,
    dump_manifest,
    parse_manifest,
)

ROOT = Path(__file__).parents[2]

sizes = st.builds(
    lambda public, consortium, oracle, relayers: Manifest(
        public=Public(validators=public),
        consortium=Consortium(replicas=consortium),
        oracle=Oracle(nodes=oracle),
        bridge=Bridge(relayers=relayers),
    ),
    st.integers(1, 100),
    st.integers(4, 21),
    st.integers(4, 21),
    st.integers(1, 16),
)


def bundled(manifest: Manifest) -> Plan:
    return plan_network(manifest, dict.fromkeys(process_names(manifest), 1))


@settings(max_examples=25, deadline=None)
@given(sizes)
def test_every_process_has_a_service_and_a_volume_of_its_own(manifest: Manifest):
    plan = plan_network(manifest)
    names = [service.name for service in plan.services]
    assert len(set(names)) == len(names)
    assert set(names) == {*process_names(manifest), "init", "heartbeat", "audit", "wallet"}
    for name in process_names(manifest):
        writable = [m.volume for m in plan.service(name).mounts if not m.read_only]
        assert writable == [name]
    assert {m.volume for s in plan.services for m in s.mounts} == set(plan.volumes)


def test_the_default_network_is_complete():
    families = [family(name) for name in process_names(Manifest())]
    assert {kind: families.count(kind) for kind in families} == {
        "broker": 1, "market-data": 1, "public": 4, "consortium": 4, "oracle": 4, "relayer": 2,
        "gateway": 1, "devices": 1, "agents": 1,
    }  # fmt: skip


def test_each_service_meets_only_those_it_needs():
    plan = plan_network(Manifest())
    met = {
        network: {
            family(s.name) for s in plan.services if network in s.networks and s.life is Life.ALWAYS
        }
        for network in NETWORKS
    }
    assert met == {
        "public": {"public", "relayer", "gateway", "agents"},
        "consortium": {"consortium", "relayer", "gateway", "agents"},
        "oracle": {"oracle", "relayer", "gateway"},
        "devices": {"oracle", "broker", "devices"},
        "feeds": {"oracle", "market-data"},
        EDGE: {"gateway"},
    }
    for name in ("init", "heartbeat", "audit"):
        assert not plan.service(name).networks
    assert [s.name for s in plan.services if s.published] == ["gateway"]


def test_only_init_sees_other_homes_and_the_authority():
    plan = plan_network(Manifest())
    for service in plan.services:
        volumes = {mount.volume for mount in service.mounts}
        if service.life is Life.ALWAYS:
            assert volumes <= {service.name, "genesis", "clock"}, service.name
        assert "authority" not in volumes or service.name == "init"


def test_a_node_needs_no_scientific_stack():
    plan = plan_network(Manifest())
    full = {service.name for service in plan.services if service.image is Image.FULL}
    assert full == {"init", "audit"}
    lock = (ROOT / "compose/requirements/validator.lock").read_text(encoding="utf-8")
    assert not re.search(r"^(numpy|scipy|pandas|pvlib|h5py|amqtt)==", lock, re.MULTILINE)


def test_a_bundled_plan_shares_no_volume():
    plan = bundled(Manifest())
    assert "init" not in {service.name for service in plan.services}
    owners = {}
    for service in plan.services:
        for mount in service.mounts:
            owners.setdefault(mount.volume, set()).add(service.name)
            assert mount.target == HOME
    assert owners.pop("broker") == {"broker", "broker-home"}
    assert all(users == {volume} for volume, users in owners.items())


def test_a_process_without_a_bundle_is_refused():
    parts = dict.fromkeys(process_names(Manifest()), 1)
    del parts["oracle-2"]
    with pytest.raises(LocalFault, match="oracle-2 has no bundle"):
        plan_network(Manifest(), parts)


def test_a_network_too_large_for_the_image_is_refused():
    with pytest.raises(LocalFault, match="public-128: the image has places for 128 of public"):
        plan_network(Manifest(public=Public(validators=100, candidates=129)))


def test_the_image_has_the_places_that_are_promised():
    text = (ROOT / "compose/Dockerfile").read_text(encoding="utf-8")
    loops = re.findall(r"seq 0 (\d+)\); do mkdir ([^;]+);", text)
    found = {
        name.removesuffix("-$i"): int(last) + 1 for last, names in loops for name in names.split()
    }
    assert found == PLACES


@settings(max_examples=50, deadline=None)
@given(sizes)
def test_a_brief_manifest_says_the_same(manifest: Manifest):
    assert parse_manifest(dump_manifest(manifest, brief=True), "brief") == manifest
    assert parse_manifest(dump_manifest(manifest), "whole") == manifest


def test_the_images_locks_are_parts_of_the_lock():
    def pins(path: Path) -> dict[str, str]:
        blocks = re.split(r"^(?=\S)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        return {
            block.split(" ", 1)[0]: "".join(sorted(re.findall(r"sha256:\w+", block)))
            for block in blocks
            if block.strip()
        }

    whole = pins(ROOT / "requirements.lock")
    for role in ("build", "validator", "full"):
        part = pins(ROOT / "compose" / "requirements" / f"{role}.lock")
        assert part
        assert {name: whole.get(name) for name in part} == part, role
