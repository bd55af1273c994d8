"""The alerts over time, evaluated by promtool: what scrapes find of a server, and which of its processes is told of."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

RULES = Path(__file__).parent.parent / "deploy" / "prometheus" / "alerts.yml"
SCRAPE_S = 15
HOUR = 3_600
Told: TypeAlias = Mapping[str, Sequence[float | None]]
"""By metric and labels, what each scrape finds; None where nobody answers."""


def require(folder: Path, alert: str, told: Told, firing: Mapping[int, Sequence[str]], by: str = "instance") -> None:
    """Fails unless an alert fires as it should. firing: by seconds since the first scrape, for which instances, or what
    else it is told apart `by`.
    """
    asked = f'count by ({by}) (ALERTS{{alertname="{alert}", alertstate="firing"}})'
    expected = [
        {
            "expr": asked,
            "eval_time": f"{at}s",
            "exp_samples": [{"labels": f'{{{by}="{one}"}}', "value": 1} for one in ones],
        }
        for at, ones in firing.items()
    ]
    _test(folder, told, promql_expr_test=expected)


def _test(folder: Path, told: Told, **expected: Sequence[object]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    series = [{"series": name, "values": _written(values)} for name, values in told.items()]
    test = {"interval": f"{SCRAPE_S}s", "input_series": series, **expected}
    path = folder / "alerts_test.yml"
    document = {"rule_files": [str(RULES)], "evaluation_interval": f"{SCRAPE_S}s", "tests": [test]}
    path.write_text(json.dumps(document), encoding="utf-8")  # which is YAML, too
    done = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _written(values: Sequence[float | None]) -> str:
    # What a scrape does not find any more is marked so by Prometheus; without the mark it would count for five minutes.
    return " ".join("stale" if value is None else f"{value:f}" for value in values)


def of(metric: str, instance: str = "host:9464") -> str:
    return f'{metric}{{job="coldframe", instance="{instance}"}}'


def lives(scrapes: int, found: int, gone: int) -> list[int | None]:
    """By scrape, in which of its lives a process is found that is there for some scrapes, and gone for the next."""

    def told() -> Iterator[int | None]:
        life = 0
        while True:
            yield from [life] * found
            yield from [None] * gone
            life += 1

    return [*islice(told(), scrapes)]


def test_a_process_that_ends_again_and_again_is_told_of_where_it_is_neither_down_nor_not_ready_for_long(
    tmp_path: Path,
) -> None:
    """Such as one that is ended for its memory while it loads, or a worker whose generation was damaged."""
    seen = lives(HOUR // SCRAPE_S, found=4, gone=2)
    told: Told = {
        of("up"): [int(life is not None) for life in seen],
        of("coldframe_ready"): [None if life is None else 0 for life in seen],
        of("process_start_time_seconds"): [None if life is None else 1.8e9 + 90 * life for life in seen],
        # A worker of the same server that stays.
        of("up", "host:9465"): [1] * len(seen),
        of("coldframe_ready", "host:9465"): [1] * len(seen),
        of("process_start_time_seconds", "host:9465"): [1.8e9] * len(seen),
    }
    require(tmp_path, "ColdframeRestarts", told, {240: [], 600: ["host:9464"], HOUR - 15: ["host:9464"]})


def test_a_server_that_is_started_anew_for_a_new_version_is_not_said_to_end_again_and_again(tmp_path: Path) -> None:
    seen = [0] * 100 + [None] * 2 + [1] * 20 + [None] * 2 + [2] * 100
    told = {of("process_start_time_seconds"): [None if life is None else 1.8e9 + 900 * life for life in seen]}
    require(tmp_path, "ColdframeRestarts", told, {at: [] for at in range(0, SCRAPE_S * len(seen), 60)})


def test_who_ended_again_and_again_and_stays_is_told_of_no_more(tmp_path: Path) -> None:
    seen = lives(40, found=4, gone=2) + [99] * 80
    told = {of("process_start_time_seconds"): [None if life is None else 1.8e9 + 90 * life for life in seen]}
    require(tmp_path, "ColdframeRestarts", told, {600: ["host:9464"], 600 + 1_000: []})


def test_a_loop_that_stands_still_every_now_and_then_is_told_of_and_one_moment_is_not(tmp_path: Path) -> None:
    told = {
        of("coldframe_loop_lag_seconds"): [2.9, 0.01, 0.02] * 80,
        of("coldframe_loop_lag_seconds", "host:9465"): [0.01] * 40 + [4.0] + [0.01] * 199,
    }
    firing = {at: [] if at < 600 else ["host:9464"] for at in range(0, HOUR, 300)}
    require(tmp_path, "ColdframeLoopLate", told, firing)


def test_a_log_that_nobody_reads_is_told_of_while_it_loses_lines(tmp_path: Path) -> None:
    told = {
        of("coldframe_log_lines_lost_total"): [0] * 20 + [7 * lost for lost in range(40)] + [273] * 100,
        of("coldframe_log_lines_lost_total", "host:9465"): [0] * 160,
    }
    require(tmp_path, "ColdframeLogLost", told, {285: [], 600: ["host:9464"], 2_100: []})


def test_of_two_sites_of_one_prometheus_the_slow_one_is_told_of(tmp_path: Path) -> None:
    def searches(job: str, bucket: str, each_second: int) -> tuple[str, list[float]]:
        metric = "coldframe_request_seconds_bucket"
        labels = f'job="{job}", instance="{job}:9464", method="SearchService/Search", le="{bucket}"'
        return f"{metric}{{{labels}}}", [each_second * SCRAPE_S * scrape for scrape in range(120)]

    told = dict(
        [
            *(searches("staging", bucket, 0) for bucket in ("0.05", "0.5")),
            *(searches("staging", bucket, 3) for bucket in ("1.0", "+Inf")),
            *(searches("news", bucket, 600) for bucket in ("0.05", "0.5", "1.0", "+Inf")),
        ]
    )
    require(tmp_path, "ColdframeSlow", told, {300: [], 1_200: ["staging"]}, by="job")


def test_where_no_server_is_known_at_all_the_page_says_what_is_missed(tmp_path: Path) -> None:
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"][0]["rules"]
    [down] = [rule for rule in rules if rule["alert"] == "ColdframeDown"]
    for told, labels, missed in (
        ({of("coldframe_ready"): [None] * 20}, {}, "coldframe"),
        ({of("up"): [0] * 20}, {"instance": "host:9464"}, "host:9464"),
    ):
        alert = {
            "exp_labels": {"job": "coldframe", "severity": "page", **labels},
            "exp_annotations": {**down["annotations"], "summary": f"No metrics from {missed}"},
        }
        wanted = {"eval_time": "3m", "alertname": "ColdframeDown", "exp_alerts": [alert]}
        _test(tmp_path, told, alert_rule_test=[wanted])
