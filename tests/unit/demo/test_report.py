"""What the demo tells: figures, JSON, tables, HTML, pictures, and the lines that come while it runs."""

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from rich.console import Console

from common.secagg import ClosedGroup
from demo.figures import (
    AdapterReport,
    DomainReport,
    Example,
    Figure,
    RoundReport,
    RunReport,
    Stage,
    stages_of,
    to_json,
)
from demo.plots import loss_plot, metric_plot, summed_losses, time_plot
from demo.progress import LineView, events_between, live_panel
from demo.report import html_report
from demo.sources.records import Task
from demo.tables import closing_lines, final_table, one_example_each
from demo.watch import RoundView, SiteView, Snapshot, phase_seconds
from participant.training.result import DomainScores

BASE, FIRST, SECOND = "0" * 64, "1" * 64, "2" * 64


def domain(site, task, metric, losses, values, *, final=SECOND):
    return DomainReport(
        site=site,
        title=f"{site}: <its work>",
        domain=f"{site}-domain",
        task=task,
        source="a package & its texts",
        train_records=320,
        heldout_records=80,
        stages=tuple(
            Stage(number, digest, Figure(loss, metric, value, 80))
            for number, (digest, loss, value) in enumerate(zip((BASE, FIRST, SECOND), losses, values, strict=True))
        ),
        final_digest=final,
    )


def round_(number, kind, base, result, loss):
    return RoundReport(
        number=number,
        kind=kind,
        state="succeeded",
        base_adapter_digest=base,
        adapter_digest=result,
        cohort=("bank", "clinic", "desk"),
        survivors=("bank", "clinic", "desk"),
        seconds={"forming": 0.1, "training": 60.0, "collecting": 1.0, "unmasking": 0.2, "aggregating": 0.3},
        metrics={"survivors": 3.0, "heldout_loss": loss, "train_loss": 0.25},
        closed_metric_groups=(ClosedGroup("classification", 1, 3), ClosedGroup("ner", 1, 3), ClosedGroup("sums", 0, 3)),
        uploaded_bytes={"bank": 1024 * 1024, "clinic": 1024 * 1024, "desk": 2 * 1024 * 1024},
        reason="",
        message="",
    )


@pytest.fixture
def report():
    return RunReport(
        run="demo",
        state="succeeded",
        rounds_planned=2,
        base_model="Tiny",
        base_model_digest="a" * 64,
        base_model_path="/cache/tiny",
        charter_digest="b" * 64,
        plan_digest="c" * 64,
        plan={"rounds": 2},
        audit_lines=42,
        adapter=AdapterReport("/run/adapter", SECOND, 2, 1000, 4000, {"round": 2}),
        domains=(
            domain("bank", Task.CLASSIFICATION, "accuracy", (3.0, 2.0, 1.0), (0.1, 0.5, 0.75)),
            domain("clinic", Task.NER, "span_f1", (4.0, 2.5, 1.5), (0.0, 0.2, 0.4)),
            domain("desk", Task.INSTRUCTION, "rouge_l", (2.5, 2.4, 2.3), (None, None, None)),
        ),
        rounds=(
            round_(1, "train", BASE, FIRST, 3.2),
            round_(2, "train", FIRST, SECOND, 2.3),
            round_(3, "evaluate", SECOND, "", 1.6),
        ),
        seconds={"prepare": 2.0, "rounds": 180.0},
        examples=(
            Example("bank-domain", "Which?", "loan", "The same.", "The same."),
            Example("bank-domain", "Which now?", "loan", "A bank is <b>", "loan"),
            Example("clinic-domain", "List.", "flu", "I can", "flu"),
        ),
    )


def plain_text(renderable):
    text = io.StringIO()
    Console(file=text, width=160).print(renderable)
    return text.getvalue()


# --- figures and JSON -----------------------------------------------------------------------------------------------


def test_json_has_base_and_final_loss_and_metric_of_every_domain(report):
    read = json.loads(to_json(report, files={"html": "/run/report.html"}))
    assert read["form"] == 1
    assert {
        name: (one["base"]["heldout_loss"], one["final"]["heldout_loss"]) for name, one in read["domains"].items()
    } == {
        "bank-domain": (3.0, 1.0),
        "clinic-domain": (4.0, 1.5),
        "desk-domain": (2.5, 2.3),
    }
    assert read["domains"]["clinic-domain"]["final"] == {
        "heldout_loss": 1.5,
        "metric": "span_f1",
        "value": 0.4,
        "records": 80,
    }
    assert [stage["round"] for stage in read["domains"]["bank-domain"]["stages"]] == [0, 1, 2]
    assert read["uploaded_bytes"] == 3 * 4 * 1024 * 1024
    assert read["rounds"][0]["seconds"]["training"] == 60.0
    assert read["files"] == {"html": "/run/report.html"}


def test_the_final_figures_are_the_accepted_adapters_also_when_a_later_one_was_set_aside(report):
    went_back = replace(report.domains[0], final_digest=FIRST)
    assert went_back.final.round == 1
    assert went_back.final.figure.heldout_loss == 2.0


def test_an_adapter_that_nobody_has_judged_is_no_stage():
    figure = Figure(1.0, "accuracy", 0.5, 8)
    stages = stages_of({BASE: figure, SECOND: figure}, adapters=[(2, SECOND), (0, BASE), (1, FIRST)])
    assert [(stage.round, stage.adapter_digest) for stage in stages] == [(0, BASE), (2, SECOND)]


@pytest.mark.parametrize(
    ("task", "scores", "expected"),
    [
        (Task.CLASSIFICATION, {"classified": 8, "correct": 6}, ("accuracy", 0.75)),
        (
            Task.NER,
            {"ner_records": 2, "true_positives": 2, "false_positives": 1, "false_negatives": 1},
            ("span_f1", 2 / 3),
        ),
        (Task.INSTRUCTION, {"rouge_records": 4, "rouge_sum": 1.0}, ("rouge_l", 0.25)),
        (Task.INSTRUCTION, {}, ("rouge_l", None)),
    ],
)
def test_a_figure_takes_the_metric_of_its_task(task, scores, expected):
    figure = Figure.of(DomainScores(domain="d", loss_sum=6.0, loss_tokens=4, loss_records=2, **scores), task)
    assert (figure.metric, figure.value) == expected
    assert (figure.heldout_loss, figure.records) == (1.5, 2)


def test_phase_seconds_come_from_the_audit_log_and_stop_where_a_round_broke_off():
    row = {
        "name": "runs/demo/rounds/1",
        "create_time": "2026-01-01T10:00:00Z",
        "end_time": "2026-01-01T10:01:03.500000Z",
    }
    ends = {
        ("runs/demo/rounds/1", "training_opened"): "2026-01-01T10:00:01Z",
        ("runs/demo/rounds/1", "cohort_chosen"): "2026-01-01T10:01:01Z",
        ("runs/demo/rounds/1", "survivors_bound"): "2026-01-01T10:01:02Z",
        ("runs/demo/rounds/1", "shares_revealed"): "2026-01-01T10:01:03Z",
        ("runs/demo/rounds/2", "training_opened"): "2026-01-01T11:00:00Z",
    }
    assert phase_seconds(row, ends) == {
        "forming": 1.0,
        "training": 60.0,
        "collecting": 1.0,
        "unmasking": 1.0,
        "aggregating": 0.5,
    }
    del ends["runs/demo/rounds/1", "survivors_bound"]
    assert phase_seconds(row, ends) == {"forming": 1.0, "training": 60.0}


# --- tables ---------------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_every_adapter_and_marks_the_final_one(report):
    lines = plain_text(final_table(report)).splitlines()
    rows = [re.findall(r"base model|after round \d(?: \(final\))?|\d\.\d{3}|–", line) for line in lines]
    assert [row for row in rows if row] == [
        ["base model", "3.000", "0.100", "4.000", "0.000", "2.500", "–"],
        ["after round 1", "2.000", "0.500", "2.500", "0.200", "2.400", "–"],
        ["after round 2 (final)", "1.000", "0.750", "1.500", "0.400", "2.300", "–"],
    ]


def test_the_example_of_a_domain_is_one_on_which_the_models_differ(report):
    assert [example.prompt for example in one_example_each(report)] == ["Which now?", "List."]


def test_the_end_names_adapter_report_and_json_each_on_a_line_of_its_own(report, tmp_path):
    lines = list(closing_lines(report, html=tmp_path / "report.html", json_file=tmp_path / "r.json"))
    words = {line.split()[0]: line.split()[-1] for line in lines}
    assert words["adapter"] == "/run/adapter"
    assert words["report"] == str(tmp_path / "report.html")
    assert words["json"] == str(tmp_path / "r.json")


# --- HTML and pictures ------------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Open tags without an end, and everything that a page would fetch."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_html_is_whole_needs_nothing_beside_itself_and_escapes_what_came_from_outside(report):
    html = html_report(report, finished="today")
    page = _Page()
    page.feed(html)
    assert page.open == []
    assert len(page.fetched) == 3
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.fetched)
    assert "url(" not in html
    assert "<its work>" not in html
    assert "A bank is <b>" in page.text
    for domain_ in report.domains:
        assert domain_.title in page.text
    assert SECOND in page.text
    assert "$" not in page.text


def test_the_page_says_what_the_coordinator_is_not_told_because_too_few_sites_have_it(report):
    html = html_report(report, finished="today")
    assert "never learns: accuracy (of 1 of the sites, it would take 3), span F1 (of 1 of the sites" in html
    assert "sums (of" not in html  # nobody has any
    told = replace(report, rounds=tuple(replace(one, closed_metric_groups=()) for one in report.rounds))
    assert "never learns" not in html_report(told, finished="today")


def test_the_json_says_which_figures_a_round_does_not_tell(report):
    told = json.loads(to_json(report, files={}))["rounds"][0]
    assert told["closed_metric_groups"][0] == {"name": "classification", "contributors": 1, "needed": 3}


@pytest.mark.parametrize("plot", [loss_plot, metric_plot, time_plot])
def test_pictures_are_svg_with_readable_text_and_the_same_every_time(plot, report):
    svg = plot(report)
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert plot(report) == svg
    wanted = {loss_plot: "bank", metric_plot: "clinic: span F1", time_plot: "evaluation"}[plot]
    assert wanted in "".join(root.itertext())


def test_a_summed_loss_belongs_to_the_adapter_that_its_round_started_from(report):
    assert summed_losses(report) == [(0, 3.2), (1, 2.3), (2, 1.6)]


def test_pictures_of_a_run_without_any_figure_are_drawn_all_the_same(report):
    bare = replace(
        report,
        domains=tuple(
            replace(one, stages=(Stage(0, BASE, Figure(None, one.base.figure.metric, None, 0)),))
            for one in report.domains
        ),
        rounds=(),
    )
    for plot in (loss_plot, metric_plot, time_plot):
        assert ElementTree.fromstring(plot(bare)) is not None


# --- progress ------------------------------------------------------------------------------------------------------


def site(name, state="present", **fields):
    return SiteView(name, state, **fields)


def view(number, state, sites=(), *, kind="train", metrics=None, message=""):
    return RoundView(
        number=number,
        kind=kind,
        state=state,
        epoch_state="ready",
        sites=tuple(sites),
        survivors=("bank", "clinic", "desk") if state == "succeeded" else (),
        metrics=metrics or {},
        message=message,
    )


def snapshot(*rounds, state="running", succeeded=0, elapsed=10.0, message=""):
    return Snapshot(
        state=state,
        reason="",
        message=message,
        rounds_planned=3,
        rounds_succeeded=succeeded,
        rounds=rounds,
        elapsed_seconds=elapsed,
    )


def test_events_are_told_once_each_and_in_order():
    before = snapshot(view(1, "training", [site("bank", activity="train", done=1, total=8), site("clinic")]))
    after = snapshot(
        view(
            1,
            "collecting",
            [site("bank", "uploaded", uploaded_bytes=2 * 1024 * 1024), site("clinic", "failed", message="disk full")],
        )
    )
    assert list(events_between(before, after)) == [
        "round 1 of 3: bank has sent 2.0 MiB of masked update",
        "round 1 of 3: clinic out of this round: disk full",
        "round 1 of 3: collecting masked updates",
    ]
    assert list(events_between(after, after)) == []


def test_a_message_of_many_lines_is_told_on_one():
    crash = "the process ended; its last words: Traceback:\n  File a\nImportError: no b"
    after = snapshot(view(1, "training", [site("bank", "failed", message=crash)]))
    told = list(events_between(snapshot(view(1, "training", [site("bank")])), after))
    assert told == [
        "round 1 of 3: bank out of this round: the process ended; its last words: Traceback: … ImportError: no b"
    ]


def test_a_failed_round_says_why_and_the_next_one_is_a_repeat():
    failed = view(1, "failed", message="QUORUM_MISSED: two of three")
    later = snapshot(failed, view(2, "training"))
    assert list(events_between(snapshot(view(1, "training")), later)) == [
        "round 1 of 3 failed: QUORUM_MISSED: two of three",
        "round 1 of 3 (again): training at the sites",
    ]


def test_the_end_of_a_round_tells_the_sum_and_the_runs_end_is_told():
    done = view(4, "succeeded", kind="evaluate", metrics={"heldout_loss": 1.25})
    texts = list(events_between(snapshot(), snapshot(done, state="succeeded", succeeded=3)))
    assert texts == [
        "final evaluation: sum of 3 updates opened: held-out loss of all sites together 1.250",
        "run succeeded",
    ]


def test_work_done_grows_with_every_step_and_waits_for_the_slowest_site():
    quick = site("bank", "prepared")
    fractions = [
        snapshot(view(1, "training", [quick, slow])).fraction
        for slow in (
            site("clinic", activity="load"),
            site("clinic", activity="evaluate", done=1, total=2),
            site("clinic", activity="train", done=1, total=8),
            site("clinic", activity="train", done=8, total=8),
            site("clinic", "prepared"),
        )
    ]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert fractions[-1] == pytest.approx(1 / 3.4)
    assert snapshot(state="succeeded").fraction == 1.0


def test_time_left_is_unknown_at_first_and_falls_to_nothing():
    assert snapshot(view(1, "forming")).seconds_left is None
    half = snapshot(view(3, "training", [site("bank", "prepared")]), succeeded=1, elapsed=100.0)
    assert half.seconds_left == pytest.approx(100.0 * (3.4 / 2 - 1))
    assert snapshot(state="succeeded", elapsed=100.0).seconds_left == 0.0


def test_the_live_view_shows_every_site_its_work_and_its_own_figures(report):
    now = snapshot(
        view(1, "succeeded", metrics={"heldout_loss": 3.2}),
        view(2, "training", [site("bank", activity="train", done=3, total=16), site("clinic", "prepared")]),
        succeeded=1,
    )
    stages = {domain_.site: domain_.stages[:2] for domain_ in report.domains}
    text = plain_text(live_panel(now, stages, ("something happened",)))
    for wanted in ("round 2 of 3", "3/16", "update ready", "3.00 → 2.00", "accuracy 0.10 → 0.50", "something happened"):
        assert wanted in text
    assert "3.200" in text


def test_lines_are_told_where_nobody_looks():
    text = io.StringIO()
    lines = LineView(Console(file=text, width=200))
    with lines.step("three sites enrol") as step:
        step.text = "three sites have enrolled"
    with lines.watching():
        lines.show(snapshot(view(1, "training")), {})
        lines.show(snapshot(view(1, "training")), {})
    told = text.getvalue().splitlines()
    assert len(told) == 2
    assert re.fullmatch(r"\[0:00\] three sites have enrolled \(0\.\d s\)", told[0])
    assert told[1] == "[0:00] round 1 of 3: training at the sites"
