"""A server killed with SIGKILL under its clients, a few times; `benchmarks.live_crash` does it by the hundred."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.live_clients import BASE, CORPORA, Ledger
from benchmarks.live_crash import LiveCrash
from tests.models import longformer_directory

if TYPE_CHECKING:
    from pathlib import Path

MODES = ("traffic", "swap", "start", "traffic", "publication, both")


def test_a_server_that_is_killed_keeps_what_it_acknowledged_and_nothing_else(tmp_path: Path) -> None:
    model = longformer_directory(tmp_path / "model", window=64, layers=2)
    crash = LiveCrash(tmp_path, str(model), seed=0)
    outcome = crash.run(MODES)
    assert outcome.faults == []
    assert outcome.kills.total() == len(MODES)
    assert outcome.acknowledged > 100
    assert outcome.swaps >= 2


def test_the_ledger_tells_what_is_lost_what_was_never_sent_and_what_is_torn() -> None:
    ledger = Ledger(0)
    ledger.settle(dict.fromkeys(CORPORA["A"], BASE), "A")
    first, second = ledger.send(["x", "y"], removes=False)
    ledger.acknowledge([first, second])
    (third,) = ledger.send(["x"], removes=True)
    fourth, fifth = ledger.send(["v", "w"], removes=False)
    there = {**dict.fromkeys(CORPORA["A"], BASE), "y": second.makes}
    assert copy(ledger).settle({**there}, "A") == []  # the removal was not acknowledged, and may have been done
    assert copy(ledger).settle({**there, "x": first.makes}, "A") == []
    assert copy(ledger).settle({**there, "v": fourth.makes, "w": fifth.makes}, "A") == []
    ledger.acknowledge([third])
    assert "'x'" in copy(ledger).settle({**there, "x": first.makes}, "A")[0], "it comes back"
    assert "'y'" in copy(ledger).settle(dict.fromkeys(CORPORA["A"], BASE), "A")[0], "it is lost"
    assert "'z'" in copy(ledger).settle({**there, "z": "99"}, "A")[0], "it was never sent"
    assert "part" in copy(ledger).settle({**there, "v": fourth.makes}, "A")[0]
    assert "'030'" in copy(ledger).settle({name: of for name, of in there.items() if name != "030"}, "A")[0]


def copy(ledger: Ledger) -> Ledger:
    other = Ledger(ledger.seed)
    other._changes, other._may_be = [*ledger._changes], {name: {*may_be} for name, may_be in ledger._may_be.items()}
    return other
