"""The rebuild job at the command line: watched, planned, kept back, rolled back, pruned."""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from coldframe import settings
from coldframe.generation import verify
from coldframe.store import Store
from indexer.__main__ import app
from indexer.build_flags import parse_size
from indexer.cache import CACHE
from tests.builds import build, letters
from tests.clocks import ahead
from tests.corpus_files import write
from tests.models import LETTERS, longformer_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from coldframe.generation import Manifest

    Ask = Callable[..., "Answer"]

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Answer:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    monkeypatch.setenv("COLUMNS", "300")

    def asked(*args: object) -> Answer:
        with pytest.raises(SystemExit) as ended:
            settings.run(app, prog="python -m indexer", prefix="COLDFRAME_INDEXER", args=[str(arg) for arg in args])
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Answer(ended.value.code, said.out, said.err)

    return asked


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, and a store of three generations."""
    folder = tmp_path_factory.mktemp("desk")
    longformer_directory(folder / "model", window=256, layers=4)
    for count in (60, 61, 62):
        corpus = write(folder / f"{count}.csv", letters(count))
        build(folder / "store", corpus, model=str(folder / "model"))
    return folder


@pytest.fixture
def store(desk: Path, tmp_path: Path) -> Path:
    return shutil.copytree(desk / "store", tmp_path / "store")


def flags(desk: Path, store: Path, corpus: str) -> list[object]:
    return ["--corpus", desk / corpus, "--store", store, "--model", desk / "model", "--precision", "fp32"]


# --- flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2**31), ("1.5 GB", 1_500_000_000), ("800M", 800_000_000), ("64kib", 65_536), ("123", 123), ("7b", 7)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "2 GiG", "1e9"])
def test_a_size_that_is_none_is_refused(desk: Path, store: Path, ask: Ask, text: str) -> None:
    answer = ask("build", *flags(desk, store, "60.csv"), "--memory-budget", text)
    assert (answer.code, "--memory-budget" in answer.err) == (2, True)


# --- no-op, kept back ------------------------------------------------------------------------------------------------


def test_a_build_of_the_same_exits_with_0_and_says_that_nothing_has_changed(desk: Path, store: Path, ask: Ask) -> None:
    answer = ask("build", *flags(desk, store, "62.csv"))
    assert (answer.code, len(Store(store).names())) == (0, 3)
    assert "nothing has changed since" in answer.out


def test_a_build_kept_back_exits_with_1_and_is_listed_and_activated_by_force(
    desk: Path, store: Path, ask: Ask, tmp_path: Path
) -> None:
    few = write(tmp_path / "few.csv", letters(20))
    served = Store(store).current()
    answer = ask("build", *flags(desk, store, str(few)))
    (name,) = {*Store(store).names()} - {*Store(desk / "store").names()}
    assert (answer.code, answer.err.count("\n"), Store(store).current()) == (1, 1, served)
    assert f"error: {name} was built and kept, and not published" in answer.err
    assert re.search(r"kept back: .*articles", listed(ask, store, name))
    refused = ask("activate", name, "--store", store)
    assert (refused.code, "was kept back" in refused.err, "--force" in refused.err) == (1, True, True)
    assert ask("activate", name, "--store", store, "--force").code == 0
    assert Store(store).current() == name
    assert re.search(r"\*.* kB +by force: .*articles", listed(ask, store, name))
    ask("activate", served, "--store", store)
    assert re.search(r"served before; by force: .*articles", listed(ask, store, name))
    ask("activate", name, "--store", store, "--force")
    assert ask("rollback", "--store", store).out == f"{served} is current\n"


def listed(ask: Ask, store: Path, name: str) -> str:
    """What `list` says of a generation, in a window that is wide enough for one line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "400")
        (line,) = [line for line in ask("list", "--store", store).out.splitlines() if name in line]
    return line


def test_list_shows_the_gates_whole_where_they_kept_a_generation_back(
    desk: Path, store: Path, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask("build", *flags(desk, store, str(write(tmp_path / "few.csv", letters(20)))))
    monkeypatch.delenv("COLUMNS", raising=False)
    piped = ask("list", "--store", store).out
    assert re.search(r"kept back: .*articles", piped)
    assert "…" not in piped
    monkeypatch.setenv("COLUMNS", "80")
    words = ask("list", "--store", store).out.split()
    assert {"kept", "back:", "served", "before"} <= {*words}
    assert any(word.rstrip(",") == "articles" for word in words[words.index("back:") :])


# --- rollback, prune -------------------------------------------------------------------------------------------------


def test_rollback_goes_back_one_by_one_and_then_says_that_there_is_nothing(store: Path, ask: Ask) -> None:
    current = Store(store).current()
    for _ in range(2):
        answer = ask("rollback", "--store", store)
        assert answer.code == 0
        assert answer.out == f"{Store(store).current()} is current\n" != f"{current} is current\n"
    answer = ask("rollback", "--store", store)
    assert (answer.code, "nothing to go back to" in answer.err) == (1, True)


@pytest.mark.parametrize(
    "command",
    [
        *[("list",), ("verify",), ("activate", "some"), ("rollback",), ("prune", "--keep", "1"), ("calibrate",)],
        ("report", "--out", "report.html"),
    ],
)
def test_what_builds_nothing_makes_no_store(ask: Ask, tmp_path: Path, command: tuple[str, ...]) -> None:
    answer = ask(*command, "--store", tmp_path / "stroe")
    assert (answer.code, answer.out) == (2, "")
    assert f"there is no store {tmp_path / 'stroe'}; give the folder" in answer.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [("verify",), ("report", "--out", "report.html"), ("calibrate",)])
def test_an_empty_name_is_not_the_current_generation(store: Path, ask: Ask, command: tuple[str, ...]) -> None:
    """A shell makes it of a variable that is not set."""
    answer = ask(*command, "--store", store, "--generation", "")
    assert (answer.code, answer.out) == (2, "")
    assert "there is no generation '' in this store; it holds: " in answer.err


def test_rollback_refuses_a_damaged_generation(store: Path, ask: Ask) -> None:
    current, before = Store(store).current(), str(Store(store).before())
    (Store(store).directory(before) / "report.html").write_text("another picture")
    answer = ask("rollback", "--store", store)
    assert (answer.code, "report.html" in answer.err, Store(store).current()) == (1, True, current)


def test_list_marks_the_current_one_and_the_one_before(store: Path, ask: Ask) -> None:
    lines = ask("list", "--store", store).out.splitlines()
    assert [line.split()[1] for line in lines if line.split()[0] == "*"] == [Store(store).current()]
    (before,) = [line for line in lines if "served before" in line]
    assert str(Store(store).before()) in before


@pytest.mark.parametrize("gone", [0, 1])
def test_verify_takes_no_generation_for_damaged_that_is_pruned_beside_it(
    store: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch, gone: int
) -> None:
    names = Store(store).names()
    Store(store).activate(names[1 - gone])
    Store(store).activate(names[2])

    def verified(directory: Path) -> Manifest:
        Store(store).prune(1)
        return verify(directory)

    monkeypatch.setattr("coldframe.generation.verify", verified)
    answer = ask("verify", "--store", store)
    whole = {name: f"{name}: every file is as it was published" for name in names}
    assert answer.out.splitlines() == [*(whole | {names[gone]: f"{names[gone]}: was removed meanwhile"}).values()]
    assert (answer.code, answer.err) == (0, "")


def test_prune_says_what_it_frees_of_generations_and_of_the_cache(desk: Path, store: Path, ask: Ask) -> None:
    size = (store / CACHE).stat().st_size
    build(store, write(store.parent / "other.csv", letters(60, seed=1)), model=str(desk / "model"))
    assert (store / CACHE).stat().st_size > size
    ask("rollback", "--store", store)
    names = Store(store).names()
    answer = ask("prune", "--store", store, "--keep", "1")
    gone = [name for name in names if name not in Store(store).names()]
    assert answer.code == 0
    assert all(f"{name} is removed: " in answer.out for name in gone)
    assert re.search(r"[\d.]+ \w*B freed; \d generation\(s\) stay", answer.out.replace("bytes", "B"))
    assert Store(store).open()
    again = ask("prune", "--store", store, "--keep", "1")
    assert "0 bytes freed; " in again.out, "a vector may go where the file keeps its size"


def test_prune_leaves_the_cache_to_an_unfinished_build(store: Path, ask: Ask) -> None:
    before = (store / CACHE).read_bytes()
    (store / "drafts" / "job").mkdir(parents=True)
    answer = ask("prune", "--store", store, "--keep", "1")
    assert (answer.code, "unfinished build" in answer.out) == (0, True)
    assert (store / CACHE).read_bytes() == before
    assert (store / "drafts" / "job").is_dir()


def test_a_build_prunes_when_it_has_published(desk: Path, store: Path, ask: Ask, tmp_path: Path) -> None:
    corpus = write(tmp_path / "more.csv", letters(63))
    loose = ["--min-survived", "0", "--max-drift", "1"]
    answer = ask("build", *flags(desk, store, str(corpus)), *loose, "--keep", "2")
    assert (answer.code, len(Store(store).names())) == (0, 2)
    assert "freed" in answer.out


def test_builds_that_are_kept_back_prune_one_another(desk: Path, store: Path, ask: Ask, tmp_path: Path) -> None:
    published = Store(store).names()
    for count in (20, 19, 18):
        few = write(tmp_path / f"{count}.csv", letters(count))
        answer = ask("build", *flags(desk, store, str(few)), "--keep", "1")
        assert (answer.code, "was built and kept, and not published" in answer.err) == (1, True)
        (held,) = [name for name in Store(store).names() if name not in published]
        assert held in answer.err
    assert [name for name in Store(store).names() if name in published] == published[1:]
    assert Store(store).current() == published[-1]


def test_what_a_build_keeps_back_stays_though_the_current_one_is_named_in_the_future(
    desk: Path, store: Path, ask: Ask, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coldframe.generation.datetime", ahead(by=timedelta(days=1)))
        build(store, write(tmp_path / "many.csv", letters(63)), model=str(desk / "model"))
    few = write(tmp_path / "few.csv", letters(20))
    assert ask("build", *flags(desk, store, str(few)), "--keep", "1").code == 1
    (held,) = Store(store).kept_back()
    assert Store(store).names()[-1] == held
    assert ask("activate", held, "--store", store, "--force").code == 0
    soon = datetime.now(UTC) + timedelta(minutes=1)
    assert Store(store).open().manifest.created_at < soon, "its age is told by what the clock says now"


# --- a dry run -------------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_the_plan_and_touches_nothing(desk: Path, tmp_path: Path, ask: Ask) -> None:
    answer = ask("build", *flags(desk, tmp_path / "new", "60.csv"), "--dry-run")
    assert answer.code == 0
    said = ("60 articles", "60 to embed", "a second", "fp16", "vectors.npy", "embeddings.db", "nothing was built")
    assert all(part in answer.out for part in said), answer.out
    phases = ["read", "embed", "train", "add", "describe", "measure", "publish"]
    assert re.findall(r"^ (\w+) .*[\d,]+ MiB", answer.out, re.MULTILINE) == phases
    assert not (tmp_path / "new").exists()


def test_a_dry_run_tells_as_much_memory_as_a_build_takes(tmp_path: Path) -> None:
    rng = random.Random(0)
    words = ["flood", "water", "dam", "storm", "rain", "town", "mayor", "council", "budget", "vote", "harbour"]
    rows = [{"id": str(n), "content": f"{n} " + " ".join(rng.choices(words, k=5 + n % 55))} for n in range(800)]
    store, corpus = tmp_path / "store", write(tmp_path / "many.csv", rows)
    command = [sys.executable, "-m", "indexer", "build", "--corpus", str(corpus), "--store", str(store), "--force"]
    told = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    taken = Store(store).open().manifest.report["peak_memory_mib"]
    phases = dict(re.findall(r"^ (\w+) .*?([\d,]+) MiB", told, re.MULTILINE))
    for phase in ("embed", "train", "add", "describe", "measure"):
        assert taken[phase] < int(phases[phase].replace(",", "")), phase


def test_a_dry_run_counts_what_is_in_the_cache(desk: Path, store: Path, ask: Ask, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    corpus = write(tmp_path / "more.csv", letters(70))
    answer = ask("build", *flags(desk, store, str(corpus)), "--dry-run")
    assert "8 to embed" in answer.out
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


@pytest.fixture
def three_seconds_per_thousand_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("indexer.estimate.time.perf_counter", lambda: next(ticks) * 0.003)


@pytest.mark.usefixtures("three_seconds_per_thousand_rows")
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("files", [1, 3])
def test_a_dry_run_of_a_corpus_that_takes_long_to_read_guesses_at_the_rest(
    desk: Path, tmp_path: Path, ask: Ask, suffix: str, files: int
) -> None:
    rng = random.Random(0)
    for file in range(files):
        rows = [{"id": f"{file}-{n}", "content": rng.randbytes(400).hex()} for n in range(9_000 // files)]
        write(tmp_path / f"{file}{suffix}", rows)
    answer = ask("build", *flags(desk, tmp_path / "new", str(tmp_path / f"*{suffix}")), "--dry-run")
    found = re.search(r"about ([\d,]+) articles", answer.out)
    assert found, answer.out
    assert int(found[1].replace(",", "")) == pytest.approx(9_000, rel=0.2), "3,334 were read"


@pytest.mark.usefixtures("three_seconds_per_thousand_rows")
def test_a_dry_run_of_a_query_that_takes_long_says_what_there_is_at_least(desk: Path, tmp_path: Path, ask: Ask) -> None:
    corpus = write(tmp_path / "a.csv", [{"id": f"{n}", "content": LETTERS[n % 26]} for n in range(9_000)])
    _, _, *others = flags(desk, tmp_path / "new", "")
    answer = ask("build", "--query", f"select * from '{corpus}'", *others, "--dry-run")
    assert re.search(r"at least 3,33\d articles", answer.out), answer.out


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_memory_budget_that_no_index_can_keep_is_refused_early(
    desk: Path, tmp_path: Path, ask: Ask, dry: list[str]
) -> None:
    answer = ask("build", *flags(desk, tmp_path / "new", "60.csv"), "--memory-budget", "1kB", *dry)
    assert (answer.code, "--memory-budget is 1,000 bytes" in answer.err) == (2, True)
    assert not (tmp_path / "new" / CACHE).exists(), "nothing was embedded"


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_disk_that_is_too_small_is_said_early(
    desk: Path, tmp_path: Path, ask: Ask, dry: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.estimate.free_bytes", lambda _: 1_000)
    answer = ask("build", *flags(desk, tmp_path / "new", "60.csv"), *dry)
    assert answer.code == 1
    assert re.search(r"will write about [\d.]+ MB, and the disk of \S+ has room for 1.0 kB", answer.err)
    assert not (tmp_path / "new" / CACHE).exists(), "nothing was embedded"


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 128 + signal.SIGINT)]
)
def test_a_build_that_is_told_to_end_says_that_it_did(
    desk: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    """The log of a job that was moved to another machine ends with a line of it, and not in the middle."""
    corpus = write(tmp_path / "news.csv", letters(600))
    command = [sys.executable, "-m", "indexer", "build", *map(str, flags(desk, tmp_path / "store", str(corpus)))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        read_until(process, "600 articles")
        process.send_signal(number)
        assert read_until(process, "stopped")[-1] == "stopped; the same command goes on from what is done\n"
        assert process.wait(60) == status
    assert Store(tmp_path / "store").names() == []


def test_a_corpus_that_comes_slowly_through_a_pipe_is_built(
    desk: Path, tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.progress._LOG_EVERY_S", 0.0)
    os.mkfifo(tmp_path / "news.csv")
    with ThreadPoolExecutor(1) as exporter:
        exporter.submit((tmp_path / "news.csv").write_bytes, (desk / "60.csv").read_bytes())
        answer = ask("build", *flags(desk, tmp_path / "store", str(tmp_path / "news.csv")))
    assert (answer.code, "reading: 60 rows\n" in answer.out) == (0, True), answer.err
    assert Store(tmp_path / "store").open().manifest.corpus.articles == 60


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_program_that_is_told_to_end_while_it_imports_shows_no_traceback(
    tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "indexer", "list", "--store", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        read_until(process, " typer")
        process.send_signal(number)
        assert process.stdout is not None
        said = process.stdout.read()
        assert (process.wait(60), "Traceback" in said) == (128 + number, False), said


@pytest.mark.parametrize("rest", ["order by content", "where content like 'z%'"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_build_ends_when_told_though_its_query_has_no_row_yet(
    desk: Path, tmp_path: Path, rest: str, number: signal.Signals
) -> None:
    query = f"select * from (select i as id, md5(i::text) as content from range(1000000000) t(i)) {rest}"
    command = [sys.executable, "-m", "indexer", "build", "--query", query]
    command += [*map(str, flags(desk, tmp_path / "store", "")[2:])]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        read_until(process, "plan")
        time.sleep(0.5)  # until it is asked
        process.send_signal(number)
        assert process.stdout is not None
        try:
            assert process.wait(60) == 128 + number
        finally:
            process.kill()
        assert process.stdout.read() == "stopped; the same command goes on from what is done\n"


# --- watch -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def watching(desk: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A build that is watched over a corpus in `tmp_path`, every tenth of a second."""
    corpus = shutil.copy(desk / "60.csv", tmp_path / "news.csv")
    command = [sys.executable, "-m", "indexer", "build", *map(str, flags(desk, tmp_path / "store", str(corpus)))]
    command += ["--watch", "0.1", "--max-drift", "1", "--min-survived", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        yield process
        process.kill()


def read_until(process: subprocess.Popen[str], part: str) -> list[str]:
    assert process.stdout is not None
    lines: list[str] = []
    end = time.monotonic() + 120
    while not lines or part not in lines[-1]:
        assert time.monotonic() < end
        lines.append(process.stdout.readline())
        assert lines[-1], f"the process ended: {lines}"
    return lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_watched_build_follows_its_corpus_outlives_an_error_and_ends_when_told(
    watching: subprocess.Popen[str], desk: Path, tmp_path: Path, number: signal.Signals
) -> None:
    read_until(watching, "digest")
    read_until(watching, "nothing has changed")
    (tmp_path / "news.csv").write_text("key,summary\n1,a b c\n")
    assert "error: " in read_until(watching, "--id-column")[-1]
    write(tmp_path / "new.csv", letters(61)).replace(tmp_path / "news.csv")
    read_until(watching, "digest")
    assert len(Store(tmp_path / "store").names()) == 2
    read_until(watching, "waiting")
    watching.send_signal(number)
    assert read_until(watching, "stopped")
    assert watching.wait(30) == 0
    assert Store(tmp_path / "store").open().manifest.corpus.articles == 61


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_watching_needs_a_time_to_wait(desk: Path, tmp_path: Path, ask: Ask, seconds: str) -> None:
    answer = ask("build", *flags(desk, tmp_path / "new", "60.csv"), "--watch", seconds)
    assert (answer.code, "--watch" in answer.err) == (2, True)
