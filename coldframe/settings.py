"""How the command lines are run: every flag also in a TOML file or by environment, and errors as one sentence.

    flag  >  environment  >  file  >  default

A file named by --config holds flags as keys, '-' or '_' alike. In a program with commands a key at the top is for
every command that knows the flag, and a table such as [build] is for that command alone, or for those below it:

    store = "/data/news"
    [build]
    clusters = 64

In the environment the same flags are PREFIX_STORE, for every command, and PREFIX_BUILD_CLUSTERS, for one. Several
values are an array in the file, and stand with spaces between them (paths: with colons) in the environment. A flag of
two names may be called by either, and in one place not by both.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeAlias, cast

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from coldframe.errors import ColdframeError, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# A disk or a quota that is full: nobody's fault here, and no traceback helps.
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_SCRATCH = "No usable temporary directory"  # of Python's own
_NO_THREAD = "can't start new thread"  # nor has this a class
_NO_MEMORY = ("DefaultCPUAllocator", "std::bad_alloc")  # of torch, and of C++
_LAST_STANDARD = 2  # of the three, standard error

Command: TypeAlias = TyperCommand | TyperGroup


def run(app: typer.Typer, *, prog: str, prefix: str, args: Sequence[str] | None = None) -> NoReturn:
    """Run a Typer program, of one command or several, and exit.

    prog: what the usage line calls it, such as "python -m server". prefix: of its environment variables, such as
    "COLDFRAME_SERVER". args: None takes the process's own.

    Exit codes: 0, 2 for a usage error or InvalidArgument, 1 for any other ColdframeError, 130 for Ctrl-C. A
    ColdframeError is one line on stderr, and so is a disk that is full, or has no place for temporary files, and what
    the system gives no more of, memory or threads; any other exception is a fault of ours and keeps its traceback.
    """
    _fill_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")  # a terminal of Latin letters shows a question mark for any other
    try:
        configured(app, prefix).main(args=args, prog_name=prog)
    except ColdframeError as error:
        typer.echo(f"error: {error.message}", err=True)
        sys.exit(2 if isinstance(error, InvalidArgument) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if _NO_SCRATCH in str(error):
            typer.echo(
                "error: no folder for temporary files can be written; mount one at /tmp, or name one by TMPDIR.",
                err=True,
            )
            sys.exit(1)
        if error.errno not in _FULL:
            raise
        _print_no_more()
        typer.echo(f"error: {error.strerror}: what was being written is not whole; make room, and ask again.", err=True)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not (short := _short_of(error)):
            raise
        typer.echo(f"error: {short}", err=True)
        sys.exit(1)
    sys.exit(0)


def _short_of(error: MemoryError | RuntimeError) -> str:
    """What the system gives no more of; "" where it is nothing of the kind."""
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in _NO_MEMORY):
        return "there is not memory enough for this; let the process have more, and the same command goes on."
    if _NO_THREAD in str(error):
        return "no more threads can be begun; allow more (ulimit -u, a container's limit of pids), and ask again."
    return ""


def _fill_standard_streams() -> None:
    """Opens the null device in place of standard streams that are closed. Else a socket or a file of ours takes the
    number: what a library prints lands in it, and libuv ends the process that closes one with a failed assertion.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _print_no_more() -> None:
    """Lets what was printed and not written yet go nowhere; Python would try once more at its end, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def configured(app: typer.Typer, prefix: str) -> Command:
    """Return the app as one runnable command, with --config and environment variables on it and on its subcommands."""
    root = cast("Command", typer.main.get_command(app))
    for path, command in _commands(root).items():
        words = [prefix, *(_normal(name).upper() for name in path)]
        prefixes = ["_".join(words[:count]) for count in range(len(words), 0, -1)]
        _accept_environment(command, prefixes)
        # Typer ends lines where the source does, in the middle of sentences.
        command.help = "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))
        command.epilog = "\n\n".join(filter(None, [command.epilog, _epilog(command, prefixes)]))
    return root


def _commands(root: Command) -> dict[tuple[str, ...], Command]:
    """Return the root, under (), and all commands below it by the words that call them."""
    found: dict[tuple[str, ...], Command] = {(): root}
    for name, command in _below(root).items():
        found |= {(name, *path): each for path, each in _commands(command).items()}
    return found


def _below(command: Command) -> Mapping[str, Command]:
    return cast("Mapping[str, Command]", command.commands) if isinstance(command, TyperGroup) else {}


def _normal(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


def _settings(command: Command) -> list[TyperOption]:
    """Return the options; eager ones, such as --version, are commands in disguise and no settings."""
    return [param for param in command.params if isinstance(param, TyperOption) and not param.is_eager]


def _names(option: TyperOption) -> list[str]:
    return [_normal(name) for name in option.opts if name.startswith("--")] or [_normal(option.opts[0])]


def _options(command: Command) -> dict[str, TyperOption]:
    """Return settings by flag name; one of two names stands under both."""
    return {name: option for option in _settings(command) for name in _names(option)}


def _accept_environment(command: Command, prefixes: Sequence[str]) -> None:
    config = _config_option()
    command.params.append(config)
    for option in [*_settings(command), config]:
        if option.envvar is None:
            option.envvar = [f"{prefix}_{name.upper()}" for prefix in prefixes for name in _names(option)]
            option.show_envvar = False  # The epilog says it once.


def _refuse_two_variables(command: Command) -> None:
    """Raise InvalidArgument where the environment has an option under two names, both for as many commands."""
    for option in _settings(command):
        count, variables = len(_names(option)), option.envvar or []
        for start in range(0, len(variables), count):
            given = [name for name in variables[start : start + count] if os.environ.get(name)]
            if len(given) > 1:
                raise InvalidArgument(f"{' and '.join(given)} are one option; set one of them.", field=given[0])


def _epilog(command: Command, prefixes: Sequence[str]) -> str:
    flag = next(iter(_options(command)), "config")
    *alone, everywhere = (f"{prefix}_{flag.upper()}" for prefix in prefixes)
    groups = (f"for those of `{prefix.rpartition('_')[2].lower()}`" for prefix in prefixes[1:])
    whose = ["for this command alone", *groups]
    return (
        "Every option can also be set in a TOML file (--config) or by environment: "
        f"--{flag.replace('_', '-')} is {everywhere}{''.join(map(', or {} {}'.format, alone, whose))}."
    )


def _config_option() -> TyperOption:
    """Make a --config option. Typer makes options from functions only, so one is made and its parameter taken."""
    app = typer.Typer(add_completion=False)

    @app.command()
    def _(config: ConfigOption = None) -> None:
        """Never runs."""

    option = typer.main.get_command(app).params[0]
    option.expose_value = False
    return cast("TyperOption", option)


def _load(context: typer.Context, path: Path | None) -> None:
    """Make a file's values the defaults of the command at hand; being eager, it runs before they are looked up."""
    if context.resilient_parsing:
        return
    command = cast("Command", context.command)
    _refuse_two_variables(command)
    for option in _settings(command):
        option.get_error_hint = partial(_where_it_stands, option, context)  # type: ignore[method-assign]
    if path is None:
        return
    root = context.find_root()
    own = _defaults(_read(path), cast("Command", root.command), str(path), [])
    for name in _path(context):
        own = own[name]
    context.default_map = {**(context.default_map or {}), **own}


def _where_it_stands(option: TyperOption, context: typer.Context) -> str:
    """Return what an error calls an option: the flag and, where nobody typed it, the place to look for its value."""
    flag, source = type(option).get_error_hint(option), context.get_parameter_source(str(option.name))
    place = "" if source is None else source.name
    if place == "ENVIRONMENT":
        return f"{flag}, which is {next(filter(os.environ.get, option.envvar or []))} in the environment"
    return f"{flag}, which stands in the configuration file" if place == "DEFAULT_MAP" else flag


def _path(context: Any) -> list[str]:
    """Return the words that called a command, without the program's own."""
    return [] if context.parent is None else [*_path(context.parent), str(context.info_name)]


ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", is_eager=True, callback=_load, help="Read options from this TOML file."),
]


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        reason = error.strerror or "it cannot be read"
        raise InvalidArgument(f"configuration file {path}: {reason}.", field="config") from error
    except ValueError as error:  # tomllib's own, and bytes that are not UTF-8
        raise InvalidArgument(f"configuration file {path} is not TOML: {error}.", field="config") from error


def _defaults(
    table: Mapping[str, Any], command: Command, where: str, above: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return a table's values by parameter: the command's own, those of tables above it, and by name those below it."""
    below = _below(command)
    tables = {key: value for key, value in table.items() if key in below and isinstance(value, dict)}
    shared = {key: value for key, value in table.items() if key not in tables}
    _refuse_unknown(shared, {flag for each in _commands(command).values() for flag in _options(each)}, below, where)
    levels = [*above, shared]
    defaults = {name: value for level in levels for name, value in _values(command, level).items()}
    for name, each in below.items():
        inner = f"{where[:-1]}.{name}]" if where.endswith("]") else f"{where} [{name}]"
        defaults[name] = _defaults(tables.get(name, {}), each, inner, levels)
    return defaults


def _refuse_unknown(table: Mapping[str, Any], known: Iterable[str], below: Iterable[str], where: str) -> None:
    allowed = sorted(known)
    for key, value in table.items():
        if _normal(key) in allowed:
            continue
        if isinstance(value, dict):
            tables = ", ".join(f"[{name}]" for name in below)
            allowed_here = f"the tables allowed here are {tables}" if tables else "here are no tables"
            raise InvalidArgument(f"{where}: unknown table '{key}'; {allowed_here}.", field=key)
        names = ", ".join(name.replace("_", "-") for name in allowed)
        raise InvalidArgument(f"{where}: unknown key '{key}'; the keys allowed here are {names}.", field=key)


def _values(command: Command, table: Mapping[str, Any]) -> dict[str, Any]:
    """By parameter name, the values that the command has a flag for."""
    options = _options(command)
    known = {key: options[_normal(key)] for key in table if _normal(key) in options}
    _refuse_two_keys(known)
    return {option.name or key: _as_typed(option, key, table[key]) for key, option in known.items()}


def _refuse_two_keys(known: Mapping[str, TyperOption]) -> None:
    first: dict[str | None, str] = {}
    for key, option in known.items():
        other = first.setdefault(option.name, key)
        if other != key:
            message = f"'{other}' and '{key}' are one option in the configuration file; give one of them."
            raise InvalidArgument(message, field=key)


def _as_typed(option: TyperOption, key: str, value: Any) -> Any:
    """Write a TOML value as a person would type it after the flag, so that 2.5 clusters are refused and not rounded."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise InvalidArgument(f"'{key}' is {value!r} in the configuration file; give true or false.", field=key)
        return value
    several = option.multiple or option.nargs != 1
    values = value if several and isinstance(value, list) else [value]
    if any(isinstance(item, bool | list | dict) for item in values):
        kind = "an array of texts or numbers" if several else "a text or a number"
        raise InvalidArgument(f"'{key}' is {value!r} in the configuration file; give {kind}.", field=key)
    return [str(item) for item in values] if several else str(value)
