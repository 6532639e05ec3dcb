"""The summary of a run, as one JSON object."""

from typing import Any

from gridtokenx.host.chains import CHAINS
from gridtokenx.lab.testnet.audit import Audit, audit, chain_summary, packet_summary
from gridtokenx.lab.testnet.layout import Layout
from gridtokenx.lab.testnet.up import Outcome

Summary = dict[str, Any]
"""JSON, so of no fixed type here; `docs/summary.md` names its keys."""


def summarise(layout: Layout, outcome: Outcome) -> tuple[Summary, bool]:
    """What happened, and whether every invariant held and every process could be kept alive."""
    audited = audit(layout)
    not_kept = (f"{name} could not be kept alive" for name in outcome.processes.failed)
    audited.verdicts.judge("processes_kept_alive", not_kept)
    summary: Summary = {
        "network": layout.manifest.name,
        "seconds": round(outcome.elapsed_s, 1),
        "first_finality_s": {k: round(v, 1) for k, v in outcome.first_final_s.items()},
        **summarise_chains(audited),
        "readings": _readings(audited, outcome),
        "memory_peak_mib": round(outcome.processes.peak_memory_kib / 1024, 1),
        "processes": _processes(outcome),
    }
    return summary, all(summary["invariants"].values())


def summarise_chains(audited: Audit) -> Summary:
    """What the chains themselves tell, whoever kept their processes."""
    return {
        "chains": {name: chain_summary(audited, name) for name in CHAINS},
        "readings": {
            "verified": audited.readings_verified,
            "rejected": audited.readings_refused,
        },
        "auctions": {
            "held": audited.auctions_held,
            "cleared": audited.auctions_cleared,
            "trades": audited.trades,
            "energy_wh": audited.traded_wh,
        },
        "settlements": {
            "intervals": sum(settled.metered for settled in audited.settled.values()),
            "trades": sum(audited.traded_by_interval[interval] for interval in audited.settled),
        },
        "certificates": {
            "minted_wh": sum(audited.certificates.issued.values()),
            "retired_wh": audited.retired_wh,
        },
        "packets": packet_summary(audited),
        "invariants": audited.verdicts.as_booleans(),
        "broken": {k: v[:5] for k, v in audited.verdicts.against.items() if v},
    }


def _readings(audited: Audit, outcome: Outcome) -> dict[str, int]:
    return {
        "published": outcome.counters.total("gtx_readings_published_total"),
        "verified": audited.readings_verified,
        "rejected": audited.readings_refused
        + outcome.counters.total("gtx_readings_rejected_total"),
    }


def _processes(outcome: Outcome) -> list[dict[str, object]]:
    return [
        {
            "name": name,
            "restarts": watched.restarts,
            "kept_alive": not watched.given_up,
            "peak_memory_mib": round(watched.peak_memory_kib / 1024, 1),
            "cpu_s": round(watched.cpu_s, 1),
        }
        for name, watched in outcome.processes.watched.items()
    ]
