"""docs/api.md says what the protos say, all of it, and nothing in it leads nowhere."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path

import pytest

from coldframe.errors import error_classes
from tests.scripted import MODULES

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def test_the_page_is_what_the_protos_generate(page: str) -> None:
    spec = importlib.util.spec_from_file_location("document", ROOT / "proto" / "document.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.document() == page, "run `make proto`"


def test_every_call_message_field_value_and_error_is_there(page: str) -> None:
    files = [module.DESCRIPTOR for module, _ in MODULES]
    files += [file for one in files for file in one.dependencies if file.package == "coldframe.v1"]
    for file in files:
        for service in file.services_by_name.values():
            assert f"\n## {service.name}\n" in page
            assert all(f"\n### {method.name}\n" in page for method in service.methods)
        for message in file.message_types_by_name.values():
            section = page.split(f"\n### {message.name}\n")[1].split("\n##", maxsplit=1)[0]
            assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [field.name for field in message.fields]
        for enum in file.enum_types_by_name.values():
            section = page.split(f"\n### {enum.name}\n")[1].split("\n##", maxsplit=1)[0]
            assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [value.name for value in enum.values]
    assert all(f"`{name}`" in page for name in error_classes() if name != "ColdframeError")


def test_every_link_leads_to_one_heading(page: str) -> None:
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    anchors = Counter(re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings)
    assert {link for link in re.findall(r"\]\(#([\w-]+)\)", page) if anchors[link] != 1} == set()


@pytest.mark.parametrize(
    "row",
    [
        "| `max_per_story` | int32, *optional* | Articles that tell one story, 1 to 1,000, 0 for all",
        "| `priors` | map from string to float | Added to the score of an article,",
        "| `text` | string, *one of* `seed` | Any text: a reader's words,",
        "| `half_life` | `google.protobuf.Duration` | Age takes away",
        "| `EFFORT_EXACT` | 2 | Every list: the answer equals a brute-force search. |",
        "stream of [StreamEmbedRequest](#streamembedrequest) → stream of [StreamEmbedResponse](#streamembedresponse)",
        "and CANCELLED, without the caller's doing, for what comes in a burst",
        "score = similarity + negative + recency + prior + diversity.\n\nParts are added, not multiplied:",
    ],
)
def test_comments_types_and_limits_are_told(page: str, row: str) -> None:
    assert row in page
