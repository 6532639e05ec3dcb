"""A process's home: what kind it is, by its configuration, and what in it can be judged."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gridtokenx.core.errors import LocalFault
from gridtokenx.gateway.process import INDEX_FILE
from gridtokenx.host.chains import CHAINS, ChainFacts, read_chain, recognise_chain
from gridtokenx.host.config import parse_toml
from gridtokenx.host.keyfile import public_key_of
from gridtokenx.host.restored import marked
from gridtokenx.host.storage import Damaged, Store
from gridtokenx.lab.replay import open_chain_store
from gridtokenx.lab.verify.chain import Judged, judge_chain
from gridtokenx.lab.verify.findings import REFETCH, Finding, Progress
from gridtokenx.lab.verify.gateway import judge_index
from gridtokenx.ledger.records import base_height

KEEPS_NOTHING: Final = "keeps no chain and no index: there is nothing to verify"
CONFIG: Final = "config.toml"


@dataclass(slots=True)
class Verdict:
    """What a home was found to be."""

    summary: str
    """What was looked at, in a line."""
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Home:
    """A process's directory and its configuration."""

    path: Path
    config: dict[str, Any]
    """TOML, so of no fixed type."""

    def file(self, *keys: str) -> Path | None:
        """A path that the configuration names, or None."""
        value: object = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return self.path / value if isinstance(value, str) and value else None

    @property
    def is_node(self) -> bool:
        """Whether a chain's node lives here."""
        return self.file("genesis") is not None and self.file("data") is not None

    @property
    def is_gateway(self) -> bool:
        """Whether a gateway lives here."""
        has_data = self.file("data") is not None
        return has_data and all(self.file(name, "genesis") is not None for name in CHAINS)


def open_home(path: Path) -> Home:
    """A process's home.

    Raises:
        LocalFault: it is none, or its configuration cannot be read.
    """
    config = path / CONFIG
    try:
        return Home(path, parse_toml(config.read_text(encoding="utf-8")))
    except OSError as error:
        raise LocalFault(f"{config}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # no text, or no TOML
        raise LocalFault(f"{config}: cannot be read: {error}") from None


def homes_in(path: Path) -> Iterator[Path]:
    """The homes below a testnet's directory; a home itself otherwise."""
    if not (path / "network.json").is_file() or (path / CONFIG).exists():
        yield path
        return
    for config in sorted(path.glob(f"*/{CONFIG}")):
        if open_home(config.parent).is_node or open_home(config.parent).is_gateway:
            yield config.parent


def verify_home(path: Path, progress: Progress) -> Verdict:
    """Judge one home.

    Raises:
        LocalFault: it is none, its process still runs, or its public files cannot be used.
    """
    home = open_home(path)
    if home.is_node:
        return _verify_node(home, progress)
    if home.is_gateway:
        return _verify_gateway(home)
    if "keys" not in home.config and "listen" not in home.config and "data" not in home.config:
        raise LocalFault(f"{path}: is no process's home: its {CONFIG} names no keys and no data")
    return Verdict(KEEPS_NOTHING)


def node_chain(home: Home) -> ChainFacts:
    """The chain of a node's home."""
    genesis = home.file("genesis")
    assert genesis is not None, "asked of nodes only"
    return recognise_chain(genesis)


def node_identity(home: Home) -> bytes | None:
    """The public key of a node's home; None where it has no key files."""
    keys, name = home.file("keys"), home.config.get("key")
    if keys is None or not isinstance(name, str):
        return None
    return public_key_of(keys / f"{name}.key")


def _verify_node(home: Home, progress: Progress) -> Verdict:
    chain, data = node_chain(home), home.file("data")
    assert data is not None, "a node's home"
    try:
        store = open_chain_store(data)
    except Damaged as damage:
        return Verdict(f"{chain.name} chain", [_unreadable(damage)])
    try:
        identity = node_identity(home) or store.get("store", b"identity") or bytes(32)
        judged = judge_chain(chain, store, identity, progress)
        return Verdict(_describe(chain, store, judged), judged.findings)
    except Damaged as damage:
        return Verdict(f"{chain.name} chain", [_unreadable(damage)])
    finally:
        store.close()


def _unreadable(damage: Damaged) -> Finding:
    where, _, what = str(damage).partition(": ")
    return Finding(where, what.partition(";")[0], REFETCH)


def _describe(chain: ChainFacts, store: Store, judged: Judged) -> str:
    text = (
        f"{chain.name} chain, {judged.records} records, {judged.blocks} blocks, "
        f"{judged.transactions} transactions, {judged.proofs} proofs of finality"
    )
    base = base_height(store)
    if base:
        text += (
            f"; its state was taken over at block {base}: earlier blocks are not kept here, later ones"
            " are checked by their certificates, not executed again"
        )
    return f"{text}, follows and does not sign yet" if marked(store) is not None else text


def _verify_gateway(home: Home) -> Verdict:
    chains: dict[str, bytes] = {}
    for name in CHAINS:
        genesis = home.file(name, "genesis")
        assert genesis is not None, "a gateway's home"
        chains[name] = read_chain(name, genesis).chain_id
    data = home.file("data")
    assert data is not None, "a gateway's home"
    if not (data / INDEX_FILE).is_file():
        return Verdict("index not made yet")
    findings, headers = judge_index(data / INDEX_FILE, chains)
    return Verdict(f"index of {headers} headers", findings)
