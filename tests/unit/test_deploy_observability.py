"""Alerts and dashboards name only what the code counts."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from gridtokenx.lab.deploy.targets import targets
from gridtokenx.lab.manifest import Manifest
from gridtokenx.lab.testnet.layout import Layout
from gridtokenx.lab.testnet.placement import CONTAINERS

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"
_COUNTED = re.compile(r'\.(count|gauge|observe)\(\s*"(\w+)"')
_SUFFIX = {"count": ("_total",), "gauge": ("",)}
_HISTOGRAM = ("_seconds_bucket", "_seconds_sum", "_seconds_count")


def known() -> set[str]:
    names = set()
    for root in ("nodes", "bridge", "oracle", "devices"):
        for path in (ROOT / root).rglob("*.py"):
            for kind, name in _COUNTED.findall(path.read_text(encoding="utf-8")):
                names |= {f"gtx_{name}{suffix}" for suffix in _SUFFIX.get(kind, _HISTOGRAM)}
    return names


def expressions() -> dict[str, str]:
    rules = yaml.safe_load((COMPOSE / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
    found = {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}
    for path in (COMPOSE / "grafana" / "dashboards").glob("*.json"):
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            for target in panel["targets"]:
                found[f"{path.stem}: {panel['title']} {target['refId']}"] = target["expr"]
    return found


@pytest.mark.parametrize(("where", "expression"), list(expressions().items()))
def test_every_name_is_counted_somewhere(where: str, expression: str):
    names = set(re.findall(r"\bgtx_\w+", expression))
    assert names or "ALERTS" in expression or "up{" in expression, where
    assert names <= known(), f"{where}: nothing counts {names - known()}"


def test_the_promised_alerts_are_there():
    assert expressions().keys() >= {
        "ChainStalled", "FinalityLagging", "ProcessUnready", "Equivocation", "PacketsStuck",
        "ClockOff", "CertificateExpiring", "DiskFilling", "QuorumAtRisk", "IdentityInUse",
    }  # fmt: skip


def test_every_process_with_metrics_is_a_target():
    layout = Layout(Path(), Manifest(), CONTAINERS)
    found = json.loads(targets(layout))
    by_name = {target["labels"]["process"]: target for target in found}
    assert by_name.keys() == {m.name for m in layout.members} - {"broker"}
    assert by_name["public-2"]["targets"] == ["public-2:26601"]
    assert by_name["gateway"]["targets"] == ["gateway:18080"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on this machine")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "rules.yml"),
        ("test", "rules", "rules_test.yml"),
        ("check", "config", "--syntax-only", "prometheus.yml"),
    ],
)
def test_promtool_agrees(arguments: tuple[str, ...]):
    done = subprocess.run(
        ["promtool", *arguments],
        cwd=COMPOSE / "prometheus",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
