"""What Prometheus scrapes, as a file that it looks for targets in (`file_sd_configs`)."""

import msgspec

from gridtokenx.lab.deploy.plan import family
from gridtokenx.lab.testnet.layout import Layout

NAME = "targets.json"
"""Beside the public facts of the network."""


def targets(layout: Layout) -> bytes:
    """One target for each process that serves `/metrics`, labelled with its name and its kind."""
    found = [
        {
            "targets": [f"{member.host}:{member.http_port}"],
            "labels": {"process": member.name, "component": family(member.name)},
        }
        for member in layout.members
        if member.http_port
    ]
    return msgspec.json.format(msgspec.json.encode(found), indent=1)
