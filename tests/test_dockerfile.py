"""What can be said of the image without building it; `../shared/tools/build-image` builds it."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from server.address import Address
from server.config import Config

ROOT = Path(__file__).parent.parent
# Instructions on one line each, comments gone.
LINES = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.M).replace("\\\n", "")
INSTRUCTIONS = [tuple(line.split(maxsplit=1)) for line in LINES.splitlines() if line.strip()]


def values(name: str) -> list[str]:
    return [value for instruction, value in INSTRUCTIONS if instruction == name]


def copied() -> list[str]:
    """What is copied from the checkout: of `COPY a b target`, a and b."""
    return [path for value in values("COPY") if "--from" not in value for path in value.split()[:-1]]


def test_both_stages_stand_on_the_base_that_can_be_chosen() -> None:
    assert INSTRUCTIONS[0] == ("ARG", "BASE_IMAGE=python:3.11-slim-bookworm")
    assert [value.split()[0] for value in values("FROM")] == ["${BASE_IMAGE}"] * 2


def test_every_package_and_what_setuptools_reads_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {package.split(".")[0] for package in project["tool"]["setuptools"]["packages"]}
    read = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert packages | read <= set(copied())


def test_every_package_stands_empty_where_the_libraries_are_installed() -> None:
    """setuptools refuses a package whose folder is not there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    made = next(value for value in values("RUN") if value.startswith("mkdir -p"))
    folders = {parent for word in made.split() for parent in (word, *map(str, Path(word).parents))}
    assert {package.replace(".", "/") for package in project["tool"]["setuptools"]["packages"]} <= folders


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for path in copied():
        assert (ROOT / path).exists(), path
        assert f"!{path}" in rules


def test_it_runs_as_a_user_by_number_who_is_not_root() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", values("USER")[-1])


def test_the_server_is_the_default_with_no_shell_between_it_and_its_signals() -> None:
    assert not values("ENTRYPOINT")
    assert json.loads(values("CMD")[-1])[:3] == ["python", "-m", "server"]


def test_the_health_check_asks_the_server_where_it_is_by_default() -> None:
    check = json.loads(values("HEALTHCHECK")[0].partition("CMD ")[2])
    assert check == ["python", "-m", "server", "health"]
    assert Address.parse(Config().listen).port == int(values("EXPOSE")[0])
