"""The whole protocol in memory: exact sums under dropouts at every phase, floors, and what restarts may not change."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import OutOfTurn, PlanInvalid, ProtocolViolation, SecondSurvivorSet, TooFewMembers
from common.secagg import (
    Bound,
    CloseKind,
    Deposit,
    KeyEpoch,
    Revealed,
    RoundKind,
    envelopes_for,
    open_masks,
)
from common.secagg.messages import Reveal, Signed
from tests.unit.secagg.federation import (
    MODEL,
    Round,
    deal,
    journalled,
    make_plan,
    plain_sum,
    random_chunks,
    set_up,
)

CALM = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@st.composite
def scenarios(draw):
    """Who vanishes when. Enough stay for the round to end; that is what is drawn, not filtered."""
    members = draw(st.integers(3, 7))
    plan = make_plan(
        members,
        parameters=draw(st.integers(1, 400)),
        lanes=draw(st.sampled_from([2, 3, 4, 5])),
        chunk_words=draw(st.sampled_from([8, 16, 33])),
    )
    floor = plan.thresholds(members).survivors
    order = draw(st.permutations(range(members)))
    spare = members - floor
    steps = draw(st.lists(st.sampled_from(["deposit", "ready", "start", "mask", "upload"]), max_size=spare))
    gone = dict(zip(order, steps, strict=False))
    return members, plan, gone, draw(st.integers(0, 2**16))


@CALM
@given(scenarios())
def test_the_opened_sum_is_exact_whoever_vanishes_at_whichever_phase(scenario):
    members, plan, gone, seed = scenario
    at = {step: [i for i, when in gone.items() if when == step] for step in gone.values()}
    epoch = set_up(plan, members, seed=seed, no_deposit=at.get("deposit", ()), no_ready=at.get("ready", ()))
    assert set(epoch.usable) == set(range(members)) - set(at.get("deposit", ())) - set(at.get("ready", ()))
    round_ = Round.start(epoch, cohort=[i for i in epoch.usable if gone.get(i) != "start"])
    inputs = {i: random_chunks(round_.context, i) for i in round_.context.cohort}
    for i in round_.context.cohort:
        if gone.get(i) == "mask":
            continue
        round_.mask(i, inputs[i])
        if gone.get(i) != "upload":
            round_.hand_in(i)
    kind, survivors = round_.close()
    # From here as many vanish as may: only T commit and only t of those reveal, the last ones in the roster.
    thresholds = round_.context.thresholds
    if kind is CloseKind.FAST:
        reveals = round_.fast_close(survivors[-thresholds.shares :])
    else:
        committed = survivors[-thresholds.commits :]
        reveals = round_.slow_close(survivors, commit=committed, reveal=committed[-thresholds.shares :])
    assert_equal(round_.open(survivors, reveals), plain_sum(inputs[i] for i in survivors))


def test_dropped_members_that_are_online_help_to_open_the_sum():
    epoch = set_up(make_plan(5), 5)
    round_ = Round.start(epoch)
    inputs = {i: random_chunks(round_.context, i) for i in range(4)}
    for i in range(4):
        round_.mask(i, inputs[i])
        round_.hand_in(i)
    _, survivors = round_.close()
    reveals = round_.slow_close(survivors, commit=[1, 2, 3, 4], reveal=[1, 2, 3, 4])
    assert_equal(round_.open(survivors, reveals), plain_sum(inputs.values()))


def test_every_round_of_an_epoch_opens_and_an_evaluation_round_carries_the_tail_alone():
    epoch = set_up(make_plan(3, rounds=3), 3, first_round=5)
    for number, kind in ((5, RoundKind.TRAINING), (6, RoundKind.EVALUATION), (7, RoundKind.TRAINING)):
        model = hashlib.sha256(bytes([number])).digest()
        round_ = Round.start(epoch, number=number, kind=kind, model=model)
        assert (round_.context.layout.lane_chunks == 0) is (kind is RoundKind.EVALUATION)
        inputs = [random_chunks(round_.context, i) for i in range(3)]
        for i in range(3):
            round_.mask(i, inputs[i])
            round_.hand_in(i)
        _, survivors = round_.close()
        assert_equal(round_.open(survivors, round_.fast_close(survivors)), plain_sum(inputs))
    assert epoch.keys[0].next_round == epoch.keys[0].epoch.rounds.stop


def test_rounds_may_be_skipped_and_the_keys_agree_afterwards():
    epoch = set_up(make_plan(3, rounds=4), 3)
    epoch.keys[1] = epoch.keys[1].skip_to(2)  # one site already gave round 1 up
    round_ = Round.start(epoch, number=3)
    inputs = [random_chunks(round_.context, i) for i in range(3)]
    for i in range(3):
        round_.mask(i, inputs[i])
        round_.hand_in(i)
    assert_equal(round_.open((0, 1, 2), round_.fast_close((0, 1, 2))), plain_sum(inputs))


def test_one_survivor_below_the_floor_opens_nothing_on_either_side():
    plan = make_plan(7)
    floor = plan.thresholds(7).survivors
    epoch = set_up(plan, 7)
    round_ = Round.start(epoch)
    few = tuple(range(floor - 1))
    for i in few:
        round_.mask(i, random_chunks(round_.context, i))
        round_.hand_in(i)
    with pytest.raises(TooFewMembers):
        round_.close()
    phase = round_.masked(0)
    with pytest.raises(ProtocolViolation, match="below the floor"):
        phase.bind(few, round_.receipts_of(few))


def test_a_cohort_below_the_floor_is_neither_started_nor_joined():
    plan = make_plan(5)
    epoch = set_up(plan, 5)
    with pytest.raises(TooFewMembers):
        Round.start(epoch, cohort=[0, 1, 2])
    start = Round.start(epoch).context.start
    with pytest.raises(ProtocolViolation, match="below the floor"):
        epoch.keys[0].skip_to(2).start(replace(start, round=2, cohort=(0, 1, 2)).encode(), model_hash=MODEL)


def test_a_plan_for_fewer_members_than_must_survive_is_refused():
    with pytest.raises(PlanInvalid):
        make_plan(3, colluders=2).thresholds(3)


@pytest.mark.parametrize(
    ("members", "quorum"), [(3, 2), (4, 3), (5, 4), (7, 5), (10, 7), (20, 14), (50, 34), (100, 67)]
)
def test_default_thresholds_are_the_two_thirds_rule(members, quorum):
    thresholds = make_plan(members, lanes=2).thresholds(members)
    assert (thresholds.shares, thresholds.commits) == (quorum, quorum)
    assert 2 * quorum > members + thresholds.colluders
    assert thresholds.survivors == max(quorum, 3, thresholds.colluders + 2)


@pytest.fixture
def closing() -> Round:
    """Five members, four uploads in; the survivor sets {0,1,2,3} and, a forger's wish, another one."""
    epoch = set_up(make_plan(6, colluders=0), 6)
    round_ = Round.start(epoch)
    for i in range(5):
        round_.mask(i, random_chunks(round_.context, i))
        round_.hand_in(i)
    return round_


def test_a_second_survivor_set_is_refused_for_ever(closing: Round):
    first, second = (0, 1, 2, 3), (0, 1, 2, 4)
    bound = journalled(closing.masked(0).bind(first, closing.receipts_of(first)))
    with pytest.raises(SecondSurvivorSet):
        bound.bind(second, closing.receipts_of(second))
    with pytest.raises(SecondSurvivorSet):
        bound.accept_fast_close(closing.receipts.values())
    assert bound.bind(first, ()).message == bound.message
    commits = [closing.masked(i).bind(first, closing.receipts_of(first)).message for i in range(4)]
    revealed = journalled(bound.accept(commits))
    with pytest.raises(SecondSurvivorSet):
        revealed.bind(second, closing.receipts_of(second))
    assert revealed.bind(first, ()).message == revealed.message


def test_evidence_short_of_a_quorum_doubled_or_for_another_set_opens_nothing(closing: Round):
    first, second = (0, 1, 2, 3), (0, 1, 2, 4)
    quorum = closing.context.thresholds.commits
    bound = [closing.masked(i).bind(first, closing.receipts_of(first)) for i in range(4)]
    few = [phase.message for phase in bound[: quorum - 1]]
    with pytest.raises(ProtocolViolation):
        bound[0].accept(few)
    with pytest.raises(ProtocolViolation):
        bound[0].accept([*few, few[0]])
    with pytest.raises(ProtocolViolation, match="another survivor set"):
        bound[0].accept([*few, closing.masked(4).bind(second, closing.receipts_of(second)).message])
    assert isinstance(bound[0].accept([phase.message for phase in bound]), Revealed)


def test_a_fast_close_needs_every_receipt_of_the_cohort_and_nothing_else(closing: Round):
    phase = closing.masked(0)
    with pytest.raises(ProtocolViolation, match="one for each survivor"):
        phase.accept_fast_close(closing.receipts.values())
    forged = [*closing.receipts.values(), closing.receipts[0]]
    with pytest.raises(ProtocolViolation):
        phase.accept_fast_close(forged)


def test_a_receipt_for_another_upload_of_this_site_is_refused(closing: Round):
    masking = closing.masking(5)
    other, sealed = masking.seal(b"a" * 32), masking.seal(b"b" * 32)
    survivors = (0, 1, 2, 5)
    receipts = [*closing.receipts_of((0, 1, 2)), other.message]
    with pytest.raises(ProtocolViolation, match="another upload"):
        sealed.bind(survivors, receipts)
    assert isinstance(other.bind(survivors, receipts), Bound)


def test_a_holder_opens_one_kind_of_share_for_each_owner(closing: Round):
    survivors = (0, 1, 2, 3)
    holder = closing.masked(0)
    shares = dict(holder.shares)
    reveals = closing.slow_close(survivors, commit=range(5), reveal=range(4))
    message = Signed.decode(reveals[0]).body
    opened = Reveal.decode(message).shares
    assert len(opened) == len(closing.context.cohort)
    for owner, one in zip(closing.context.cohort, opened, strict=True):
        escrow_share, self_share = shares[owner][:33], shares[owner][33:]
        wanted, other = (self_share, escrow_share) if owner in survivors else (escrow_share, self_share)
        assert one.share == wanted
        # Its first byte is nearly always zero; the 32 that matter are nowhere in what is kept and sent.
        assert other[1:] not in closing.phases[0].to_bytes()


def test_a_late_upload_of_a_dropped_member_stays_masked(closing: Round):
    """All K-shares of a dropped member open its pair masks; its self mask still covers it."""
    survivors = (0, 1, 2, 3)
    reveals = closing.slow_close(survivors, commit=range(5), reveal=range(5))
    unmasking = open_masks(
        closing.context,
        closing.epoch.roster,
        survivors,
        closing.check_reveals(survivors, reveals),
        closing.epoch.readies,
    )
    everything = closing.sum((0, 1, 2, 3, 4))
    unmasker = unmasking.unmasker()
    for at, words in enumerate(everything):
        unmasker.add_into(at, words)
    late = [
        a - b for a, b in zip(everything, plain_sum(random_chunks(closing.context, i) for i in range(5)), strict=True)
    ]
    assert all(np.count_nonzero(words) == words.size for words in late)


def test_a_round_starts_once_and_never_an_older_one():
    epoch = set_up(make_plan(3, rounds=3), 3)
    start = Round.start(epoch, number=2).context.start
    with pytest.raises(OutOfTurn):
        epoch.keys[0].start(start.encode(), model_hash=MODEL)
    with pytest.raises(OutOfTurn):
        epoch.keys[0].start(replace(start, round=1).encode(), model_hash=MODEL)
    with pytest.raises(ProtocolViolation, match="outside key epoch"):
        epoch.keys[0].start(replace(start, round=9).encode(), model_hash=MODEL)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epoch_hash": bytes(32)}, "another plan"),
        ({"roster_hash": bytes(32)}, "another plan"),
        ({"members": 9}, "roster of 9"),
        ({"model_hash": bytes(32)}, "another model"),
        ({"cohort": (1, 2, 3)}, "does not hold this site"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(change, words):
    epoch = set_up(make_plan(4), 4)
    start = Round.start(epoch, number=1).context.start
    with pytest.raises(ProtocolViolation, match=words):
        epoch.keys[0].start(replace(start, round=2, **change).encode(), model_hash=MODEL)


def test_no_second_sum_is_opened_on_a_spent_model():
    epoch = set_up(make_plan(3), 3)
    start = replace(Round.start(epoch).context.start, round=2)
    with pytest.raises(ProtocolViolation, match="second one"):
        epoch.keys[0].start(start.encode(), model_hash=MODEL, spent_models={MODEL})
    assert epoch.keys[0].start(start.encode(), model_hash=MODEL)[1].context.start.round == 2


def test_members_who_were_told_different_models_share_no_context():
    epoch = set_up(make_plan(4), 4)
    told = Round.start(epoch)
    other = replace(told.context.start, model_hash=b"o" * 32)
    fresh = set_up(make_plan(4), 4)
    assert fresh.members.org_ids == epoch.members.org_ids
    context = type(told.context).of(epoch.epoch, epoch.members, other)
    assert context.hash != told.context.hash
    told.mask(0, random_chunks(told.context, 0))
    with pytest.raises(ProtocolViolation, match="another round or context"):
        context.check_receipt(told.masked(0).message)


def test_phases_never_show_their_secrets():
    epoch = set_up(make_plan(3), 3)
    keys = epoch.keys[0]
    masking = Round.start(epoch).masking(0)
    for phase, secrets in (
        (keys, (keys.chain, keys.signing_seed, *keys.pair_chains.values(), *keys.shares.values())),
        (masking, (masking.self_seed, *masking.pair_seeds.values(), *masking.shares.values())),
    ):
        text = repr(phase)
        for secret in secrets:
            assert repr(secret)[2:-1] not in text
            assert secret.hex() not in text


def test_a_phase_read_back_from_the_journal_says_the_same_as_the_one_that_was_killed():
    """All but sealing, which is randomised and therefore journalled with its message, comes out byte for byte."""
    plan = make_plan(4)
    epoch = KeyEpoch(plan, 0, 1)
    roster, dealt = deal(epoch, 4)
    deposits = [Deposit.decode(phase.message) for phase in dealt.values()]
    assert journalled(dealt[0]).message == dealt[0].message
    envelopes = envelopes_for(roster.members, deposits, 0)
    keys, _ = dealt[0].confirm(envelopes)
    assert journalled(dealt[0]).confirm(envelopes)[0] == keys == journalled(keys)

    round_ = Round.start(set_up(plan, 4))
    for i in (1, 2, 3):
        round_.mask(i, random_chunks(round_.context, i))
        round_.hand_in(i)
    masking = round_.masking(0)
    words = random_chunks(round_.context, 0)[0]
    twice = [words.copy(), words.copy()]
    masking.masker().add_into(0, twice[0])
    journalled(masking).masker().add_into(0, twice[1])
    np.testing.assert_array_equal(twice[0], twice[1])
    for masked in (masking.seal(MODEL), masking.abandon()):
        assert journalled(masked) == masked
        assert journalled(masking).seal(MODEL).message == masking.seal(MODEL).message
        bound = masked.bind((1, 2, 3), round_.receipts_of((1, 2, 3)))
        again = journalled(masked).bind((1, 2, 3), round_.receipts_of((1, 2, 3)))
        assert (again, again.message) == (bound, bound.message)
        commits = [bound.message]
        commits += [round_.masked(i).bind((1, 2, 3), round_.receipts_of((1, 2, 3))).message for i in (1, 2, 3)]
        assert journalled(bound).accept(commits).message == bound.accept(commits).message
