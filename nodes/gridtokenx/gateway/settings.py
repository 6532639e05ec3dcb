"""What a gateway can be told."""

from pathlib import Path
from typing import Annotated

from gridtokenx.host.config import Setting
from gridtokenx.host.settings import KeyedSettings, LinkSettings


class GatewaySettings(KeyedSettings, frozen=True, kw_only=True):
    """Settings of `gtx gateway`. Each chain is a table: ``[public]``, ``[consortium]``, ``[oracle]``."""

    data: Annotated[Path, Setting("Directory of the index; made if absent.")]
    public: LinkSettings
    consortium: LinkSettings
    oracle: LinkSettings
    http: Annotated[
        str | None, Setting("Address (host:port) of the API, the live page, /health and /metrics.")
    ] = "127.0.0.1:18080"
    network: Annotated[str, Setting("What to call the network in the API and on the page.")] = (
        "local"
    )
    stale_after_ms: Annotated[
        int,
        Setting(
            "Age of a chain's newest final block at which the gateway is not ready, and reads no state.",
            unit="ms",
            minimum=1_000,
            maximum=86_400_000,
        ),
    ] = 60_000
