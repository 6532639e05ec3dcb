"""How much a stage draws: the plain one a fair part of it, the full one (GTX_STAGES=full) all of it.

A law is checked in both stages, and by the same code; what differs is how many lives, schedules and
examples are drawn for it. So the plain stage stays a matter of two minutes on two cores, and CI,
which runs the full one, loses nothing.
"""

import os
from collections.abc import Sequence
from typing import Final, TypeVar

FULL: Final = not {"full", "slow"}.isdisjoint(os.environ.get("GTX_STAGES", "").split(","))
"""Whether everything is drawn: in the full stage, and in that of the long sweeps."""
PLAIN_SHARE: Final = 5
"""The plain stage draws one example of so many."""
FEWEST_EXAMPLES: Final = 20
T = TypeVar("T")


def examples(full: int) -> int:
    """How many examples a property draws that draws `full` of them in the full stage."""
    return full if FULL else min(full, max(FEWEST_EXAMPLES, full // PLAIN_SHARE))


def spread(cases: Sequence[T], plain: int) -> Sequence[T]:
    """All cases in the full stage; in the plain one `plain` of them, spread evenly, the first too."""
    if FULL or len(cases) <= plain:
        return cases
    return [cases[index * len(cases) // plain] for index in range(plain)]
