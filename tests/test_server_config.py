"""What a server is told, what it says of it, and how it looks at everything without serving."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import sys
import threading
import tomllib
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from coldframe import Client
from coldframe.errors import PermissionDenied, Unauthenticated
from coldframe.store import Store
from server.address import Address, require_free
from server.config import _LONGEST_S, Config
from server.engine import Engine
from server.observe.metrics import Pulse
from server.observe.port import Port
from server.place import Words
from server.security.guard import is_loopback
from server.security.keys import changed, removed
from server.security.limits import LARGEST, MOST_RATE, Meter
from tests.certificates import DAY, Files, files, signed
from tests.guarded import add_key, guarded
from tests.newsroom import piece, sealed_again, words
from tests.test_server_process import Process, damage, run_here
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Background

    Say = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def run(*args: object) -> tuple[int, list[str], str]:
        code = run_here(*args)
        found = capsys.readouterr()
        return code, found.out.splitlines(), found.err

    return run


@pytest.fixture
def tls(tmp_path: Path) -> Files:
    return files(tmp_path / "tls")


def tls_flags(tls: Files) -> list[object]:
    return ["--tls-cert", tls.chain, "--tls-key", tls.key]


# -------------------------------------------------------------------------------------------------------------- open


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("localhost", True), ("127.0.0.1", True), ("127.8.8.8", True), ("[::1]", True), ("0.0.0.0", False),
     ("[::]", False), ("10.1.2.3", False), ("no-such-host.invalid", False)],
)  # fmt: skip
def test_what_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize("has", [{"tls"}, {"keys"}, set()])
def test_a_server_that_others_reach_needs_a_certificate_and_keys(
    say: Say, tls: Files, tmp_path: Path, has: set[str]
) -> None:
    add_key(keys := tmp_path / "keys.json")
    flags = [*(tls_flags(tls) if "tls" in has else []), *(["--api-keys", keys] if "keys" in has else [])]
    code, _, error = say("--store", tmp_path / "s", "--listen", "0.0.0.0:0", *flags)
    assert code == 2
    assert error.startswith("error: --listen 0.0.0.0 is open to other machines, and this server has no ")
    assert ("certificate (--tls-cert, --tls-key)" in error) is ("tls" not in has)
    assert ("API keys (--api-keys)" in error) is ("keys" not in has)
    assert "or say --insecure" in error
    assert error.count("\n") == 1


def test_with_both_it_listens_and_with_insecure_it_needs_none(tls: Files, tmp_path: Path) -> None:
    add_key(keys := tmp_path / "keys.json")
    for flags in ([*tls_flags(tls), "--api-keys", keys], ["--insecure"]):
        with Process(tmp_path, "--store", tmp_path / "s", "--listen", "0.0.0.0:0", *flags) as server:
            assert server.popen.stdout is not None
            assert server.popen.stdout.readline().startswith("listening on 0.0.0.0:")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--tls-cert", "x"], "--tls-cert and --tls-key belong together"),
        (["--tls-client-ca", "x"], "which needs TLS"),
        (["--tls-cert", "none.pem", "--tls-key", "none.key"], "none.pem cannot be read: No such file"),
        (["--api-keys", "none.json"], "python -m server keys add --api-keys none.json"),
        (["--audit-log", "/no/such/folder/audit.log"], "cannot be written"),
        (["--store", ""], "--store is empty"),
        ([], "--store is missing"),
    ],
)
def test_what_cannot_be_used_is_a_usage_error_of_one_line(say: Say, tmp_path: Path, flags: list[str], why: str) -> None:
    store = ["--store", str(tmp_path / "s")] if flags else []
    code, _, error = say(*store, "--listen", "127.0.0.1:0", *flags)
    assert code == 2
    assert why in error
    assert error.count("\n") == 1


NO_NUMBERS = [
    ("connection-age", 2_592_000), ("connection-idle", 2_592_000), ("handshake-timeout", "inf"),
    ("requests-per-second", "inf"), ("requests-per-second", "nan"), ("requests-per-second", 1e308), ("grace", "inf"),
    ("stream-idle", "inf"), ("slow-ms", "nan"), ("max-connections", 2**31), ("max-unseen", 2**31),
    ("max-streams-per-connection", 2**31), ("burst", 2**31), ("max-message-mib", 1_025),
]  # fmt: skip


@pytest.mark.parametrize(("flag", "value"), NO_NUMBERS)
def test_a_number_that_no_server_could_start_with_is_refused_before_one_does(
    say: Say, tmp_path: Path, flag: str, value: object
) -> None:
    (tmp_path / "a.toml").write_text(f"{flag} = {value}\n")
    for how in ([f"--{flag}", value], ["--config", tmp_path / "a.toml"]):
        code, _, error = say("check", "--store", tmp_path, *how)
        assert code == 2
        assert f"--{flag}" in error


@pytest.mark.parametrize(("flag", "value"), [("--precision", "fp3"), ("--device", "gpu")])
def test_what_no_encoder_knows_is_refused_also_before_there_is_a_generation(
    say: Say, tmp_path: Path, flag: str, value: str
) -> None:
    code, _, error = say("check", "--store", tmp_path, flag, value)
    assert code == 2
    assert flag in error
    assert f"'{value}' is not one of 'auto'," in error


def test_the_largest_numbers_that_are_allowed_are_numbers_to_grpc(background: Background) -> None:
    config = Config(
        max_message_mib=1_024,
        requests_per_second=MOST_RATE,
        burst=LARGEST,
        max_unseen=LARGEST,
        max_streams_per_connection=LARGEST,
        max_connections=LARGEST,
        handshake_timeout=_LONGEST_S,
        connection_idle=_LONGEST_S,
        connection_age=_LONGEST_S,
    )

    async def ask() -> bool:
        server = grpc.aio.server(options=config.limits().options(keys=True))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.unary_unary("/nobody/Is")
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call(b"", timeout=30)
        await server.stop(0)
        return raised.value.code() is grpc.StatusCode.UNIMPLEMENTED

    assert background.run(ask())
    Meter(config.limits(), Words()).spend(None, 64)


@pytest.mark.parametrize("rate", ["Infinity", "NaN", "-1", "0", "1e7"])
def test_a_key_whose_rate_is_none_is_named_and_can_be_put_right(say: Say, tmp_path: Path, rate: str) -> None:
    add_key(keys := tmp_path / "keys.json", name="homepage", requests_per_second=7.0)
    keys.write_text(keys.read_text().replace("7.0", rate))
    code, _, error = say("keys", "list", "--api-keys", keys)
    assert code == 2
    assert "the key 'homepage' in " in error
    assert "requests_per_second; give a number above 0, up to 1,000,000, or null" in error


def test_an_option_before_a_command_is_not_lost_in_silence(say: Say, tmp_path: Path) -> None:
    code, _, error = say("--store", tmp_path, "check")
    assert code == 2
    assert "--store stands before the command; put it behind: check --store" in error


# ------------------------------------------------------------------------------------------------------------- config


def test_what_holds_is_printed_with_secrets_hidden_and_can_be_read_again(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLDFRAME_SERVER_TLS_KEY_PASSWORD", "open sesame")
    monkeypatch.setenv("COLDFRAME_SERVER_MAX_STREAMS", "77")
    (tmp_path / "a.toml").write_text('store = "/data"\nburst = 9\n[config]\nlisten = "localhost:7"\n')
    code, lines, _ = say("config", "--config", tmp_path / "a.toml", "--grace", "3")
    assert code == 0
    assert "open sesame" not in "".join(lines)
    assert "# tls-key-password is set, and hidden (environment)" in lines
    assert {'store = "/data"  # file', 'listen = "localhost:7"  # file', "max-streams = 77  # environment"} < {*lines}
    assert {"grace = 3.0  # flag", "max-calls = 4096  # default", "# audit-log is not set"} < {*lines}
    printed = tomllib.loads("\n".join(lines))
    assert printed["burst"] == 9
    (tmp_path / "b.toml").write_text("\n".join(lines))
    monkeypatch.delenv("COLDFRAME_SERVER_MAX_STREAMS")
    _, again, _ = say("config", "--config", tmp_path / "b.toml")
    assert tomllib.loads("\n".join(again)) == printed


# -------------------------------------------------------------------------------------------------------------- check


def _is_first(line: str) -> bool:
    return "configuration " in line


def marks(lines: list[str]) -> dict[str, str]:
    """The worst mark by what it is about."""
    found: dict[str, str] = {}
    for line in lines[-[*map(_is_first, reversed(lines))].index(True) - 1 :]:
        mark, about = line[:5].strip(), line[6:20].strip()
        found[about] = max(found.get(about, ""), mark, key=["", "ok", "note", "FAIL"].index)
    return found


def test_a_server_that_would_start(say: Say, tls: Files, newsroom: Path, tmp_path: Path) -> None:
    add_key(keys := tmp_path / "keys.json", "write")
    flags = [*tls_flags(tls), "--tls-client-ca", tls.ca, "--api-keys", keys, "--audit-log", tmp_path / "audit.log"]
    tls.key.chmod(0o600)
    code, lines, _ = say("check", "--store", newsroom, "--listen", "0.0.0.0:0", "--precision", "fp32", *flags)
    assert code == 0, lines
    assert marks(lines) == dict.fromkeys(
        [
            "configuration",
            "store",
            "model",
            "live articles",
            "certificate",
            "API keys",
            "audit log",
            "address",
            "operators",
        ],
        "ok",
    )
    said = "\n".join(lines)
    assert "120 articles, every file as it was published" in said
    assert "CN=the first for localhost, 127.0.0.1, until " in said
    assert "callers must show a certificate" in said
    assert "0 read, 1 write, 0 admin; 0 expired" in said
    assert not (tmp_path / "audit.log").exists(), "nothing was begun"


def test_every_thing_that_is_wrong_is_said_at_once(say: Say, tls: Files, own_newsroom: Path, tmp_path: Path) -> None:
    damage(Store(own_newsroom))
    tls.put(signed("old", tls.authority, begins=-9 * DAY, ends=-DAY))
    (tmp_path / "keys.json").write_text("{}")
    flags = [*tls_flags(tls), "--api-keys", tmp_path / "keys.json", "--audit-log", tmp_path / "no" / "audit.log"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, lines, _ = say(
            "check", "--store", own_newsroom, "--listen", address, "--model", tmp_path / "no-model", *flags
        )
    assert code == 1
    found = marks(lines)
    assert found == {"configuration": "ok", "live articles": "ok", "operators": "ok"} | dict.fromkeys(
        ["store", "model", "certificate", "API keys", "audit log", "address"], "FAIL"
    )
    said = "\n".join(lines)
    for why in ("clusters.json of generation", "no-model", "has expired: CN=old", '"version": 1', "the port is taken"):
        assert why in said


def test_a_port_for_operators_that_one_of_the_workers_cannot_have(
    say: Say, newsroom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--store", newsroom, "--listen", "localhost:0", "--precision", "fp32"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, lines, _ = say("check", *flags, "--metrics", f"127.0.0.1:{port - 1}", "--workers", 2)
    assert (code, marks(lines)["operators"]) == (1, "FAIL")
    assert f"cannot listen on 127.0.0.1:{port}: " in "\n".join(lines)
    assert "--metrics HOST:PORT" in "\n".join(lines)
    code, lines, _ = say("check", *flags, "--metrics", "127.0.0.1:65535", "--workers", 2)
    assert (code, marks(lines)["operators"]) == (1, "FAIL")
    code, lines, _ = say("check", *flags, "--metrics", "127.0.0.1:0", "--workers", 2)
    assert (code, marks(lines)["operators"]) == (0, "ok")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    code, lines, _ = say("check", *flags, "--traces")
    assert (code, marks(lines)["operators"]) == (1, "FAIL")
    assert ".[server,telemetry]" in "\n".join(lines)


FOREIGN = "203.0.113.5"


@pytest.mark.parametrize(
    ("about", "flags"),
    [
        ("configuration", ["--log-format", "xml"]),
        ("audit log", ["--audit-log", "."]),
        ("audit log", ["--audit-log", "/dev/null/audit.log"]),
        ("address", ["--listen", f"{FOREIGN}:50051", "--insecure"]),
        ("operators", ["--metrics", f"{FOREIGN}:9464"]),
        ("operators", ["--listen", "localhost:61964", "--metrics", "127.0.0.1:61964"]),
        ("operators", ["--listen", "0.0.0.0:61964", "--insecure", "--metrics", "localhost:61963", "--workers", "2"]),
    ],
)
def test_what_no_server_could_start_with_is_found_before_one_tries(
    say: Say, tmp_path: Path, about: str, flags: list[str]
) -> None:
    code, lines, _ = say("check", "--store", tmp_path, "--listen", "localhost:0", *flags)
    assert code == 1
    assert [name for name, mark in marks(lines).items() if mark == "FAIL"] == [about], lines


def test_a_host_of_which_this_machine_has_one_address_can_be_had() -> None:
    class Half(Address):
        def places(self) -> list[tuple[int, Any]]:
            return [(socket.AF_INET, (FOREIGN, 0)), *super().places()]

    require_free(Half("127.0.0.1", 0))


def test_another_model_than_the_generations_is_found(say: Say, newsroom: Path) -> None:
    code, lines, _ = say("check", "--store", newsroom, "--model", "minilm", "--listen", "localhost:0")
    assert code == 1
    assert "is not the model that built the generation" in "\n".join(lines)


def test_a_store_that_is_not_there_and_an_empty_one(say: Say, tmp_path: Path) -> None:
    code, lines, _ = say("check", "--store", tmp_path / "none", "--listen", "localhost:0")
    assert (code, marks(lines)["store"]) == (1, "FAIL")
    code, lines, _ = say("check", "--store", tmp_path, "--listen", "localhost:0", "--print")
    assert (code, marks(lines)["store"]) == (0, "note")
    assert f'store = "{tmp_path}"  # flag' in lines
    assert marks(lines)["API keys"] == marks(lines)["certificate"] == "note"
    code, lines, _ = say("check", "--store", tmp_path, "--listen", "")
    assert (code, "\n".join(lines).count("--listen is ''; give HOST:PORT")) == (1, 1)


# ---------------------------------------------------------------------------------------------------------- keys


def test_keys_are_made_listed_and_taken_away(say: Say, tmp_path: Path) -> None:
    flag = ("--api-keys", tmp_path / "keys.json")
    code, (token,), error = say("keys", "add", *flag, "--name", "ingest", "--role", "write", "--expires", "2099-01-01")
    assert code == 0
    assert token not in error
    assert say("keys", "add", *flag, "--name", "home", "--rate", "5")[0] == 0
    assert say("keys", "add", *flag, "--name", "ktm", "--expires", "2099-01-01T00:00+05:45")[0] == 0
    _, lines, _ = say("keys", "list", *flag)
    assert [line.partition("  ")[2].partition(", made")[0] for line in lines] == [
        "ingest: write, until 2099-01-01 00:00 UTC",
        "home: read, for ever",
        "ktm: read, until 2099-01-01 00:00 UTC+05:45",
    ]
    assert token not in "\n".join(lines)
    assert say("keys", "remove", *flag, "--name", "ingest")[0] == 0
    assert [line.split()[1] for line in say("keys", "list", *flag)[1]] == ["home:", "ktm:"]
    code, _, error = say("keys", "remove", *flag, "--name", "ingest")
    assert (code, error) == (1, "error: there is no key 'ingest'; the file holds: home, ktm\n")
    assert say("keys", "add", *flag, "--name", "x", "--role", "root")[0] == 2


# --------------------------------------------------------------------------------------------------------- is it well?


def test_a_server_is_asked_whether_it_can_answer(
    background: Background, newsroom: Path, tmp_path: Path, say: Say
) -> None:
    engine = Engine(Store(newsroom), precision="fp32")
    engine.load()
    with background.serving(engine) as target:
        assert say("health", "--listen", target) == (0, [], "")
        anywhere = target.replace("127.0.0.1", "[::]")  # which is 127.0.0.1 and its like on a machine without IPv6
        assert say("health", "--listen", anywhere) == (0, [], "")
    assert say("health", "--listen", target, "--timeout", "inf")[0] == 2, "a deadline that gRPC would take for past"
    code, _, errors = say("health", "--listen", target, "--timeout", 0.5)
    assert code == 1
    assert errors.startswith(f"error: no server is healthy at {target}: ")
    (tmp_path / "empty").mkdir()
    with Process(tmp_path, "--store", tmp_path / "empty", "--listen", "127.0.0.1:0") as empty:
        code, _, errors = say("health", "--listen", empty.address())
        assert (code, "has no index to answer from yet" in errors) == (1, True)


def test_a_server_with_a_certificate_is_asked_by_it(
    background: Background, newsroom: Path, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    with guarded(background, newsroom, tmp_path / "secrets", tls=True) as server:
        assert server.files is not None
        monkeypatch.setenv("COLDFRAME_SERVER_LISTEN", server.target)
        assert say("health", "--timeout", 0.5)[0] == 1, "in plain text"
        monkeypatch.setenv("COLDFRAME_SERVER_TLS_CERT", str(server.files.chain))
        monkeypatch.setenv("COLDFRAME_SERVER_TLS_KEY", str(server.files.key))
        assert say("health") == (0, [], "")
        code, _, errors = say("health", "--tls-client-ca", server.files.ca)
        assert (code, "/readyz" in errors) == (2, True)
        server.files.put(signed("tomorrow's", server.files.authority, begins=DAY))
        for _ in range(2):
            server.guard.refresh()
            assert say("health") == (0, [], ""), "the server goes on with the one that it had"
            server.files.chain.write_bytes(b"cut off")
    code, _, errors = say("health")
    assert (code, f"no server is healthy at {server.target}" in errors) == (1, True)


def test_a_server_that_wants_certificates_of_callers_is_asked_on_its_port_for_machines(say: Say, tls: Files) -> None:
    ready = threading.Event()
    port = Port(Address("127.0.0.1", 0), CollectorRegistry(), Pulse(), ready.is_set)
    flags = ["--listen", "localhost:1", *tls_flags(tls), "--tls-client-ca", tls.ca]
    code, _, errors = say("health", *flags, "--metrics", f"0.0.0.0:{port.port}")
    assert (code, "503 not ready" in errors) == (1, True)
    ready.set()
    assert say("health", *flags, "--metrics", f"0.0.0.0:{port.port}") == (0, [], "")
    port.close()
    assert say("health", *flags, "--metrics", f"0.0.0.0:{port.port}")[0] == 1


# ------------------------------------------------------------------------------------------------ a real process


def test_a_guarded_process_from_file_and_environment_and_a_hangup(
    own_newsroom: Path, tls: Files, tmp_path: Path
) -> None:
    store = Store(own_newsroom)
    copy = shutil.copytree(store.directory(str(store.current())), own_newsroom / "generations" / "copy")
    second = sealed_again(copy)
    audit, keys = tmp_path / "audit.jsonl", tmp_path / "keys.json"
    writer, reader = add_key(keys, "write", name="ingest"), add_key(keys, name="home")
    (tmp_path / "server.toml").write_text(
        f'store = "{own_newsroom}"\nlisten = "127.0.0.1:0"\nprecision = "fp32"\naudit-log = "{audit}"\n'
        f'tls-cert = "{tls.chain}"\ntls-key = "{tls.key}"\n'
    )
    environment = {"COLDFRAME_SERVER_API_KEYS": str(keys)}
    with Process(tmp_path, "--config", tmp_path / "server.toml", **environment) as server:
        target = server.address()

        def client(key: str) -> Client:
            return Client(target, api_key=key, tls_ca=tls.ca, attempts=1)

        with client(writer) as one, client(reader) as other:
            one.upsert([piece("secret-id", "a very secret text")])
            with pytest.raises(PermissionDenied):
                other.delete(["001"])
            with changed(keys) as known:
                removed(known, "home")
            store.activate(second)
            server.popen.send_signal(signal.SIGHUP)
            wait_until(lambda: turned_away(other), timeout_s=20)
            wait_until(lambda: one.index().index.generation == second, timeout_s=20)
        credentials = grpc.ssl_channel_credentials(tls.ca.read_bytes())
        with grpc.secure_channel(target, credentials) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            assert stub.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(30) == 0
        told = [json.loads(line) for line in audit.read_text().splitlines()]
        assert [(line["who"], line["outcome"]) for line in told] == [("ingest", "OK"), ("home", "PERMISSION_DENIED")]
        for secret in (writer, reader, "secret-id", "very secret"):
            assert secret not in audit.read_text() + server.errors()


def turned_away(client: Client) -> bool:
    try:
        client.search(words("x"))
    except Unauthenticated:
        return True
    return False


def test_an_audit_log_that_is_moved_away_is_begun_anew(own_newsroom: Path, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    flags = ["--store", own_newsroom, "--listen", "127.0.0.1:0", "--precision", "fp32", "--audit-log", audit]
    with Process(tmp_path, *flags) as server, Client(server.address()) as client:
        client.delete(["none"])
        wait_until(audit.read_text)  # type: ignore[arg-type]
        shutil.move(audit, tmp_path / "old.jsonl")
        client.delete(["none"])
        wait_until(audit.exists)
        assert json.loads(audit.read_text())["who"] == "anonymous"
