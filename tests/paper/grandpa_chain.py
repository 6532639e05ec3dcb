"""The chain of letters that the reference implementation's GRANDPA vectors use."""

from gridtokenx.public.grandpa.vote_graph import BlockRef

GENESIS = b"genesis"


class LetterChain:
    """Blocks named by letters; genesis has height 1, as in the published vectors."""

    def __init__(self, genesis_height: int = 1) -> None:
        self._parents: dict[bytes, bytes | None] = {GENESIS: None}
        self._heights = {GENESIS: genesis_height}

    def push(self, parent: str, names: str) -> None:
        """Adds a line of blocks (space-separated names) on top of `parent`."""
        below = parent.encode()
        for name in names.split():
            self._parents[name.encode()] = below
            self._heights[name.encode()] = self._heights[below] + 1
            below = name.encode()

    def ref(self, name: str) -> BlockRef:
        """The block by its name."""
        return BlockRef(name.encode(), self._heights[name.encode()])

    def parent_of(self, block_hash: bytes) -> bytes | None:
        """The parent, or None for genesis and unknown blocks."""
        return self._parents.get(block_hash)


def forked_at_e() -> LetterChain:
    """genesis#1 A B C D E#6 F#7, with EA..ED on E and FA..FC on F."""
    chain = LetterChain()
    chain.push("genesis", "A B C D E F")
    chain.push("E", "EA EB EC ED")
    chain.push("F", "FA FB FC")
    return chain
