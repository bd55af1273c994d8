"""The examples do what they say, against the scripted server and against the real one."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from coldframe import Client
from coldframe.store import Store
from examples.backend.__main__ import serving
from examples.backend.backend import Backend
from examples.backend.readers import SEEDS, Reader
from server.engine import Engine
from tests.scripted import Failure, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Background

    Pool = descriptor_pool.DescriptorPool

ROOT = Path(__file__).parent.parent
NODE = ROOT / "examples" / "node"
needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (NODE / "node_modules").is_dir(),
    reason="no node here, or npm install was not run in examples/node",
)


@pytest.fixture(params=["scripted", "real"])
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """HOST:PORT of a server whose articles a test may change."""
    if request.param == "scripted":
        with Server() as server:
            yield server.target
        return
    background: Background = request.getfixturevalue("background")
    engine = Engine(Store(request.getfixturevalue("own_store")), precision="fp32")
    engine.load()
    with background.serving(engine) as address:
        yield address


# ------------------------------------------------------------------------------------------------ the backend


class Site:
    """The backend's HTTP, as a browser or a newsroom's desk uses it."""

    def __init__(self, port: int) -> None:
        self._port = port

    def __call__(self, method: str, path: str, whole: Any = None, **body: str) -> Any:
        data = json.dumps(whole or body).encode() if whole or body else None
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}{path}", data, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as reply:
            return json.load(reply)


@pytest.fixture
def site(target: str) -> Iterator[Site]:
    with Client(target, timeout=60) as client, serving(Backend(client), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Site(server.server_port)
        server.shutdown()
        thread.join()


def ids(answer: Any) -> list[str]:
    return [one["id"] for one in answer["articles"]]


def test_a_reader_from_the_first_visit_on(site: Site) -> None:
    first = site("GET", "/readers/ann")
    assert first["because"] == "new here"
    assert 2 <= len(set(ids(first))) == len(ids(first)) <= 10
    site("POST", "/readers/ann/interests", words="storm and flood")
    second = site("GET", "/readers/ann")
    assert len(second["because"]) == 1
    assert second["token"]
    shown = ids(second)
    site("POST", "/readers/ann/read", id=shown[0])
    site("POST", "/readers/ann/disliked", id=shown[1])
    third = site("GET", "/readers/ann")
    assert ids(third)
    assert not {shown[0], shown[1]} & set(ids(third))
    assert all(one["topic"] for one in third["articles"])
    assert site("GET", "/readers/bob") == first


def test_an_article_from_publishing_to_the_takedown(site: Site) -> None:
    new = {
        "id": "new/1",
        "title": "Storm closes the harbour",
        "content": "A storm keeps the ferries in. The storm goes on.",
    }
    published = site("POST", "/articles", **new)
    assert published["cluster"]
    assert len(published["related"]) == 3
    assert len(site("GET", "/articles/new%2F1/related")) == 5
    site("POST", "/readers/ann/interests", words="a storm keeps the ferries in")
    assert "new/1" in ids(site("GET", "/readers/ann"))
    assert site("DELETE", "/articles/new%2F1") == ["new/1"]
    assert site("DELETE", "/articles/new%2F1") == []
    assert "new/1" not in ids(site("GET", "/readers/ann"))
    with pytest.raises(urllib.error.HTTPError) as caught:
        site("GET", "/articles/new%2F1/related")
    assert caught.value.code == 404
    assert "new/1" in json.load(caught.value)["error"]


def test_the_backend_refuses_like_a_web_server(site: Site) -> None:
    asked: list[tuple[str, str, Any, int]] = [
        ("GET", "/nowhere", {}, 404),
        ("POST", "/readers/ann/read", {"article": "1"}, 400),
        ("POST", "/readers/ann/read", {"id": 5}, 400),
        ("POST", "/articles", {"title": "no id"}, 400),
        ("POST", "/articles", ["no object"], 400),
    ]
    for method, path, body, code in asked:
        with pytest.raises(urllib.error.HTTPError) as caught:
            site(method, path, body)
        assert caught.value.code == code
        assert json.load(caught.value)["error"]


def test_what_the_readme_says_to_a_backend(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"## From a backend\n\n```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code.replace("localhost:50051", target), "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 5


def test_what_the_readme_says_to_a_backend_on_asyncio(target: str) -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"In asyncio .*?\n\n```python\n(.*?)```", page, re.DOTALL)
    # In a process of its own: gRPC's asyncio has one poller for all event loops.
    command = [sys.executable, "-W", "error", "-c", code.replace("localhost:50051", target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert re.match(r".+ \| \d+ clusters grow\n", done.stdout)
    assert len(done.stdout.splitlines()) >= 3


def test_the_pages_filter_by_what_the_sample_articles_have() -> None:
    with (ROOT / "examples" / "news" / "articles.csv").open(encoding="utf-8", newline="") as file:
        articles = list(csv.DictReader(file))
    for page, condition in (
        ("README.md", r'filters\.attribute\("(.+?)"\)\.is_in\("(.+?)"\)'),
        ("examples/grpcurl.md", r'"key": "(.+?)", "in": \{"values": \["(.+?)"\]'),
    ):
        ((key, value),) = re.findall(condition, (ROOT / page).read_text(encoding="utf-8"))
        assert value in {article.get(key) for article in articles}, page


def test_a_readers_seeds_fit_into_a_call() -> None:
    reader = Reader(interests=["storm"])
    reader.read.extend(str(n) for n in range(2000))
    reader.disliked.extend(str(n) for n in range(2000, 4000))
    seeds = reader.seeds()
    assert len(seeds) == SEEDS
    assert [one.seed.article_id for one in seeds[1:3]] == ["1999", "1998"]
    assert seeds[1].weight > seeds[2].weight > 0 > seeds[-1].weight
    assert len(reader.seen()) == 2000
    assert not Reader().known


# ----------------------------------------------------------------------------------------------- Node, by hand


@needs_node
def test_the_node_client_asks_again_where_it_is_turned_away() -> None:
    with Server() as server:
        server.failures += [Failure(grpc.StatusCode.CANCELLED, "CANCELLED")] * 3
        command = ["node", str(NODE / "client.mjs"), server.target]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        assert not server.failures


@needs_node
def test_the_node_client(target: str) -> None:
    command = ["node", str(NODE / "client.mjs"), target]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "UPSERT_OUTCOME_CREATED, in cluster c" in done.stdout
    assert re.search(r"by Milena Drozdek:\n( +-?\d\.\d{3}  \S+  .+\n){3}", done.stdout)
    assert re.search(r"'the economy':\n( +-?\d\.\d{3}  \S+  .+  \(interest \d\)\n){4}", done.stdout)
    assert re.search(r"INVALID_ARGUMENT: seeds.+\n +class InvalidArgument, field seeds\n", done.stdout)
    assert done.stdout.endswith("deleted node-1, not there never-seen\n")


def test_node_needs_no_registry_but_the_readers_own() -> None:
    package = json.loads((NODE / "package.json").read_text())
    assert set(package["dependencies"]) == {"@grpc/grpc-js", "@grpc/proto-loader"}
    tracked = subprocess.run(
        ["git", "ls-files", "examples/node"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "package-lock" not in tracked.stdout


def grpcurl_lines() -> list[list[str]]:
    """The arguments of every grpcurl call on the page; what is piped in stands for '-d @'."""
    page = (ROOT / "examples" / "grpcurl.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    found = []
    for line in "".join(blocks).replace("\\\n", " ").replace("|\n", "| ").splitlines():
        words = shlex.split(line)
        if words[0] == "echo":
            words = [words[1] if word == "@" else word for word in words[words.index("grpcurl") :]]
        assert words[:2] == ["grpcurl", "-plaintext"]
        found.append(words[2:])
    return found


def messages_of(text: str, kind: Any) -> Iterator[Any]:
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        document, at = decoder.raw_decode(text, at)
        at += len(text[at:]) - len(text[at:].lstrip())
        yield json_format.ParseDict(document, message_factory.GetMessageClass(kind)())


def asked(channel: grpc.Channel, pool: Pool, name: str, body: str) -> list[Any]:
    """Make one call as grpcurl does, knowing nothing but what reflection tells."""
    service, _, call = name.rpartition("/")
    method = pool.FindServiceByName(service).methods_by_name[call]
    serialize, parse = (
        (lambda one: one.SerializeToString()),
        message_factory.GetMessageClass(method.output_type).FromString,
    )
    requests = list(messages_of(body, method.input_type))
    if method.client_streaming:
        return list(channel.stream_stream(f"/{name}", serialize, parse)(iter(requests), timeout=60))
    (request,) = requests
    return [channel.unary_unary(f"/{name}", serialize, parse)(request, timeout=60)]


def test_the_lines_for_grpcurl(target: str) -> None:
    answered = []
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = descriptor_pool.DescriptorPool(database)
        for words in grpcurl_lines():
            body = words[1] if words[0] == "-d" else "{}"
            place, *rest = words[2:] if words[0] == "-d" else words
            assert place == "localhost:50051"
            if rest[0] == "list":
                assert "coldframe.v1.SearchService" in database.get_services()
            elif rest[0] == "describe":
                assert rest[1] in {"coldframe.v1.SearchService", "coldframe.v1.Ranking"}
                assert pool.FindFileContainingSymbol(rest[1])
            else:
                answered += asked(channel, pool, rest[0], body)
    names = [answer.DESCRIPTOR.name for answer in answered]
    assert len(names) == 13
    assert names[1:4] == ["SearchResponse"] * 3
    assert all(answer.hits for answer in answered[1:4])
    assert [one.correlation_id for one in answered[-2:]] == ["1", "2"]
