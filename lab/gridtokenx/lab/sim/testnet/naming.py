"""Simulated networks in manifests: how one is given, and what its processes are called.

========================================  ========================================================
in the manifest                           means
========================================  ========================================================
``testnet = "local.toml"``                the network of that manifest of `gtx testnet`, beside this
``[testnet]``, ``[testnet.devices]``      the same, written here
(a manifest of `gtx testnet` by itself)   a grid day of it, without faults
``nodes = ["oracle-2", "relayer-0"]``     in faults, processes by name; by number works as well
``[chain] observers``, ``[[change]]``     nodes without a seat, and changes of a PBFT chain's set
========================================  ========================================================
"""

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, get_args

from msgspec.structs import replace

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.gridtime import DAY_MS
from gridtokenx.host.config import parse_toml
from gridtokenx.lab.faults import (
    BEHAVIOURS,
    Behave,
    Fault,
    OfOracles,
    OfRelayers,
    RoundMutation,
    RoundPartition,
    ViewPartition,
    byzantine,
)
from gridtokenx.lab.files import read_regular
from gridtokenx.lab.manifest import Manifest, check_manifest, dump_manifest
from gridtokenx.lab.sim.pbft.variants import VARIANTS as OF_ONE_CHAIN
from gridtokenx.lab.sim.testnet.meddling import MEDDLING

BROKER: Final = "broker"
MARKET_DATA: Final = "market-data"
DEVICES: Final = "devices"
AGENTS: Final = "agents"
CHAINS: Final = ("public", "consortium", "oracle")
VALIDATORS: Final = (
    "silent", "selective-silence", "delay", "equivocate", "conflicting-votes", "forge-signature",
    "wrong-state-root", "censor", "replay", "block-liar", "twin",
)  # fmt: skip
"""What a traitor among the public chain's validators may do; see `validators.py`."""
VARIANTS: Final = {
    **{variant.name: variant.about for variant in OF_ONE_CHAIN.values()},
    "few-precommits": "Takes a public block for final that f + 1 validators precommit: one honest one's word.",
    "mean-of-feeds": "Takes the mean of what oracles observed: one of them moves it as far as it likes.",
}
"""Broken networks by name; see `variants.py`."""
BOUND_MS: Final = 300_000
"""Within which a healed network goes on: views that grew, a boundary, its settlement, its acknowledgement."""
_BARE: Final = frozenset(
    {"time", "public", "consortium", "oracle", "bridge", "devices", "market", "ports"}
)
_PLACE: Final = ("node", "add", "remove", "replace", "by")
_PLACES: Final = ("nodes", "senders", "receivers", "victims")

Raw = dict[str, Any]
"""A TOML table, not yet typed."""


def node_names(manifest: Manifest, chain: str, observers: int = 0) -> list[str]:
    """The nodes of a chain; `observers` of each PBFT chain have no seat at first."""
    counts = {
        "public": manifest.public.candidates or manifest.public.validators,
        "consortium": manifest.consortium.replicas + observers,
        "oracle": manifest.oracle.nodes + observers,
    }
    return [f"{chain}-{index}" for index in range(counts[chain])]


def names(manifest: Manifest, observers: int = 0) -> list[str]:
    """All processes; a fault's number of one is its position here."""
    nodes = [name for chain in CHAINS for name in node_names(manifest, chain, observers)]
    relayers = [f"relayer-{position}" for position in range(manifest.bridge.relayers)]
    return [*nodes, *relayers, BROKER, MARKET_DATA, DEVICES, AGENTS]


# -- reading ---------------------------------------------------------------------------------------


def expand(raw: Raw, source: str, beside: Path | None) -> Raw:
    """A manifest's table with its network written out, and its faults by number.

    Args:
        raw: as it was read.
        source: for complaints.
        beside: the directory that other files are named from; None: no other file may be named.

    Raises:
        LocalFault: the other file is missing, or none.
    """
    if "testnet" not in raw:
        if not _BARE & raw.keys():
            return raw
        raw = _alone(raw)
    network = raw["testnet"]
    if isinstance(network, str):
        network = _read(network, source, beside)
    liveness = raw.get("liveness", {})
    if isinstance(liveness, dict):  # if not, whoever types it says so
        liveness = {"bound_ms": BOUND_MS, **liveness}
    expanded = {**raw, "testnet": network, "liveness": liveness}
    for key in ("fault", "change"):
        if isinstance(raw.get(key), list):
            expanded[key] = [_by_number(each, network, _observers(raw)) for each in raw[key]]
    return expanded


def _alone(raw: Raw) -> Raw:
    """A network and nothing else: a day of it."""
    time = raw.get("time", {})
    scale = time.get("scale", 60) if isinstance(time, dict) else 60
    day_ms = DAY_MS // scale if isinstance(scale, int) and scale > 0 else DAY_MS
    return {
        "name": str(raw.get("name", "local")),
        "testnet": raw,
        "safety": {"duration_ms": day_ms},
    }


def _read(name: str, source: str, beside: Path | None) -> Raw:
    if beside is None:
        raise LocalFault(
            f"manifest {source}: testnet = {name!r}: write the network out as [testnet]"
        )
    path = beside / name
    try:
        return parse_toml(read_regular(path).decode())
    except OSError as error:
        raise LocalFault(
            f"manifest {source}: testnet = {name!r} cannot be read: {error.strerror}"
        ) from None
    except UnicodeDecodeError as error:
        raise LocalFault(f"manifest {source}: testnet = {name!r} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise LocalFault(f"manifest {source}: testnet = {name!r} is not TOML: {error}") from None


def _observers(raw: Raw) -> int:
    chain = raw.get("chain")
    count = chain.get("observers", 0) if isinstance(chain, dict) else 0
    return count if isinstance(count, int) and 0 <= count <= 64 else 0


def _by_number(fault: object, network: object, observers: int) -> object:
    """A fault's or change's table with processes by number."""
    if not isinstance(fault, dict) or not isinstance(network, dict):
        return fault
    numbers = {name: number for number, name in enumerate(names(_sizes(network), observers))}

    def number(value: object) -> object:
        return numbers.get(value, value) if isinstance(value, str) else value

    changed = dict(fault)
    for key in _PLACES:
        if isinstance(fault.get(key), list):
            changed[key] = [number(each) for each in fault[key]]
    if isinstance(fault.get("sides"), list):
        changed["sides"] = [
            [number(each) for each in side] if isinstance(side, list) else side
            for side in fault["sides"]
        ]
    for key in _PLACE:
        if key in fault:
            changed[key] = number(fault[key])
    return changed


def _sizes(network: Raw) -> Manifest:
    """Enough of a network to name its processes; whatever is wrong with it is told later."""
    usual = Manifest()
    for table, key in (("public", "validators"), ("public", "candidates"), ("consortium", "replicas"),
                       ("oracle", "nodes"), ("bridge", "relayers")):  # fmt: skip
        section = network.get(table)
        count = section.get(key) if isinstance(section, dict) else None
        if isinstance(count, int) and 0 < count <= 200:
            sized = replace(getattr(usual, table), **{key: count})
            usual = replace(usual, **{table: sized})
    return usual


# -- judging ---------------------------------------------------------------------------------------


def problems(
    network: Manifest, observers: int, faults: Sequence[Fault], source: str
) -> Iterator[str]:
    """What of a network's run could not work."""
    try:
        check_manifest(network, f"{source}, testnet")
    except LocalFault as refusal:
        yield str(refusal)
    processes = names(network, observers)
    for number, fault in enumerate(faults, 1):
        if isinstance(fault, RoundMutation | RoundPartition | ViewPartition):
            yield f"fault {number}: rounds and views are one chain's; a network has three"
        elif isinstance(fault, Behave) and fault.node < len(processes):
            name = processes[fault.node]
            allowed = behaviours_of(name)
            if fault.behaviour not in allowed:
                yield f"fault {number}: {name} may be {', '.join(allowed)}, not {fault.behaviour!r}"
            yield from _victim_problems(number, fault, processes)
    for chain in CHAINS:
        nodes = set(node_names(network, chain, observers))
        traitors = {processes[each] for each in byzantine(faults) if each < len(processes)}
        if nodes <= traitors:
            yield f"every node of the {chain} chain is a traitor: nobody is left to be judged"


def behaviours_of(name: str) -> Sequence[str]:
    """What a process of this name may do as a traitor."""
    kind = name.partition("-")[0]
    match kind:
        case "public":
            return VALIDATORS
        case "consortium":
            return BEHAVIOURS
        case "oracle":
            return (*BEHAVIOURS, *get_args(OfOracles))
        case "relayer":
            return tuple(dict.fromkeys((*MEDDLING, *get_args(OfRelayers))))
        case _:
            return MEDDLING


def _victim_problems(number: int, fault: Behave, processes: Sequence[str]) -> Iterator[str]:
    """A traitor wrongs members of its own chain."""
    chain = processes[fault.node].partition("-")[0]
    wronged = [processes[each] for each in fault.victims if each < len(processes)]
    if chain in CHAINS and wronged and not any(each.startswith(f"{chain}-") for each in wronged):
        yield f"fault {number}: no victim is of the {chain} chain: {', '.join(wronged)}"


# -- writing ---------------------------------------------------------------------------------------


def dump_lines(network: Manifest) -> Iterator[str]:
    """A network as tables of a manifest; what is as by default is left out."""
    yield ""
    yield "[testnet]"
    for line in dump_manifest(network, brief=True).splitlines():
        yield line.replace("[", "[testnet.", 1) if line.startswith("[") else line


def by_name(key: str, value: Any, processes: Sequence[str]) -> Any:
    """A value of a fault, with processes by name."""

    def name(each: object) -> object:
        return processes[each] if isinstance(each, int) and each < len(processes) else each

    if key in _PLACES:
        return [name(each) for each in value]
    if key == "sides":
        return [[name(each) for each in side] for side in value]
    return name(value) if key in _PLACE else value
