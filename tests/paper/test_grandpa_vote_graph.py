"""The vectors of paritytech/finality-grandpa `vote_graph.rs`, case by case."""

import pytest
from tests.paper.grandpa_chain import GENESIS, LetterChain, forked_at_e

from gridtokenx.public.grandpa.vote_graph import BlockRef, Condition, VoteGraph


class WeightedGraph:
    """A vote graph whose every insertion is by a new voter of the given weight."""

    def __init__(self, chain: LetterChain, base: str = "genesis") -> None:
        self.chain = chain
        self.graph = VoteGraph(chain.ref(base))
        self._weights: list[int] = []

    def insert(self, name: str, weight: int) -> None:
        self._weights.append(weight)
        bit = 1 << (len(self._weights) - 1)
        assert self.graph.insert(self.chain.ref(name), bit, self.chain.parent_of)

    def weight(self, voters: int) -> int:
        return sum(weight for i, weight in enumerate(self._weights) if voters >> i & 1)

    def cumulative(self, name: str) -> int:
        return self.weight(self.graph.voters(name.encode()))

    def at_least(self, weight: int) -> Condition:
        return lambda voters: self.weight(voters) >= weight

    def ghost(self, weight: int, start: str | None = None) -> BlockRef | None:
        begin = None if start is None else self.chain.ref(start)
        return self.graph.find_ghost(begin, self.at_least(weight))

    def ancestor(self, name: str, weight: int) -> BlockRef | None:
        return self.graph.find_ancestor(self.chain.ref(name), self.at_least(weight))


def two_forks_above_c(first: str = "D1 E1 F1", second: str = "D2 E2 F2") -> LetterChain:
    chain = LetterChain()
    chain.push("genesis", "A B C")
    chain.push("C", first)
    chain.push("C", second)
    return chain


def test_graph_fork_not_at_node() -> None:
    votes = WeightedGraph(two_forks_above_c())
    for name in ("A", "E1", "F2"):
        votes.insert(name, 100)
    assert votes.cumulative("A") == votes.cumulative("genesis") == 300
    assert votes.cumulative("C") == 200
    assert votes.cumulative("E1") == votes.cumulative("D1") == 100
    assert votes.cumulative("F2") == votes.cumulative("D2") == 100
    assert votes.cumulative("F1") == 0


@pytest.mark.parametrize("order", [("C", "E1", "F2"), ("E1", "F2", "C")])
def test_graph_fork_at_node(order: tuple[str, ...]) -> None:
    votes = WeightedGraph(two_forks_above_c())
    for name in order:
        votes.insert(name, 100)
    assert votes.cumulative("C") == 300
    assert votes.cumulative("E1") == 100
    assert votes.cumulative("F2") == 100


def test_ghost_merge_at_node() -> None:
    votes = WeightedGraph(two_forks_above_c())
    votes.insert("B", 0)
    for name in ("C", "E1", "F2"):
        votes.insert(name, 100)
    for start in (None, "C", "B"):
        assert votes.ghost(250, start) == (b"C", 4)


def test_ghost_merge_not_at_node_one_side_weighted() -> None:
    chain = LetterChain()
    chain.push("genesis", "A B C D E F")
    chain.push("F", "G1 H1 I1")
    chain.push("F", "G2 H2 I2")
    votes = WeightedGraph(chain)
    votes.insert("B", 0)
    votes.insert("G1", 100)
    votes.insert("H2", 150)
    for start in (None, "F", "C", "B"):
        assert votes.ghost(250, start) == (b"F", 7)


def test_ghost_introduce_branch() -> None:
    votes = WeightedGraph(forked_at_e())
    votes.insert("FC", 5)
    votes.insert("ED", 7)
    assert votes.ghost(10) == (b"E", 6)
    votes.insert("E", 3)
    for start in (None, "C", "E"):
        assert votes.ghost(10, start) == (b"E", 6)


def test_walk_back_from_block_in_edge_fork_below() -> None:
    votes = WeightedGraph(two_forks_above_c("D1 E1 F1 G1 H1 I1", "D2 E2 F2 G2 H2 I2"))
    votes.insert("B", 10)
    votes.insert("F1", 5)
    votes.insert("G2", 5)
    for name in ("D1", "D2", "E1", "E2", "F1", "F2", "G2"):
        assert votes.ancestor(name, 6) == (b"C", 4)


def test_walk_back_from_fork_block_node_below() -> None:
    chain = LetterChain()
    chain.push("genesis", "A B C D")
    chain.push("D", "E1 F1 G1 H1 I1")
    chain.push("D", "E2 F2 G2 H2 I2")
    votes = WeightedGraph(chain)
    votes.insert("B", 10)
    votes.insert("F1", 5)
    votes.insert("G2", 5)
    for name in ("E1", "E2", "F1", "F2", "G2"):
        assert votes.ancestor(name, 6) == (b"D", 5)


def test_walk_back_at_node() -> None:
    votes = WeightedGraph(two_forks_above_c("D1 E1 F1 G1 H1 I1", "D2 E2 F2"))
    votes.insert("C", 10)
    votes.insert("F1", 5)
    votes.insert("F2", 5)
    votes.insert("I1", 1)
    for name in ("C", "D1", "D2", "E1", "E2", "F1", "F2", "I1"):
        assert votes.ancestor(name, 20) == (b"C", 4)


def test_adjust_base() -> None:
    votes = WeightedGraph(forked_at_e(), base="E")
    votes.insert("FC", 5)
    votes.insert("ED", 7)
    votes.graph.lower_base((b"D", b"C", b"B", b"A"))
    assert votes.graph.base == (b"A", 2)
    votes.chain.push("A", "3 4 5")
    votes.graph.lower_base((GENESIS,))
    assert votes.graph.base == (GENESIS, 1)
    assert votes.cumulative("genesis") == 12
    votes.insert("5", 3)
    assert votes.cumulative("genesis") == 15


def test_find_ancestor_is_largest() -> None:
    chain = LetterChain(genesis_height=0)
    for name in ("A", "B"):
        chain.push("genesis", name)
        chain.push(name, f"{name}1")
        chain.push(name, f"{name}2")
    votes = WeightedGraph(chain)
    for name in ("B1", "B2", "A1", "A2"):
        votes.insert(name, 1)
    assert votes.ancestor("A", 2) == (b"A", 1)


def test_a_target_off_the_base_changes_nothing() -> None:
    votes = WeightedGraph(two_forks_above_c(), base="D1")
    for name in ("D2", "F2", "C", "genesis"):
        assert not votes.graph.insert(votes.chain.ref(name), 1, votes.chain.parent_of)
    assert not votes.graph.insert(BlockRef(b"nobody knows", 9), 1, votes.chain.parent_of)
    assert not votes.graph.insert(BlockRef(b"F1", 9), 1, votes.chain.parent_of)  # lied about height
    assert votes.cumulative("D1") == 0
