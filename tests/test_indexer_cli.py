"""`python -m indexer` as people and cron jobs run it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import transformers

from coldframe import settings
from coldframe.generation import VECTORS, Manifest
from coldframe.store import Store
from indexer.__main__ import app
from tests.builds import build, letters
from tests.corpus_files import put, write
from tests.models import longformer_directory, roberta_directory

if TYPE_CHECKING:
    from collections.abc import Callable

    Ask = Callable[..., "Answer"]

ROOT = Path(__file__).parent.parent
PROG, PREFIX = "python -m indexer", "COLDFRAME_INDEXER"
COMMANDS = ["build", "list", "verify", "activate", "rollback", "prune", "report", "calibrate", "evaluate", "convert"]


@dataclass(frozen=True)
class Answer:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str


def run(*args: object, folder: Path = ROOT, **environment: str) -> Answer:
    """Runs the program in a process of its own, with pipes for a terminal."""
    command = [sys.executable, "-m", "indexer", *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=300, check=False
    )
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """The program in this process, for what needs none of its own: errors, above all."""

    def asked(*args: object) -> Answer:
        with pytest.raises(SystemExit) as ended:
            settings.run(app, prog=PROG, prefix=PREFIX, args=[str(arg) for arg in args])
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Answer(ended.value.code, said.out, said.err)

    return asked


@dataclass(frozen=True)
class Desk:
    """A folder with a model, a corpus and a store: one generation built here, a later one by the program."""

    folder: Path
    built: Answer
    first: Manifest
    second: Manifest

    @property
    def store(self) -> Path:
        return self.folder / "store"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    model = longformer_directory(folder / "model", window=256, layers=4)
    rows = [*letters(30), {**letters(1)[0], "id": ""}]
    write(folder / "articles.csv", rows)
    first = build(folder / "store", write(folder / "other.csv", letters(30, seed=1)), model=str(model), seed=1)
    put(folder / "job.toml", 'store = "store"\n[build]\nmodel = "model"\nprecision = "fp32"\nseed = 7\nclusters = 3\n')
    built = run(
        *("build", "--corpus", "articles.*", "--config", "job.toml", "--target-recall", "1"),
        *("--max-drift", "1", "--min-survived", "0"),
        folder=folder,
        COLDFRAME_INDEXER_BUILD_CLUSTERS="4",
        COLDFRAME_INDEXER_TARGET_RECALL="0.5",
    )
    assert built.code == 0, built.err
    store = Store(folder / "store")
    return Desk(folder, built, first, Manifest.read(store.directory(str(store.current()))))


@pytest.fixture
def own_store(desk: Desk, tmp_path: Path) -> Path:
    return Path(shutil.copytree(desk.store, tmp_path / "own"))


# --- build -----------------------------------------------------------------------------------------------------------


def test_a_build_takes_flags_then_environment_then_the_file(desk: Desk) -> None:
    assert desk.second.parameters.seed == 7
    assert desk.second.parameters.clusters == 4
    assert desk.second.report["recall_at_10"] == 1.0
    assert (desk.second.model.name, desk.second.precision) == ("model", "fp32")
    assert desk.second.source == str((desk.folder / "model").resolve())


def test_a_build_ends_with_what_was_made_and_how_to_serve_it(desk: Desk) -> None:
    assert desk.second.name in desk.built.out
    assert f"digest {desk.second.digest}" in desk.built.out
    assert "python -m server --store store --listen localhost:50051" in desk.built.out
    assert desk.built.err == ""


def test_a_log_shows_every_phase_and_the_progress_of_embedding(desk: Desk) -> None:
    phases = re.findall(r"^(\w+) +\d+\.\d s", desk.built.out, re.MULTILINE)
    assert phases == ["plan", "read", "embed", "train", "add", "describe", "measure", "publish"]
    assert re.search(r"^embedding 30/30 articles, [\d,]+ tokens/s, 0 s left$", desk.built.out, re.MULTILINE)
    assert f"{desk.second.corpus.tokens:,} tokens" in desk.built.out
    assert re.search(r"1 rows rejected, see \S*rejects\.jsonl", desk.built.out)
    assert "\x1b" not in desk.built.out


def test_a_failed_build_is_one_sentence_on_stderr(tmp_path: Path) -> None:
    answer = run("build", "--corpus", tmp_path / "none.csv", "--store", tmp_path / "new")
    said = "there is no such file. Give a file, a folder, a URL, or a glob in quotes such as 'news/*.csv'."
    assert answer == Answer(2, "", f"error: --corpus {tmp_path / 'none.csv'}: {said}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--corpus", "none.csv"), 2, "none.csv"),
        (("--corpus", ""), 2, "--corpus is empty; give a file, a folder"),
        (("--store", ""), 2, "--store is empty; give the folder of generations"),
        (("--clusters", "99"), 2, "--clusters is 99, and the corpus has 30 distinct texts; ask for at most"),
        (("--corpus", "https://news.example/a.csv"), 2, "cannot be read"),
        (("--seed", "-1"), 2, "--seed is -1"),
        (("--recipe", "soup"), 2, "'soup'"),
        (("--target-recall", "2"), 2, "--target-recall is 2.0"),
        (("--model", "no-such-model"), 1, "'no-such-model'"),
        (("--config", "none.toml"), 2, "none.toml"),
        (("--id-column", "key"), 2, "--id-column"),
        (("--corpus", "~nobody-at-all/a.csv"), 2, "there is no such file"),
        (("--corpus", "a" * 300), 2, "cannot be read (File name too long)"),
        (("--model", "~nobody-at-all/model"), 1, "no model directory"),
        (("--model", "a" * 300), 1, "no model directory"),
        (("--store", "a" * 300), 2, "cannot be written (File name too long)"),
        (("--keep", "0"), 2, "--keep is 0; at least 1 generation is kept"),
        (("--watch", "inf"), 2, "--watch is inf"),
        (("--max-reject-share", "-0.1"), 2, "--max-reject-share is -0.1; it is a share, between 0 and 1"),
        (("--max-reject-share", "nan"), 2, "--max-reject-share is nan"),
        (("--watch", "1e12"), 2, "at most 31,622,400"),
        (("--memory-budget", "9" * 400), 2, "give a size such as 2GiB"),
    ],
)
def test_a_build_that_cannot_start_exits_with_the_code_of_its_error(
    desk: Desk, ask: Ask, tmp_path: Path, flags: tuple[str, str], code: int, said: str
) -> None:
    usual = {"--corpus": desk.folder / "articles.csv", "--store": tmp_path / "new", "--model": desk.folder / "model"}
    answer = ask("build", *(part for pair in (usual | {flags[0]: flags[1]}).items() for part in pair))
    assert answer.code == code
    assert answer.err.startswith("error: ")
    assert said in answer.err
    assert answer.err.count("\n") == 1
    assert Store(tmp_path / "new").names() == []


@pytest.mark.parametrize("flags", [("--clusters", "31"), ("--max-reject-share", "5"), ("--watch", "0")])
def test_a_dry_run_refuses_what_the_build_would(desk: Desk, ask: Ask, tmp_path: Path, flags: tuple[str, str]) -> None:
    usual = ("--corpus", desk.folder / "articles.csv", "--store", tmp_path / "new", "--model", desk.folder / "model")
    answer = ask("build", "--dry-run", *usual, *flags)
    assert (answer.code, f"error: {flags[0]} is {flags[1]}" in answer.err) == (2, True)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "--store"),
        (("--store", "b"), "give --corpus a file"),
        (("--corpus", "a", "--store", "b", "--clusters", "c"), "--clusters"),
        (("--corpus", "a", "--store", "b", "--date-order", "ymd"), "--date-order"),
        (("--corpus", "a", "--store", "b", "--precision", "int7"), "'int7' is not one of"),
        (("--corpus", "a", "--store", "b", "--device", "gpu"), "'gpu' is not one of"),
    ],
)
def test_a_usage_error_exits_with_2(ask: Ask, args: tuple[str, ...], said: str) -> None:
    answer = ask("build", *args)
    assert (answer.code, said in answer.err, "Traceback" in answer.err) == (2, True, False)


def test_a_store_is_not_made_in_place_of_a_file_of_another(desk: Desk, ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    for name in ("CURRENT", "LOCK"):
        flags = ("--corpus", desk.folder / "articles.csv", "--model", desk.folder / "model")
        answer = ask("build", *flags, "--store", tmp_path / "store" / name)
        assert (answer.code, f"{name} is a file in every store" in answer.err) == (2, True)
    assert list((tmp_path / "store").iterdir()) == []


def test_a_store_is_not_made_where_its_path_is_no_text(desk: Desk, ask: Ask, tmp_path: Path) -> None:
    flags = ("--corpus", desk.folder / "articles.csv", "--model", desk.folder / "model", "--precision", "fp32")
    answer = ask("build", *flags, "--store", tmp_path / os.fsdecode(b"st\xf6re"))
    assert (answer.code, answer.err.count("\n"), "that is no UTF-8" in answer.err) == (2, 1, True)


def test_a_store_may_have_brackets_in_its_name_and_is_told_as_a_shell_takes_it(
    desk: Desk, ask: Ask, tmp_path: Path
) -> None:
    store = tmp_path / "[bold]news[/]"
    flags = ("--model", desk.folder / "model", "--precision", "fp32")
    answer = ask("build", "--corpus", desk.folder / "articles.csv", "--store", store, *flags)
    assert answer.code == 0
    assert f"serve it: python -m server --store '{store}' --listen" in answer.out


# --- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_and_explains_every_option(ask: Ask, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = vars(settings.configured(app, PREFIX))["commands"][name]
    monkeypatch.setenv("COLUMNS", "300")
    answer = ask(name, "--help")
    assert answer.code == 0
    for param in command.params:
        row = rf"{param.opts[0]} .*{re.escape(param.help)}"
        assert re.search(row, answer.out, re.IGNORECASE), f"{param.opts[0]} is not explained"
    assert f"{PREFIX}_{name.upper()}_" in answer.out


def test_the_program_without_a_command_lists_its_commands() -> None:
    answer = run("--help")
    assert answer.code == 0
    assert [name for name in COMMANDS if re.search(rf"^\W*{name} +\w", answer.out, re.MULTILINE)] == COMMANDS


# --- list, verify, activate ------------------------------------------------------------------------------------------


def test_list_shows_whole_names_in_a_narrow_window_and_a_star_at_the_current_one(desk: Desk) -> None:
    answer = run("list", "--store", desk.store, COLUMNS="60")
    assert (answer.code, answer.err) == (0, "")
    lines = {
        manifest.name: line for line in answer.out.splitlines() for manifest in both(desk) if manifest.name in line
    }
    assert [name for name, line in lines.items() if line.split()[0] == "*"] == [desk.second.name]
    assert list(lines) == [desk.first.name, desk.second.name]
    assert lines[desk.first.name].split()[1:3] == ["30", "5"]


def both(desk: Desk) -> tuple[Manifest, Manifest]:
    return desk.first, desk.second


def test_list_shows_a_generation_whose_manifest_is_broken_beside_the_others(
    own_store: Path, desk: Desk, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Store(own_store).directory(desk.first.name) / "manifest.json").write_text("{}")
    monkeypatch.setenv("COLUMNS", "400")
    answer = ask("list", "--store", own_store)
    assert answer.code == 0
    assert f"manifest.json of generation {desk.first.name} is missing or cannot be read" in answer.out
    assert desk.second.name in answer.out


def test_list_of_an_empty_store_says_how_to_build(ask: Ask, tmp_path: Path) -> None:
    answer = ask("list", "--store", tmp_path)
    assert (answer.code, "python -m indexer build" in answer.out) == (0, True)


@pytest.mark.parametrize("command", [("list",), ("verify",), ("activate", "x")])
def test_a_store_that_is_a_file_is_an_error(desk: Desk, ask: Ask, command: tuple[str, ...]) -> None:
    answer = ask(*command, "--store", desk.folder / "articles.csv")
    assert answer.code in {1, 2}
    assert answer.err.startswith("error: ")


@pytest.mark.parametrize("command", [("list",), ("verify",), ("report", "--out", "x.html"), ("rollback",)])
def test_a_store_that_cannot_be_read_is_one_sentence(ask: Ask, tmp_path: Path, command: tuple[str, ...]) -> None:
    for store in (tmp_path, tmp_path / ("a" * 300)):
        (tmp_path / "CURRENT").mkdir(exist_ok=True)
        answer = ask(*command, "--store", store)
        assert answer.code in {1, 2}
        assert answer.err.startswith("error: ")
        assert answer.err.count("\n") == 1


def test_verify_finds_every_file_as_it_was(desk: Desk, ask: Ask) -> None:
    answer = ask("verify", "--store", desk.store)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines() == [f"{manifest.name}: every file is as it was published" for manifest in both(desk)]
    assert ask("verify", "--store", desk.store, "--generation", desk.first.name).out.count("\n") == 1


def test_verify_names_the_file_with_one_flipped_byte(desk: Desk, own_store: Path) -> None:
    flip_a_byte(Store(own_store).directory(desk.second.name) / VECTORS)
    answer = run("verify", "--store", own_store)
    assert answer.code == 1
    assert desk.first.name in answer.out
    said = f"error: {VECTORS} of generation {desk.second.name} does not match its checksum"
    assert answer.err.startswith(said)
    assert answer.err.count("\n") == 1


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def test_verify_of_nothing_is_not_a_success(ask: Ask, tmp_path: Path) -> None:
    answer = ask("verify", "--store", tmp_path)
    assert (answer.code, "nothing to verify" in answer.err) == (1, True)


def test_activate_changes_the_current_generation_and_back(desk: Desk, own_store: Path, ask: Ask) -> None:
    assert run("activate", desk.first.name, "--store", own_store) == Answer(0, f"{desk.first.name} is current\n", "")
    assert Store(own_store).open().name == desk.first.name
    assert ask("activate", desk.second.name, "--store", own_store).code == 0
    assert Store(own_store).current() == desk.second.name


@pytest.mark.parametrize("name", ["20010101T000000Z-abc", "..", ""])
def test_activate_refuses_a_name_that_the_store_does_not_hold(desk: Desk, ask: Ask, name: str) -> None:
    answer = ask("activate", name, "--store", desk.store)
    assert answer.code == 2
    assert all(part in answer.err for part in (repr(name), desk.first.name, desk.second.name))
    assert Store(desk.store).current() == desk.second.name


def test_activate_refuses_a_generation_with_a_flipped_byte(desk: Desk, own_store: Path, ask: Ask) -> None:
    flip_a_byte(Store(own_store).directory(desk.first.name) / "articles.arrow")
    answer = ask("activate", desk.first.name, "--store", own_store)
    assert (answer.code, "articles.arrow" in answer.err) == (1, True)
    assert Store(own_store).current() == desk.second.name


# --- convert ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convert")
    roberta_directory(folder / "short")
    answer = run("convert", "--model", "short", "--out", "deep/long", folder=folder)
    assert answer == Answer(
        0, "deep/long is a Longformer; build with it: python -m indexer build --model deep/long ...\n", ""
    )
    return folder / "deep" / "long"


def test_a_converted_model_builds_with_its_own_recipe(converted: Path, desk: Desk, tmp_path: Path) -> None:
    manifest = build(tmp_path / "store", desk.folder / "articles.csv", model=str(converted))
    assert (manifest.model.name, manifest.model.recipe, manifest.model.max_tokens) == ("long", "mean", 4_096)


def test_a_converted_model_is_one_that_transformers_loads_whole(converted: Path) -> None:
    load: Any = transformers.LongformerModel.from_pretrained
    model, loaded = load(converted, add_pooling_layer=False, output_loading_info=True)
    assert model.config.attention_window == [512] * 3
    assert not any(loaded[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_a_short_model_is_refused_by_build_with_the_command_that_converts_it(
    converted: Path, desk: Desk, ask: Ask, tmp_path: Path
) -> None:
    short = converted.parent.parent / "short"
    answer = ask("build", "--corpus", desk.folder / "articles.csv", "--store", tmp_path / "new", "--model", short)
    assert (answer.code, f"python -m indexer convert --model {short}" in answer.err) == (2, True)


def test_convert_never_writes_over_anything(converted: Path, ask: Ask) -> None:
    before = {path: path.stat().st_mtime_ns for path in converted.parent.rglob("*")}
    answer = ask("convert", "--model", converted.parent.parent / "short", "--out", converted)
    assert (answer.code, f"{converted} exists already" in answer.err) == (2, True)
    assert {path: path.stat().st_mtime_ns for path in converted.parent.rglob("*")} == before


def test_convert_says_what_it_cannot_do(converted: Path, desk: Desk, ask: Ask, tmp_path: Path) -> None:
    already = ask("convert", "--model", desk.folder / "model", "--out", tmp_path / "out")
    assert (already.code, "a longformer model" in already.err, "roberta" in already.err) == (2, True, True)
    short, inside_a_file = converted.parent.parent / "short", desk.folder / "articles.csv" / "out"
    blocked = ask("convert", "--model", short, "--out", inside_a_file)
    assert (blocked.code, f"{inside_a_file} cannot be written" in blocked.err) == (2, True)
    assert ask("convert", "--model", "no-such-model", "--out", tmp_path / "out").code == 1
    assert list(tmp_path.iterdir()) == []
