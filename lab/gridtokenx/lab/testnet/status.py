"""What a person sees while a testnet runs: one screen on a terminal, a line now and then elsewhere.

Everything shown comes from the gateway, which verified it; while the gateway has nothing yet, the
processes' own state is shown instead.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from gridtokenx.core.units import WATT
from gridtokenx.lab.testnet.processes import Processes, Watched

Status = dict[str, Any]
"""The gateway's `/api/v1/status`: JSON, so of no fixed type here."""
STALE_S: Final = 5.0
"""A status this old is shown as such."""
NARROW: Final = 24
"""Lines below which a terminal gets the line and the notes only."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The last status, and how long ago it was the gateway's."""

    status: Status | None
    age_s: float

    @property
    def staleness(self) -> str:
        """A mark for what is not of now; else empty."""
        is_stale = self.status is not None and self.age_s >= STALE_S
        return f"as of {self.age_s:.0f} s ago: the gateway does not answer" if is_stale else ""


REQUEST_TIMEOUT_S: Final = 2.0


async def fetch_status(session: aiohttp.ClientSession, url: str) -> Status | None:
    """The gateway's status, or None while it does not answer."""
    try:
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        async with session.get(f"{url}/api/v1/status", timeout=timeout) as response:
            return await response.json() if response.status == 200 else None
    except (TimeoutError, aiohttp.ClientError):
        return None


def one_line(seen: Seen, processes: Processes, elapsed_s: float) -> str:
    """The state of the network in a line."""
    status = seen.status
    alive = sum(watched.pid is not None for watched in processes.watched.values())
    head = f"{elapsed_s:6.0f} s  {alive}/{len(processes.watched)} processes"
    if status is None:
        return f"{head}  gateway not ready"
    chains = "  ".join(
        f"{name} {chain['finalized']}/{chain['height']}" for name, chain in status["chains"].items()
    )
    mark = f"  ({seen.staleness})" if seen.staleness else ""
    return (
        f"{head}  {chains}  readings {status['readings']['verified']}"
        f"  price {price(status['market']['price_uwatt_per_kwh'])}"
        f"  auctions {status['market']['auctions_cleared']}"
        f"  settled {status['settlements']['intervals']}"
        f"  certificates {kwh(status['certificates']['minted_wh'])}{mark}"
    )


def screen(
    seen: Seen,
    processes: Processes,
    elapsed_s: float,
    url: str,
    notes: Iterable[str],
    lines: int,
) -> RenderableType:
    """The whole picture for a terminal of so many lines; the essentials if there are few."""
    status, stale = seen.status, seen.staleness
    if lines < NARROW:
        state = Text(one_line(seen, processes, elapsed_s), style="yellow" if stale else "")
        last = list(notes)[-max(0, lines - 4) :] if lines > 4 else []
        return Group(state, _processes(processes.watched.values()), *map(Text, last))
    parts: list[RenderableType] = [_title(status, url, f"up {elapsed_s:.0f} s")]
    if status is None:
        parts.append(Text("waiting for the gateway to verify the three chains", style="dim"))
    else:
        parts += [_chains(status), _energy(status), _packets(status)]
    if stale:
        parts.append(Text(stale, style="bold yellow"))
    parts.append(_processes(processes.watched.values()))
    parts += [Text(note, style="yellow") for note in notes]
    parts.append(Text("Ctrl-C stops everything; the next start goes on from here", style="dim"))
    return Group(*parts)


def picture(status: Status, url: str) -> RenderableType:
    """The same without what only a supervisor knows."""
    return Group(_title(status, url, ""), _chains(status), _energy(status), _packets(status))


def _title(status: Status | None, url: str, age: str) -> Text:
    grid_time = f"   grid time {status['grid_time']}" if status else ""
    return Text.assemble(
        ("GridTokenX", "bold green"), f"   {age}{grid_time}   ", (url, "underline")
    )


def _chains(status: Status) -> Table:
    table = Table("chain", "height", "final", "interval", "leader", box=None, pad_edge=False)
    for name, chain in status["chains"].items():
        interval = chain["interval_p50_ms"]
        table.add_row(
            name,
            str(chain["height"]),
            str(chain["finalized"]),
            "-" if interval is None else f"{interval / 1000:.1f} s",
            str(chain["leader"] or "-"),
        )
    return table


def _energy(status: Status) -> Table:
    market, auction = status["market"], status["market"]["last_auction"]
    table = Table.grid(padding=(0, 2))
    table.add_row(
        "readings", f"{status['readings']['verified']} verified",
        f"{status['readings']['rejected']} rejected",
    )  # fmt: skip
    table.add_row("price", price(market["price_uwatt_per_kwh"]), "indicative")
    if auction is not None:
        table.add_row(
            "last auction", price(auction["price_uwatt_per_kwh"]),
            f"{kwh(auction['energy_wh'])} in {auction['trades']} trades",
        )  # fmt: skip
    table.add_row(
        "settled", f"{status['settlements']['intervals']} intervals",
        f"{status['settlements']['trades']} trades",
    )  # fmt: skip
    certificates = status["certificates"]
    table.add_row(
        "certificates", f"{kwh(certificates['minted_wh'])} minted",
        f"{kwh(certificates['retired_wh'])} retired",
    )  # fmt: skip
    return table


def _packets(status: Status) -> Table:
    table = Table("route", "sent", "delivered", "timed out", box=None, pad_edge=False)
    for route, count in status["packets"].items():
        table.add_row(route, str(count["sent"]), str(count["delivered"]), str(count["timed_out"]))
    return table


def _processes(watched: Iterable[Watched]) -> Text:
    line = Text("processes  ")
    for one in watched:
        style = "red" if one.given_up else "yellow" if one.pid is None else "green"
        restarts = f"+{one.restarts}" if one.restarts else ""
        line.append(f"{one.spec.name}{restarts} ", style=style)
    return line


def price(uwatt_per_kwh: int | None) -> str:
    """A price for people."""
    return "-" if uwatt_per_kwh is None else f"{uwatt_per_kwh / WATT:.3f} WATT/kWh"


def kwh(energy_wh: int) -> str:
    """Energy for people."""
    return f"{energy_wh / 1000:.1f} kWh"


def console() -> Console:
    """Where status goes."""
    return Console(stderr=False, highlight=False)
