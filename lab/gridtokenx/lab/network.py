"""The public facts of a network: what its founder hands to whoever joins.

::

    DIR/network.json                  this file
    DIR/genesis/CHAIN.json            what is trusted of each chain
    DIR/genesis/CHAIN-authority.pem   who admits to a permissioned chain
    DIR/clock                         of a local testnet: how far its time is from wall time, in ms
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec

from gridtokenx.core.errors import LocalFault

NETWORK_FILE: Final = "network.json"
CLOCK_FILE: Final = "clock"


class ChainEntry(msgspec.Struct, frozen=True):
    """One chain of a network."""

    chain_id: str
    genesis: str
    """Path of the genesis file, from the directory of this file."""
    nodes: tuple[str, ...]
    """Some of its nodes: host:port."""
    block_time_ms: int | None = None
    """Of a PBFT chain: what every replica is set to."""


class NetworkFacts(msgspec.Struct, frozen=True):
    """Everything that the file says."""

    name: str
    chains: Annotated[dict[str, ChainEntry], msgspec.Meta(min_length=1)]
    gateway: str
    broker: str = ""
    """Where readings go; empty if that is not for everyone."""
    broker_protocol: str = ""
    """The version of MQTT that it speaks."""
    note: str = ""
    protocol: int = 1
    """`ledger.blocks.PROTOCOL_VERSION` of the program that made it."""


def read_network(path: Path) -> NetworkFacts:
    """A network's facts.

    Raises:
        LocalFault: no such file, or another kind of file.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=NetworkFacts)
    except OSError as error:
        raise LocalFault(f"{path}: cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise LocalFault(f"{path}: is damaged, or no network's facts: {error}") from None


def settings_from(path: Path, chains: tuple[str, ...], *, node: bool) -> Iterator[tuple[str, str]]:
    """What a network's facts fill in of a role's settings: (key, text).

    Args:
        path: of the facts.
        chains: that the role talks to.
        node: whether it is a node of the one chain; else each chain has a table of its own.

    Raises:
        LocalFault: the file cannot be used, or knows no such chain.
    """
    facts, directory = read_network(path), path.absolute().parent
    for chain in chains:
        entry = facts.chains.get(chain)
        if entry is None:
            raise LocalFault(f"{path}: knows no {chain} chain, only {', '.join(facts.chains)}")
        prefix = "" if node else f"{chain}."
        yield f"{prefix}genesis", str(directory / entry.genesis)
        yield f"{prefix}{'peers' if node else 'nodes'}", ",".join(entry.nodes)
        if node and entry.block_time_ms is not None:
            yield "block_time_ms", str(entry.block_time_ms)
        for what in ("authority", "revocations"):
            file = (directory / entry.genesis).with_name(f"{chain}-{what}.pem")
            if file.is_file():
                yield f"{prefix}{what}", str(file)
    if facts.broker:
        yield "broker", facts.broker
    if facts.broker_protocol:
        yield "broker_protocol", facts.broker_protocol
    if (directory / CLOCK_FILE).is_file():
        yield "clock_file", str(directory / CLOCK_FILE)
