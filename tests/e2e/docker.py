"""The network of `compose/testnet.yaml` under test, through the engine's own commands.

What a test looks at comes from where an operator would take it: the engine's commands, each
process's HTTP, and copies of the stopped containers' volumes.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.testnet import Said

from gridtokenx.lab.manifest import load_manifest
from gridtokenx.lab.testnet.layout import Layout
from gridtokenx.lab.testnet.placement import CONTAINERS, HTTP_PORT

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "compose" / "testnet.yaml"
HOME = "/home/gridtokenx/home"
"""Where each process's volume is mounted, below its own name."""
COMMAND_S = 60.0
BUILD_S = 900.0
POLL_S = 0.2
ADDRESSES_S = 0.5
"""How long containers are taken to have the addresses that they had: who starts anew may get another's."""
T = TypeVar("T")
R = TypeVar("R")
CHAINS = ("public", "consortium", "oracle")
TAG = "test"
"""Of the images under test, beside those that whoever runs this has built."""
ROLES = ("validator", "full")
STANDS_IN = {
    "PYTHON_IMAGE": "gridtokenx-python:bookworm",
    "BROKER_IMAGE": "gridtokenx-mosquitto:bookworm",
}
"""What `scripts/base-images` makes, for machines that can pull nothing."""


# -- the engine ------------------------------------------------------------------------------------


def run(
    *words: str | Path, timeout_s: float = COMMAND_S, around: Mapping[str, str] = os.environ
) -> Said:
    """Run a command to its end."""
    done = subprocess.run(
        [*map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        cwd=ROOT,
        env=dict(around),
    )
    return Said(done.returncode, done.stdout, done.stderr)


def docker(*words: str | Path, timeout_s: float = COMMAND_S) -> str:
    """Run a docker command that must succeed; returns what it printed."""
    said = run("docker", *words, timeout_s=timeout_s)
    assert said.code == 0, (words, said)
    return said.out.strip()


def compose_command() -> tuple[str, ...]:
    """Docker's compose: the plugin, or the program of its own."""
    if run("docker", "compose", "version").code == 0:
        return ("docker", "compose")
    return ("docker-compose",)


def has_image(name: str) -> bool:
    """Whether the engine has an image."""
    return run("docker", "image", "inspect", name).code == 0


def image_bytes(name: str) -> int:
    """The size of an image, with what it shares with its base."""
    return int(docker("image", "inspect", "--format", "{{.Size}}", name))


def tag(role: str) -> str:
    """The image of a role."""
    return f"gridtokenx-{role}:{TAG}"


def environment() -> dict[str, str]:
    """For building and composing: the images under test, on local base images if there are any."""
    stand_ins = {name: image for name, image in STANDS_IN.items() if has_image(image)}
    ours = {f"GTX_{role.upper()}_IMAGE": tag(role) for role in ROLES}
    return {**stand_ins, **os.environ, **ours, "TAG": TAG}


def build_images(say: Callable[[str], None]) -> dict[str, int]:
    """Build them by `scripts/images`: their sizes over their base, in bytes, by role.

    A missing engine is a failure: whoever turned this stage on wants to know.
    """
    for command in ("docker", compose_command()[0]):
        assert shutil.which(command), f"the stage `docker` needs {command}"
    version = run("docker", "version")
    assert version.code == 0, f"no container engine answers: {version.err}"
    around, began = environment(), time.monotonic()
    built = run("scripts/images", "--network=host", timeout_s=BUILD_S, around=around)
    assert built.code == 0, (built.out[-3000:], built.err[-3000:])
    base = around.get("PYTHON_IMAGE", "python:3.12-slim-bookworm")
    sizes = {role: image_bytes(tag(role)) - image_bytes(base) for role in ROLES}
    told = ", ".join(f"{role} {size / 1e6:.1f} MB over {base}" for role, size in sizes.items())
    say(f"images after {time.monotonic() - began:.0f} s: {told}")
    return sizes


# -- one network -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Container:
    """What the engine says of one container."""

    id: str
    service: str
    state: Mapping[str, Any]
    config: Mapping[str, Any]
    mounts: tuple[Mapping[str, Any], ...]
    networks: Mapping[str, Any]
    restarts: int

    @property
    def address(self) -> str:
        """An address by which this machine reaches it, or an empty text."""
        found = (network["IPAddress"] for network in self.networks.values())
        return next(filter(None, found), "")

    @property
    def volumes(self) -> dict[str, str]:
        """Names of its volumes by where they are mounted."""
        return {each["Destination"]: each["Name"] for each in self.mounts if "Name" in each}


class ComposeNetwork:
    """One network in containers.

    Args:
        project: names its containers, networks and volumes.
        gateway_port: where the gateway is published on this machine.
        directory: logs and copies go there.
    """

    def __init__(self, project: str, gateway_port: int, directory: Path) -> None:
        self.project = project
        self.directory = directory
        self.gateway_url = f"http://127.0.0.1:{gateway_port}"
        self._around = {
            **environment(),
            "GTX_GATEWAY_PORT": str(gateway_port),
            "COMPOSE_HTTP_TIMEOUT": "120",
        }
        self._addresses: dict[str, str] = {}
        self._addressed_s = -ADDRESSES_S
        self._addressing = threading.Lock()
        self._compose = (*compose_command(), "--file", str(COMPOSE_FILE), "--project-name", project)

    # -- the engine --------------------------------------------------------------------------------

    def compose(self, *words: str, timeout_s: float = 2 * COMMAND_S) -> str:
        """A compose command that must succeed."""
        said = run(*self._compose, *words, timeout_s=timeout_s, around=self._around)
        assert said.code == 0, (words, said.out[-3000:], said.err[-3000:])
        return said.out

    def containers(self) -> dict[str, Container]:
        """All containers by their service."""
        of_project = ("--filter", f"label=com.docker.compose.project={self.project}")
        ids = docker("ps", "--all", "--quiet", "--no-trunc", *of_project).split()
        found = map(_container, json.loads(docker("inspect", *ids)) if ids else [])
        return {each.service: each for each in found}

    def container(self, service: str) -> Container:
        """The container of a service."""
        return self.containers()[service]

    def services(self) -> list[str]:
        """All that can be asked; `init` has ended, and the heartbeat is in no network."""
        return [name for name, each in self.containers().items() if each.address]

    def run_again(self, service: str, mounts: Mapping[str, str], network: str = "none") -> Said:
        """A service's container once more, with some other mounts, to its end.

        Args:
            service: which.
            mounts: source, and perhaps ``:ro``, by where it is mounted.
            network: that it is in.
        """
        like = self.container(service)
        words = [f"--volume={each}:{to}" for to, each in _mounts({**like.volumes, **mounts})]
        words += [f"--env={each}" for each in like.config["Env"] if each.startswith("GTX_")]
        image, command = like.config["Image"], like.config["Cmd"]
        return run("docker", "run", "--rm", f"--network={network}", *words, image, *command)

    def logs(self) -> dict[str, list[str]]:
        """The lines of all logs, which are saved, too."""
        directory = self.directory / "logs"
        directory.mkdir(parents=True, exist_ok=True)
        found = {}
        for service, container in sorted(self.containers().items()):
            said = run("docker", "logs", "--timestamps", container.id)
            found[service] = sorted([*said.out.splitlines(), *said.err.splitlines()])
            text = "\n".join(found[service])
            (directory / f"{service}.log").write_text(text, encoding="utf-8")
        return found

    def clear(self) -> None:
        """Leave nothing of it: containers, networks, volumes."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5", timeout_s=180)
        of_project = ("--filter", f"label=com.docker.compose.project={self.project}", "--quiet")
        for kind in ("container", "network", "volume"):
            listing = ("ls", "--all") if kind == "container" else ("ls",)
            assert docker(kind, *listing, *of_project) == "", f"a {kind} is left"

    # -- looking -----------------------------------------------------------------------------------

    def wait_for(
        self, what: str | Callable[[], str], condition: Callable[[], object], seconds: float
    ) -> float:
        """Wait until something holds; returns how long it took."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > seconds:
                said = what if isinstance(what, str) else what()
                raise AssertionError(f"not within {seconds} s: {said}")
            time.sleep(POLL_S)
        return time.monotonic() - began

    def get(self, service: str, path: str) -> tuple[int, bytes]:
        """An HTTP answer of a process; status 0 if there is none."""
        if service == "gateway":
            return http_get(self.gateway_url + path)
        answer = self._ask(service, path)
        if answer[0] == 0:
            self._addressed_s = -ADDRESSES_S
            answer = self._ask(service, path)
        return answer

    def _ask(self, service: str, path: str) -> tuple[int, bytes]:
        address = self._address(service)
        return http_get(f"http://{address}:{HTTP_PORT}{path}") if address else (0, b"")

    def _address(self, service: str) -> str | None:
        """Where a process is now; for long enough only that another does not answer in its name."""
        with self._addressing:
            now_s = time.monotonic()
            if now_s - self._addressed_s > ADDRESSES_S:
                self._addresses = {name: each.address for name, each in self.containers().items()}
                self._addressed_s = now_s
            return self._addresses.get(service)

    def status(self) -> dict[str, Any] | None:
        """The gateway's status."""
        code, body = self.get("gateway", "/api/v1/status")
        return dict(json.loads(body)) if code == 200 else None

    def finalized(self) -> dict[str, int]:
        """Final heights as the gateway verified them; empty while it does not answer."""
        status = self.status()
        return {} if status is None else {k: v["finalized"] for k, v in status["chains"].items()}

    def settled(self) -> int:
        """Intervals that the consortium settled."""
        status = self.status()
        return 0 if status is None else int(status["settlements"]["intervals"])

    def number(self, service: str, name: str) -> float | None:
        """A number of `/metrics`, summed over its labels; None while there is no answer."""
        code, body = self.get(service, "/metrics")
        if code != 200:
            return None
        samples = (
            sample.value
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
            if sample.name == name
        )
        return sum(samples)

    def headers(self) -> dict[tuple[str, int], str]:
        """Hashes of the newest blocks that the gateway shows as final, by chain and height."""
        found: dict[tuple[str, int], str] = {}
        for chain in CHAINS:
            code, body = self.get("gateway", f"/api/v1/chains/{chain}/headers?limit=100")
            assert code == 200, (code, body)
            answer = json.loads(body)
            rows = answer["headers"] if isinstance(answer, dict) else answer
            found |= {(chain, row["height"]): row["hash"] for row in rows}
        return found

    # -- disks -------------------------------------------------------------------------------------

    def copy(self, directory: Path) -> Layout:
        """Copy all volumes of the stopped containers to one home, as a network of one machine."""
        directory.mkdir(parents=True)
        mounts = {
            Path(mount["Destination"]).name: container.id
            for container in self.containers().values()
            for mount in container.mounts
            if Path(mount["Destination"]).parent == Path(HOME)
        }
        for name, container_id in sorted(mounts.items()):
            docker("cp", f"{container_id}:{HOME}/{name}", directory / name)
        manifest = load_manifest(directory / CONTAINERS.public / "manifest.toml")
        return Layout(directory, manifest, CONTAINERS)


def _container(said: Mapping[str, Any]) -> Container:
    return Container(
        id=said["Id"],
        service=said["Config"]["Labels"]["com.docker.compose.service"],
        state=said["State"],
        config=said["Config"],
        mounts=tuple(said["Mounts"]),
        networks=said["NetworkSettings"]["Networks"],
        restarts=said["RestartCount"],
    )


def _mounts(sources: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Options of mounts, with ``:ro`` where docker wants it: behind the destination."""
    for destination, source in sorted(sources.items()):
        name, mark, mode = source.partition(":")
        yield f"{destination}{mark}{mode}", name


def http_get(url: str) -> tuple[int, bytes]:
    """An HTTP answer; status 0 if there is none."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except OSError:
        return 0, b""


def all_at_once(work: Callable[[T], R], on: Iterable[T]) -> list[R]:
    """Do something with several things at one time; fails with the first that fails."""
    each = list(on)
    with ThreadPoolExecutor(len(each)) as pool:
        return list(pool.map(work, each))


# -- harm ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Harm:
    """Something that happens to a container, and what mends it, if it does not mend itself."""

    do: Callable[[Container], object]
    mend: Callable[[Container], object] | None = None


def _engine(*words: str) -> Callable[[Container], object]:
    return lambda container: docker(*words, container.id)


def _crash(container: Container) -> None:
    """End its main process from outside of the engine, as a lack of memory would."""
    os.kill(container.state["Pid"], signal.SIGKILL)


def _disconnect(container: Container) -> None:
    for network in container.networks:
        docker("network", "disconnect", network, container.id)


def _connect(container: Container) -> None:
    for network in container.networks:
        docker("network", "connect", "--alias", container.service, network, container.id)


HARMS = {
    "killed": Harm(_engine("kill"), _engine("start")),
    "paused": Harm(_engine("pause"), _engine("unpause")),
    "cut off": Harm(_disconnect, _connect),
    "crashed": Harm(_crash),
    "restarted": Harm(_engine("restart", "--time", "30")),
}
"""The last two mend themselves: the engine starts what ended without being told to."""


# -- telling ---------------------------------------------------------------------------------------


def tell(config: pytest.Config, text: str) -> None:
    """Print to the person who runs the tests, also from a fixture and when nothing fails."""
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        sys.stdout.write(f"\n    {text}")
        sys.stdout.flush()
