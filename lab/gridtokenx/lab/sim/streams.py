"""Streams of randomness: one for each purpose, so that leaving out a fault changes little of the rest."""

import random

from gridtokenx.core.keys import sha256


def stream(seed: int, name: str) -> random.Random:
    """A source of randomness of its own."""
    number = int.from_bytes(sha256(b"gtx sim stream", name.encode(), b"%d" % seed), "big")
    return random.Random(number)  # noqa: S311 - repeatable on purpose
