"""Updates of the instruction set from sums alone: what they reach, what they leave, that anybody can repeat them."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import typing
from dataclasses import replace
from types import NoneType, UnionType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domains import CellSums, LossSums, PlanDomain, RoundSums
from common.errors import PlanInvalid
from common.instruction_updates import NextRound, Reference, Start, Updates, UpdateState, next_round
from common.instructions import (
    DomainShare,
    DomainWeight,
    InstructionSet,
    PromptForm,
    Task,
    Template,
    chat_instruction_set,
)

NAMES = ("clinic", "desk", "news", "law")
DOMAINS = tuple(PlanDomain(name, tasks=(Task.INSTRUCTION,)) for name in NAMES)
ROWS = 96.0
SPREAD = 0.5
# Regret against what the plan says, which is nothing: the loss itself.
GIVEN = Updates(reference=Reference.GIVEN)


def sums_of(loss: float, *, rows: float = ROWS, spread: float = SPREAD) -> LossSums:
    """Sums of records with this mean and standard deviation."""
    return LossSums(rows, rows * loss, rows * (loss**2 + spread**2))


def round_of(
    losses: typing.Sequence[float | None],
    records: typing.Sequence[float | None],
    *,
    arms: typing.Sequence[float] = (),
    references: typing.Sequence[float] | None = None,
    spread: float = SPREAD,
) -> RoundSums:
    cells: list[CellSums | None] = []
    for place, loss in enumerate(losses):
        if loss is None:
            cells.append(None)
            continue
        reference = None if references is None else references[place] * ROWS
        measured = tuple(sums_of(arm, spread=spread) for arm in arms)
        cells.append(CellSums(sums_of(loss, spread=spread), reference, measured))
    return RoundSums(6, tuple(records), tuple(cells))


def begin(instruction_set: InstructionSet | None = None) -> NextRound:
    return NextRound((instruction_set or chat_instruction_set()).to_json())


def step(before: NextRound, sums: RoundSums, *, settings: Updates | None = None, evaluations: int = 10) -> NextRound:
    return next_round(before, sums, settings=settings or GIVEN, domains=DOMAINS, evaluations=evaluations)


def shares_of(found: NextRound) -> dict[str, float]:
    return {share.domain: share.share for share in InstructionSet.from_json(found.instruction_set).shares}


def with_arms(*names: str) -> InstructionSet:
    """The plain set, with so many candidates for every domain's instructions."""
    plain = chat_instruction_set()
    arms = tuple(
        Template(Task.INSTRUCTION, "{instruction}\n{input}", "{instruction}", system=name, name=name) for name in names
    )
    others = tuple(template for template in plain.templates if template.task is not Task.INSTRUCTION)
    whole = InstructionSet(PromptForm.CHAT, (*others, *arms))
    return whole.for_domains(tuple((Task.INSTRUCTION, name) for name in NAMES))


# --- acceptance: what the updates are for ------------------------------------------------------------------------

RECORDS = (5.0, 30.0, 30.0, 35.0)
FLOORS = (1.0, 1.1, 1.2, 1.0)


def losses_after(trained: typing.Sequence[float]) -> list[float]:
    """A simple model of learning: a domain's loss falls by a power of what was trained of it, and a fifth of the rest.

    The second helps the small domain without weights too, so that they have less to win.
    """
    whole = sum(trained)
    return [
        floor + 1.5 * (1.0 + 40.0 * (0.8 * own + 0.2 * whole / len(trained))) ** -0.5
        for floor, own in zip(FLOORS, trained, strict=True)
    ]


def federation(rounds: int, *, settings: Updates | None, seed: int) -> list[float]:
    """Losses at the end of a federation whose domains learn by their shares; measured with the noise of its rows."""
    generator = np.random.default_rng(seed)
    found, trained = begin(), [0.0] * len(NAMES)
    by_rows = [records / sum(RECORDS) for records in RECORDS]
    for _ in range(rounds):
        shares = shares_of(found)
        used = by_rows if settings is None or not shares else [shares[name] for name in NAMES]
        noisy = [loss + generator.normal(0.0, SPREAD / math.sqrt(ROWS)) for loss in losses_after(trained)]
        trained = [before + share / rounds for before, share in zip(trained, used, strict=True)]
        if settings is not None:
            found = step(found, round_of(noisy, RECORDS), settings=settings)
    return losses_after(trained)


@pytest.mark.parametrize("seed", range(5))
def test_a_domain_of_a_twentieth_of_the_rows_ends_five_per_cent_better_and_the_macro_loss_no_worse(seed: int) -> None:
    plain = federation(20, settings=None, seed=seed)
    updated = federation(20, settings=GIVEN, seed=seed)
    assert max(updated) <= 0.95 * max(plain)
    assert updated[0] <= 0.95 * plain[0]
    assert sum(updated) <= 1.01 * sum(plain)


@pytest.mark.parametrize("seed", range(5))
def test_after_ten_evaluations_the_served_template_is_within_an_error_of_the_best(seed: int) -> None:
    arms = (2.0, 1.9, 1.6, 2.2)
    generator = np.random.default_rng(seed)
    found = begin(with_arms("plain", "polite", "terse", "long"))
    errors = SPREAD / math.sqrt(ROWS)
    for _ in range(10):
        noisy = [arm + generator.normal(0.0, errors) for arm in arms]
        found = step(found, round_of([2.0] * 4, RECORDS, arms=noisy))
    after = InstructionSet.from_json(found.instruction_set)
    for name in NAMES:
        served = after.template_for(Task.INSTRUCTION, name)
        regret = dict(zip(("plain", "polite", "terse", "long"), arms, strict=True))[served.name] - min(arms)
        assert regret <= errors
        odds = {template.name: template.probability for template in after.candidates(Task.INSTRUCTION, name)}
        assert max(odds, key=lambda one: odds[one]) == "terse"


# --- shares ------------------------------------------------------------------------------------------------------


def test_the_first_shares_are_the_domains_rows_within_the_box() -> None:
    found = shares_of(step(begin(), round_of([None] * 4, (1.0, 33.0, 33.0, 33.0))))
    assert found["clinic"] == pytest.approx(1 / 16)
    assert found["desk"] == pytest.approx(5 / 16)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-9)
    equal = step(begin(), round_of([None] * 4, (1.0, 33.0, 33.0, 33.0)), settings=replace(GIVEN, start=Start.EQUAL))
    assert set(shares_of(equal).values()) == {0.25}


def test_the_domain_with_the_most_regret_gains_share_from_the_others() -> None:
    before = step(begin(), round_of([None] * 4, [25.0] * 4))
    after = shares_of(step(before, round_of([3.0, 2.0, 2.0, 2.0], [25.0] * 4)))
    assert after["clinic"] > 0.28
    assert after["desk"] == after["news"] == after["law"] < 0.25


def test_regret_is_counted_against_what_a_site_alone_reaches() -> None:
    """The highest loss is not the most regret: a domain may be hard for everybody."""
    settings = Updates(reference=Reference.LOCAL)
    before = step(begin(), round_of([None] * 4, [25.0] * 4), settings=settings)
    found = round_of([3.0, 2.0, 2.0, 2.0], [25.0] * 4, references=(3.5, 1.0, 2.0, 2.0))
    after = shares_of(step(before, found, settings=settings))
    assert max(after, key=lambda name: after[name]) == "desk"
    assert after["clinic"] == after["law"]


def test_a_domain_of_which_nothing_was_summed_keeps_its_share_to_the_bit() -> None:
    before = step(begin(), round_of([None] * 4, RECORDS))
    after = step(before, round_of([3.0, None, 2.0, 2.0], [5.0, None, 30.0, 35.0]))
    assert shares_of(after)["desk"] == shares_of(before)["desk"]
    assert shares_of(after)["clinic"] > shares_of(before)["clinic"]


def test_differences_within_the_standard_error_move_little() -> None:
    before = step(begin(), round_of([None] * 4, [25.0] * 4))
    after = shares_of(step(before, round_of([2.001, 2.0, 2.0, 2.0], [25.0] * 4)))
    assert after["clinic"] == pytest.approx(0.25, abs=0.005)


losses = st.lists(st.one_of(st.none(), st.floats(0.0, 6.0)), min_size=4, max_size=4)
sizes = st.lists(st.one_of(st.none(), st.integers(1, 10**9).map(float)), min_size=4, max_size=4)


@given(st.lists(st.tuples(losses, sizes), min_size=1, max_size=6))
def test_whatever_is_summed_shares_stay_in_the_box_and_add_up(rounds: list[tuple[list[float], list[float]]]) -> None:
    found = begin()
    for measured, records in rounds:
        found = step(found, round_of(measured, records))
        shares = shares_of(found)
        if len(shares) > 1:
            low, high = 1 / (4 * len(shares)), min(1.0, 4 / len(shares))
            assert all(low - 1e-9 <= share <= high + 1e-9 for share in shares.values())
        if shares:
            assert sum(shares.values()) == pytest.approx(1.0, abs=1e-9)


# --- templates ---------------------------------------------------------------------------------------------------


def served_of(found: NextRound) -> str:
    return InstructionSet.from_json(found.instruction_set).template_for(Task.INSTRUCTION, "clinic").name


def test_another_template_is_served_after_two_clear_evaluations_in_a_row_and_not_before() -> None:
    clear, unclear = round_of([2.0] * 4, RECORDS, arms=(2.0, 1.5)), round_of([2.0] * 4, RECORDS, arms=(2.0, 1.95))
    once = step(begin(with_arms("old", "new")), clear)
    assert served_of(once) == "old"
    assert served_of(step(once, clear)) == "new"
    assert served_of(step(step(once, unclear), clear)) == "old"
    assert served_of(step(step(step(once, unclear), clear), clear)) == "new"


def test_a_hopeless_candidate_is_dropped_and_the_served_one_never() -> None:
    settings = replace(GIVEN, template_rate=2.0, switch_errors=100.0)
    found = begin(with_arms("served", "good"))
    for _ in range(5):
        found = step(found, round_of([2.0] * 4, RECORDS, arms=(3.0, 1.0)), settings=settings)
    assert served_of(found) == "served"
    found = begin(with_arms("served", "bad", "good"))
    found = step(found, round_of([2.0] * 4, RECORDS, arms=(2.0, 5.0, 2.0)), settings=settings)
    after = InstructionSet.from_json(found.instruction_set).candidates(Task.INSTRUCTION, "clinic")
    assert [template.name for template in after] == ["served", "good"]
    assert sum(template.probability for template in after) == pytest.approx(1.0, abs=1e-9)


def test_rounds_without_measured_candidates_leave_the_templates_as_they_are() -> None:
    before = begin(with_arms("old", "new"))
    after = InstructionSet.from_json(step(before, round_of([2.0] * 4, RECORDS)).instruction_set)
    assert after.templates == InstructionSet.from_json(before.instruction_set).templates


# --- taking back ---------------------------------------------------------------------------------------------------


def test_what_made_macro_and_worst_domain_worse_is_taken_back() -> None:
    first = step(begin(), round_of([2.0, 2.0, 2.0, 2.0], RECORDS))
    second = step(first, round_of([2.4, 2.0, 2.0, 2.0], RECORDS))
    assert shares_of(second) != shares_of(first)
    third = step(second, round_of([2.4, 2.0, 2.0, 2.0], RECORDS))
    back = step(third, round_of([3.0, 2.5, 2.5, 2.5], RECORDS))
    assert shares_of(back) == shares_of(first)
    assert back.state.rollbacks == 1
    assert back.state.history == ()


@pytest.mark.parametrize(
    "losses",
    [[3.0, 1.8, 1.8, 1.8], [2.39, 2.39, 2.39, 2.39]],
    ids=["the worst domain alone", "the macro loss alone"],
)
def test_one_of_the_two_alone_takes_nothing_back(losses: list[float]) -> None:
    found = begin()
    for _ in range(3):
        found = step(found, round_of([2.4, 2.0, 2.0, 2.0], RECORDS))
    found = step(found, round_of(losses, RECORDS))
    assert found.state.rollbacks == 0


# --- anybody can repeat it -----------------------------------------------------------------------------------------

REPLAY = """
import sys
from common import jsonform
from common.domains import PlanDomain, RoundSums
from common.instruction_updates import NextRound, Reference, Updates, next_round
from common.instructions import Task
domains = tuple(PlanDomain(name, tasks=(Task.INSTRUCTION,)) for name in ("clinic", "desk", "news", "law"))
lines = sys.stdin.read().splitlines()
found = jsonform.decode(lines[0], NextRound, what="set")
for line in lines[1:]:
    sums = jsonform.decode(line, RoundSums, what="sums")
    found = next_round(found, sums, settings=Updates(reference=Reference.GIVEN), domains=domains, evaluations=10)
print(found.to_json())
"""


def test_another_process_makes_the_same_bytes_of_the_same_sums() -> None:
    from common import jsonform

    generator = np.random.default_rng(7)
    first = found = begin(with_arms("one", "two", "three"))
    rounds = []
    for _ in range(8):
        measured, arms = generator.uniform(1, 3, 4), generator.uniform(1, 3, 3)
        live = len(InstructionSet.from_json(found.instruction_set).candidates(Task.INSTRUCTION, "clinic"))
        sums = round_of(measured.tolist(), RECORDS, arms=arms.tolist()[:live])
        rounds.append(sums)
        found = step(found, sums)
    told = "\n".join([first.to_json(), *(jsonform.encode(sums, RoundSums) for sums in rounds)])
    again = subprocess.run(
        [sys.executable, "-c", REPLAY], input=told, capture_output=True, text=True, check=True, env={"LC_ALL": "C"}
    )
    assert again.stdout.strip() == found.to_json()


def numbers_in(kind: object) -> set[object]:
    """The plain types that a type is made of."""
    if dataclasses.is_dataclass(kind):
        return set().union(*(numbers_in(hint) for hint in typing.get_type_hints(kind).values()))
    if typing.get_origin(kind) in (tuple, UnionType, typing.Union):
        return set().union(*(numbers_in(part) for part in typing.get_args(kind) if part is not Ellipsis))
    return {kind}


def test_an_update_is_made_from_numbers_and_nothing_else() -> None:
    """No text that a participant could choose has a way into what the coordinator sends out next."""
    assert numbers_in(RoundSums) == {int, float, NoneType}


def test_the_templates_of_an_updated_set_are_the_operators_own_letter_for_letter() -> None:
    before = with_arms("old", "new")
    found = begin(before)
    for arms in ((2.0, 1.5), (2.0, 1.4), (1.0, 3.0)):
        found = step(found, round_of([2.0] * 4, RECORDS, arms=arms))
    after = InstructionSet.from_json(found.instruction_set)
    plain = [replace(template, probability=0.0, is_served=False) for template in after.templates]
    assert set(plain) <= set(before.templates)
    assert after.version > 1


def test_a_round_in_which_nothing_was_measured_changes_nothing() -> None:
    before = begin(with_arms("old", "new"))
    after = step(before, round_of([None] * 4, [None] * 4))
    assert after.instruction_set == before.instruction_set


@pytest.mark.parametrize(
    "wrong",
    [{"rows": 0}, {"every": 0}, {"eta": math.nan}, {"smoothing": 1.0}, {"box": 1.0}, {"momentum": 1.0}],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(PlanInvalid, match=next(iter(wrong))):
        Updates(**wrong).check()  # type: ignore[arg-type]


def test_a_state_survives_its_json() -> None:
    from common import jsonform

    found = begin(with_arms("old", "new"))
    for _ in range(3):
        found = step(found, round_of([2.0, 2.5, 2.0, 2.0], RECORDS, arms=(2.0, 1.5)))
    assert jsonform.decode(found.to_json(), NextRound, what="it") == found
    assert found.state != UpdateState()


# --- sites' weights ----------------------------------------------------------------------------------------------


def weighed(*shares: DomainShare) -> InstructionSet:
    return replace(chat_instruction_set(), shares=shares, sites=8)


def test_no_shares_make_a_sum_one_sites_own():
    """Who says how many records there are must not be able to make one site's weight all of the masked sum."""
    said = weighed(DomainShare("rare", 1 - 1e-9, 1e-6), DomainShare("desk", 1e-9, 1e12))
    victim, other = said.site_weight({"rare": 5}), said.site_weight({"desk": 5000})
    assert victim is not None
    assert other is not None
    assert victim == 1.0
    assert other >= 1 / 16
    neither = said.site_weight({"law": 3})
    assert neither == 0.25


@given(
    share=st.floats(1e-12, 1 - 1e-9),
    sizes=st.tuples(st.floats(1e-300, 1e12), st.floats(1e-300, 1e12)),
    records=st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), min_size=2, max_size=6),
)
def test_whatever_the_shares_no_site_weighs_over_sixteen_times_another(share, sizes, records):
    said = weighed(DomainShare("a", share, sizes[0]), DomainShare("b", 1 - share, sizes[1]))
    weights = [said.site_weight({"a": a, "b": b}) for a, b in records]
    assert all(weight is not None and 1 / 16 <= weight <= 1.0 for weight in weights)


def test_the_heaviest_weight_is_over_all_domains_and_not_those_of_a_sites_records():
    plain = chat_instruction_set()
    assert plain.heaviest == 1.0
    assert replace(plain, domain_weights=(DomainWeight("law", 0.5),)).heaviest == 1.0
    assert replace(plain, domain_weights=(DomainWeight("law", 3.0), DomainWeight("bank", 2.0))).heaviest == 3.0
    said = weighed(DomainShare("rare", 0.5, 10.0), DomainShare("desk", 0.5, 990.0))
    assert said.heaviest == said.weight_of("rare") == 16.0


def test_no_records_are_drawn_over_sixteen_times_as_often_or_as_seldom_as_the_mean_ones():
    shares = weighed(DomainShare("rare", 0.999, 1.0), DomainShare("desk", 0.001, 1e12))
    assert (shares.weight_of("rare"), shares.weight_of("desk")) == (16.0, 1 / 16)
    weights = replace(chat_instruction_set(), domain_weights=(DomainWeight("law", 1e6), DomainWeight("bank", 1e-9)))
    assert (weights.weight_of("law"), weights.weight_of("bank")) == (16.0, 1 / 16)
