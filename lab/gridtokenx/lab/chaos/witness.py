"""What replicas heard each other say, written down, so that nobody honest is taken at its word twice.

Each replica's own process notes every signed vote that reaches it: the driver has checked the
signature, so the author did say it. After the run the notes of all are laid side by side; two
statements of one replica about one thing are a contradiction, whoever heard which.

A line: set, kind, view, height (0 where there is none), the statement, and who said so, as a bit for
each seat.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.lab.sim.pbft.messages import vote_in

_STATEMENT: Final = 16
"""Bytes of a statement that are kept: enough that no two are the same by chance."""
_MOST: Final = 256
"""Votes about so many things are held before they are written, if no block comes."""
Key = tuple[int, str, int, int, str]


class Witness:
    """Notes votes in a file; what is not yet written is lost in a crash, and others heard it too.

    Args:
        path: of the file; lives add to it.
        validators: the chain's one set.
    """

    def __init__(self, path: Path, validators: ValidatorSet) -> None:
        self._path: Final = path
        self._sets: Final = {validators.set_id: validators}
        self._heard: dict[Key, int] = {}

    def note(self, message: Wire) -> None:
        """A message has come, its signatures checked."""
        vote = vote_in(message, self._sets)
        if vote is None:
            return
        set_id, seat, subject, statement = vote
        assert isinstance(subject, tuple), "subjects are tuples of a kind and numbers"
        kind, _, view, *place = subject
        height = place[0] if place else 0
        key = (set_id, str(kind), int(view), int(height), statement[:_STATEMENT].hex())
        self._heard[key] = self._heard.get(key, 0) | 1 << seat
        if len(self._heard) >= _MOST:
            self.write()

    def write(self) -> None:
        """Put down what was heard since the last time."""
        if not self._heard:
            return
        with self._path.open("a", encoding="ascii") as file:
            for key, seats in self._heard.items():
                file.write(f"{' '.join(map(str, key))} {seats:x}\n")
        self._heard.clear()


def contradictions(paths: Iterable[Path], size: int) -> Iterator[tuple[int, str]]:
    """Who said two things about one: the seat, and a sentence.

    Args:
        paths: of all replicas' notes.
        size: how many replicas there are.
    """
    said: dict[tuple[int, str, str, str, str], str] = {}
    for path in paths:
        for line in path.read_text(encoding="ascii").splitlines() if path.exists() else ():
            words = line.split()
            if len(words) != 6:
                continue  # a crash in the midst of a line
            set_id, kind, view, height, statement, seats = words
            for seat in (each for each in range(size) if int(seats, 16) >> each & 1):
                known = said.setdefault((seat, set_id, kind, view, height), statement)
                if known != statement:
                    yield (
                        seat,
                        (
                            f"replica {seat}: {kind} of view {view}, height {height}: said both"
                            f" {known[:12]} and {statement[:12]}"
                        ),
                    )
