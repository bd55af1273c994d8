"""The house stands as it was designed: who may import whom, what is public, how long a function may be."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest

import coldframe

ROOT = Path(__file__).parent.parent
PACKAGES = ("coldframe", "indexer", "server")
GENERATED = ROOT / "coldframe" / "v1"


def sources(*packages: str) -> list[Path]:
    """Our own files, without the generated stubs."""
    found = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    return [path for path in found if GENERATED not in path.parents]


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize(
    ("package", "unknown"), [("coldframe", {"indexer", "server"}), ("indexer", {"server"}), ("server", {"indexer"})]
)
def test_imports_point_one_way(package: str, unknown: set[str]) -> None:
    assert {str(path): imported(path) & unknown for path in sources(package) if imported(path) & unknown} == {}


def test_a_program_that_imports_coldframe_loads_neither_torch_nor_faiss() -> None:
    heavy = ["torch", "faiss", "transformers", "numpy", "pyarrow", "typer", "rich", "tokenizers"]
    code = f"import sys, coldframe; coldframe.Client; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("program", ["indexer", "server"])
def test_the_help_of_a_program_waits_for_nothing_heavy(program: str) -> None:
    """And a server can still tell numpy and torch how many threads to have."""
    heavy = ["torch", "faiss", "numpy", "pyarrow", "duckdb", "sqlalchemy", "sklearn", "matplotlib"]
    code = f"import sys, {program}.__main__; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_public_names_are_these_and_all_are_there() -> None:
    classes = {name for name in vars(coldframe) if name[0].isupper() and name != "TYPE_CHECKING"} | {"Encoder"}
    functions = {name for name, value in vars(coldframe).items() if isinstance(value, FunctionType) and name[0] != "_"}
    assert set(coldframe.__all__) == classes | functions | {"filters"}
    assert functions == {"article", "expansion", "recommend_request", "search_request", "seed"}
    assert all(getattr(coldframe, name) for name in coldframe.__all__)
    assert dir(coldframe) == sorted(coldframe.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Encodr'"):
        _ = coldframe.Encodr  # type: ignore[attr-defined]


def test_the_stubs_are_what_the_protos_generate(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "proto" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.generate(tmp_path)
    fresh = {path.name: path.read_text() for path in (tmp_path / "coldframe" / "v1").iterdir()}
    checked_in = {path.name: path.read_text() for path in GENERATED.glob("*_pb2*")}
    assert fresh == checked_in, "run `make proto`"


def test_functions_and_modules_stay_short() -> None:
    lengths = []
    for path in sources(*PACKAGES, "tests", "benchmarks", "examples"):
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") < 500, f"{path} is too long for one room"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= 60, f"{path}:{node.lineno} {node.name} has {length} lines"
                lengths.append(length)
    lengths.sort()
    assert lengths[len(lengths) // 2] <= 12
    assert lengths[int(0.9 * len(lengths))] <= 35


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    assert [path for path in sources(*PACKAGES) if path.stem in {"utils", "helpers", "common", "misc"}] == []


def test_nothing_is_read_from_the_environment_at_import() -> None:
    for path in sources(*PACKAGES):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr):
                assert "os.environ" not in ast.unparse(node), path


def test_the_sample_corpus_is_what_the_readme_says() -> None:
    from indexer.corpus import Article, Columns, read

    articles = [row for row in read([ROOT / "examples/news/articles.csv"], Columns()) if isinstance(row, Article)]
    words = sorted(len(article.content.split()) for article in articles)
    assert len(articles) == 91
    assert all(article.published_at and article.title for article in articles)
    assert len({article.attributes["URL"].split("/")[3] for article in articles}) == 9
    assert len([count for count in words if count > 1_000]) >= 5
    assert words[-1] > 4_000, "one is longer than 4,096 tokens"
