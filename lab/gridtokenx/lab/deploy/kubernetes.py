"""A plan as Kubernetes manifests: a StatefulSet of one for each process, on a volume of its own.

Law of the file: **nothing is shared and nothing is open.** A pod has no rights, no service account, no
writable root and, by network policy, no neighbours but those of its networks in the plan. Homes come
from Secrets, the parts of the bundles, and are unpacked once. Network time is wall time.

Addresses of pods that are not ready are published on purpose: nodes become ready by finding each other.
"""

from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gridtokenx.core.quorum import max_faulty
from gridtokenx.host.chains import CHAINS
from gridtokenx.host.files import read_file
from gridtokenx.lab.deploy.bundle import part_name, part_path
from gridtokenx.lab.deploy.compose import machine_of
from gridtokenx.lab.deploy.plan import (
    EDGE,
    HOME,
    NETWORKS,
    USER,
    Image,
    Life,
    Plan,
    Service,
    family,
)
from gridtokenx.lab.deploy.text import to_yaml
from gridtokenx.lab.manifest import dump_manifest

Yaml = dict[str, Any]
"""A mapping of the document: plain values, of no fixed type."""

BUNDLE: Final = "/run/bundle"
DNS_PORT: Final = 53
GRACE_S: Final = 30
HEAD: Final = """
Written by `gtx testnet kubernetes`: change the manifest and write it again.
docs/deploy.md explains what is in here.
"""
SHUT: Final[Yaml] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """What manifests have to know of the cluster that they are for."""

    namespace: str = "gridtokenx"
    validator_image: str = "gridtokenx-validator:local"
    broker_image: str = "eclipse-mosquitto:2"
    storage_class: str | None = None
    """None: the cluster's default."""
    volume_gib: int = 4
    bundles: Path | None = None
    """Where the bundles are; None: somebody else makes the Secrets."""
    machines: tuple[str, ...] = ()
    """Nodes, or NAME=VALUE labels of them, over which pods are spread."""


def kubernetes_manifests(plan: Plan, cluster: Cluster) -> str:
    """All manifests of a bundled plan, in the order in which they are to be applied."""
    return to_yaml(documents(plan, cluster), HEAD)


def documents(plan: Plan, cluster: Cluster) -> list[Yaml]:
    """The same as plain values."""
    assert plan.bundled, "pods on several machines share no volume"
    services = [service for service in plan.services if service.life is Life.ALWAYS]
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": cluster.namespace}},
        *_settings(plan, cluster),
        *_secrets(plan, cluster),
        *_policies(cluster, services),
        *_budgets(plan, cluster),
        *(_service(cluster, service) for service in services if _ports(service)),
        *(_stateful_set(plan, cluster, service) for service in services),
    ]


def _object(
    cluster: Cluster, kind: str, name: str, *, version: str = "v1", labels: Yaml | None = None
) -> Yaml:
    common = {"app.kubernetes.io/part-of": "gridtokenx", **(labels or {})}
    metadata = {"name": name, "namespace": cluster.namespace, "labels": common}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


# -- settings and homes ----------------------------------------------------------------------------


def _settings(plan: Plan, cluster: Cluster) -> Iterator[Yaml]:
    manifest = {"manifest.toml": dump_manifest(plan.manifest)}
    yield {**_object(cluster, "ConfigMap", "network"), "data": manifest}
    yield {**_object(cluster, "ConfigMap", "settings"), "data": {"GTX_LOG_FORMAT": "json"}}


def _secrets(plan: Plan, cluster: Cluster) -> Iterator[Yaml]:
    if cluster.bundles is None:
        return
    for name, count in plan.parts:
        for index in range(count):
            part = part_name(name, index)
            data = b64encode(read_file(part_path(cluster.bundles, name, index))).decode()
            secret = _object(cluster, "Secret", _secret_name(part))
            yield {**secret, "type": "Opaque", "immutable": True, "data": {part: data}}


def _secret_name(part: str) -> str:
    return "home-" + part.replace(".", "-")


def _bundle_volume(plan: Plan, cluster: Cluster, name: str) -> Yaml:
    sources = []
    for index in range(dict(plan.parts)[name]):
        part = part_name(name, index)
        source: Yaml = {"name": _secret_name(part), "items": [{"key": part, "path": part}]}
        if cluster.bundles is None and index:
            source["optional"] = True  # how many there are is known to whoever makes them
        sources.append({"secret": source})
    return {"name": "bundle", "projected": {"defaultMode": 0o440, "sources": sources}}


# -- pods ------------------------------------------------------------------------------------------


def _stateful_set(plan: Plan, cluster: Cluster, service: Service) -> Yaml:
    labels = _labels(service)
    claim: Yaml = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": f"{cluster.volume_gib}Gi"}},
    }
    if cluster.storage_class is not None:
        claim["storageClassName"] = cluster.storage_class
    return {
        **_object(cluster, "StatefulSet", service.name, version="apps/v1", labels=labels),
        "spec": {
            "replicas": 1,
            "serviceName": service.name,
            "selector": {"matchLabels": {"app.kubernetes.io/name": service.name}},
            "template": {
                "metadata": {
                    "labels": {"app.kubernetes.io/part-of": "gridtokenx", **labels},
                    "annotations": _scraped(service),
                },
                "spec": _pod(plan, cluster, service),
            },
            "volumeClaimTemplates": [{"metadata": {"name": "home"}, "spec": claim}],
        },
    }


def _scraped(service: Service) -> Yaml:
    """What most clusters' Prometheus looks for."""
    if not service.http_port:
        return {"prometheus.io/scrape": "false"}
    return {"prometheus.io/scrape": "true", "prometheus.io/port": str(service.http_port)}


def _labels(service: Service) -> Yaml:
    labels: Yaml = {
        "app.kubernetes.io/name": service.name,
        "app.kubernetes.io/component": family(service.name),
    }
    return labels | {f"gridtokenx.network/{name}": "member" for name in service.networks}


def _pod(plan: Plan, cluster: Cluster, service: Service) -> Yaml:
    pod: Yaml = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    pod |= _where(cluster, service)
    if service.image is Image.BROKER:
        pod["initContainers"] = [_unpacker(cluster, service)]
        pod["containers"] = [_broker(cluster, service)]
    else:
        pod["containers"] = [_process(cluster, service)]
    pod["volumes"] = [
        _bundle_volume(plan, cluster, service.name),
        {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
    ]
    return pod


def _where(cluster: Cluster, service: Service) -> Yaml:
    if cluster.machines:
        label, equals, value = machine_of(service.name, cluster.machines).partition("=")
        chosen = {label: value} if equals else {"kubernetes.io/hostname": label}
        return {"nodeSelector": chosen}
    same = {"matchLabels": {"app.kubernetes.io/component": family(service.name)}}
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": same,
    }
    return {"topologySpreadConstraints": [spread]}


def _process(cluster: Cluster, service: Service) -> Yaml:
    return {
        "name": family(service.name),
        "image": cluster.validator_image,
        "args": list(service.command),
        "env": _environment(service.name),
        "envFrom": [{"configMapRef": {"name": "settings"}}],
        "ports": _container_ports(service),
        "startupProbe": {**_asks("/health"), "periodSeconds": 2, "failureThreshold": 90},
        "livenessProbe": {**_asks("/health"), "periodSeconds": 15, "timeoutSeconds": 5},
        "readinessProbe": {**_asks("/ready"), "periodSeconds": 10, "timeoutSeconds": 5},
        "resources": _resources(service),
        "securityContext": SHUT,
        "volumeMounts": _mounts(),
    }


def _broker(cluster: Cluster, service: Service) -> Yaml:
    listens = {"tcpSocket": {"port": "peer"}}
    return {
        "name": "mosquitto",
        "image": cluster.broker_image,
        "command": ["/bin/sh", "-ec"],
        "args": list(service.command),
        "ports": _container_ports(service),
        "livenessProbe": {**listens, "periodSeconds": 15, "initialDelaySeconds": 10},
        "readinessProbe": {**listens, "periodSeconds": 10},
        "resources": _resources(service),
        "securityContext": SHUT,
        "volumeMounts": _mounts(),
    }


def _unpacker(cluster: Cluster, service: Service) -> Yaml:
    """Mosquitto's own image knows nothing of bundles."""
    return {
        "name": "home",
        "image": cluster.validator_image,
        "args": ["--version"],
        "env": _environment(service.name),
        "resources": _resources(service),
        "securityContext": SHUT,
        "volumeMounts": _mounts(),
    }


def _environment(name: str) -> list[Yaml]:
    return [{"name": "GTX_PROCESS", "value": name}, {"name": "GTX_BUNDLE", "value": BUNDLE}]


def _mounts() -> list[Yaml]:
    return [
        {"name": "home", "mountPath": str(HOME)},
        {"name": "bundle", "mountPath": BUNDLE, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a memory of its own
    ]


def _asks(path: str) -> Yaml:
    return {"httpGet": {"path": path, "port": "http"}}


def _resources(service: Service) -> Yaml:
    memory_mib = service.limits.memory_mib
    return {
        "requests": {"cpu": "50m", "memory": f"{memory_mib // 4}Mi"},
        "limits": {"cpu": service.limits.cpus, "memory": f"{memory_mib}Mi"},
    }


# -- reaching each other ---------------------------------------------------------------------------


def _ports(service: Service) -> dict[str, int]:
    ports = {"peer": service.peer_port, "http": service.http_port}
    return {name: port for name, port in ports.items() if port}


def _container_ports(service: Service) -> list[Yaml]:
    return [{"name": name, "containerPort": port} for name, port in _ports(service).items()]


def _service(cluster: Cluster, service: Service) -> Yaml:
    ports = [
        {"name": name, "port": port, "targetPort": name} for name, port in _ports(service).items()
    ]
    spec: Yaml = {
        "selector": {"app.kubernetes.io/name": service.name},
        "publishNotReadyAddresses": not service.published,
        "ports": ports,
    }
    if not service.published:
        spec["clusterIP"] = "None"
    return {**_object(cluster, "Service", service.name, labels=_labels(service)), "spec": spec}


def _policies(cluster: Cluster, services: list[Service]) -> Iterator[Yaml]:
    yield _policy(cluster, "nothing", {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})
    names = {"ports": [{"protocol": p, "port": DNS_PORT} for p in ("UDP", "TCP")]}
    yield _policy(
        cluster, "names", {"podSelector": {}, "policyTypes": ["Egress"], "egress": [names]}
    )
    for network in NETWORKS:
        if network != EDGE:
            yield _within(cluster, network, services)
    scraped = sorted({service.http_port for service in services if service.http_port})
    prometheus = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
    }
    yield _policy(
        cluster,
        "metrics",
        {
            "podSelector": {},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [prometheus], "ports": [_tcp(port) for port in scraped]}],
        },
    )
    outside = [_tcp(service.http_port) for service in services if service.published]
    yield _policy(
        cluster,
        EDGE,
        {
            "podSelector": {"matchLabels": {f"gridtokenx.network/{EDGE}": "member"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": outside}],
        },
    )


def _within(cluster: Cluster, network: str, services: list[Service]) -> Yaml:
    """The members of a network reach what is dialed in it, and nothing else."""
    members = {"podSelector": {"matchLabels": {f"gridtokenx.network/{network}": "member"}}}
    dialed = {s.peer_port for s in services if network == s.dialed_in}
    ports = [_tcp(port) for port in sorted(dialed)]
    return _policy(
        cluster,
        network,
        {
            **members,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [members], "ports": ports}],
            "egress": [{"to": [members], "ports": ports}],
        },
    )


def _policy(cluster: Cluster, name: str, spec: Yaml) -> Yaml:
    kind = _object(cluster, "NetworkPolicy", name, version="networking.k8s.io/v1")
    return {**kind, "spec": spec}


def _tcp(port: int) -> Yaml:
    return {"protocol": "TCP", "port": port}


def _budgets(plan: Plan, cluster: Cluster) -> Iterator[Yaml]:
    """Maintenance never takes more nodes of a chain than it can do without."""
    for chain in CHAINS:
        count = sum(family(service.name) == chain for service in plan.services)
        spec = {
            "maxUnavailable": max_faulty(count),
            "selector": {"matchLabels": {"app.kubernetes.io/component": chain}},
        }
        yield {
            **_object(cluster, "PodDisruptionBudget", chain, version="policy/v1"),
            "spec": spec,
        }
