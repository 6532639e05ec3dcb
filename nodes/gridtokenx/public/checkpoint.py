"""A checkpoint: the final block that an operator knows, from somebody trusted, to be the chain's.

Theory: weak subjectivity. Validators that have withdrawn their stake lose nothing by signing another
history of the time when they validated; all its signatures hold. A node that was never there cannot
tell which came first, unless it is told one block later than that.
"""

from dataclasses import dataclass

from gridtokenx.core.errors import LocalFault


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A height and the hash of the final block there."""

    height: int
    hash: bytes

    def __str__(self) -> str:
        return f"{self.height}:{self.hash.hex()}"

    @staticmethod
    def parse(text: str) -> "Checkpoint":
        """The inverse of `str`.

        Raises:
            LocalFault: it has another form.
        """
        height, _, digits = text.strip().partition(":")
        try:
            block_hash = bytes.fromhex(digits)
        except ValueError:
            block_hash = b""
        if not (height.isascii() and height.isdecimal()) or len(block_hash) != 32:
            raise LocalFault(
                f"checkpoint {text!r}: write HEIGHT:HASH, the hash in 64 hexadecimal digits, as "
                "`gtx stake checkpoint` prints it on a network that you trust"
            )
        return Checkpoint(int(height), block_hash)

    def check(self, height: int, block_hash: bytes) -> None:
        """Refuse another final block at this height.

        Raises:
            LocalFault: the chain is not the one that the operator means.
        """
        if height == self.height and block_hash != self.hash:
            raise LocalFault(
                f"checkpoint: block {height} of this chain is {block_hash.hex()}, the checkpoint says "
                f"{self.hash.hex()}; either the peers follow another history (use peers that you "
                "trust, and an empty data directory), or the checkpoint was copied wrongly"
            )
