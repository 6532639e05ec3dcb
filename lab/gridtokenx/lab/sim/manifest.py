"""What a simulated run is: a typed manifest in TOML, and how it is read and written.

Law of the file: **a manifest and a seed determine a run, and so does a resolved manifest alone.** A
manifest may leave things open: lists to choose from, faults to draw. `draw.py` closes them with the
seed; what it returns is a manifest again, without open ends, which can be printed, kept and replayed.
"""

import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.config import parse_toml
from gridtokenx.lab.faults import (
    BEHAVIOURS,
    DRAWN,
    KINDS,
    AnyBehaviour,
    AnyFault,
    Behave,
    Count,
    Fault,
    Index,
    problems,
)
from gridtokenx.lab.files import read_manifest
from gridtokenx.lab.manifest import Manifest as Testnet
from gridtokenx.lab.sim.pbft.variants import VARIANTS
from gridtokenx.lab.sim.testnet import naming
from gridtokenx.lab.slips import Grammar
from gridtokenx.pbft.timing import Timing

Millis = Annotated[int, Meta(ge=0, le=86_400_000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Replicas = Annotated[int, Meta(ge=1, le=128)]
Window = Annotated[int, Meta(ge=1, le=16)]
BlockTime = Annotated[int, Meta(ge=0, le=60_000)]
Timeout = Annotated[int, Meta(ge=2, le=600_000)]
Feature = Literal[
    "crash", "pause", "partition", "delay", "loss", "duplicate", "reorder", "bandwidth", "clock", "disk",
    "members",
]  # fmt: skip
FEATURES: tuple[Feature, ...] = get_args(Feature)
LONGEST_NAME: Final = 61


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all tables."""


class Chain(Section, frozen=True):
    """The chain under test and its replicas."""

    replicas: Replicas = 4
    observers: Annotated[int, Meta(ge=0, le=64)] = 0
    """Nodes without a seat at first; their indices come after the replicas'. Of a network: so many of the
    consortium and of the oracle chain each."""
    variant: Annotated[str, Meta(pattern="^[a-z0-9-]{0,40}$")] = ""
    """A deliberately broken replica (`gtx sim variants`); empty: the real one."""
    window: Window = 1
    """Heights that may be in flight."""
    block_time_ms: BlockTime = 1_000
    heartbeat_ms: Annotated[int, Meta(ge=1, le=600_000)] = 5_000
    view_timeout_ms: Annotated[int, Meta(ge=1, le=600_000)] = 3_000
    longest_timeout_ms: Annotated[int, Meta(ge=1, le=3_600_000)] = 60_000
    request_timeout_ms: Annotated[int, Meta(ge=2, le=600_000)] = 3_000
    retransmit_ms: Annotated[int, Meta(ge=2, le=600_000)] = 1_000
    clock_bound_ms: Annotated[int, Meta(ge=1, le=600_000)] = 5_000
    gossip_ms: Annotated[int, Meta(ge=0, le=60_000)] = 20
    fetch_timeout_ms: Annotated[int, Meta(ge=1, le=600_000)] = 2_000
    rotation_blocks: Annotated[int, Meta(ge=0, le=2**20)] = 0
    """After so many blocks the leadership passes on; 0: only by view change."""
    checkpoint_blocks: Annotated[int, Meta(ge=1, le=2**20)] = 64
    """Between two heights whose states are handed out."""
    snapshot_distance: Annotated[int, Meta(ge=0, le=2**40)] = 1_024
    """Who is so many blocks behind takes a state instead."""
    part_bytes: Annotated[int, Meta(ge=64, le=2**20)] = 131_072
    """Of a state, so much is handed out at once."""

    @property
    def nodes(self) -> int:
        """Replicas and observers."""
        return self.replicas + self.observers

    @property
    def timing(self) -> Timing:
        """As the replica takes it."""
        return Timing(**{name: getattr(self, name) for name in Timing.__slots__})


class Change(Section, frozen=True):
    """A change of the replica set: members propose and approve it, one change after another.

    One of `add`, `remove` and `replace` (which needs `by`; it is also how a key is rotated: the
    operator's new key is a node of its own). A change that the set does not allow when its turn comes
    is passed over, and that is said.
    """

    add: Index | None = None
    """This node gets a seat."""
    remove: Index | None = None
    """This node loses its seat, and observes from then on."""
    replace: Index | None = None
    """This node loses its seat to `by`."""
    by: Index | None = None
    at_ms: Millis = 0
    """Not before so long after the start of the run."""
    at_height: Count = 0
    """Not before this height is committed."""

    @property
    def about(self) -> str:
        """In a few words."""
        named = ((each, getattr(self, each)) for each in ("add", "remove", "replace", "by"))
        return " ".join(f"{word} {node}" for word, node in named if node is not None)

    @property
    def nodes(self) -> tuple[int, ...]:
        """Who is named."""
        named = (self.add, self.remove, self.replace, self.by)
        return tuple(node for node in named if node is not None)


class Workload(Section, frozen=True):
    """What clients do."""

    transactions_per_s: Annotated[int, Meta(ge=0, le=10_000)] = 10
    clients: Annotated[int, Meta(ge=1, le=1_000)] = 8
    """Accounts that take turns; each repeats what was not committed after `retry_ms`."""
    retry_ms: Annotated[int, Meta(ge=100, le=600_000)] = 5_000


class Links(Section, frozen=True):
    """How links and disks behave while no fault says otherwise."""

    spread: Literal["uniform", "exponential", "heavy"] = "uniform"
    least_delay_ms: Millis = 1
    delay_ms: Millis = 20
    """The greatest delay if `spread` is uniform; else the mean."""
    loss: Share = 0.0
    duplicate: Share = 0.0
    reorder: Share = 0.0
    disk_ms: Millis = 2
    """The longest time until a batch is durable."""


class Safety(Section, frozen=True):
    """The first phase: anything may happen, nothing may be contradicted."""

    duration_ms: Annotated[int, Meta(ge=0, le=86_400_000)] = 60_000


class Liveness(Section, frozen=True):
    """The second phase: a core is healed, and must go on."""

    bound_ms: Annotated[int, Meta(ge=0, le=86_400_000)] = 120_000
    """Within this time every core replica has `blocks` more blocks and a new transaction in one. 0: no
    such phase."""
    blocks: Annotated[int, Meta(ge=1, le=1_000)] = 3
    core: Literal["all", "quorum"] = "all"
    """Who is healed: all honest replicas, or only as many as a quorum needs (the others stay down)."""
    members: tuple[Annotated[int, Meta(ge=0, le=127)], ...] = ()
    """Of core `quorum`: who; drawn if empty."""
    least_delay_ms: Annotated[int, Meta(ge=0, le=600_000)] = 1
    delay_ms: Annotated[int, Meta(ge=0, le=600_000)] = 5
    """The greatest delay of a message from then on: the bound that no replica knows."""


class Swarm(Section, frozen=True):
    """Draw a run from the seed: the chain's size and speed, and a schedule of faults."""

    replicas: Annotated[tuple[Replicas, ...], Meta(min_length=1)] = (4, 5, 6, 7)
    block_time_ms: Annotated[tuple[BlockTime, ...], Meta(min_length=1)] = (0, 200, 1_000)
    window: Annotated[tuple[Window, ...], Meta(min_length=1)] = (1, 4)
    features: Annotated[tuple[Feature, ...], Meta(min_length=1)] = FEATURES
    """Kinds of faults; every run leaves some of them out, which makes the others meet more often."""
    faults: Annotated[int, Meta(ge=0, le=1_000)] = 12
    """Most faults of a run, beside those of traitors and plots."""
    plots: Annotated[int, Meta(ge=0, le=100)] = 3
    """Most plots of a run (`sim/plots.py`): faults that belong together, around one moment."""
    changes: Annotated[int, Meta(ge=0, le=100)] = 4
    """Most changes of the replica set, in runs that have the feature `members`."""
    view_timeout_ms: Annotated[tuple[Timeout, ...], Meta(min_length=1)] = (300, 1_000, 3_000)
    """Also the request timeout; in some runs the second phase is slower than that."""
    byzantine: Annotated[int, Meta(ge=-1, le=127)] = -1
    """How many traitors at most; -1: as many as the chain tolerates."""
    least_byzantine: Annotated[int, Meta(ge=0, le=127)] = 0
    behaviours: tuple[AnyBehaviour, ...] = DRAWN


class Byzzfuzz(Section, frozen=True):
    """Draw faults by rounds of the protocol (ByzzFuzz, OOPSLA 2023)."""

    process_faults: Annotated[int, Meta(ge=0, le=100)] = 2
    """c: rounds in which one traitor's messages are changed."""
    network_faults: Annotated[int, Meta(ge=0, le=100)] = 2
    """d: rounds in which the network is cut."""
    rounds: Annotated[int, Meta(ge=1, le=10_000)] = 20
    """r: among how many rounds they are drawn."""
    scope: Literal["small", "any"] = "small"


class Manifest(Section, frozen=True):
    """A simulated run, or a family of runs."""

    name: Annotated[str, Meta(pattern=f"^[a-z][a-z0-9-]{{0,{LONGEST_NAME - 1}}}$")] = "run"
    about: str = ""
    """One sentence for people: what is studied, or what went wrong."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    """Only in resolved manifests: the seed that they were drawn with."""
    commit: str = ""
    """Only in recorded runs: the program that ran them."""
    trace: str = ""
    """Only in recorded runs: the trace hash that a replay must reproduce (on the same commit)."""
    expect: Literal["", "ok", "violation"] = ""
    """Only in regressions: how the run must end."""
    chain: Chain = Chain()
    workload: Workload = Workload()
    network: Links = Links()
    safety: Safety = Safety()
    liveness: Liveness = Liveness()
    swarm: Swarm | None = None
    byzzfuzz: Byzzfuzz | None = None
    change: tuple[Change, ...] = ()
    fault: tuple[AnyFault, ...] = ()
    testnet: Testnet | None = None
    """The whole network of a manifest of `gtx testnet`, in place of one chain (`testnet/naming.py`)."""

    @property
    def open(self) -> bool:
        """Whether a seed is still to be applied."""
        return self.seed is None


GRAMMAR: Final = Grammar(Manifest, KINDS, {"change": Change})


def load(path: Path) -> Manifest:
    """The manifest in a TOML file.

    Raises:
        LocalFault: unreadable, not TOML, an unknown key, or a value that is not allowed.
    """
    return parse(read_manifest(path), str(path), path.parent)


def parse(text: str, source: str = "manifest", beside: Path | None = None) -> Manifest:
    """The inverse of `dump`; see `load` for what is refused.

    Args:
        text: TOML.
        source: for complaints.
        beside: the directory from which it may name a network's manifest.
    """
    try:
        raw = parse_toml(text)
    except tomllib.TOMLDecodeError as error:
        raise LocalFault(f"manifest {source}: not TOML: {error}") from None
    raw = naming.expand(raw, source, beside)
    for problem in GRAMMAR.unknown_keys(raw):
        raise LocalFault(f"manifest {source}: {problem}")
    try:
        manifest = msgspec.convert(raw, Manifest)
    except msgspec.ValidationError as error:
        raise LocalFault(f"manifest {source}: {GRAMMAR.explain(error, raw)}") from None
    for problem in contradictions(manifest):
        raise LocalFault(f"manifest {source}: {problem}")
    return manifest


def contradictions(manifest: Manifest) -> Iterator[str]:
    """Values that are allowed each by itself, and could not work together."""
    if manifest.swarm is not None and manifest.byzzfuzz is not None:
        yield "[swarm] and [byzzfuzz] both draw the faults: keep one of them"
    if manifest.testnet is not None:
        yield from _network_problems(manifest, manifest.testnet)
    else:
        yield from _chain_problems(manifest)
    network = manifest.network
    if network.delay_ms < network.least_delay_ms:
        yield (
            f"network.delay_ms = {network.delay_ms} is below network.least_delay_ms ="
            f" {network.least_delay_ms}"
        )
    phase = manifest.liveness
    if phase.delay_ms < phase.least_delay_ms:
        yield (
            f"liveness.delay_ms = {phase.delay_ms} is below liveness.least_delay_ms ="
            f" {phase.least_delay_ms}"
        )
    chain = manifest.chain
    least = min(manifest.swarm.replicas) if manifest.swarm is not None else chain.replicas
    nodes = least + chain.observers
    if manifest.testnet is not None:
        nodes = len(naming.names(manifest.testnet, chain.observers))
    for number, change in enumerate(manifest.change, 1):
        for problem in _change_problems(change, nodes):
            yield f"change {number}: {problem}"
    if manifest.change and phase.core == "quorum":
        yield "liveness.core = 'quorum' is about one set: it cannot be used with [[change]]"
    twins = {f.node for f in manifest.fault if isinstance(f, Behave) and f.behaviour == "twin"}
    for number, fault in enumerate(manifest.fault, 1):
        for problem in problems(fault, nodes + len(twins)):
            yield f"fault {number} ({fault.__struct_config__.tag}): {problem}"


def _chain_problems(manifest: Manifest) -> Iterator[str]:
    """What only a network has."""
    variant = manifest.chain.variant
    if variant not in VARIANTS:
        yield f"chain.variant = {variant!r}: known: {', '.join(filter(None, VARIANTS))}"
    for number, fault in enumerate(manifest.fault, 1):
        if isinstance(fault, Behave) and fault.behaviour not in BEHAVIOURS:
            yield (
                f"fault {number}: {fault.behaviour!r} is what oracles and relayers of a network do;"
                f" a replica may be {', '.join(BEHAVIOURS)}"
            )


def _network_problems(manifest: Manifest, network: Testnet) -> Iterator[str]:
    """What is said of one chain means nothing to a network of three."""
    usual = Manifest()
    for name in ("workload", "byzzfuzz"):
        if getattr(manifest, name) != getattr(usual, name):
            yield f"[{name}] is about one chain; it cannot be used with testnet"
    variant, observers = manifest.chain.variant, manifest.chain.observers
    if manifest.chain != Chain(variant=variant, observers=observers):
        yield "[chain] is about one chain; with testnet it may hold `variant` and `observers` only"
    if variant not in naming.VARIANTS:
        known = ", ".join(filter(None, naming.VARIANTS))
        yield f"chain.variant = {variant!r}: known: {known}"
    if manifest.liveness.core != "all":
        yield "liveness.core: of a network all are healed"
    yield from naming.problems(network, observers, manifest.fault, manifest.name)
    processes = naming.names(network, observers)
    for number, change in enumerate(manifest.change, 1):
        named = [processes[node] for node in change.nodes if node < len(processes)]
        chains = {name.rpartition("-")[0] for name in named}
        if chains - {"consortium", "oracle"} or len(chains) > 1:
            yield f"change {number}: of one of the PBFT chains, not {', '.join(named)}"


def _change_problems(change: Change, nodes: int) -> Iterator[str]:
    if sum(each is not None for each in (change.add, change.remove, change.replace)) != 1:
        yield "give exactly one of add, remove and replace"
    elif (change.replace is None) != (change.by is None):
        yield "`by` belongs to `replace`: whose key takes the seat"
    for node in change.nodes:
        if node >= nodes:
            yield f"node {node} does not exist; there are 0 to {nodes - 1}"


# -- writing ---------------------------------------------------------------------------------------


def dump(manifest: Manifest) -> str:
    """A manifest as TOML; what is as by default is left out."""
    lines = list(_lines(manifest, Manifest(), skip={"fault", "change", "testnet"}))
    for name in ("chain", "workload", "network", "safety", "liveness", "swarm", "byzzfuzz"):
        section = getattr(manifest, name)
        if section is None:
            continue
        inside = list(_lines(section, type(section)()))
        if inside or name in ("swarm", "byzzfuzz"):
            lines += ["", f"[{name}]", *inside]
    processes: Sequence[str] = ()
    if manifest.testnet is not None:
        lines += naming.dump_lines(manifest.testnet)
        processes = naming.names(manifest.testnet, manifest.chain.observers)
    for change in manifest.change:
        lines += ["", "[[change]]", *_change_lines(change, processes)]
    for fault in manifest.fault:
        lines += ["", "[[fault]]", *_fault_lines(fault, processes)]
    return "\n".join(lines) + "\n"


def _fault_lines(fault: Fault, processes: Sequence[str]) -> Iterator[str]:
    yield f"kind = {_toml(fault.__struct_config__.tag)}"
    for field in msgspec.structs.fields(type(fault)):
        value = getattr(fault, field.name)
        if value != field.default:
            shown = naming.by_name(field.name, value, processes)
            yield f"{field.name} = {_toml(shown)}"


def _change_lines(change: Change, processes: Sequence[str]) -> Iterator[str]:
    for name in change.__struct_fields__:
        value = getattr(change, name)
        if value != getattr(Change(), name):
            yield f"{name} = {_toml(naming.by_name(name, value, processes))}"


def _lines(table: Section, usual: Section, skip: Iterable[str] = ()) -> Iterator[str]:
    for name in table.__struct_fields__:
        value = getattr(table, name)
        if name in skip or isinstance(value, Section) or value == getattr(usual, name):
            continue
        if value is not None:
            yield f"{name} = {_toml(value)}"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return msgspec.json.encode(value).decode()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value)
