"""What is wrong with a manifest, in words for who wrote it: key, value, and what is allowed there.

The simulator's manifests and those of real processes (`sim/manifest.py`, `chaos/manifest.py`) hold
tables of different keys, and lists of faults of different kinds: a `Grammar` is told which.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args, get_origin

import msgspec

_ROW: Final = re.compile(r"^(\w+)\[(\d+)\](\.?)")
"""How msgspec names one of a list of tables, from 0; people count from 1."""
_SHOWN: Final = 200
"""Of a value that is complained of, so many characters."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a manifest may hold.

    Args:
        root: the struct of the whole.
        kinds: of ``[[fault]]`` tables, by the word that names them.
        rows: the structs of other lists of tables, by their key.
    """

    root: type
    kinds: Mapping[str, type]
    rows: Mapping[str, type]

    def unknown_keys(self, raw: Mapping[str, object]) -> Iterator[str]:
        """A sentence for each key that means nothing, with one that does."""
        yield from self._unknown_in(raw, self.root, "", ())

    def explain(self, error: msgspec.ValidationError, raw: object) -> str:
        """What is wrong, where, with which value: msgspec says the first two."""
        reason, _, where = str(error).partition(" - at `$")
        if not where:
            return reason
        value: Any = raw
        where = where.strip(".`")
        parts = where.replace("[", ".").replace("]", "").split(".")
        place = _ROW.sub(_counted, where)
        words = self._words(parts, raw)
        if words:
            reason += f"; allowed words: {', '.join(filter(None, words))}"
        for part in parts:
            try:
                value = value[int(part)] if part.isdigit() else cast("dict[str, Any]", value)[part]
            except (KeyError, IndexError, TypeError):
                return f"{place}: {reason}"
        return f"{place} = {_short(value)}: {reason}"

    def _unknown_in(
        self, raw: Mapping[str, object], table: type, path: str, beside: Sequence[str]
    ) -> Iterator[str]:
        known = {field.name: field.type for field in msgspec.structs.fields(table)}
        for key, value in raw.items():
            name = f"{path}{key}"
            if key not in known and key not in beside:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                yield f"unknown key {name!r}; {hint}"
            elif key == "fault" and isinstance(value, list):
                yield from self._unknown_in_faults(value)
            elif key in self.rows and isinstance(value, list):
                yield from self._unknown_in_rows(key, value)
            elif (section := _section(known.get(key))) is not None:
                if not isinstance(value, dict):
                    yield f"{name} is a table, not {_short(value)}"
                else:
                    yield from self._unknown_in(value, section, f"{name}.", ())

    def _unknown_in_rows(self, key: str, rows: list[object]) -> Iterator[str]:
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict):
                yield f"{key} {number} is a table ([[{key}]]), not {_short(row)}"
            else:
                yield from self._unknown_in(row, self.rows[key], f"{key} {number}: ", ())

    def _unknown_in_faults(self, faults: list[object]) -> Iterator[str]:
        for number, fault in enumerate(faults, 1):
            if not isinstance(fault, dict):
                yield f"fault {number} is a table ([[fault]]), not {_short(fault)}"
                continue
            kind = fault.get("kind")
            if not isinstance(kind, str) or kind not in self.kinds:
                said = f"kind is {_short(kind)}" if "kind" in fault else "it has no kind"
                yield f"fault {number}: {said}; allowed: {', '.join(self.kinds)}"
                continue
            path = f"fault {number} ({kind}): "
            yield from self._unknown_in(fault, self.kinds[kind], path, ("kind",))

    def _words(self, parts: Sequence[str], raw: object) -> Sequence[str]:
        """Which words may stand at this place; none where it is not for words."""
        table = self.root
        for number, part in enumerate(parts):
            if part.isdigit():
                continue
            type_ = {field.name: field.type for field in msgspec.structs.fields(table)}.get(part)
            if part == "fault" and len(parts) > number + 1:
                faults = cast("dict[str, list[dict[str, Any]]]", raw)["fault"]
                table = self.kinds[faults[int(parts[number + 1])]["kind"]]
            elif (section := _section(type_)) is None:
                return _literals(type_)
            else:
                table = section
        return ()


def _section(type_: object) -> type | None:
    """The struct that a table stands for, if it stands for one."""
    for candidate in (type_, *get_args(type_)):
        if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
            return candidate
    return None


def _counted(row: re.Match[str]) -> str:
    return f"{row[1]} {int(row[2]) + 1}" + (": " if row[3] else "")


def _short(value: object) -> str:
    """As it stands in the manifest; of a long one the beginning."""
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def _literals(type_: object) -> tuple[str, ...]:
    if get_origin(type_) is Literal:
        return get_args(type_)
    return tuple(word for inner in get_args(type_) for word in _literals(inner))
