"""`scripts/bench`: what it says to whom does not know it, and how it counts."""

import pytest

from gridtokenx.lab.bench.__main__ import BENCHMARKS, main
from gridtokenx.lab.bench.pbft_load import rate_per_s


def test_without_a_name_it_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"]):
        assert main(arguments) == 0
        listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
        assert listed == list(BENCHMARKS)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["swap"], "no benchmark is called 'swap'"),
        (["ledger", "--part"], "only pbft takes options, alone"),
        (["pbft", "--part", "n5"], "Invalid value for '--part': 'n5' is not one of"),
        (["pbft", "--seconds", "0"], "Invalid value for '--seconds': 0 is not in the range"),
        (["pbft", "--swap"], "No such option"),
    ],
)
def test_a_slip_is_one_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {complaint}")
    assert said.count("\n") == 1


def test_a_backlog_that_is_carried_off_after_the_load_counts_with_the_time_that_takes() -> None:
    """Else 3,000 a second are told of a network that carries 1,500."""
    assert rate_per_s(3_000, 2.0, [0.5, 1.0, 2.0]) == 1_500
    assert rate_per_s(6_000, 2.0, [1.0, 2.0, 5.0]) == 1_500
    assert rate_per_s(0, 2.0, []) == 0
