"""The Kubernetes manifests: valid by Kubernetes' own schemas, shut in, and told where homes come from."""

from base64 import b64decode
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from gridtokenx.lab.deploy import kubernetes
from gridtokenx.lab.deploy.kubernetes import Cluster, kubernetes_manifests
from gridtokenx.lab.deploy.plan import plan_network, process_names
from gridtokenx.lab.manifest import Manifest

VERSION = "1.31"
NAMES = process_names(Manifest())


def written(cluster: Cluster, parts: dict[str, int] | None = None):
    return kubernetes.documents(plan_network(Manifest(), parts or dict.fromkeys(NAMES, 2)), cluster)


@pytest.fixture(scope="module")
def documents():
    """As an engine reads them."""
    plan = plan_network(Manifest(), dict.fromkeys(NAMES, 2))
    text = kubernetes_manifests(plan, Cluster())
    return list(yaml.load_all(text, Loader=yaml.CSafeLoader))


def of_kind(documents, kind: str):
    return {d["metadata"]["name"]: d for d in documents if d["kind"] == kind}


def test_they_are_valid(documents):
    for document in documents:
        kubernetes_validate.validate(document, VERSION, strict=True)


def test_each_process_has_a_set_and_a_service(documents):
    assert set(of_kind(documents, "StatefulSet")) == set(NAMES)
    services = of_kind(documents, "Service")
    assert set(services) == set(NAMES)
    for name, service in services.items():
        waits = name != "gateway"  # nodes become ready by finding each other
        assert service["spec"]["publishNotReadyAddresses"] is waits, name


def test_pods_have_no_rights(documents):
    for name, stateful in of_kind(documents, "StatefulSet").items():
        pod = stateful["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["automountServiceAccountToken"] is False, name
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            shut = container["securityContext"]
            assert shut["readOnlyRootFilesystem"] is True, name
            assert shut["allowPrivilegeEscalation"] is False, name
            assert shut["capabilities"] == {"drop": ["ALL"]}, name
            assert set(container["resources"]) == {"requests", "limits"}, name


def test_probes_ask_the_process_itself(documents):
    for name, stateful in of_kind(documents, "StatefulSet").items():
        container = stateful["spec"]["template"]["spec"]["containers"][0]
        if name == "broker":
            assert container["readinessProbe"]["tcpSocket"] == {"port": "peer"}
        else:
            assert container["livenessProbe"]["httpGet"]["path"] == "/health"
            assert container["readinessProbe"]["httpGet"]["path"] == "/ready"


def test_policies_begin_with_nothing(documents):
    policies = of_kind(documents, "NetworkPolicy")
    nothing = policies.pop("nothing")["spec"]
    assert nothing == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert set(policies) == {
        "names", "metrics", "public", "consortium", "oracle", "devices", "feeds", "edge"
    }  # fmt: skip
    devices = policies["devices"]["spec"]
    label = {"podSelector": {"matchLabels": {"gridtokenx.network/devices": "member"}}}
    assert devices["ingress"][0]["from"] == [label]
    dialed = {
        name: {port["port"] for port in policies[name]["spec"]["egress"][0]["ports"]}
        for name in ("public", "consortium", "oracle", "devices", "feeds")
    }
    assert dialed.pop("devices") == {8883}
    assert dialed == {name: {26600} for name in dialed}


def test_maintenance_takes_no_more_than_a_chain_can_miss(documents):
    budgets = of_kind(documents, "PodDisruptionBudget")
    assert {name: budget["spec"]["maxUnavailable"] for name, budget in budgets.items()} == {
        "public": 1, "consortium": 1, "oracle": 1,
    }  # fmt: skip


def test_secrets_are_written_only_when_the_bundles_are_given(documents, tmp_path: Path):
    assert not of_kind(documents, "Secret")
    (tmp_path / "parts").mkdir()
    for name in NAMES:
        (tmp_path / "parts" / f"{name}.000").write_bytes(name.encode())
    secrets = of_kind(written(Cluster(bundles=tmp_path), dict.fromkeys(NAMES, 1)), "Secret")
    assert {name.removeprefix("home-").removesuffix("-000") for name in secrets} == set(NAMES)
    assert b64decode(secrets["home-oracle-1-000"]["data"]["oracle-1.000"]) == b"oracle-1"


def test_machines_are_chosen_by_name_or_label():
    sets = of_kind(written(Cluster(machines=("a", "disk=fast"))), "StatefulSet")

    def where(name: str):
        return sets[name]["spec"]["template"]["spec"]["nodeSelector"]

    assert where("public-0") == {"kubernetes.io/hostname": "a"}
    assert where("public-1") == {"disk": "fast"}
