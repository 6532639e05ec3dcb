"""What a run of real processes is: a typed manifest in TOML, in the words of the simulator's.

Law of the file: **a manifest and a seed determine what is done to the chain, and when.** What the
chain then does is up to the machine that it runs on: a run of real processes cannot be told again, only
repeated.

Beside the simulator's faults a traitor may be named by its role (``node = "leader"``): whoever leads
when the fault starts betrays the others, and counts as Byzantine from then on.
"""

import random
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.quorum import max_faulty
from gridtokenx.host.config import parse_toml, toml_value
from gridtokenx.lab.faults import (
    Bandwidth,
    Behave,
    Behaviour,
    ClockDrift,
    ClockJump,
    ClockOffset,
    Crash,
    Delay,
    Duplicate,
    Fault,
    Index,
    Kind,
    Loss,
    Millis,
    Partition,
    Pause,
    Reorder,
    Share,
    Where,
    Wipe,
    kind_of,
    problems,
)
from gridtokenx.lab.files import read_manifest
from gridtokenx.lab.sim.manifest import Chain, Safety, Section, Workload
from gridtokenx.lab.sim.pbft.behaviours import TRICKS
from gridtokenx.lab.slips import Grammar

MOST_REPLICAS: Final = 50


class Treason(Fault, frozen=True, tag="behave"):
    """A replica breaks the protocol, in its own process and with its own key only."""

    node: Where
    behaviour: Behaviour
    share: Share = 1.0
    victims: tuple[Index, ...] = ()
    messages: tuple[Kind, ...] = ()
    delay_ms: Millis = 2_000

    def of(self, node: int) -> Behave:
        """The same, of a replica by its index."""
        values = {name: getattr(self, name) for name in self.__struct_fields__ if name != "node"}
        return Behave(node=node, **values)


LiveFault: TypeAlias = (
    Crash
    | Pause
    | Wipe
    | Partition
    | Delay
    | Bandwidth
    | Loss
    | Duplicate
    | Reorder
    | ClockOffset
    | ClockDrift
    | ClockJump
    | Treason
)
KINDS: Final[dict[str, type[Fault]]] = {
    str(type_.__struct_config__.tag): type_ for type_ in get_args(LiveFault)
}
Shape = Literal["halves", "isolate", "ring", "one-way"]


class Recovery(Section, frozen=True):
    """What is asked of the chain after each fault."""

    bound_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = 0
    """Within this time of a fault's end everybody who should is level again, and new work is done; 0:
    as the protocol's timers allow (`bounds.py`)."""
    blocks: Annotated[int, Meta(ge=1, le=1_000)] = 2
    """So many more blocks on each of them."""


class Storm(Section, frozen=True):
    """Draw a schedule from the seed: in each period so many faults of each kind, none over another."""

    period_ms: Annotated[int, Meta(ge=1_000, le=3_600_000)] = 60_000
    crashes: Annotated[int, Meta(ge=0, le=60)] = 1
    pauses: Annotated[int, Meta(ge=0, le=60)] = 1
    partitions: Annotated[int, Meta(ge=0, le=60)] = 1
    treasons: Annotated[int, Meta(ge=0, le=60)] = 1
    for_ms: Annotated[tuple[Millis, ...], Meta(min_length=1)] = (2_000, 6_000, 8_000)
    """How long a fault lasts: one of these."""
    shapes: Annotated[tuple[Shape, ...], Meta(min_length=1)] = ("halves", "isolate", "one-way")
    behaviours: Annotated[tuple[Behaviour, ...], Meta(min_length=1)] = ("equivocate",)

    @property
    def faults(self) -> int:
        """How many there are in a period."""
        return self.crashes + self.pauses + self.partitions + self.treasons


class Manifest(Section, frozen=True):
    """A run of real processes, or a family of runs."""

    name: Annotated[str, Meta(pattern="^[a-z][a-z0-9-]{0,60}$")] = "faults"
    about: str = ""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    """Only in resolved manifests: the seed that they were drawn with."""
    chain: Chain = Chain()
    workload: Workload = Workload(clients=40)
    safety: Safety = Safety()
    recovery: Recovery = Recovery()
    storm: Storm | None = None
    fault: tuple[LiveFault, ...] = ()


GRAMMAR: Final = Grammar(Manifest, KINDS, {})


def load(path: Path) -> Manifest:
    """The manifest in a TOML file.

    Raises:
        LocalFault: unreadable, not TOML, an unknown key, or a value that is not allowed.
    """
    return parse(read_manifest(path), str(path))


def parse(text: str, source: str = "manifest") -> Manifest:
    """The inverse of `dump`; see `load` for what is refused."""
    try:
        raw = parse_toml(text)
    except tomllib.TOMLDecodeError as error:
        raise LocalFault(f"manifest {source}: not TOML: {error}") from None
    for problem in GRAMMAR.unknown_keys(raw):
        raise LocalFault(f"manifest {source}: {problem}")
    try:
        manifest = msgspec.convert(raw, Manifest)
    except msgspec.ValidationError as error:
        raise LocalFault(f"manifest {source}: {GRAMMAR.explain(error, raw)}") from None
    for problem in _problems(manifest):
        raise LocalFault(f"manifest {source}: {problem}")
    return manifest


def _problems(manifest: Manifest) -> Iterator[str]:
    chain, storm = manifest.chain, manifest.storm
    if not 4 <= chain.replicas <= MOST_REPLICAS:
        yield f"chain.replicas = {chain.replicas}: real runs have 4 to {MOST_REPLICAS}"
    if chain.variant or chain.observers:
        yield "chain.variant and chain.observers belong to `gtx sim run`"
    if manifest.workload.retry_ms != Workload().retry_ms:
        yield "workload.retry_ms belongs to `gtx sim run`; real clients send again in their own time"
    for number, fault in enumerate(manifest.fault, 1):
        for problem in fault_problems(fault, chain.replicas):
            yield f"fault {number} ({kind_of(fault)}): {problem}"
    if storm is not None and storm.faults:
        slot_ms = storm.period_ms // storm.faults
        if max(storm.for_ms) >= slot_ms:
            yield f"storm: {storm.faults} faults in {storm.period_ms} ms leave {slot_ms} ms for each"


def fault_problems(fault: Fault, replicas: int) -> Iterator[str]:
    """What is wrong with a fault beyond the types of its values; see `faults.problems`."""
    yield from problems(fault, replicas)
    if fault.when:
        yield "`when` looks into replicas: only the simulator can; use at_ms, at_height or at_view"
    if isinstance(fault, Treason) and fault.behaviour not in TRICKS:
        yield f"behaviour {fault.behaviour!r} is the simulator's; here: {', '.join(TRICKS)}"
    if isinstance(fault, Bandwidth) and fault.messages:
        yield "a link is one stream: bandwidth cannot be bounded for some messages"


# -- drawing ---------------------------------------------------------------------------------------


def resolve(manifest: Manifest, seed: int) -> Manifest:
    """The one schedule of this seed. A manifest that is resolved already is returned as it is."""
    if manifest.seed is not None:
        return manifest
    faults: Sequence[LiveFault] = manifest.fault
    if manifest.storm is not None:
        draw = random.Random(f"gtx fault: {seed}")  # noqa: S311 - repeatable on purpose
        drawn = _storm(manifest.storm, manifest.chain.replicas, manifest.safety.duration_ms, draw)
        faults = (*faults, *drawn)
    return msgspec.structs.replace(manifest, seed=seed, storm=None, fault=tuple(faults))


def _storm(
    storm: Storm, replicas: int, duration_ms: int, draw: random.Random
) -> Iterator[LiveFault]:
    """Each period is cut into slots, one for each of its faults, in drawn order."""
    kinds = ["crash"] * storm.crashes + ["pause"] * storm.pauses
    kinds += ["partition"] * storm.partitions + ["treason"] * storm.treasons
    slot_ms = storm.period_ms // max(1, len(kinds))
    for begin_ms in range(0, duration_ms - storm.period_ms + 1, storm.period_ms):
        draw.shuffle(kinds)
        for number, kind in enumerate(kinds):
            at_ms = begin_ms + number * slot_ms + draw.randint(0, slot_ms // 10)
            yield _drawn(kind, storm, replicas, at_ms, draw)


def _drawn(kind: str, storm: Storm, replicas: int, at_ms: int, draw: random.Random) -> LiveFault:
    for_ms = draw.choice(storm.for_ms)
    where: Where = draw.choice(("leader", draw.randrange(replicas)))
    match kind:
        case "crash":
            return Crash(nodes=(where,), at_ms=at_ms, for_ms=for_ms)
        case "pause":
            return Pause(nodes=(where,), at_ms=at_ms, for_ms=for_ms)
        case "treason":
            behaviour = draw.choice(storm.behaviours)
            return Treason(node="leader", behaviour=behaviour, at_ms=at_ms, for_ms=for_ms)
        case _:
            return _partition(draw.choice(storm.shapes), replicas, at_ms, for_ms, draw)


def _partition(
    shape: Shape, replicas: int, at_ms: int, for_ms: int, draw: random.Random
) -> Partition:
    some = tuple(sorted(draw.sample(range(replicas), draw.randint(1, max_faulty(replicas)))))
    nodes: tuple[Where, ...] = {
        "halves": tuple(sorted(draw.sample(range(replicas), replicas // 2))),
        "ring": (),
    }.get(shape, draw.choice((some, ("leader",))))
    return Partition(shape=shape, nodes=nodes, at_ms=at_ms, for_ms=for_ms)


# -- writing ---------------------------------------------------------------------------------------


def dump(manifest: Manifest) -> str:
    """A manifest as TOML; what is as by default is left out."""
    usual = Manifest()
    lines = list(_lines(manifest, usual, skip=("fault",)))
    for name in ("chain", "workload", "safety", "recovery", "storm"):
        section = getattr(manifest, name)
        if section is None:
            continue
        inside = list(_lines(section, getattr(usual, name) or Storm()))
        if inside or name == "storm":
            lines += ["", f"[{name}]", *inside]
    for fault in manifest.fault:
        lines += ["", *fault_lines(fault)]
    return "\n".join(lines) + "\n"


def fault_lines(fault: Fault) -> list[str]:
    """One fault as TOML."""
    lines = ["[[fault]]", f"kind = {toml_value(kind_of(fault))}"]
    for field in msgspec.structs.fields(type(fault)):
        value = getattr(fault, field.name)
        if value != field.default:
            lines.append(f"{field.name} = {toml_value(value)}")
    return lines


def _lines(table: Section, usual: Section, skip: Iterable[str] = ()) -> Iterator[str]:
    for name in table.__struct_fields__:
        value = getattr(table, name)
        if name in skip or isinstance(value, Section) or value in (None, getattr(usual, name)):
            continue
        yield f"{name} = {toml_value(value)}"
