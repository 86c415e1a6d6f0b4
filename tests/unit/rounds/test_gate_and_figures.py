"""The gate's verdicts, and figures from summed metric words."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import AggregationFailed
from common.figures import domain_loss, figures, heldout_loss
from common.plan import METRIC_GROUPS, METRIC_WORDS, Gate
from common.secagg import TailSums
from coordinator.rounds.gate import Measured, judge, judge_improvement

WORDS = (*METRIC_WORDS, *(word for group in METRIC_GROUPS for word in group.words))
GATE = Gate(loss_rise=0.1, most_failed_rounds=3)


@given(st.floats(0, 100), st.floats(0.001, 100))
def test_a_candidate_passes_exactly_up_to_the_bound(loss, accepted):
    assert judge(loss, accepted_loss=accepted, gate=GATE).is_accepted == (loss <= accepted * 1.1)


def test_the_verdict_says_the_figures_that_it_is_made_from():
    verdict = judge(2.5, accepted_loss=2.0, gate=GATE)
    assert not verdict.is_accepted
    assert verdict.message == "held-out loss 2.5000, accepted adapter 2.0000, bound 2.2000"


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_never_passes(loss):
    assert not judge(loss, accepted_loss=None, gate=GATE).is_accepted
    assert not judge(loss, accepted_loss=1.0, gate=GATE).is_accepted


def test_what_cannot_be_compared_passes():
    assert judge(None, accepted_loss=1.0, gate=GATE).is_accepted
    assert judge(9.0, accepted_loss=None, gate=GATE).is_accepted


def sums(**metrics: float) -> TailSums:
    return TailSums(count=4, weight=2.5, metrics={name: metrics.get(name, 0.0) for name in WORDS})


def test_figures_without_a_denominator_are_left_out():
    found = dict(figures(sums()))
    assert found == {
        "survivors": 4.0,
        "weight": 2.5,
        "heldout_tokens": 0.0,
        "train_records": 0.0,
        "clipped_elements": 0.0,
    }
    assert heldout_loss(figures(sums())) is None


def test_figures_are_ratios_of_sums_by_name():
    found = figures(
        sums(
            heldout_loss=30.0,
            heldout_tokens=20.0,
            train_loss=9.0,
            train_steps=3.0,
            classification_correct=3.0,
            classification_total=4.0,
            span_true_positives=2.0,
            span_false_positives=1.0,
            span_false_negatives=3.0,
            rouge_sum=1.0,
            rouge_total=4.0,
        )
    )
    values = dict(found)
    assert [name for name, _ in found] == sorted(values)
    assert values["heldout_loss"] == heldout_loss(found) == 1.5
    assert values["train_loss"] == 3.0
    assert values["classification_accuracy"] == 0.75
    assert values["span_f1"] == 0.5
    assert values["rouge_l"] == 0.25


@given(st.sampled_from(WORDS), st.floats(-1e9, -1e-6))
def test_a_sum_below_zero_is_refused_by_name(name, value):
    with pytest.raises(AggregationFailed, match=f"the sum of {name} is below zero"):
        figures(sums(**{name: value}))


@pytest.mark.parametrize("group", METRIC_GROUPS, ids=lambda group: group.name)
def test_of_a_closed_group_there_is_no_figure_and_the_others_are_the_same(group):
    """What a closed group's words come to is not in a TailSums, so that there is nothing to tell."""
    everything = sums(**dict.fromkeys(WORDS, 2.0))
    found = figures(everything)
    less = figures(
        TailSums(4, 2.5, {name: sum_ for name, sum_ in everything.metrics.items() if name not in group.words})
    )
    gone = {
        "held_out": {"heldout_loss", "heldout_tokens"},
        "classification": {"classification_accuracy"},
        "ner": {"span_f1"},
        "instruction": {"rouge_l"},
    }[group.name]
    assert set(found) - set(less) == {(name, value) for name, value in found if name in gone}
    assert {name for name, _ in found} - {name for name, _ in less} == gone


@pytest.mark.parametrize("missing", WORDS)
def test_a_figure_without_one_of_its_words_is_left_out_whatever_group_a_plan_puts_that_in(missing):
    everything = sums(**dict.fromkeys(WORDS, 2.0))
    less = figures(TailSums(4, 2.5, {name: sum_ for name, sum_ in everything.metrics.items() if name != missing}))
    assert set(less) < set(figures(everything))


def test_a_plan_may_leave_metrics_out():
    assert dict(figures(TailSums(3, 1.0, {"heldout_loss": 2.0, "heldout_tokens": 1.0})))["heldout_loss"] == 2.0


# --- domains -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gain", "is_kept"), [(0.09, False), (0.0999, False), (0.1001, True), (-1.0, False)])
def test_a_domain_adapter_is_kept_only_for_more_than_two_errors_of_the_difference(gain, is_kept):
    before = Measured(2.0, 0.03)
    after = Measured(2.0 - gain, 0.04)
    verdict = judge_improvement(before, after, standard_errors=2.0)
    assert verdict.is_accepted is is_kept
    assert "without it 2.0000; it must be lower by 0.1000" in verdict.message


def test_a_domain_adapter_that_too_few_have_measured_is_not_kept():
    known = Measured(2.0, 0.0)
    assert not judge_improvement(None, known, standard_errors=2.0).is_accepted
    assert not judge_improvement(known, None, standard_errors=2.0).is_accepted
    assert not judge_improvement(known, Measured(math.nan, 0.0), standard_errors=2.0).is_accepted


def test_a_domains_figures_are_over_its_open_tasks_and_the_totals_over_the_open_domains():
    sums = {
        "clinic/ner/rows": 4.0,
        "clinic/ner/loss": 8.0,
        "clinic/ner/squares": 20.0,
        "clinic/ner/tokens": 10.0,
        "clinic/ner/nats": 25.0,
        "clinic/ner/true_positives": 3.0,
        "clinic/ner/false_positives": 1.0,
        "clinic/ner/false_negatives": 1.0,
        "clinic/instruction/rows": 1.0,
        "clinic/instruction/loss": 2.0,
        "clinic/instruction/squares": 4.0,
        "clinic/instruction/tokens": 5.0,
        "clinic/instruction/nats": 5.0,
        "desk/classification/rows": 2.0,
        "desk/classification/loss": 2.0,
        "desk/classification/squares": 2.0,
        "desk/classification/tokens": 5.0,
        "desk/classification/nats": 10.0,
        "desk/classification/terse/rows": 2.0,
        "desk/classification/terse/loss": 3.0,
        "desk/records": 90.0,
    }
    found = figures(TailSums(count=5, weight=2.0, metrics=sums))
    by_name = dict(found)
    assert by_name["heldout_loss/clinic"] == 2.0
    assert by_name["heldout_loss"] == heldout_loss(found) == 2.0
    assert domain_loss(found, "clinic") == pytest.approx((2.0, math.sqrt(0.8 / 5)))
    assert domain_loss(found, "desk") == (1.0, 0.0)
    assert domain_loss(found, "court") is None
    assert (by_name["macro_loss"], by_name["worst_loss"]) == (1.5, 2.0)
    assert by_name["span_f1/clinic"] == 0.75
    assert by_name["template_loss/desk/classification/terse"] == 1.5
    assert by_name["records/desk"] == 90.0
    assert not [name for name in by_name if name.startswith("classification_accuracy")]
