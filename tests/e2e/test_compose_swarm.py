"""The same network on a swarm: a stack from bundles, as several machines would run it."""

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.e2e.docker import COMMAND_S, docker, environment, http_get, run, tell
from tests.e2e.testnet import free_base, gtx, room_for_a_network

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.timeout(600)]

FINAL_S = 120.0
"""Without `depends_on` everything starts at once, and names are known once a process is healthy."""
GONE_S = 60.0
POLL_S = 0.5


@pytest.fixture
def node(images: dict[str, int]) -> Iterator[str]:
    """The name of a machine of a swarm, which is made if there is none."""
    was = docker("info", "--format", "{{.Swarm.LocalNodeState}}")
    if was == "inactive":
        docker("swarm", "init", "--advertise-addr", "127.0.0.1")
    try:
        yield docker("info", "--format", "{{.Name}}")
    finally:
        if was == "inactive":
            docker("swarm", "leave", "--force")
            docker("network", "rm", "docker_gwbridge")  # which a swarm makes, and leaves behind


def test_a_stack_is_final_on_all_chains(
    node: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = free_base()
    stack, port, file = f"gtxtest{base}", base, tmp_path / "stack.yaml"
    manifest = tmp_path / "manifest.toml"
    manifest.write_text(f'name = "stack"\n[ports]\ngateway = {port}\n', encoding="utf-8")
    bundles = tmp_path / "bundles"
    of = ("--manifest", manifest)
    assert gtx("testnet", "bundle", *of, "--output", bundles, timeout_s=180).code == 0
    written = gtx("testnet", "compose", *of, "--secrets", bundles, "--machines", node)
    assert written.code == 0, written
    file.write_text(written.out, encoding="utf-8")
    with room_for_a_network():
        try:
            began = time.monotonic()
            deploy = ("docker", "stack", "deploy", "--compose-file", file, stack)
            deployed = run(*deploy, timeout_s=180, around=environment())
            assert deployed.code == 0, deployed
            wait_for("three chains that finalise", partial(finalises, port), FINAL_S, stack)
            seconds = time.monotonic() - began
            tell(request.config, f"a stack is final on all chains after {seconds:.1f} s")
        finally:
            remove(stack)


def finalises(port: int) -> bool:
    code, body = http_get(f"http://127.0.0.1:{port}/api/v1/status")
    chains = json.loads(body)["chains"].values() if code == 200 else ()
    return bool(chains) and all(chain["finalized"] > 0 for chain in chains)


def wait_for(what: str, condition: partial[bool], seconds: float, stack: str) -> None:
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise AssertionError(f"not within {seconds} s: {what}\n{docker('stack', 'ps', stack)}")
        time.sleep(POLL_S)


def left_of(stack: str, kind: str) -> list[str]:
    of_stack = ("--filter", f"label=com.docker.stack.namespace={stack}", "--quiet")
    return docker(kind, "ls", *(("--all",) if kind == "container" else ()), *of_stack).split()


def remove(stack: str) -> None:
    """Leave nothing of it; the engine does this at its leisure."""
    docker("stack", "rm", stack, timeout_s=2 * COMMAND_S)
    for kind in ("container", "network"):
        wait_for(f"the end of each {kind}", partial(is_gone, stack, kind), GONE_S, stack)
    volumes = left_of(stack, "volume")
    if volumes:
        docker("volume", "rm", *volumes)


def is_gone(stack: str, kind: str) -> bool:
    return not left_of(stack, kind)
