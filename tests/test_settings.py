"""Settings from flags, environment, file and default, in Typer programs of one command and of several."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from pathlib import Path  # noqa: TC003  (Typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any

import pytest
import typer

from coldframe import settings
from coldframe.errors import InvalidArgument, NoGeneration

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]
    Write = Callable[[str], str]


class Effort(StrEnum):
    LOW = "low"
    HIGH = "high"


def say(**values: Any) -> None:
    typer.echo(json.dumps(values, default=str))


def print_version(asked: bool) -> None:
    if asked:
        typer.echo("1.0")
        raise typer.Exit


def single() -> typer.Typer:
    app = typer.Typer(add_completion=False)

    @app.command()
    def serve(
        store: Annotated[Path, typer.Option()],
        listen: Annotated[str, typer.Option("--listen", "-l")] = "localhost:50051",
        max_batch: Annotated[int, typer.Option(min=1)] = 8,
        warm: Annotated[bool, typer.Option("--warm/--no-warm")] = True,
        effort: Effort = Effort.LOW,
        tag: Annotated[list[str] | None, typer.Option()] = None,
        fail: bool = False,
    ) -> None:
        """Serve a store."""
        if fail:
            raise NoGeneration("the store is empty; build a generation first.")
        say(store=store, listen=listen, max_batch=max_batch, warm=warm, effort=effort, tag=tag)

    return app


def several() -> typer.Typer:
    app = typer.Typer(add_completion=False)

    @app.callback()
    def root(
        verbose: bool = False,
        version: Annotated[bool, typer.Option("--version", is_eager=True, callback=print_version)] = False,
    ) -> None:
        if verbose:
            typer.echo("verbose", err=True)

    @app.command()
    def build(
        corpus: Annotated[str, typer.Option()],
        store: Annotated[str, typer.Option()] = "store",
        clusters: Annotated[int, typer.Option()] = 10,
        as_json: Annotated[bool, typer.Option("--json")] = False,
    ) -> None:
        """Build."""
        say(corpus=corpus, store=store, clusters=clusters, as_json=as_json)

    @app.command("list-all")
    def list_all(store: Annotated[str, typer.Option()] = "store") -> None:
        """List."""
        say(store=store)

    return app


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def runner(app: typer.Typer, *args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exited:
            settings.run(app, prog="python -m program", prefix="PROGRAM", args=args)
        captured = capsys.readouterr()
        return int(str(exited.value.code)), captured.out, captured.err

    return runner


@pytest.fixture
def config(tmp_path: Path) -> Write:
    def write(text: str) -> str:
        path = tmp_path / "program.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def answer(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert isinstance(values, dict)
    return values


def nested() -> typer.Typer:
    app, keys = several(), typer.Typer(no_args_is_help=True)
    app.add_typer(keys, name="keys")

    @keys.command()
    def add(
        name: Annotated[str, typer.Option()] = "nobody",
        store: Annotated[str, typer.Option()] = "store",
    ) -> None:
        """Add."""
        say(name=name, store=store)

    return app


def two_names() -> typer.Typer:
    app = nested()

    @app.command()
    def recommend(
        like: Annotated[list[str] | None, typer.Option("--like", "--article-id", "-l")] = None,
    ) -> None:
        """Recommend."""
        say(like=like)

    return app


# ---------------------------------------------------------------------------------------------------- precedence


def test_flag_beats_environment_beats_file_beats_default(
    run: Run, config: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--store", "/data"]
    assert answer(run(single(), *asked))["listen"] == "localhost:50051"
    asked += ["--config", config('listen = "file:1"')]
    assert answer(run(single(), *asked))["listen"] == "file:1"
    monkeypatch.setenv("PROGRAM_LISTEN", "environment:1")
    assert answer(run(single(), *asked))["listen"] == "environment:1"
    asked += ["--listen", "flag:1"]
    assert answer(run(single(), *asked))["listen"] == "flag:1"


def test_a_command_of_several_has_the_same_order(run: Run, config: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["build", "--corpus", "c"]
    everywhere = 'store = "top"\n'
    assert answer(run(several(), *asked))["store"] == "store"
    assert answer(run(several(), *asked, "--config", config(everywhere)))["store"] == "top"
    asked += ["--config", config(everywhere + '[build]\nstore = "table"')]
    assert answer(run(several(), *asked))["store"] == "table"
    monkeypatch.setenv("PROGRAM_STORE", "environment")
    assert answer(run(several(), *asked))["store"] == "environment"
    monkeypatch.setenv("PROGRAM_BUILD_STORE", "environment for build")
    assert answer(run(several(), *asked))["store"] == "environment for build"
    asked += ["--store", "flag"]
    assert answer(run(several(), *asked))["store"] == "flag"
    assert answer(run(several(), "list-all"))["store"] == "environment"


def test_a_command_below_a_command_has_the_same_order(run: Run, config: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["keys", "add"]
    assert answer(run(nested(), *asked)) == {"name": "nobody", "store": "store"}
    text = 'store = "top"\n'
    assert answer(run(nested(), *asked, "--config", config(text)))["store"] == "top"
    text += '[keys]\nname = "group"\nstore = "group"\n'
    assert answer(run(nested(), *asked, "--config", config(text))) == {"name": "group", "store": "group"}
    text += '[keys.add]\nname = "command"\n'
    assert answer(run(nested(), *asked, "--config", config(text))) == {"name": "command", "store": "group"}
    assert answer(run(nested(), "--config", config(text), *asked))["name"] == "command"
    for variable in ("PROGRAM_STORE", "PROGRAM_KEYS_STORE", "PROGRAM_KEYS_ADD_STORE"):
        monkeypatch.setenv(variable, variable)
        assert answer(run(nested(), *asked, "--config", config(text)))["store"] == variable
    assert answer(run(nested(), *asked, "--store", "flag"))["store"] == "flag"


# ---------------------------------------------------------------------------------------------------------- file


def test_every_kind_of_value(run: Run, config: Write) -> None:
    text = 'store = "/data"\nmax-batch = 3\nwarm = false\neffort = "high"\ntag = ["a b", 7]\n'
    expected = {"store": "/data", "max_batch": 3, "warm": False, "effort": "high", "tag": ["a b", "7"]}
    found = answer(run(single(), "--config", config(text)))
    assert {key: found[key] for key in expected} == expected


def test_dashes_and_underscores_are_the_same(run: Run, config: Write) -> None:
    assert answer(run(single(), "--config", config('store = "s"\nmax_batch = 5')))["max_batch"] == 5
    path = config('["list-all"]\nstore = "s"\n[build]\njson = true\ncorpus = "c"')
    assert answer(run(several(), "list-all", "--config", path)) == {"store": "s"}
    assert answer(run(several(), "build", "--config", path))["as_json"] is True


def test_the_file_may_stand_before_the_command_or_in_the_environment(
    run: Run, config: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config('corpus = "c"\nverbose = true\n[build]\nclusters = 64\n')
    code, out, err = run(several(), "--config", path, "build")
    assert (code, json.loads(out)["clusters"], err) == (0, 64, "verbose\n")
    monkeypatch.setenv("PROGRAM_BUILD_CONFIG", path)
    assert answer(run(several(), "build"))["clusters"] == 64
    monkeypatch.delenv("PROGRAM_BUILD_CONFIG")
    monkeypatch.setenv("PROGRAM_CONFIG", path)
    assert json.loads(run(several(), "build")[1])["clusters"] == 64


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("clusers = 3", "unknown key 'clusers'; the keys allowed here are clusters, corpus, json, store, verbose."),
        ("[build]\nverbose = true", r"\[build\]: unknown key 'verbose'"),
        ("[list-all]\nclusters = 3", r"\[list-all\]: unknown key 'clusters'; the keys allowed here are store."),
        ("[biuld]\nclusters = 3", r"unknown table 'biuld'; the tables allowed here are .*\[build\].*\[list-all\]"),
        ("[build.fast]\nclusters = 3", r"\[build\]: unknown table 'fast'; here are no tables."),
        ("version = true", "unknown key 'version'"),
        ("config = 'x'", "unknown key 'config'"),
        ("[build]\njson = 'yes'", "'json' is 'yes' in the configuration file; give true or false."),
        ("store = true", "'store' is True in the configuration file; give a text or a number."),
        ("store = ['a', 'b']", "give a text or a number"),
        ("[store]\nx = 1", "give a text or a number"),
        ("store =\nclusters = 3", "is not TOML: .*line 1"),
        ("[keys]\nclusters = 3", r"\[keys\]: unknown key 'clusters'; the keys allowed here are name, store."),
        ("[keys.add]\njson = true", r"\[keys.add\]: unknown key 'json'"),
    ],
)
def test_a_bad_file_is_named_with_what_is_allowed(run: Run, config: Write, text: str, complaint: str) -> None:
    app = nested() if "keys" in text else several()
    code, out, err = run(app, "build", "--corpus", "c", "--config", config(text))
    assert (code, out) == (2, "")
    assert re.match(r"error: .+\n\Z", err)
    assert re.search(complaint, err)


@pytest.mark.parametrize("name", ["like", "article-id", "article_id"])
def test_a_flag_of_two_names_is_set_by_either(
    run: Run, config: Write, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = config(f'{name} = ["top"]\n')
    assert answer(run(two_names(), "recommend", "--config", path)) == {"like": ["top"]}
    path = config(f'like = ["top"]\narticle-id = ["top"]\n[recommend]\n{name} = ["a", "b"]\n')
    code, _, err = run(two_names(), "recommend", "--config", path)
    assert (code, "'like' and 'article-id' are one option in the configuration file; give one" in err) == (2, True)
    path = config(f'article-id = ["top"]\n[recommend]\n{name} = ["a", "b"]\n')
    assert answer(run(two_names(), "recommend", "--config", path)) == {"like": ["a", "b"]}
    variable = name.replace("-", "_").upper()
    monkeypatch.setenv(f"PROGRAM_{variable}", "c d")
    assert answer(run(two_names(), "recommend", "--config", path)) == {"like": ["c", "d"]}
    monkeypatch.setenv(f"PROGRAM_RECOMMEND_{variable}", "e")
    assert answer(run(two_names(), "recommend", "--config", path)) == {"like": ["e"]}


def test_both_names_of_a_flag_in_the_environment_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROGRAM_LIKE", "a")
    monkeypatch.setenv("PROGRAM_RECOMMEND_ARTICLE_ID", "b")
    assert answer(run(two_names(), "recommend")) == {"like": ["b"]}, "one for all commands, one for this"
    monkeypatch.setenv("PROGRAM_ARTICLE_ID", "c")
    message = "error: PROGRAM_LIKE and PROGRAM_ARTICLE_ID are one option; set one of them.\n"
    assert run(two_names(), "recommend") == (2, "", message)
    assert answer(run(two_names(), "list-all")) == {"store": "store"}, "which has no such flag"


def test_a_file_as_windows_writes_it(run: Run, config: Write) -> None:
    path = config('\ufeffstore = "s"\r\nmax-batch = 3\r\n')
    assert answer(run(single(), "--config", path))["max_batch"] == 3


def test_a_list_of_lists_is_refused(run: Run, config: Write) -> None:
    code, _, err = run(single(), "--config", config("tag = [['a']]"))
    assert code == 2
    assert "give an array of texts or numbers" in err


def test_a_fraction_is_not_rounded(run: Run, config: Write) -> None:
    code, _, err = run(single(), "--store", "s", "--config", config("max-batch = 2.5"))
    assert code == 2
    assert "2.5" in err or "max-batch" in err


def test_an_error_says_where_the_value_stands(run: Run, config: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*args: str) -> str:
        code, _, err = run(single(), "--store", "s", *args)
        assert code == 2
        return " ".join(re.sub(r"[^\w'.,:-]", " ", err).split())  # in a frame, and broken into lines

    path = config("max-batch = 0")
    assert "'--max-batch', which stands in the configuration file: " in told("--config", path)
    monkeypatch.setenv("PROGRAM_MAX_BATCH", "many")
    assert "'--max-batch', which is PROGRAM_MAX_BATCH in the environment: " in told("--config", path)
    assert "'--max-batch': " in told("--config", path, "--max-batch", "some")


def test_a_missing_file_and_bytes_that_are_no_text(run: Run, tmp_path: Path) -> None:
    code, _, err = run(single(), "--config", str(tmp_path / "none.toml"))
    assert (code, err) == (2, f"error: configuration file {tmp_path / 'none.toml'}: No such file or directory.\n")
    (tmp_path / "latin.toml").write_bytes(b"store = '\xe9'")
    code, _, err = run(single(), "--config", str(tmp_path / "latin.toml"))
    assert code == 2
    assert "is not TOML" in err


# --------------------------------------------------------------------------------------------------- environment


def test_values_from_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"STORE": "/d", "MAX_BATCH": "4", "WARM": "0", "TAG": "a b", "EFFORT": ""}.items():
        monkeypatch.setenv(f"PROGRAM_{name}", value)
    found = answer(run(single()))
    assert (found["store"], found["max_batch"], found["warm"]) == ("/d", 4, False)
    assert (found["tag"], found["effort"]) == (["a", "b"], "low")


def test_commands_in_disguise_are_no_settings(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROGRAM_VERSION", "1.2.3")  # what a container image may well set
    assert answer(run(several(), "list-all")) == {"store": "store"}
    assert run(several(), "--version")[:2] == (0, "1.0\n")


# ------------------------------------------------------------------------------------------------ errors and help


def test_an_error_is_one_line_and_an_exit_code(run: Run) -> None:
    code, out, err = run(single(), "--store", "s", "--fail")
    assert (code, out, err) == (1, "", "error: the store is empty; build a generation first.\n")


@pytest.mark.parametrize(("error", "code"), [(InvalidArgument("no"), 2), (KeyboardInterrupt(), 130), (OSError(), None)])
def test_exit_codes(error: BaseException, code: int | None) -> None:
    app = typer.Typer(add_completion=False)

    @app.command()
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit if code else type(error)) as caught:
        settings.run(app, prog="program", prefix="PROGRAM", args=[])
    assert not code or caught.value.code == code  # type: ignore[attr-defined]


def test_a_usage_error_exits_2(run: Run) -> None:
    code, out, err = run(single(), "--nonsense")
    assert (code, out) == (2, "")
    assert "Usage: python -m program" in err


def test_help_tells_of_file_and_environment(run: Run) -> None:
    _, out, _ = run(single(), "--help")
    assert "--config" in out
    assert "--store is PROGRAM_STORE." in " ".join(out.split())
    _, out, _ = run(several(), "build", "--help")
    assert "PROGRAM_CORPUS, or PROGRAM_BUILD_CORPUS for this command alone." in " ".join(out.split())
    _, out, _ = run(nested(), "keys", "add", "--help")
    assert "_KEYS_ADD_NAME for this command alone, or PROGRAM_KEYS_NAME for those of `keys`." in " ".join(out.split())
