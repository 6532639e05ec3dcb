"""A plan as a compose file, for docker-compose 1.29, Compose v2 and, with bundles, `docker stack deploy`.

Law of the file: **the text follows from the plan alone**, so that a file in a repository can be compared
with what is generated. What may differ from place to place are variables with defaults:
``GTX_VALIDATOR_IMAGE``, ``GTX_FULL_IMAGE``, ``BROKER_IMAGE``, ``PYTHON_IMAGE``, ``GTX_GATEWAY_PORT``, and
``PROMETHEUS_IMAGE``, ``GRAFANA_IMAGE``, ``GTX_PROMETHEUS_PORT``, ``GTX_GRAFANA_PORT``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gridtokenx.lab.deploy.bundle import part_name
from gridtokenx.lab.deploy.plan import (
    EDGE,
    HOME,
    NETWORKS,
    USER,
    Image,
    Life,
    Mount,
    Plan,
    Service,
    family,
)
from gridtokenx.lab.deploy.text import Line, Shared, merged, to_yaml
from gridtokenx.lab.testnet.placement import HTTP_PORT

Yaml = dict[str, Any]
"""A mapping of the document: plain values, of no fixed type."""

IMAGES: Final = {
    Image.VALIDATOR: "${GTX_VALIDATOR_IMAGE:-gridtokenx-validator:local}",
    Image.FULL: "${GTX_FULL_IMAGE:-gridtokenx-full:local}",
    Image.BROKER: "${BROKER_IMAGE:-eclipse-mosquitto:2}",
}
BUILDERS: Final = {"init": Image.FULL, "heartbeat": Image.VALIDATOR}
"""The services that build an image; all others come after them and use it."""
PYTHON_IMAGE: Final = "${PYTHON_IMAGE:-python:3.12-slim-bookworm}"
TMP_BYTES: Final = 16 * 1024 * 1024
HEALTH: Final = ("CMD", "/opt/gridtokenx/bin/python", "-I", "-m", "gridtokenx.lab.deploy.health")
HEAD: Final = """
Written by `gtx testnet compose`: change the manifest and write it again.
docs/deploy.md explains what is in here.
"""


@dataclass(frozen=True, slots=True)
class Where:
    """What a compose file has to know of the place that it is used in."""

    source: str = ".."
    """The checkout, seen from the compose file: what images are built from."""
    bundles: Path | None = None
    """Directory of the bundles' parts, seen from the compose file."""
    machines: tuple[str, ...] = ()
    """Hosts of a swarm, or NAME=VALUE labels of them, over which services are spread."""


def compose_file(plan: Plan, where: Where | None = None) -> str:
    """The compose file of a plan."""
    return _Compose(plan, where or Where()).text()


class _Compose:
    def __init__(self, plan: Plan, where: Where) -> None:
        self._plan = plan
        self._where = where
        self._orders: dict[tuple[str, ...], Shared] = {}
        self._common = Shared("service", self._common_part())
        self._tmp = Shared(
            "tmp",
            {"type": "tmpfs", "target": "/tmp", "tmpfs": {"size": TMP_BYTES}},  # noqa: S108
        )

    def text(self) -> str:
        document: Yaml = {
            "version": "3.8",
            "x-tmp": self._tmp,
            "x-service": self._common,
            "services": {service.name: self._service(service) for service in self._plan.services}
            | self._observers(),
            "networks": {name: {"internal": True} for name in NETWORKS if name != EDGE}
            | {EDGE: {}},
            "volumes": {name: {} for name in (*self._plan.volumes, *self._observers())},
        }
        if self._plan.bundled:
            document["secrets"] = self._secrets()
        return to_yaml([document], HEAD)

    def _common_part(self) -> Yaml:
        part: Yaml = {
            "restart": "unless-stopped",
            "read_only": True,
            "cap_drop": Line(["ALL"]),
            "stop_grace_period": "20s",
            "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}},
        }
        if not self._plan.bundled:  # a swarm knows no such option
            part["security_opt"] = Line(["no-new-privileges:true"])
        return part

    def _service(self, service: Service) -> Yaml:
        own: Yaml = {"image": IMAGES[service.image]}
        builds = None if self._plan.bundled else BUILDERS.get(service.name)
        if builds is not None:
            own["build"] = self._build(builds)
        own |= _command(service)
        if service.life is not Life.ALWAYS:
            own["restart"] = "no"
        if service.life is Life.ON_REQUEST:
            own["profiles"] = Line(["tools"])
        if service.environment:
            own["environment"] = {key: _literal(value) for key, value in service.environment}
        own |= self._reached(service)
        own["volumes"] = [*map(_mount, service.mounts), self._tmp]
        if self._plan.bundled:
            own["secrets"] = self._parts(service)
        own["healthcheck"] = _health(service)
        if service.after:
            own["depends_on"] = self._after(service.after)
        own["deploy"] = self._deploy(service)
        return merged(
            self._common, {key: value for key, value in own.items() if value not in ({}, [])}
        )

    def _observers(self) -> dict[str, Yaml]:
        """Prometheus and Grafana, which a swarm's operator has already and runs otherwise."""
        if self._plan.bundled:
            return {}
        return {
            "prometheus": self._observer(
                "${PROMETHEUS_IMAGE:-prom/prometheus}",
                NETWORKS,
                [
                    "prometheus:/prometheus",
                    f"genesis:{HOME}/genesis:ro",
                    f"{self._where.source}/compose/prometheus:/etc/prometheus:ro",
                ],
                ("GTX_PROMETHEUS_PORT", 19_090, 9_090),
                command=Line(
                    [
                        "--config.file=/etc/prometheus/prometheus.yml",
                        "--storage.tsdb.path=/prometheus",
                        "--storage.tsdb.retention.time=7d",
                    ]
                ),
            ),
            "grafana": self._observer(
                "${GRAFANA_IMAGE:-grafana/grafana}",
                (EDGE,),
                [
                    "grafana:/var/lib/grafana",
                    f"{self._where.source}/compose/grafana/provisioning:/etc/grafana/provisioning:ro",
                    f"{self._where.source}/compose/grafana/dashboards:/etc/grafana/dashboards:ro",
                ],
                ("GTX_GRAFANA_PORT", 13_000, 3_000),
                environment={
                    "GF_AUTH_ANONYMOUS_ENABLED": "true",
                    "GF_AUTH_DISABLE_LOGIN_FORM": "true",
                    "GF_ANALYTICS_REPORTING_ENABLED": "false",
                    "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
                },
            ),
        }

    def _observer(
        self,
        image: str,
        networks: tuple[str, ...],
        volumes: list[str],
        published: tuple[str, int, int],
        **more: object,
    ) -> Yaml:
        variable, port, inside = published
        own: Yaml = {"image": image, "profiles": Line(["observability"]), **more}
        own["networks"] = Line(networks)
        own["ports"] = [f"127.0.0.1:${{{variable}:-{port}}}:{inside}"]
        own["volumes"] = [*volumes, self._tmp]
        own["depends_on"] = self._after(("init",))
        own["deploy"] = {"resources": {"limits": {"cpus": "1.0", "memory": "1024M"}}}
        return merged(self._common, own)

    def _build(self, image: Image) -> Yaml:
        return {
            "context": self._where.source,
            "dockerfile": "compose/Dockerfile",
            "args": {"PYTHON_IMAGE": PYTHON_IMAGE, "ROLE": image.value},
        }

    def _reached(self, service: Service) -> Yaml:
        if not service.networks:
            return {"network_mode": "none"}
        reached: Yaml = {"networks": Line(service.networks)}
        if service.published and self._plan.bundled:
            # A swarm cannot publish on loopback only; the port opens on the machine of the service.
            port = {"target": service.http_port, "published": service.published, "mode": "host"}
            reached["ports"] = [port]
        elif service.published:
            port_text = f"${{GTX_GATEWAY_PORT:-{service.published}}}:{service.http_port}"
            reached["ports"] = [f"127.0.0.1:{port_text}"]
        return reached

    def _after(self, names: tuple[str, ...]) -> Shared:
        if names not in self._orders:
            conditions = {name: self._condition(name) for name in names}
            self._orders[names] = Shared(f"after-{names[-1]}", conditions)
        return self._orders[names]

    def _condition(self, name: str) -> Yaml:
        done = self._plan.service(name).life is Life.ONCE
        return {"condition": "service_completed_successfully" if done else "service_started"}

    def _deploy(self, service: Service) -> Yaml:
        limits = {"cpus": service.limits.cpus, "memory": f"{service.limits.memory_mib}M"}
        deploy: Yaml = {"resources": {"limits": limits}}
        if self._plan.bundled:
            deploy["endpoint_mode"] = "dnsrr"
            again = "any" if service.life is Life.ALWAYS else "on-failure"
            deploy["restart_policy"] = {"condition": again, "delay": "2s"}
            if self._where.machines:
                machine = machine_of(service.name, self._where.machines)
                deploy["placement"] = {"constraints": [_constraint(machine)]}
        return deploy

    def _parts(self, service: Service) -> list[Yaml]:
        name = dict(service.environment).get("GTX_PROCESS", "")
        count = dict(self._plan.parts).get(name, 0)
        names = [part_name(name, index) for index in range(count)]
        return [{"source": part.replace(".", "-"), "target": part} for part in names]

    def _secrets(self) -> Yaml:
        directory = self._where.bundles or Path("bundles")
        names = [
            part_name(name, index) for name, count in self._plan.parts for index in range(count)
        ]
        return {name.replace(".", "-"): {"file": f"{directory}/parts/{name}"} for name in names}


def machine_of(name: str, machines: tuple[str, ...]) -> str:
    """Where a service runs: the members of a chain are spread, the rest is with the first machines.

    It depends on the name alone, so a service never wanders away from its data.
    """
    index = name.rpartition("-")[2] if family(name) != name else "0"
    return machines[int(index) % len(machines)]


def _constraint(machine: str) -> str:
    label, equals, value = machine.partition("=")
    return f"node.labels.{label} == {value}" if equals else f"node.hostname == {machine}"


def _mount(mount: Mount) -> str:
    return f"{mount.volume}:{mount.target}" + (":ro" if mount.read_only else "")


def _command(service: Service) -> Yaml:
    if service.image is not Image.BROKER:
        return {"command": Line(service.command)}
    user = f"{USER}:{USER}"
    return {"user": user, "entrypoint": Line(["/bin/sh", "-ec"]), "command": list(service.command)}


def _health(service: Service) -> Yaml:
    if service.image is Image.BROKER:
        listening = f"grep -q ':{service.peer_port:04X} 0*:0000 0A' /proc/net/tcp"
        return {"test": Line(["CMD-SHELL", listening]), "interval": "15s", "start_period": "60s"}
    if not service.http_port:
        return {"disable": True}
    if service.http_port != HTTP_PORT:
        return {"test": Line([*HEALTH, f"127.0.0.1:{service.http_port}"])}
    return {}


def _literal(value: str) -> str:
    """Compose would take a dollar for a variable."""
    return value.replace("$", "$$")
