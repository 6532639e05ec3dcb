"""Settings of a process: one typed schema, four sources, one kind of error.

    flags  >  environment (GTX_...)  >  TOML file  >  defaults

A schema is a frozen `Settings` struct whose fields are annotated with a `Setting` (help, unit,
bounds). Nested structs are TOML tables; ``p2p.max_peers`` is the flag ``--p2p-max-peers`` and the
variable ``GTX_P2P_MAX_PEERS``. Paths in a file are relative to that file, all others to the working
directory. Every refusal is one line that names the source, the key, the value and what is allowed. Other
programs' variables may begin with GTX_ too, so only one that looks like a slip of ours is refused.
"""

import difflib
import enum
import functools
import os
import re
import textwrap
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, Union, cast

import click
import msgspec

from gridtokenx.core.errors import LocalFault

ENVIRONMENT_PREFIX: Final = "GTX_"
OTHER_VARIABLES: Final = frozenset(
    {
        "GTX_BUNDLE",
        "GTX_CLOCK",
        "GTX_CONFIG",
        "GTX_COUNT_CPU",
        "GTX_CRASH_AT",
        "GTX_EXPORT_PASSWORD",
        "GTX_HOME",
        "GTX_IMPORT_PASSWORD",
        "GTX_KEYS",
        "GTX_MANIFEST",
        "GTX_NEW_PASSWORD",
        "GTX_PASSWORD",
        "GTX_PROCESS",
        "GTX_STAGES",
    }
)
"""Variables of ours that are no settings."""
_NEAR: Final = 0.8
"""How alike two names are, of which one is taken for a slip of the other."""
_DEEPEST: Final = 32
_TOO_DEEP: Final = f"nested more than {_DEEPEST - 1} deep"
_URL_PASSWORD: Final = re.compile(r"([a-z][a-z0-9+.-]*://[^\s:/@]*:)[^\s@/]+@")

S = TypeVar("S", bound="Settings")
Value = bool | int | float | str | Path | tuple[str, ...] | None
F = TypeVar("F", bound=Callable[..., object])


class ConfigError(LocalFault):
    """A setting that is unknown, missing, or outside what is allowed."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every schema."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a person needs to know of one setting, and what is allowed."""

    help: str
    unit: str = ""
    minimum: int | float | None = None
    maximum: int | float | None = None
    secret: bool = False
    """Never printed."""


@dataclass(frozen=True, slots=True)
class Field:
    """One setting of a schema, resolved."""

    path: tuple[str, ...]
    kind: type
    """bool, int, float, str, Path, or tuple (of strings)."""
    choices: tuple[str, ...]
    optional: bool
    default: object
    required: bool
    setting: Setting

    @property
    def key(self) -> str:
        """The key as in a TOML file: ``p2p.max_peers``."""
        return ".".join(self.path)

    @property
    def flag(self) -> str:
        """The command-line flag."""
        return "--" + "-".join(self.path).replace("_", "-")

    @property
    def parameter(self) -> str:
        """The flag's name inside click."""
        return "_".join(self.path)

    @property
    def variable(self) -> str:
        """The environment variable."""
        return ENVIRONMENT_PREFIX + "_".join(self.path).upper()

    def allowed(self) -> str:
        """What may stand here, in words."""
        if self.choices:
            words = "one of " + ", ".join(self.choices)
        else:
            words = _KIND_WORDS[self.kind] + self._bounds()
        return f"{words}, in {self.setting.unit}" if self.setting.unit else words

    def _bounds(self) -> str:
        low, high = self.setting.minimum, self.setting.maximum
        if low is not None and high is not None:
            return f" from {low} to {high}"
        if low is not None:
            return f" of at least {low}"
        return f" of at most {high}" if high is not None else ""


_KIND_WORDS: Final[dict[type, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    tuple: "a list of texts (comma-separated on the command line)",
}
_TRUE: Final = frozenset({"true", "yes", "on", "1"})
_FALSE: Final = frozenset({"false", "no", "off", "0"})


# -- schema ----------------------------------------------------------------------------------------


def fields(schema: type[Settings]) -> tuple[Field, ...]:
    """All settings of a schema, nested ones flattened, in order of declaration."""
    return tuple(_walk(schema, ()))


def _walk(schema: type[Settings], path: tuple[str, ...]) -> Iterator[Field]:
    hints = typing.get_type_hints(schema, include_extras=True)
    for field in msgspec.structs.fields(schema):
        hint, here = hints[field.name], (*path, field.name)
        if isinstance(hint, type) and issubclass(hint, Settings):
            yield from _walk(hint, here)
            continue
        if typing.get_origin(hint) is not Annotated:
            raise AssertionError(f"{schema.__name__}.{field.name} has no Setting")
        inner, setting = typing.get_args(hint)[:2]
        kind, choices, optional = _kind(inner)
        required = field.default is msgspec.NODEFAULT
        default = None if required else field.default
        yield Field(here, kind, choices, optional, default, required, setting)


def _kind(hint: object) -> tuple[type, tuple[str, ...], bool]:
    optional = False
    if typing.get_origin(hint) in (Union, types.UnionType):
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        hint, optional = inner[0], True
    if typing.get_origin(hint) is Literal:
        return str, tuple(typing.get_args(hint)), optional
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return str, tuple(str(member.value) for member in hint), optional
    kind = typing.get_origin(hint) or hint
    if kind not in _KIND_WORDS:
        raise AssertionError(f"a setting cannot have the type {hint}")
    return cast("type", kind), (), optional


# -- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a value was found, for messages and for relative paths."""

    name: str
    text: bool
    """The value came as text and has to be parsed."""
    directory: Path | None = None


def load(
    schema: type[S],
    *,
    flags: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> S:
    """Build the settings from all four sources.

    Args:
        schema: the struct to build.
        flags: values by `Field.parameter`, as given on the command line.
        environment: variables; other programs' and other schemas' are ignored.
        file: a TOML file, whose keys must all be known.

    Raises:
        ConfigError: in one line, what is wrong and what is allowed.
    """
    return load_with_origin(schema, flags=flags, environment=environment, file=file)[0]


def load_with_origin(
    schema: type[S],
    *,
    flags: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> tuple[S, dict[str, str]]:
    """`load`, and for each key the name of the source that decided it."""
    known = fields(schema)
    _refuse_slips(known, environment or {})
    from_file = _read_file(file, known) if file is not None else {}
    values: dict[str, object] = {}
    origin: dict[str, str] = {}
    for field in known:
        source, raw = _find(field, flags or {}, environment or {}, file, from_file)
        if source is None:
            if field.required:
                raise ConfigError(
                    f"{field.key} is missing: give {field.flag}, {field.variable} or `{field.key}`"
                    f" in the configuration file: {field.allowed()} ({field.setting.help})"
                )
            values[field.key], origin[field.key] = field.default, "default"
        else:
            values[field.key] = _value(field, source, raw)
            origin[field.key] = source.name
    return _build(schema, (), values), origin


def _refuse_slips(known: tuple[Field, ...], environment: Mapping[str, str]) -> None:
    ours = {field.variable.removeprefix(ENVIRONMENT_PREFIX) for field in known}
    for variable in environment:
        name = variable.removeprefix(ENVIRONMENT_PREFIX)
        if name == variable or name in ours or variable in OTHER_VARIABLES:
            continue
        near = difflib.get_close_matches(name, ours, n=1, cutoff=_NEAR)
        if near and variable not in _variables_of_roles(Settings):
            raise ConfigError(
                f"{variable} in the environment is no setting here; did you mean"
                f" {ENVIRONMENT_PREFIX}{near[0]}? (unset it if it is another program's)"
            )


def _variables_of_roles(schema: type[Settings]) -> set[str]:
    """Variables of every schema that this process has loaded: another role's are no slips."""
    found = {field.variable for field in fields(schema)}
    return found.union(*(_variables_of_roles(each) for each in schema.__subclasses__()))


def _find(
    field: Field,
    flags: Mapping[str, str],
    environment: Mapping[str, str],
    file: Path | None,
    from_file: Mapping[str, object],
) -> tuple[_Source | None, object]:
    if field.parameter in flags:
        return _Source(field.flag, text=True), flags[field.parameter]
    if field.variable in environment:
        return _Source(field.variable, text=True), environment[field.variable]
    if file is not None and field.key in from_file:
        return _Source(f"{file}: {field.key}", text=False, directory=file.parent), from_file[
            field.key
        ]
    return None, None


def _read_file(file: Path, known: tuple[Field, ...]) -> dict[str, object]:
    try:
        document = parse_toml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: is not valid TOML: {error}") from None
    keys = {field.key for field in known}
    flat = dict(_flatten(document, (), keys))
    for key in flat:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(keys))}"
            raise ConfigError(f"{file}: {key} is no setting here{hint}")
    return flat


def _flatten(
    table: Mapping[str, object], path: tuple[str, ...], keys: set[str]
) -> Iterator[tuple[str, object]]:
    for name, value in table.items():
        here = (*path, name)
        if isinstance(value, dict) and ".".join(here) not in keys:
            yield from _flatten(value, here, keys)
        else:
            yield ".".join(here), value


def _value(field: Field, source: _Source, raw: object) -> Value:
    try:
        value = _parse(field, cast("str", raw)) if source.text else _typed(field, raw)
    except (ValueError, TypeError):
        raise _refusal(field, source, raw) from None
    low, high = field.setting.minimum, field.setting.maximum
    if field.kind in (int, float) and value is not None:
        number = cast("float", value)
        if not (low is None or number >= low) or not (high is None or number <= high):
            raise _refusal(field, source, raw)
    if field.choices and value is not None and value not in field.choices:
        raise _refusal(field, source, raw)
    if isinstance(value, Path):
        value = (source.directory or Path()) / value.expanduser()
    return value


def _refusal(field: Field, source: _Source, raw: object) -> ConfigError:
    shown = "(not shown)" if field.setting.secret else mask_urls(repr(raw))
    return ConfigError(f"{source.name} = {shown} is not allowed: {field.allowed()}")


def _parse(field: Field, text: str) -> Value:
    """A value from a flag or a variable. An empty text unsets an optional setting."""
    text = text.strip()
    if field.optional and not text:
        return None
    if field.kind is bool:
        if text.lower() not in _TRUE | _FALSE:
            raise ValueError
        return text.lower() in _TRUE
    if field.kind is int:
        return int(text.replace("_", ""))
    if field.kind is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return cast("Value", field.kind(text))


def _typed(field: Field, raw: object) -> Value:
    """A value from TOML, which has types of its own; nothing is coerced but int to float."""
    if field.kind is Path and isinstance(raw, str):
        return Path(raw)
    if field.kind is tuple and isinstance(raw, list):
        if not all(isinstance(item, str) for item in raw):
            raise TypeError
        return tuple(raw)
    if field.kind is float and type(raw) is int:
        return float(raw)
    if type(raw) is not field.kind:
        raise TypeError
    return cast("Value", raw)


def _build(schema: type[S], path: tuple[str, ...], values: Mapping[str, object]) -> S:
    hints = typing.get_type_hints(schema)
    built: dict[str, Any] = {}  # heterogeneous by nature; each value was checked against its field
    for field in msgspec.structs.fields(schema):
        here = (*path, field.name)
        hint = hints[field.name]
        if isinstance(hint, type) and issubclass(hint, Settings):
            built[field.name] = _build(hint, here, values)
        else:
            built[field.name] = _as_enum(hint, values[".".join(here)])
    return schema(**built)


def _as_enum(hint: object, value: object) -> object:
    if isinstance(hint, type) and issubclass(hint, enum.Enum) and not isinstance(value, hint):
        return hint(value)
    return value


# -- printing --------------------------------------------------------------------------------------


def render(
    settings: Settings, origin: Mapping[str, str] | None = None, *, show_secrets: bool = False
) -> str:
    """The settings as a TOML document, readable by `load`; unset ones as comments.

    Args:
        settings: what to write.
        origin: where each value came from, as a comment behind it.
        show_secrets: for a configuration file that a process is to read, never for a screen.
    """
    lines: list[str] = []
    table: tuple[str, ...] = ()
    plain = [field for field in fields(type(settings)) if len(field.path) == 1]
    nested = [field for field in fields(type(settings)) if len(field.path) > 1]
    for field in (*plain, *nested):
        if field.path[:-1] != table:
            table = field.path[:-1]
            lines += ["", f"[{'.'.join(table)}]"]
        value = functools.reduce(getattr, field.path, cast("Any", settings))
        note = f"  # {origin[field.key]}" if origin else ""
        name = field.path[-1]
        if field.setting.secret and value is not None and not show_secrets:
            lines.append(f'# {name} = "..."{note}  (set, not shown)')
        elif not show_secrets and mask_urls(toml_value(value)) != toml_value(value):
            lines.append(f"# {name} = {mask_urls(toml_value(value))}{note}  (password not shown)")
        elif value is None:
            lines.append(f"# {name} = {note}  (not set)".replace("=   ", "=  "))
        else:
            lines.append(f"{name} = {toml_value(value)}{note}")
    return "\n".join(lines) + "\n"


def plain_values(settings: Settings) -> dict[str, object]:
    """The value of every setting by its key."""
    return {
        field.key: functools.reduce(getattr, field.path, cast("Any", settings))
        for field in fields(type(settings))
    }


def explain(schema: type[Settings], values: Mapping[str, object]) -> str:
    """A configuration file that teaches: every setting with its help, the given ones filled in.

    Args:
        schema: whose settings.
        values: those that are filled in, by `Field.key`; the others stand as comments.
    """
    known = fields(schema)
    tables = dict.fromkeys(
        field.path[:-1] for field in sorted(known, key=lambda f: len(f.path) > 1)
    )
    lines: list[str] = []
    for table in tables:
        lines += [f"[{'.'.join(table)}]", ""] if table else []
        for field in known:
            if field.path[:-1] == table:
                lines += [*_explained(field, values), ""]
    return "\n".join(lines)


def _explained(field: Field, values: Mapping[str, object]) -> Iterator[str]:
    text = f"{field.setting.help} ({'; '.join(_facts(field))})"
    yield from textwrap.wrap(text, width=98, initial_indent="# ", subsequent_indent="# ")
    name = field.path[-1]
    if field.key in values:
        yield f"{name} = {toml_value(values[field.key])}"
    elif field.default is None or field.required or field.setting.secret:
        yield f"#{name} ="
    else:
        yield f"#{name} = {toml_value(field.default)}"


def mask_urls(text: str) -> str:
    """The text without the passwords of the addresses in it."""
    return _URL_PASSWORD.sub(r"\1...@", text)


def parse_toml(text: str) -> dict[str, Any]:
    """A TOML document.

    Raises:
        tomllib.TOMLDecodeError: it is none, or one that would overwhelm its readers.
    """
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise tomllib.TOMLDecodeError(_TOO_DEEP) from None
    except ValueError as error:  # also of a number with too many digits
        raise tomllib.TOMLDecodeError(str(error)) from None
    level: list[object] = [document]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise tomllib.TOMLDecodeError(_TOO_DEEP)
    return document


def _inside(value: object) -> Sequence[object]:
    return (
        tuple(value.values())
        if isinstance(value, dict)
        else value
        if isinstance(value, list)
        else ()
    )


def toml_value(value: object) -> str:
    """One value in TOML's notation."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, enum.Enum):
        return toml_value(value.value)
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
    return msgspec.json.encode(str(value)).decode().replace("\x7f", "\\u007f")


# -- command line ----------------------------------------------------------------------------------


def settings_options(schema: type[S]) -> Callable[[Callable[[S], object]], Callable[..., object]]:
    """Give a click command all flags of a schema, ``--config`` and ``--print-config``.

    The decorated function is called with the finished settings as its first argument::

        @click.command()
        @settings_options(NodeSettings)
        def public(settings: NodeSettings) -> None: ...
    """

    def decorate(function: Callable[[S], object]) -> Callable[..., object]:
        @functools.wraps(function)
        def command(
            config: Path | None, *, print_config: bool, **given: str | bool | None
        ) -> object:
            known = {field.parameter for field in fields(schema)}
            flags = given_flags(schema, given)
            context = click.get_current_context(silent=True)
            if context is not None and context.invoked_subcommand is not None:
                _refuse_flags_before(
                    context.invoked_subcommand, [*flags, *([config] if config else [])]
                )
                return None
            settings, origin = load_with_origin(
                schema, flags=flags, environment=os.environ, file=config
            )
            if print_config:
                click.echo(render(settings, origin), nl=False)
                return None
            others = {name: value for name, value in given.items() if name not in known}
            return function(settings, **others)

        wrapped: Callable[..., object] = command
        for field in reversed(fields(schema)):
            wrapped = setting_option(field)(wrapped)
        wrapped = click.option(
            "--print-config", is_flag=True, help="Print the settings in force, and stop."
        )(wrapped)
        return click.option(
            "--config",
            type=click.Path(path_type=Path),
            envvar="GTX_CONFIG",
            help="A TOML file with any of these settings.  [env: GTX_CONFIG]",
        )(wrapped)

    return decorate


def given_flags(schema: type[Settings], given: Mapping[str, object]) -> dict[str, str]:
    """The settings among the parameters of a click command that were given on the command line."""
    known = {field.parameter for field in fields(schema)}
    return {
        name: str(value) for name, value in given.items() if name in known and value is not None
    }


def _refuse_flags_before(command: str, given: Sequence[object]) -> None:
    """A group that is also a command: flags go behind the name of the command that they are for."""
    if given:
        raise click.UsageError(f"flags come after {command!r}: they are given to it, not before it")


def setting_option(field: Field) -> Callable[[F], F]:
    """The click option of one setting."""
    if field.kind is bool:
        flag = f"{field.flag}/{field.flag.replace('--', '--no-', 1)}"
        return click.option(flag, field.parameter, default=None, help=_help(field))
    metavar = "|".join(field.choices) if field.choices else _METAVARS[field.kind]
    return click.option(
        field.flag, field.parameter, default=None, metavar=metavar, help=_help(field)
    )


_METAVARS: Final[dict[type, str]] = {
    int: "N",
    float: "X",
    str: "TEXT",
    Path: "PATH",
    tuple: "A,B,...",
}


def _help(field: Field) -> str:
    return f"{field.setting.help}  [{'; '.join((f'env: {field.variable}', *_facts(field)))}]"


def _facts(field: Field) -> Iterator[str]:
    """What is allowed, and what holds without it."""
    if field.kind in (int, float) or field.choices:
        yield field.allowed()
    elif field.setting.unit:
        yield field.setting.unit
    if field.required:
        yield "required"
    elif field.default is None:
        yield "not set by default"
    elif not field.setting.secret:
        yield f"default: {_shown(field.default)}"


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        return ",".join(default) or "none"
    if isinstance(default, bool):
        return "yes" if default else "no"
    return str(default.value) if isinstance(default, enum.Enum) else str(default)
