"""What lies under deploy/, held against the tools that will read it, and against the server that it starts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from coldframe import settings
from coldframe.store import Store
from indexer.__main__ import app as indexer
from server.__main__ import app as server
from server.engine import Engine
from server.observe.metrics import Pulse, ServerCollector, registry
from server.observe.witness import Witness
from server.security.certificates import CertificateFiles, Tls
from server.security.guard import Guard
from tests.certificates import files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "coldframe.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
MANIFESTS = [DEPLOY / "kubernetes" / f"{name}.yaml" for name in ("store", "server", "rebuild")]
# prometheus-client tells these of a process on Linux.
OF_THE_PROCESS = {
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_start_time_seconds",
}
OF_PROMETHEUS = {"up"}


def documents() -> list[Any]:
    return [one for path in MANIFESTS for one in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


# ----------------------------------------------------------------------------------------------- dashboard and alerts


def shown() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def alerted() -> Iterator[str]:
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            yield rule["expr"]


def named(expressions: Iterable[str]) -> frozenset[str]:
    """Every metric that an expression asks for."""
    found: set[str] = set()
    for expression in expressions:
        plain = re.sub(r'"[^"]*"', '""', expression)
        plain = re.sub(r"\b(by|without)\s*\([^)]*\)", "", plain)
        plain = re.sub(r"\{[^}]*\}", "", plain)
        found |= {name for name in re.findall(r"\b[a-z][a-z_]+\b(?!\s*\()", plain) if "_" in name or name == "up"}
    return frozenset(found - {"__rate_interval"})


@pytest.fixture(scope="module")
def told(newsroom: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of all samples that a server may tell, those of calls that nobody has made yet among them."""
    engine, witness = Engine(Store(newsroom), precision="fp32"), Witness()
    own = files(tmp_path_factory.mktemp("tls"))
    engine.load()
    witness.of("/coldframe.v1.SearchService/Search")
    names: set[str] = set()
    guard = Guard(tls=Tls(CertificateFiles(own.chain, own.key)))
    for family in registry(ServerCollector(engine, witness, Pulse(), guard)).collect():
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        names |= {family.name + end for end in ends}
    return names


def test_the_dashboard_and_the_alerts_ask_for_what_the_server_tells(told: set[str]) -> None:
    asked = named([*shown(), *alerted()])
    assert len(asked) > 25
    assert asked >= OF_THE_PROCESS
    assert asked - told - OF_THE_PROCESS - OF_PROMETHEUS == set()


def test_the_dashboard_shows_what_the_server_tells_of_itself(told: set[str]) -> None:
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in named(shown())}
    ours = {re.sub("_(bucket|sum|count)$", "", name) for name in told if name.startswith("coldframe_")}
    assert ours - families == set(), "a metric that nobody looks at is not worth telling"


def test_panels_have_places_of_their_own_and_no_id_twice() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_every_alert_says_what_it_means_and_what_to_do() -> None:
    for rule in (rule for group in ALERTS["groups"] for rule in group["rules"]):
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert set(rule["annotations"]) == {"summary", "description"}


def test_promtool_accepts_rules_and_configuration() -> None:
    promtool = tool("promtool")
    for command in (["check", "rules", "alerts.yml"], ["check", "config", "prometheus.yml"]):
        done = subprocess.run(
            [promtool, *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


# -------------------------------------------------------------------------------------------------------- kubernetes


def test_the_manifests_fit_kubernetes_own_schemas() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    assert [one["kind"] for one in documents()] == ["PersistentVolumeClaim", "Deployment", "Service", "CronJob"]
    for one in documents():
        validate.validate(one, "1.30", strict=True)


def pods() -> list[Any]:
    _, deployment, _, job = documents()
    return [deployment["spec"]["template"], job["spec"]["jobTemplate"]["spec"]["template"]]


def test_pods_are_nobody_and_write_nowhere_but_in_the_store() -> None:
    user, group = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.M)[-1]
    for pod in pods():
        who, [container] = pod["spec"]["securityContext"], pod["spec"]["containers"]
        assert (who["runAsNonRoot"], who["runAsUser"], who["runAsGroup"]) == (True, int(user), int(group))
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert writable == {"/store", "/tmp"}


def test_the_pod_is_given_more_time_to_stop_than_the_server_takes() -> None:
    spec = pods()[0]["spec"]
    [container] = spec["containers"]
    [grace] = [float(arg.removeprefix("--grace=")) for arg in container["args"] if arg.startswith("--grace=")]
    [pause] = re.findall(r"sleep\((\d+)\)", container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert spec["terminationGracePeriodSeconds"] > grace + int(pause)


def test_probes_go_to_a_port_that_the_server_is_told_to_open() -> None:
    [container] = pods()[0]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert f"--metrics=0.0.0.0:{ports['metrics']}" in container["args"]
    assert f"--listen=0.0.0.0:{ports['grpc']}" in container["args"]
    for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"] == {"path": path, "port": "metrics"}


def test_kustomize_puts_them_together() -> None:
    done = subprocess.run(
        [tool("kubectl"), "kustomize", str(DEPLOY / "kubernetes")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kinds = {one["kind"] for one in yaml.safe_load_all(done.stdout)}
    assert kinds == {"PersistentVolumeClaim", "Deployment", "Service", "CronJob"}


# ------------------------------------------------------------------------------------------------------------ compose


COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


def test_compose_fits_the_specification() -> None:
    models = pytest.importorskip("compose_spec").models
    models.ComposeSpecification.model_validate(COMPOSE)
    assert set(COMPOSE["services"]) == {"server", "indexer", "prometheus"}


def test_compose_asks_for_no_variable() -> None:
    """It fills in all services, whichever are asked for: one that must be set would be asked of `down` and `logs`."""
    assert "${" not in (DEPLOY / "compose.yaml").read_text(encoding="utf-8")


def test_compose_runs_nobody_on_a_disk_that_cannot_be_written() -> None:
    for name in ("server", "indexer"):
        service = COMPOSE["services"][name]
        assert (service["user"], service["read_only"]) == ("10001:10001", True)
        assert "store:/store" in service["volumes"]
    assert all(port.startswith("127.0.0.1:") for s in COMPOSE["services"].values() for port in s.get("ports", ()))


def test_a_build_is_not_asked_whether_it_serves() -> None:
    assert COMPOSE["services"]["indexer"]["healthcheck"] == {"disable": True}


def test_prometheus_looks_where_compose_has_the_server() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    assert config["scrape_configs"][0]["static_configs"][0]["targets"] == ["server:9464"]
    assert COMPOSE["services"]["server"]["environment"]["COLDFRAME_SERVER_METRICS"] == "0.0.0.0:9464"
    assert config["rule_files"] == ["alerts.yml"]


# -------------------------------------------------------------------------------------------------------------- flags


def commands() -> list[list[str]]:
    """Every command that something here starts."""
    started = [pod["spec"]["containers"][0]["args"] for pod in pods()]
    started += [COMPOSE["services"][name]["command"] for name in ("server", "indexer")]
    for name in ("server", "rebuild"):
        unit = (DEPLOY / "systemd" / f"coldframe-{name}.service").read_text(encoding="utf-8")
        started += [line.split() for line in re.findall(r"^ExecStart=/opt/coldframe/bin/(.*)$", unit, re.M)]
    return started


def test_the_programs_know_every_flag_that_they_are_given() -> None:
    for command in commands():
        python, dash_m, module, *rest = command
        assert (python, dash_m) == ("python", "-m")
        root: Any = settings.configured(server if module == "server" else indexer, "X")
        known = root if module == "server" else root.commands[rest[0]]
        options = {option for parameter in known.params for option in parameter.opts}
        assert {flag.partition("=")[0] for flag in rest if flag.startswith("--")} <= options, module


def test_the_server_knows_every_variable_that_compose_gives_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server", "config"],
        env={**os.environ, **COMPOSE["services"]["server"]["environment"], "COLDFRAME_SERVER_STORE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    given = {name.removeprefix("COLDFRAME_SERVER_") for name in COMPOSE["services"]["server"]["environment"]}
    taken = [line.split(" = ")[0] for line in done.stdout.splitlines() if line.endswith("# environment")]
    assert sorted(taken) == sorted(name.lower().replace("_", "-") for name in given)


# ------------------------------------------------------------------------------------------------------------ systemd


def test_a_server_that_could_not_begin_is_tried_again_whatever_kept_it() -> None:
    unit = (DEPLOY / "systemd" / "coldframe-server.service").read_text(encoding="utf-8")
    assert "\nRestart=on-failure\n" in unit
    assert "RestartPreventExitStatus" not in unit, "a file of keys that is broken now ends it with the status of a flag"


def test_failed_handshakes_are_no_lines_of_the_log() -> None:
    for path in (ROOT / "Dockerfile", DEPLOY / "systemd" / "coldframe-server.service"):
        assert "GRPC_VERBOSITY=ERROR" in path.read_text(encoding="utf-8"), path


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    for path in (DEPLOY / "systemd").iterdir():
        # Its interpreter is where it will be installed; here is another one.
        text = path.read_text(encoding="utf-8").replace("/opt/coldframe/bin/python", sys.executable)
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    units = sorted(str(path) for path in tmp_path.iterdir())
    assert len(units) == 3
    done = subprocess.run([analyze, "verify", "--man=no", *units], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if "coldframe" in line]
