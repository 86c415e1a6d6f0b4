"""The simulated federation of many members: it ends with the plain sum, in both graphs, and its picture is drawn."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import scale
from benchmarks.scale import Size, measure
from benchmarks.scale_plot import save_plot
from common.secagg import graph


@pytest.fixture(scope="module")
def complete():
    return measure(Size(10, colluding=0.2, dropping=0.1, parameters=500))


def test_a_complete_federation_with_a_dropout_ends_with_the_sum(complete):
    assert (complete["neighbours"], complete["survivors"], complete["dropped"]) == (9, 9, 1)
    assert complete["sum_is_exact"]
    assert complete["max_error_over_clip"] < 1e-3


def test_every_step_has_a_cost_and_every_message_a_size(complete):
    member = complete["member"]
    assert all(figures["seconds"] > 0 for figures in member.values())
    assert {step for step, figures in member.items() if figures["bytes_sent"]} == {
        "advertise",
        "deal",
        "confirm",
        "mask",
        "bind",
        "reveal",
    }
    assert all(member[step]["bytes_received"] for step in ("roster", "confirm", "start", "bind", "reveal"))
    assert all(seconds >= 0 for seconds in complete["coordinator"].values())


def test_a_sparse_federation_ends_with_the_sum(monkeypatch):
    rule = graph.GraphRule(complete_up_to=16, dropped_percent=10, safety_bits=4, abort_bits=1)
    monkeypatch.setattr(graph, "RULE", rule)
    found = measure(Size(24, colluding=0.1, dropping=0.05, parameters=500))
    assert (found["neighbours"], found["shares_threshold"], found["survivors"]) == (10, 7, 23)
    assert found["sum_is_exact"]


def test_the_command_prints_one_json_line_a_size_and_draws_the_picture(complete, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(scale, "PLOTTED", (4, 5))
    picture = tmp_path / "docs" / "scale.svg"
    monkeypatch.setattr(sys, "argv", ["scale", "--parameters", "100", "--plot", str(picture)])
    scale.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["participants"] for line in lines] == [4, 5]
    assert lines[0].keys() == complete.keys()
    assert "CPU of the coordinator" in picture.read_text()
    save_plot([complete, *lines], picture)
    assert picture.stat().st_size < 200_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--participants", "2"), "at least 3 participants"),
        (("--parameters", "0"), "one parameter"),
        (("--dropping", "5"), "fractions of the members"),
        (("--participants", "10", "--dropping", "0.9"), "10 participants of whom 2 collude and 9 drop out: "),
        (("--participants", "10", "--colluding", "0.9"), "10 participants of whom 9 collude and 1 drop out: "),
    ],
)
def test_sizes_that_no_sum_opens_at_are_refused_in_words(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(sys, "argv", ["scale", "--parameters", "100", *arguments])
    with pytest.raises(SystemExit) as ended:
        scale.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
