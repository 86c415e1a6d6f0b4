from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from participant.training.result import DomainScores, total_scores
from participant.training.scoring import Mention, SpanCounts, count_spans, mention_lines, rouge_l

FLU, GOUT = Mention("Disease", "flu"), Mention("Disease", "gout")
WORDS = st.lists(st.sampled_from("abcdef"), max_size=12)


@pytest.mark.parametrize(
    ("answer", "wanted", "counts"),
    [
        ("Disease: flu", (FLU,), SpanCounts(1, 0, 0, 0)),
        ("Disease: flu\nDisease: gout", (GOUT, FLU), SpanCounts(2, 0, 0, 0)),
        ("Disease: flu", (FLU, FLU), SpanCounts(1, 0, 1, 0)),
        ("Disease: flu\nDisease: flu", (FLU,), SpanCounts(1, 1, 0, 0)),
        ("Drug: flu", (FLU,), SpanCounts(0, 1, 1, 0)),
        ("Disease: the flu", (FLU,), SpanCounts(0, 1, 1, 0)),
        ("disease :  flu ", (FLU,), SpanCounts(1, 0, 0, 0)),
        ("Disease: Flu", (FLU,), SpanCounts(0, 1, 1, 0)),
        ("None", (), SpanCounts(0, 0, 0, 0)),
        ("none.", (FLU,), SpanCounts(0, 0, 1, 0)),
        ("", (FLU,), SpanCounts(0, 0, 1, 0)),
        ("Disease: flu", (), SpanCounts(0, 1, 0, 0)),
        ("The patient has flu\nDisease:\n: flu", (FLU,), SpanCounts(0, 0, 1, 3)),
        ("Disease: ratio 1:2", (Mention("Disease", "ratio 1:2"),), SpanCounts(1, 0, 0, 0)),
    ],
)
def test_spans_count_strictly(answer, wanted, counts):
    assert count_spans(answer, wanted) == counts


@given(st.lists(st.builds(Mention, st.sampled_from(["A", "B"]), st.sampled_from(["x", "y z"])), max_size=6))
def test_the_answer_that_names_all_mentions_is_perfect(mentions):
    assert count_spans(mention_lines(mentions), mentions) == SpanCounts(len(mentions), 0, 0, 0)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("police killed the gunman", "police kill the gunman", 0.75),  # Lin 2004, the paper's own example
        ("the gunman kill police", "police kill the gunman", 0.5),
        ("The cat.", "the CAT", 1.0),
        ("", "the cat", 0.0),
        ("dog", "cat", 0.0),
    ],
)
def test_rouge_l_gives_the_known_values(answer, reference, score):
    assert rouge_l(answer, reference) == pytest.approx(score)


@given(WORDS, WORDS)
def test_rouge_l_is_symmetric_and_one_only_for_equal_texts(first, second):
    score = rouge_l(" ".join(first), " ".join(second))
    assert score == rouge_l(" ".join(second), " ".join(first))
    assert (score == 1.0) == (first == second and bool(first))


def test_scores_add_up_and_derive_their_rates():
    first = DomainScores(domain="a", loss_sum=6.0, loss_tokens=3, classified=2, correct=1)
    second = DomainScores(
        domain="b",
        ner_records=1,
        true_positives=2,
        false_positives=1,
        false_negatives=3,
        rouge_records=1,
        rouge_sum=0.5,
    )
    total = total_scores([first, second])
    assert (total.mean_loss, total.accuracy, total.rouge_l) == (2.0, 0.5, 0.5)
    assert total.precision == pytest.approx(2 / 3)
    assert (total.recall, total.f1) == (0.4, 0.5)
    nothing = DomainScores(domain="c")
    assert (nothing.mean_loss, nothing.accuracy, nothing.f1, nothing.rouge_l) == (None, None, None, None)
