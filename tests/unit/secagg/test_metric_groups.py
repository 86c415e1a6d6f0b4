"""A metric to which too few members contribute never leaves a site, whatever the coordinator says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InvalidArgument, MalformedMessage, PlanInvalid, ProtocolViolation, SignatureInvalid
from common.secagg import (
    ClosedGroup,
    KeyEpoch,
    Members,
    MetricGroup,
    RoundContext,
    RoundKind,
    SecaggPlan,
    Start,
    assemble_roster,
    check_advertisement,
    check_roster,
    identity_signer,
)
from common.secagg.graph import RULE
from common.secagg.hashing import group_key, next_chain, pair_key
from common.secagg.messages import Advertisement, Signed
from common.secagg.packing import read_tail
from common.secagg.roster import _encode, sign_advertisement
from tests.unit.secagg.federation import (
    Declared,
    Epoch,
    Round,
    advertise,
    identity,
    journalled,
    make_plan,
    org_name,
    random_chunks,
    set_up,
    verifier,
)

NER = MetricGroup("ner", ("hits", "misses"))
HELD_OUT = MetricGroup("held_out", ("heldout_loss",))
GROUPS = (NER, HELD_OUT)
ALL = tuple(group.name for group in GROUPS)
MEMBERS = 5
EVERYWHERE = dict.fromkeys(range(MEMBERS), ALL)


def plan_with_groups(members: int = MEMBERS, **changes) -> SecaggPlan:
    return make_plan(members, groups=GROUPS, **changes)


def figures_of(index: int) -> dict[str, float]:
    return {"loss": 1.0 + index, "tokens": 10.0, "hits": 100.0 + index, "misses": 7.0, "heldout_loss": 0.5}


# --- which groups are open ---------------------------------------------------------------------------------------


@st.composite
def contexts(draw):
    """A round context with any number of members, colluders, floor, cohort and declarations that the plan allows."""
    members = draw(st.integers(3, 12))
    try:
        plan = plan_with_groups(
            members,
            floor=draw(st.integers(3, members)),
            colluders=draw(st.none() | st.integers(0, members)),
            lanes=2,
        )
        floor = plan.thresholds(members).survivors
    except PlanInvalid:
        plan = plan_with_groups(members, lanes=2)
        floor = plan.thresholds(members).survivors
    cohort = draw(st.sets(st.integers(0, members - 1), min_size=floor))
    declared = draw(st.lists(st.sets(st.sampled_from(ALL)), min_size=members, max_size=members))
    groups = tuple(plan.groups_named(names) for names in declared)
    return context_of(plan, members, sorted(cohort), groups)


def context_of(plan, members, cohort, groups) -> RoundContext:
    epoch = KeyEpoch(plan, 0, 1)
    known = Members(b"r" * 32, tuple(map(org_name, range(members))), (b"k" * 32,) * members, groups)
    start = Start(epoch.hash, known.roster_hash, 1, RoundKind.TRAINING, tuple(cohort), members, b"m" * 32)
    return RoundContext.of(epoch, known, start)


def fewest_contributors(context: RoundContext, name: str) -> int:
    """In a sum, after the worst dropouts that may be: those who contribute to the group drop first."""
    contributors = [index for index in context.cohort if name in context.members.metric_groups[index]]
    others = len(context.cohort) - len(contributors)
    return max(0, context.thresholds.survivors - others)


@settings(max_examples=300, deadline=None)
@given(contexts())
def test_a_group_is_open_exactly_if_enough_contribute_and_wide_if_no_allowed_dropout_leaves_too_few(
    context: RoundContext,
):
    thresholds = context.thresholds
    least = max(context.epoch.plan.members_floor, thresholds.colluders + 2)
    assert thresholds.contributors == least
    for name in ALL:
        assert (name in context.open_groups) is (len(context.contributors(name)) >= least)
        is_wide = name in context.open_groups and name not in context.narrow_groups
        assert is_wide is (fewest_contributors(context, name) >= least)


@settings(deadline=None)
@given(contexts(), st.randoms(use_true_random=False))
def test_two_members_name_the_same_narrow_groups_to_each_other(context: RoundContext, source):
    for index in context.cohort:
        for other, names in context.narrow_with(index).items():
            assert names == context.narrow_with(other)[index]
            assert set(names) <= set(context.groups_filled_by(index)) & set(context.narrow_groups)


def test_above_the_complete_graph_only_wide_groups_are_open():
    """There not every two contributors have a key in common."""
    members = RULE.complete_up_to + 40
    plan = make_plan(members, groups=GROUPS, colluders=1)
    few = context_of(plan, members, range(members), (ALL,) * 30 + ((),) * (members - 30))
    assert (few.open_groups, few.narrow_groups) == ((), ())
    assert few.closed_groups[0].needed == few.contributors_of_wide > 30
    many = context_of(plan, members, range(members), (ALL,) * members)
    assert (many.open_groups, many.narrow_groups) == (ALL, ())


@settings(deadline=None)
@given(contexts())
def test_a_group_to_which_every_member_contributes_is_open_in_every_cohort(context: RoundContext):
    members = len(context.members)
    everywhere = context_of(context.epoch.plan, members, context.cohort, (ALL,) * members)
    assert everywhere.open_groups == ALL
    assert everywhere.closed_groups == ()


@settings(deadline=None)
@given(contexts())
def test_a_closed_group_says_how_many_contribute_and_how_many_it_would_take(context: RoundContext):
    assert {*context.open_groups, *(group.name for group in context.closed_groups)} == set(ALL)
    assert len(context.open_groups) + len(context.closed_groups) == len(ALL)
    for group in context.closed_groups:
        declared = context.members.metric_groups
        assert group.contributors == sum(group.name in declared[index] for index in context.cohort)
        assert group.contributors < group.needed <= len(context.cohort)


@settings(deadline=None)
@given(contexts())
def test_nobody_fills_what_is_closed_or_what_it_has_not_declared(context: RoundContext):
    for index in context.cohort:
        filled = context.groups_filled_by(index)
        assert set(filled) == set(context.open_groups) & set(context.members.metric_groups[index])


# --- what a site packs ---------------------------------------------------------------------------------------------


def epoch_where(declared: Declared, *, colluders: int | None = 0) -> Epoch:
    return set_up(plan_with_groups(colluders=colluders), MEMBERS, declared=declared)


def signed_words(plan: SecaggPlan, words: np.ndarray) -> dict[str, float]:
    return {name: int(word) / 2**20 for name, word in zip(plan.metric_words, words[2:].view(np.int64), strict=True)}


def test_words_of_a_closed_group_are_zeros_at_the_only_site_that_has_any():
    round_ = Round.start(epoch_where({2: ("ner",), **dict.fromkeys((0, 1, 3, 4), ())}))
    plan = round_.epoch.epoch.plan
    packed = signed_words(plan, round_.masking(2).pack_tail(fixed_alpha=1, metrics=figures_of(2)))
    assert packed == {"loss": 3.0, "tokens": 10.0, "hits": 0.0, "misses": 0.0, "heldout_loss": 0.0}


def test_a_site_fills_open_groups_that_it_has_declared_and_no_others():
    """Its data may have changed since: what it did not declare leaves it in another epoch or never."""
    declared = {**EVERYWHERE, **dict.fromkeys((2, 3, 4), ("held_out",))}
    round_ = Round.start(epoch_where(declared, colluders=0), cohort=range(MEMBERS))
    assert round_.context.contributors_needed == 3
    assert round_.context.open_groups == ("held_out",)
    for index in range(MEMBERS):
        packed = signed_words(
            round_.epoch.epoch.plan, round_.masking(index).pack_tail(fixed_alpha=1, metrics=figures_of(index))
        )
        assert (packed["hits"], packed["misses"], packed["heldout_loss"]) == (0.0, 0.0, 0.5)


def seven_with(declared: Declared) -> Round:
    """Seven members without colluders, of which four must survive: a group is open from three contributors on, and
    wide from six on."""
    round_ = Round.start(set_up(plan_with_groups(7, colluders=0), 7, declared=declared))
    assert (round_.context.contributors_needed, round_.context.contributors_of_wide) == (3, 6)
    return round_


def test_one_contributor_fewer_closes_a_group_and_the_member_without_any_packs_zeros():
    six, two = dict.fromkeys(range(6), ALL), dict.fromkeys(range(2), ALL)
    is_open, is_closed = seven_with(six), seven_with(two)
    assert (is_open.context.open_groups, is_closed.context.open_groups) == (ALL, ())
    for round_, hits in ((is_open, [100.0, 101.0, 102.0, 103.0, 104.0, 105.0, 0.0]), (is_closed, [0.0] * 7)):
        plan = round_.epoch.epoch.plan
        tails = [round_.masking(i).pack_tail(fixed_alpha=1, metrics=figures_of(i)) for i in range(7)]
        assert [signed_words(plan, tail)["hits"] for tail in tails] == hits


@pytest.mark.parametrize("contributors", [6, 4], ids=["wide", "narrow"])
def test_what_a_site_packs_is_the_same_after_a_restart(contributors):
    round_ = seven_with(dict.fromkeys(range(contributors), ("ner",)))
    masking = round_.masking(0)
    one, other = (
        phase.pack_tail(fixed_alpha=1, metrics=figures_of(0)) for phase in (masking, journalled(journalled(masking)))
    )
    np.testing.assert_array_equal(one, other)


def test_a_closed_groups_words_must_still_be_named():
    round_ = Round.start(epoch_where({}))
    metrics = figures_of(0)
    del metrics["hits"]
    with pytest.raises(InvalidArgument, match="hits"):
        round_.masking(0).pack_tail(fixed_alpha=1, metrics=metrics)


# --- what the coordinator opens -------------------------------------------------------------------------------------


def opened_tail(round_: Round, tails, *, dropped: tuple[int, ...] = ()):
    """Play a round to its end with these tails; the decoded sum."""
    cohort = round_.context.cohort
    for index in cohort:
        round_.mask(index, [*random_chunks(round_.context, index)[:-1], tails[index]])
        if index not in dropped:
            round_.hand_in(index)
    _, survivors = round_.close()
    if dropped:
        reveals = round_.slow_close(survivors, commit=survivors, reveal=survivors)
    else:
        reveals = round_.fast_close(survivors)
    total = round_.open(survivors, reveals)
    plan = round_.epoch.epoch.plan
    lost = [group.name for group in round_.context.lost_groups(survivors)]
    groups = round_.context.open_groups
    return read_tail(plan, total[-1], survivors=len(survivors), groups=groups, lost=lost), total[-1]


def honest_tails(round_: Round):
    return {
        index: round_.masking(index).pack_tail(fixed_alpha=2**30, metrics=figures_of(index))
        for index in round_.context.cohort
    }


def test_the_opened_sum_of_a_closed_group_is_zero_and_is_no_metric():
    round_ = seven_with({0: ALL, **dict.fromkeys(range(1, 7), ("held_out",))})
    tail, words = opened_tail(round_, honest_tails(round_))
    assert signed_words(round_.epoch.epoch.plan, words)["hits"] == 0.0
    assert tail.metrics == {"loss": 28.0, "tokens": 70.0, "heldout_loss": 3.5}
    assert tail.ignored_groups == ()


def test_an_open_group_holds_enough_contributors_after_the_worst_dropouts():
    round_ = seven_with(dict.fromkeys(range(6), ("ner",)))
    tail, _ = opened_tail(round_, honest_tails(round_), dropped=(0, 1, 2))
    assert tail.count == 4
    assert tail.metrics["hits"] == 103.0 + 104.0 + 105.0
    assert round_.context.thresholds.contributors == 3


def test_words_that_a_member_has_filled_all_the_same_are_ignored_by_name_and_the_rest_of_the_sum_stands():
    round_ = seven_with({0: ALL})
    tails = honest_tails(round_)
    tails[0][2 + round_.epoch.epoch.plan.metric_words.index("hits")] = 41 << 20
    tail, _ = opened_tail(round_, tails)
    assert tail.metrics == {"loss": 28.0, "tokens": 70.0}
    assert tail.ignored_groups == ("ner",)


FOUR = dict.fromkeys(range(4), ("ner",))


def test_a_narrow_group_is_summed_when_all_its_contributors_survive_whoever_else_drops():
    for dropped in ((), (4, 6)):
        round_ = seven_with(FOUR)
        assert (round_.context.open_groups, round_.context.narrow_groups) == (("ner",), ("ner",))
        tail, _ = opened_tail(round_, honest_tails(round_), dropped=dropped)
        assert (tail.metrics["hits"], tail.metrics["misses"]) == (100.0 + 101.0 + 102.0 + 103.0, 28.0)
        assert tail.ignored_groups == ()


def test_of_a_narrow_group_without_one_contributor_only_noise_is_left():
    """The dropped member's escrow is open by then: with its pair keys the noise stays what it is."""
    round_ = seven_with(FOUR)
    tail, words = opened_tail(round_, honest_tails(round_), dropped=(0,))
    assert tail.metrics == {"loss": 27.0, "tokens": 60.0}
    assert tail.ignored_groups == ()
    assert round_.context.lost_groups(range(1, 7)) == (ClosedGroup("ner", 3, 4),)
    noise = signed_words(round_.epoch.epoch.plan, words)
    assert abs(noise["hits"]) > 2**20
    assert abs(noise["misses"]) > 2**20


def test_words_of_a_narrow_group_are_noise_at_every_contributor_and_of_no_other_word():
    round_ = seven_with({**FOUR, 0: ALL})
    plan = round_.epoch.epoch.plan
    for index in range(4):
        packed = signed_words(plan, round_.masking(index).pack_tail(fixed_alpha=1, metrics=figures_of(index)))
        assert abs(packed["hits"]) > 2**20
        assert abs(packed["misses"]) > 2**20
        assert (packed["loss"], packed["heldout_loss"]) == (1.0 + index, 0.0)


def test_group_keys_are_not_those_that_an_escrow_opens():
    chain, run_id = bytes(range(32)), bytes(32)
    assert group_key(chain, run_id, 3) != pair_key(chain, run_id, 3)
    assert group_key(chain, run_id, 3) != group_key(next_chain(chain, run_id), run_id, 4)


# --- a coordinator that lies about who contributes --------------------------------------------------------------------


def changed(message: bytes, groups: tuple[str, ...]) -> Advertisement:
    return replace(Advertisement.decode(Signed.decode(message).body), metric_groups=groups)


@pytest.fixture
def epoch() -> KeyEpoch:
    return KeyEpoch(plan_with_groups(), 0, 1)


@pytest.mark.parametrize("groups", [(), ("ner",), ALL])
def test_a_declaration_that_the_coordinator_has_changed_breaks_the_members_signature(epoch, groups):
    phases = advertise(epoch, MEMBERS, declared={0: ("held_out",)})
    messages = [phase.message for phase in phases.values()]
    forged = replace(Signed.decode(messages[1]), body=changed(messages[1], (*groups, "held_out")).encode())
    cut = replace(Signed.decode(messages[0]), body=changed(messages[0], groups).encode())
    for at, signed in ((1, forged), (0, cut)):
        doctored = [*messages[:at], signed.encode(), *messages[at + 1 :]]
        with pytest.raises(SignatureInvalid):
            assemble_roster(epoch, doctored, verifier(MEMBERS))
        with pytest.raises(SignatureInvalid):
            phases[org_name(4)].deal(_encode(epoch.hash, doctored), verifier(MEMBERS))


def test_a_member_does_not_deal_under_a_roster_with_another_declaration_in_its_name(epoch):
    """Even well signed: an advertisement of the same member that the coordinator has kept from elsewhere."""
    phases = advertise(epoch, MEMBERS, declared={0: ("held_out",)})
    own = phases[org_name(0)].message
    other = sign_advertisement(changed(own, ALL), identity_signer(identity(org_name(0)).key)).encode()
    messages = [other, *(phase.message for name, phase in phases.items() if name != org_name(0))]
    roster = assemble_roster(epoch, messages, verifier(MEMBERS))
    with pytest.raises(ProtocolViolation, match="other keys for us"):
        phases[org_name(0)].deal(roster.message, verifier(MEMBERS))


@pytest.mark.parametrize("groups", [("ner", "ner"), ("held_out", "ner"), ("rouge",), ("ner", "rouge"), ("",)])
def test_groups_that_the_plan_has_not_or_that_stand_twice_or_out_of_order_are_refused(epoch, groups):
    phases = advertise(epoch, MEMBERS)
    name = org_name(0)
    odd = sign_advertisement(changed(phases[name].message, groups), identity_signer(identity(name).key)).encode()
    with pytest.raises(MalformedMessage, match="metric groups"):
        check_advertisement(epoch, odd, verifier(MEMBERS))
    messages = [odd, *(phase.message for other, phase in phases.items() if other != name)]
    with pytest.raises(MalformedMessage, match="metric groups"):
        check_roster(epoch, _encode(epoch.hash, messages), verifier(MEMBERS))


def test_members_that_saw_other_declarations_share_no_mask(epoch):
    """Contributors are under the roster's hash, and so under every context of the epoch."""
    one = set_up(epoch.plan, MEMBERS, declared={0: ("ner",)}).roster.members
    other = set_up(epoch.plan, MEMBERS, declared={0: ("ner",), 1: ("ner",)}).roster.members
    assert one.metric_groups != other.metric_groups
    assert one.roster_hash != other.roster_hash
    assert Members.decode(one.encode()) == one


def test_a_plan_whose_groups_are_cut_otherwise_is_another_epoch(epoch):
    phase = advertise(epoch, MEMBERS)[org_name(0)]
    mine = epoch.plan
    for groups, metrics in (
        ((HELD_OUT, NER), mine.metrics),
        ((NER,), (*mine.metrics, "heldout_loss")),
        ((MetricGroup("ner", ("misses", "hits")), HELD_OUT), mine.metrics),
    ):
        other = KeyEpoch(replace(mine, metric_groups=groups, metrics=metrics), 0, 1)
        with pytest.raises(ProtocolViolation, match="another plan or key epoch"):
            check_advertisement(other, phase.message, verifier(MEMBERS))
