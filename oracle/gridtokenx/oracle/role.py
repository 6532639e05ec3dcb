"""`gtx node oracle`: an oracle node with an HTTP source of its own.

It stands above `process` and `feeds`, which do not know each other.
"""

from typing import Annotated

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.config import Setting
from gridtokenx.oracle.feeds.source import HttpSource, SourceSettings
from gridtokenx.oracle.process.node import GridMs, OracleNodeSettings, run_oracle_node


class OracleSettings(OracleNodeSettings, frozen=True, kw_only=True):
    """Settings of `gtx node oracle`."""

    feed: Annotated[
        str | None, Setting("The feed that this oracle observes; none: it only takes readings.")
    ] = None
    source: SourceSettings = SourceSettings()


async def run_oracle(settings: OracleSettings) -> None:
    """Run an oracle node until cancelled.

    Raises:
        LocalFault: settings, keys, certificates, genesis or store that cannot be used.
    """

    def open_source(grid_ms: GridMs) -> HttpSource:
        return HttpSource(settings.source, grid_ms)

    if settings.feed is None:
        if settings.source != SourceSettings():
            raise LocalFault("a source without `feed`: say which feed it is for")
        await run_oracle_node(settings, {})
        return
    settings.source.check()
    await run_oracle_node(settings, {settings.feed: open_source})
