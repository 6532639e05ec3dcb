"""Reports for programs: JSON, JUnit XML, and one line or row per run.

Tables are JSON lines, or Parquet where pandas can write it (`pip install pandas pyarrow`): by the name of
the file. `pandas.read_json("runs.jsonl", lines=True)` reads the former.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec

from gridtokenx.core.errors import LocalFault
from gridtokenx.lab.report.page import Swept
from gridtokenx.lab.report.summaries import flat_summary
from gridtokenx.lab.sim.sweep import summary


def as_json(records: Sequence[Swept]) -> bytes:
    """Everything that is known of the runs, and what it comes to."""
    said = [
        {
            "record": record.name,
            "commit": record.head.commit,
            "manifest": record.head.text,
            "summary": summary(record.outcomes),
            "runs": record.outcomes,
        }
        for record in records
    ]
    return msgspec.json.format(msgspec.json.encode(said), indent=2) + b"\n"


def as_junit(records: Sequence[Swept]) -> bytes:
    """One suite per record, one case per seed; what was never promised counts as skipped."""
    root = ET.Element("testsuites")
    for record in records:
        failures = sum(outcome.failed for outcome in record.outcomes)
        skipped = sum(outcome.verdict == "voided" for outcome in record.outcomes)
        suite = ET.SubElement(
            root,
            "testsuite",
            name=record.name,
            tests=str(len(record.outcomes)),
            failures=str(failures),
            skipped=str(skipped),
        )
        for outcome in record.outcomes:
            case = ET.SubElement(
                suite,
                "testcase",
                classname=record.name,
                name=f"seed {outcome.seed}",
                time=f"{outcome.virtual_ms / 1000:.3f}",
            )
            found = outcome.finding
            if outcome.failed and found is not None:
                ET.SubElement(case, "failure", type=found.checker, message=found.detail)
            elif outcome.verdict == "voided":
                ET.SubElement(case, "skipped", message="; ".join(outcome.voided))
    return b'<?xml version="1.0" encoding="utf-8"?>\n' + bytes(ET.tostring(root)) + b"\n"


def rows(records: Sequence[Swept]) -> list[dict[str, Any]]:
    """One flat row per run."""
    flat: list[dict[str, Any]] = []
    for record in records:
        for outcome in record.outcomes:
            row = msgspec.to_builtins(outcome)
            found = row.pop("finding") or {"checker": "", "detail": "", "at_ms": -1}
            row["record"] = record.name
            row["byzantine"] = len(outcome.byzantine)
            row["refused"] = "; ".join(outcome.refused)
            row["voided"] = "; ".join(outcome.voided)
            row["noticed"] = sum(outcome.noticed.values())
            summary = row.pop("summary") or {}
            row.update({f"summary.{name}": value for name, value in flat_summary(summary)})
            row.update({f"finding_{name}": value for name, value in found.items()})
            flat.append(row)
    return flat


def check_table(path: Path) -> None:
    """Whether a table of this name can be made: `.jsonl`, or `.parquet` where pandas is.

    Raises:
        LocalFault: another name, or Parquet where nothing here can write it.
    """
    if path.suffix not in (".jsonl", ".parquet"):
        raise LocalFault(f"{path}: a table is named .parquet or .jsonl")
    if path.suffix == ".parquet" and not all(map(find_spec, ("pandas", "pyarrow"))):
        raise LocalFault(
            f"{path}: Parquet needs pandas and pyarrow (pip install pandas pyarrow); or name the table"
            " .jsonl, which pandas.read_json(..., lines=True) reads"
        )


def write_table(path: Path, records: Sequence[Swept]) -> None:
    """A table by the name of its file, which `check_table` allowed."""
    if path.suffix == ".jsonl":
        path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows(records)))
        return
    import pandas as pd  # noqa: PLC0415 - heavy, and only of use here

    pd.DataFrame(rows(records)).to_parquet(path)
