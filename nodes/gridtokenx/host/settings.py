"""Settings that several kinds of process share; each role adds its own to one of these."""

from pathlib import Path
from typing import Annotated, Literal

from gridtokenx.core.gridtime import GridClock
from gridtokenx.host.config import Setting, Settings


class ProcessSettings(Settings, frozen=True, kw_only=True):
    """What every process can be told."""

    clock_offset_ms: Annotated[
        int,
        Setting(
            "Network time minus wall time: what a local testnet was down; 0 on a real network.",
            unit="ms",
        ),
    ] = 0
    clock_file: Annotated[
        Path | None,
        Setting("File that holds an offset in ms, added to clock_offset_ms; read at start."),
    ] = None
    http: Annotated[
        str | None,
        Setting("Address (host:port) that serves /health, /ready and /metrics; none if not set."),
    ] = None
    log_format: Annotated[Literal["text", "json"], Setting("Form of the log lines.")] = "text"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Setting("The least level that is written.")
    ] = "info"


class GridTimeSettings(ProcessSettings, frozen=True, kw_only=True):
    """A process that lives in grid time, but follows no chain."""

    network_genesis_ms: Annotated[
        int, Setting("Network time of genesis.", unit="milliseconds since 1970", minimum=0)
    ]
    grid_epoch_ms: Annotated[
        int, Setting("Grid time at genesis.", unit="milliseconds since 1970", minimum=0)
    ]
    time_scale: Annotated[int, Setting("Grid time per network time.", minimum=1, maximum=3600)] = 1

    @property
    def grid_clock(self) -> GridClock:
        """The map from network time to grid time."""
        return GridClock(self.network_genesis_ms, self.grid_epoch_ms, self.time_scale)


class KeyedSettings(ProcessSettings, frozen=True, kw_only=True):
    """A process with an identity of its own."""

    keys: Annotated[Path, Setting("Directory of this process's key files (see `gtx keys`).")]
    key: Annotated[str, Setting("Name of the identity key in that directory.")]
    keys_password_file: Annotated[
        Path | None,
        Setting("File that holds the keys' password; else GTX_PASSWORD, else a development file."),
    ] = None


class NodeSettings(KeyedSettings, frozen=True, kw_only=True):
    """A node of a chain."""

    genesis: Annotated[Path, Setting("Genesis file of the chain (JSON).")]
    data: Annotated[Path, Setting("Data directory; made if absent; one process at a time.")]
    listen: Annotated[str, Setting("Address (host:port) for peers and clients.")]
    peers: Annotated[
        tuple[str, ...],
        Setting("The other nodes: host:port, or <key>@host:port to insist on a key."),
    ] = ()


class PermissionedNodeSettings(NodeSettings, frozen=True, kw_only=True):
    """A replica of a chain that an authority admits to."""

    certificate: Annotated[Path, Setting("PEM certificate of the identity key.")]
    authority: Annotated[Path, Setting("PEM certificate of the chain's authority.")]
    revocations: Annotated[
        Path | None,
        Setting("PEM list of certificates that the authority took back; read again as it changes."),
    ] = None
    block_time_ms: Annotated[
        int,
        Setting(
            "Time between blocks; 0 makes one as soon as there is work. The same on all replicas.",
            unit="ms",
            minimum=0,
            maximum=600_000,
        ),
    ] = 1_000
    snapshot_distance: Annotated[
        int,
        Setting(
            "A replica so many blocks behind takes over a certified state, and lacks the blocks below"
            " it; 0: never while others keep them (a node with the whole chain).",
            unit="blocks",
            minimum=0,
            maximum=1_000_000_000,
        ),
    ] = 1_024


class LinkSettings(Settings, frozen=True, kw_only=True):
    """How a client (gateway, relayer, agents) reaches one chain."""

    genesis: Annotated[Path, Setting("Genesis file of the chain: what the client starts to trust.")]
    nodes: Annotated[tuple[str, ...], Setting("Nodes to follow and to submit to: host:port.")]
    certificate: Annotated[
        Path | None, Setting("PEM certificate of our identity, on a permissioned chain.")
    ] = None
    authority: Annotated[
        Path | None, Setting("PEM certificate of the chain's authority, on a permissioned chain.")
    ] = None
    revocations: Annotated[
        Path | None,
        Setting("PEM list of certificates that the authority took back; read again as it changes."),
    ] = None
