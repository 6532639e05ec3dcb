"""What an immutable value works out about itself at most once."""

from collections.abc import Callable
from typing import Final, Generic, Self, TypeVar, overload

S = TypeVar("S")
R = TypeVar("R")


class lazy(Generic[S, R]):  # noqa: N801 - used like `property`
    """`functools.cached_property` without the lock that it takes before Python 3.12.

    The lock costs as much as hashing a transaction, and nothing is lost without it: two threads that
    ask at once get equal values.
    """

    def __init__(self, make: Callable[[S], R]) -> None:
        self._make: Final = make
        self._name = ""
        self.__doc__ = make.__doc__

    def __set_name__(self, owner: type[S], name: str) -> None:
        """Called once, when the class is made."""
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type[S]) -> Self: ...
    @overload
    def __get__(self, instance: S, owner: type[S]) -> R: ...
    def __get__(self, instance: S | None, owner: type[S]) -> Self | R:
        """Called once per instance: what it puts there is found before this is."""
        if instance is None:
            return self
        value = instance.__dict__[self._name] = self._make(instance)
        return value
