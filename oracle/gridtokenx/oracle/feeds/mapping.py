"""From a foreign document to one integer: declarative, bounded, exact.

A mapping is data, not code: the format, where in the document the value stands, and what one unit of
it is worth in units of the feed. Numbers go through `Decimal`, never through binary floats, so two
oracles that read the same text get the same integer.

======  =========================================  ============================================
format  `value`                                    example
======  =========================================  ============================================
json    path of keys and list indices              ``data.0.last``
csv     column; `time` names the column of starts  the latest row that has started counts
xml     ElementTree path, ``@name`` an attribute   ``area[@id='TH']/price`` or ``price/@thb``
text    regular expression with one group          ``INDEX ([0-9.]+) THB``
======  =========================================  ============================================
"""

import csv
import io
import re
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Final, Literal
from xml.etree import ElementTree as ET

import msgspec

from gridtokenx.core.errors import LocalFault, RemoteFault

Format = Literal["json", "csv", "xml", "text"]
MAX_DOCUMENT_BYTES: Final = 256 * 1024
MAX_DIGITS: Final = 30
"""Characters of a number; more is no price, rate or index."""
_VALUE_LIMIT: Final = 2**63 - 1
# Numbers as they stand in the text: a binary float would already be another number.
_json: Final = msgspec.json.Decoder(object, float_hook=str)


class Mapping(msgspec.Struct, frozen=True, kw_only=True):
    """Where a value stands in a document, and what it is worth."""

    format: Format
    value: str
    time: str = ""
    """For csv: the column of ISO 8601 times from which each row holds."""
    delimiter: str = ","
    """For csv."""
    units: str = "1"
    """Units of the feed per unit of the source, a decimal number: 1000000 for THB to micro-WATT."""

    def check(self) -> None:
        """Refuse a mapping that could never find a value.

        Raises:
            LocalFault: says which part, and what is allowed.
        """
        if not self.value:
            raise LocalFault("source mapping: value is empty; it says where the number stands")
        if self.format == "csv" and (not self.time or len(self.delimiter) != 1):
            raise LocalFault("source mapping: csv needs `time`, a column, and a delimiter of one")
        if self.format == "text":
            self._check_expression()
        if self.format == "xml":
            self._check_place()
        try:
            factor = Decimal(self.units)
        except InvalidOperation:
            factor = Decimal(0)
        if not factor.is_finite() or factor <= 0:
            raise LocalFault(f"source mapping: units {self.units!r} is no positive decimal number")

    def _check_expression(self) -> None:
        try:
            groups = re.compile(self.value).groups
        except re.error as error:
            raise LocalFault(f"source mapping: {self.value!r}: {error}") from None
        if groups != 1:
            raise LocalFault(
                f"source mapping: {self.value!r} needs exactly one group, has {groups}"
            )

    def _check_place(self) -> None:
        try:
            _find(ET.Element("root"), self.value.partition("/@")[0])
        except NoValue as fault:
            raise LocalFault(f"source mapping: {fault.detail}") from None


class NoValue(RemoteFault):
    """The document does not hold what the mapping asks for."""

    def __init__(self, detail: str) -> None:
        super().__init__("source-document", detail)


def extract(mapping: Mapping, document: bytes, grid_ms: int) -> int:
    """The value that a document holds, in units of the feed.

    Args:
        mapping: where it stands.
        document: as received.
        grid_ms: the time that a table of times is read at.

    Raises:
        NoValue: not of the format, no such place, or no number there.
    """
    if len(document) > MAX_DOCUMENT_BYTES:
        raise NoValue(f"{len(document)} bytes, at most {MAX_DOCUMENT_BYTES} are read")
    try:
        text = document.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NoValue(str(error)) from None
    match mapping.format:
        case "json":
            found = _from_json(text, mapping.value)
        case "csv":
            found = _from_csv(text, mapping, grid_ms)
        case "xml":
            found = _from_xml(text, mapping.value)
        case "text":
            found = _from_text(text, mapping.value)
    return scaled(found, mapping.units)


def scaled(number: str, units: str) -> int:
    """A decimal text times a factor, rounded half to even.

    Raises:
        NoValue: no finite number, or out of 64 bits.
    """
    if len(number) > MAX_DIGITS:
        raise NoValue(f"a number of {len(number)} characters")
    try:
        value = Decimal(number.strip())
    except InvalidOperation:
        raise NoValue(f"{number!r} is no decimal number") from None
    if not value.is_finite() or abs(value.adjusted()) > MAX_DIGITS:
        raise NoValue(f"{number!r} is out of range")
    result = int((value * Decimal(units)).to_integral_value(ROUND_HALF_EVEN))
    if abs(result) > _VALUE_LIMIT:
        raise NoValue(f"{number!r} is out of range")
    return result


def _from_json(text: str, path: str) -> str:
    try:
        found: object = _json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise NoValue(str(error)) from None
    for step in path.split("."):
        found = _step(found, step, path)
    if isinstance(found, str | int) and not isinstance(found, bool):
        return str(found)
    raise NoValue(f"{path} is {type(found).__name__}, not a number")


def _step(found: object, step: str, path: str) -> object:
    if isinstance(found, dict) and step in found:
        inner: object = found[step]
        return inner
    if isinstance(found, list) and step.isdecimal() and int(step) < len(found):
        return found[int(step)]
    raise NoValue(f"nothing at {step!r} of {path}")


def _from_csv(text: str, mapping: Mapping, grid_ms: int) -> str:
    latest: tuple[int, str] | None = None
    try:
        for row in csv.DictReader(io.StringIO(text), delimiter=mapping.delimiter, strict=True):
            start, value = row.get(mapping.time), row.get(mapping.value)
            if start is None or value is None:
                raise NoValue(f"a row lacks {mapping.time!r} or {mapping.value!r}")
            start_ms = _time_ms(start)
            if start_ms <= grid_ms and (latest is None or start_ms >= latest[0]):
                latest = start_ms, value
    except csv.Error as error:
        raise NoValue(str(error)) from None
    if latest is None:
        raise NoValue("no row has started yet")
    return latest[1]


def _time_ms(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise NoValue(f"{text!r} is no ISO 8601 time") from None
    if moment.tzinfo is None:
        raise NoValue(f"{text!r} has no offset from UTC")
    return int(moment.astimezone(UTC).timestamp() * 1000)


def _from_xml(text: str, path: str) -> str:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        # Declarations are how XML grows to gigabytes or reads local files; prices need none.
        raise NoValue("a document type declaration is not accepted")
    try:
        root = ET.fromstring(text)  # noqa: S314 - declarations were refused above
    except (ET.ParseError, ValueError, RecursionError) as error:
        raise NoValue(str(error)) from None
    place, _, attribute = path.partition("/@")
    element = _find(root, place)
    if element is None:
        raise NoValue(f"nothing at {place}")
    found = element.get(attribute) if attribute else element.text
    if found is None:
        raise NoValue(f"nothing in {path}")
    return found


def _find(root: ET.Element, place: str) -> ET.Element | None:
    try:
        return root.find(place)
    except (SyntaxError, TypeError) as error:  # what ElementPath makes of half a predicate
        raise NoValue(f"path {place!r} is no ElementTree path: {error!r}") from None


def _from_text(text: str, expression: str) -> str:
    match = re.search(expression, text)
    if match is None or match[1] is None:
        raise NoValue(f"nothing matches {expression!r}")
    found: str = match[1]
    return found
