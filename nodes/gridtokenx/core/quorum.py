"""How many are enough: quorums of equal votes, and supermajorities of weight.

Law of the file: **any two quorums share an honest member**. With n members of whom at most
``f = (n - 1) // 3`` are faulty, two quorums of q share at least ``2q - n`` members, which must
exceed f; and q must not exceed ``n - f``, or silent faulty members could stop the system. The
smallest such q is ``(n + f) // 2 + 1``.

The often quoted ``2f + 1`` is that number only when ``n = 3f + 1``. At n = 21 it is 13, and two
quorums of 13 may share 5 members, all of them among the 6 faulty: two blocks at one height. The
answer there is 14. (IBFT 2.0 and QBFT use the same number, written ``ceil(2n / 3)``.)
"""


def max_faulty(members: int) -> int:
    """The most faulty members that a set of this size tolerates."""
    _require_positive(members, "members")
    return (members - 1) // 3


def quorum(members: int) -> int:
    """The fewest votes of which any two such sets share an honest member."""
    return (members + max_faulty(members)) // 2 + 1


def supermajority(weight: int) -> int:
    """The least weight that is more than two thirds of the total (GRANDPA's threshold).

    ``W - (W - 1) // 3``: the total, less the most that may be faulty.
    """
    _require_positive(weight, "weight")
    return weight - (weight - 1) // 3


def _require_positive(value: int, name: str) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
