"""Members and coordinators that cheat: what is tampered with is detected, and the one who did it is named."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any, cast

import pytest

from common.errors import (
    AggregationFailed,
    MalformedMessage,
    MemberAtFault,
    MemberRejected,
    PlanInvalid,
    ProtocolViolation,
    SignatureInvalid,
    TooFewMembers,
)
from common.secagg import (
    Deposit,
    KeyEpoch,
    SealedShare,
    Signed,
    assemble_roster,
    begin_epoch,
    check_advertisement,
    check_deposit,
    check_ready,
    check_roster,
    envelopes_for,
    hashing,
    identity_signer,
    open_masks,
    participant_epoch,
    sealing,
    settle_epoch,
    verify_commit,
)
from common.secagg.messages import Advertisement, OpenedShare, Reveal
from common.secagg.roster import _encode, sign_advertisement
from common.secagg.shamir import PRIME
from tests.unit.secagg.federation import (
    Round,
    advertise,
    deal,
    identity,
    make_plan,
    org_name,
    random_chunks,
    set_up,
    verifier,
)

MEMBERS = 5


def close_without(epoch, dropped, *, number=1):
    """A slow close in which `dropped` never upload; the survivors' reveals."""
    round_ = Round.start(epoch, number=number)
    for i in set(round_.context.cohort) - set(dropped):
        round_.mask(i, random_chunks(round_.context, i))
        round_.hand_in(i)
    _, survivors = round_.close()
    return round_, survivors, round_.slow_close(survivors, commit=survivors, reveal=survivors)


def finish_set_up(epoch, roster, dealt, before_confirm=lambda index: None):
    deposits = {i: check_deposit(epoch, roster.members, phase.message, sender=i) for i, phase in dealt.items()}
    keys = {}
    for i, phase in dealt.items():
        before_confirm(i)
        keys[i], _ = phase.confirm(envelopes_for(roster.members, deposits.values(), i))
    readies = {i: check_ready(epoch, roster.members, phase.message, sender=i) for i, phase in keys.items()}
    return deposits, keys, readies


# --- advertise and roster ---------------------------------------------------------------------------------------


@pytest.fixture
def epoch():
    return KeyEpoch(make_plan(MEMBERS), 0, 1)


def resigned(phase, org_id, **changes):
    """An advertisement with changed fields under the member's own, valid identity signature."""
    body = Advertisement.decode(Signed.decode(phase.message).body)
    changed: Advertisement = replace(cast(Any, body), **changes)
    return sign_advertisement(changed, identity_signer(identity(org_id).key)).encode()


def test_a_replaced_key_breaks_the_identity_signature(epoch):
    phase = advertise(epoch, MEMBERS)[org_name(0)]
    signed = Signed.decode(phase.message)
    for field, value in (("kem_key", sealing.public_key(bytes(96))), ("signing_key", bytes(32))):
        forged = replace(cast(Any, Advertisement.decode(signed.body)), **{field: value})
        with pytest.raises(SignatureInvalid):
            check_advertisement(epoch, replace(signed, body=forged.encode()).encode(), verifier(MEMBERS))


@pytest.mark.parametrize(
    "key", [bytes(1216), b"\xff" * 1216, b"\xff" * 1184 + bytes(32)], ids=["low order", "unreduced", "both"]
)
def test_a_malformed_kem_key_is_refused_even_well_signed(epoch, key):
    phase = advertise(epoch, MEMBERS)[org_name(0)]
    with pytest.raises(ProtocolViolation, match="KEM key"):
        check_advertisement(epoch, resigned(phase, org_name(0), kem_key=key), verifier(MEMBERS))


def test_an_advertisement_for_another_plan_epoch_or_round_count_is_refused(epoch):
    phase = advertise(epoch, MEMBERS)[org_name(0)]
    for other in (
        KeyEpoch(make_plan(MEMBERS, clip=0.6), 0, 1),
        KeyEpoch(make_plan(MEMBERS, floor=4), 0, 1),
        replace(epoch, number=1),
        replace(epoch, first_round=2),
    ):
        with pytest.raises(ProtocolViolation, match="another plan or key epoch"):
            check_advertisement(other, phase.message, verifier(MEMBERS))
    body = Advertisement.decode(Signed.decode(phase.message).body)
    short = resigned(
        phase,
        org_name(0),
        self_commitments=body.self_commitments[:1],
        escrow_commitments=body.escrow_commitments[:1],
    )
    with pytest.raises(MalformedMessage):
        check_advertisement(epoch, short, verifier(MEMBERS))


def test_an_organisation_outside_the_charter_is_refused(epoch):
    messages = [phase.message for phase in advertise(epoch, MEMBERS).values()]
    with pytest.raises(MemberRejected, match="not a member"):
        assemble_roster(epoch, messages, verifier(MEMBERS - 1))


def test_two_members_with_one_key_are_refused_by_name(epoch):
    phases = advertise(epoch, MEMBERS)
    stolen = Advertisement.decode(Signed.decode(phases[org_name(0)].message).body)
    for field in ("kem_key", "signing_key"):
        messages = {name: phase.message for name, phase in phases.items()}
        messages[org_name(1)] = resigned(phases[org_name(1)], org_name(1), **{field: getattr(stolen, field)})
        with pytest.raises(ProtocolViolation, match="org-00, org-01"):
            assemble_roster(epoch, messages.values(), verifier(MEMBERS))


def test_a_roster_that_is_too_small_or_names_one_twice_or_out_of_order_is_refused(epoch):
    phases = advertise(epoch, MEMBERS)
    messages = [phase.message for phase in phases.values()]
    with pytest.raises(PlanInvalid):
        assemble_roster(epoch, messages[:2], verifier(MEMBERS))
    for wrong in ([*messages[:4], messages[0]], list(reversed(messages))):
        with pytest.raises(ProtocolViolation, match="order of its names"):
            check_roster(epoch, _encode(epoch.hash, wrong), verifier(MEMBERS))


def test_a_member_does_not_deal_under_a_roster_with_other_keys_in_its_name(epoch):
    phases = advertise(epoch, MEMBERS)
    again = begin_epoch(
        epoch,
        org_id=org_name(0),
        certificate_chain=identity(org_name(0)).chain,
        identity_signer=identity_signer(identity(org_name(0)).key),
        metric_groups=(),
        random_bytes=secrets.token_bytes,
    )
    messages = [again.message, *(phase.message for name, phase in phases.items() if name != org_name(0))]
    roster = assemble_roster(epoch, messages, verifier(MEMBERS))
    with pytest.raises(ProtocolViolation, match="other keys for us"):
        phases[org_name(0)].deal(roster.message, verifier(MEMBERS))


# --- shares -----------------------------------------------------------------------------------------------------


def test_shares_dealt_under_another_roster_are_refused_and_no_keys_come_of_it(epoch):
    _, dealt = deal(epoch, MEMBERS, seed=1)
    other_roster, other = deal(epoch, MEMBERS, seed=2)
    deposits = [Deposit.decode(phase.message) for phase in other.values()]
    keys, refusals = dealt[0].confirm(envelopes_for(other_roster.members, deposits, 0))
    assert len(refusals) == MEMBERS - 1
    assert set(keys.shares) == {0}


def test_a_sealed_share_that_is_swapped_forged_or_bent_is_refused_and_its_owner_not_held(epoch):
    roster, dealt = deal(epoch, MEMBERS)
    deposits = [Deposit.decode(phase.message) for phase in dealt.values()]
    good = dict(zip((1, 2, 3, 4), envelopes_for(roster.members, deposits, 0), strict=True))
    misdirected = Deposit.decode(dealt[1].message).envelopes[2]
    signed = Signed.decode(good[2])
    bent = replace(signed, body=signed.body[:-1] + bytes([signed.body[-1] ^ 1])).encode()
    # The coordinator seals shares and a pair seed of its own choice in the name of member 3.
    box = sealing.seal_share(
        roster.advertisements[0].kem_key, bytes(66 * 2), roster_hash=roster.members.roster_hash, owner=3, holder=0
    )
    invented = SealedShare(roster.members.roster_hash, 3, 0, (bytes(32),) * 2, box)
    forged = Signed.by_epoch_key(bytes(32), "share", invented.encode()).encode()
    keys, refusals = dealt[0].confirm([misdirected, bent, forged, good[4], b"noise"])
    assert set(keys.shares) == {0, 4}
    assert len(refusals) == 4


def test_a_box_that_the_coordinator_has_sealed_in_a_members_name_is_refused(epoch):
    """HPKE authenticates nobody: with a pair seed of its own choice the coordinator could take that pair's mask off."""
    roster, dealt = deal(epoch, MEMBERS)
    honest = SealedShare.decode(Signed.decode(Deposit.decode(dealt[0].message).envelopes[1]).body)
    shares = bytes(66) * len(epoch.rounds)
    place = [(honest.roster_hash, 0, 1, number, bytes(33)) for number in epoch.rounds]
    forged = replace(
        honest,
        commitments=tuple(
            hashing.commit_shares(hashing.commit_escrow_share(*one), hashing.commit_self_share(*one)) for one in place
        ),
        box=sealing.seal_share(
            roster.advertisements[1].kem_key, bytes(32) + shares, roster_hash=honest.roster_hash, owner=0, holder=1
        ),
    )
    for envelope in (
        Signed.by_epoch_key(bytes(32), "share", forged.encode()),
        Signed.by_epoch_key(dealt[2].signing_seed, "share", forged.encode()),
        Signed(forged.encode(), bytes(64)),
    ):
        keys, refusals = dealt[1].confirm([envelope.encode()])
        assert ["signature" in refusal.why for refusal in refusals] == [True]
        assert 0 not in keys.shares
        assert 0 not in keys.pair_chains
    keys, refusals = dealt[1].confirm([Signed.by_epoch_key(dealt[0].signing_seed, "share", forged.encode()).encode()])
    assert refusals == (), "signed by its owner, the same box is taken: only the signature was wrong"
    assert 0 in keys.shares


def test_a_box_in_which_the_shares_are_not_the_committed_ones_is_refused_by_name(epoch):
    _, dealt = deal(epoch, MEMBERS)
    sealed = SealedShare.decode(Signed.decode(Deposit.decode(dealt[1].message).envelopes[0]).body)
    lie = replace(sealed, commitments=(bytes(32), *sealed.commitments[1:]))
    envelope = Signed.by_epoch_key(dealt[1].signing_seed, "share", lie.encode()).encode()
    keys, refusals = dealt[0].confirm([envelope])
    assert [refusal.org_id for refusal in refusals] == [org_name(1)]
    assert "committed" in refusals[0].why
    assert 1 not in keys.shares


def test_the_coordinator_refuses_a_deposit_in_anothers_name_short_or_misaddressed(epoch):
    roster, dealt = deal(epoch, MEMBERS)
    deposit = Deposit.decode(dealt[1].message)
    swapped = (deposit.envelopes[1], deposit.envelopes[0], *deposit.envelopes[2:])
    for wrong in (
        replace(deposit, owner=2),
        replace(deposit, envelopes=deposit.envelopes[1:]),
        replace(deposit, envelopes=swapped),
        replace(deposit, roster_hash=bytes(32)),
    ):
        with pytest.raises(ProtocolViolation):
            check_deposit(epoch, roster.members, wrong.encode(), sender=1)
    assert check_deposit(epoch, roster.members, dealt[1].message, sender=1).owner == 1


# --- ready ------------------------------------------------------------------------------------------------------


def test_a_member_that_disagrees_with_everyone_about_pair_keys_is_left_out_alone(epoch, monkeypatch):
    roster, dealt = deal(epoch, MEMBERS)
    honest = hashing.commit_pair_key

    def false(roster_hash, low, high, round_, key):
        return honest(roster_hash, low, high, round_, bytes(len(key)))

    def lie_if_two(index):
        monkeypatch.setattr(hashing, "commit_pair_key", false if index == 2 else honest)

    _, _, readies = finish_set_up(epoch, roster, dealt, lie_if_two)
    settled = settle_epoch(epoch, roster.members, readies.values())
    assert settled.usable == (0, 1, 3, 4)
    assert set(settled.left_out) == {2}
    assert settled.unequal_pairs == ((0, 2), (1, 2), (2, 3), (2, 4))


def test_of_one_unequal_pair_both_are_left_out_as_nobody_can_tell_who_lied(monkeypatch):
    epoch = KeyEpoch(make_plan(7), 0, 1)
    roster, dealt = deal(epoch, 7)
    honest = hashing.commit_pair_key

    def lie_about_two_and_five(index):
        def commit(roster_hash, low, high, round_, key):
            return honest(roster_hash, low, high, round_, bytes(32) if (low, high) == (2, 5) else key)

        monkeypatch.setattr(hashing, "commit_pair_key", commit if index == 5 else honest)

    _, _, readies = finish_set_up(epoch, roster, dealt, lie_about_two_and_five)
    settled = settle_epoch(epoch, roster.members, readies.values())
    assert settled.usable == (0, 1, 3, 4, 6)
    assert settled.unequal_pairs == ((2, 5),)


def test_an_epoch_with_too_few_usable_members_fails_with_the_names(epoch):
    roster, dealt = deal(epoch, MEMBERS)
    _, _, readies = finish_set_up(epoch, roster, dealt)
    with pytest.raises(TooFewMembers, match=r"org-03 sent no Ready; org-04 sent no Ready"):
        settle_epoch(epoch, roster.members, [readies[i] for i in (0, 1, 2)])


def test_a_member_does_not_join_a_cohort_with_someone_whose_shares_it_has_not(epoch):
    roster, dealt = deal(epoch, MEMBERS)
    deposits = {i: check_deposit(epoch, roster.members, phase.message, sender=i) for i, phase in dealt.items()}
    keys, _ = dealt[0].confirm(envelopes_for(roster.members, [deposits[i] for i in (1, 2, 3)], 0))
    start = Round.start(set_up(make_plan(MEMBERS), MEMBERS)).context.start
    start = replace(start, epoch_hash=epoch.hash, roster_hash=roster.members.roster_hash)
    with pytest.raises(ProtocolViolation, match="org-04"):
        keys.start(start.encode(), model_hash=start.model_hash)
    assert keys.start(replace(start, cohort=(0, 1, 2, 3)).encode(), model_hash=start.model_hash)


# --- reveal and unmask ------------------------------------------------------------------------------------------


def test_a_holder_that_reveals_a_wrong_share_is_named_and_the_others_open_the_sum():
    epoch = set_up(make_plan(MEMBERS), MEMBERS)
    round_, survivors, reveals = close_without(epoch, dropped=[4])
    round_.phases[4] = round_.masking(4).abandon()
    honest = Reveal.decode(Signed.decode(reveals[1]).body)
    for place, owner in ((0, "org-00"), (4, "org-04")):
        wrong = OpenedShare(
            ((int.from_bytes(honest.shares[place].share, "big") + 1) % PRIME).to_bytes(33, "big"),
            honest.shares[place].sibling,
        )
        lie = replace(honest, shares=(*honest.shares[:place], wrong, *honest.shares[place + 1 :]))
        forged = Signed.by_epoch_key(epoch.keys[1].signing_seed, "reveal", lie.encode()).encode()
        with pytest.raises(ProtocolViolation, match=f"org-01 reveals a share of {owner}"):
            round_.check_reveals(survivors, {**reveals, 1: forged})
    # t is 4 here: without org-01 another holder is asked, org-04, whose own update is not in the sum.
    assert round_.context.thresholds.shares == 4
    rest = {i: reveals[i] for i in (0, 2, 3)}
    with pytest.raises(TooFewMembers):
        round_.open(survivors, rest)
    bound = round_.masked(4).bind(survivors, round_.receipts_of(survivors))
    evidence = [bound.message, *(round_.commits[i] for i in rest)]
    rest[4] = bound.accept(evidence).message
    assert round_.open(survivors, rest)[-1][1] == len(survivors)


def test_an_owner_that_dealt_wrong_shares_is_named_as_survivor_and_as_dropped(epoch, monkeypatch):
    honest = participant_epoch._deal_shares

    def wrong_for_one_holder(epoch_, members, index, secrets_):
        dealt = dict(honest(epoch_, members, index, secrets_))
        if index == 2:
            dealt[0] = tuple(bytes(2) + shares[2:33] + bytes(2) + shares[35:] for shares in dealt[0])
        return dealt

    monkeypatch.setattr(participant_epoch, "_deal_shares", wrong_for_one_holder)
    for dropped in ([4], [2]):
        fresh = set_up(make_plan(MEMBERS), MEMBERS)
        round_, survivors, reveals = close_without(fresh, dropped)
        with pytest.raises(MemberAtFault, match="org-02 dealt shares of another") as failure:
            round_.open(survivors, reveals)
        assert failure.value.members == (org_name(2),)


def test_an_escrow_with_other_keys_or_that_does_not_open_names_its_owner(epoch, monkeypatch):
    honest = sealing.seal_escrow

    def false_keys(key, pair_keys, **place):
        return honest(key, bytes(len(pair_keys)), **place)

    def other_key(key, pair_keys, **place):
        return honest(bytes(32), pair_keys, **place)

    def too_short(key, pair_keys, **place):
        return honest(key, pair_keys[32:], **place)

    for lie, words in (
        (false_keys, "escrowed another pair key"),
        (other_key, "does not open"),
        (too_short, "wrong number"),
    ):
        roster, dealt = deal(epoch, MEMBERS)

        def lie_if_three(index, lie=lie):
            monkeypatch.setattr(sealing, "seal_escrow", lie if index == 3 else honest)

        deposits, keys, readies = finish_set_up(epoch, roster, dealt, lie_if_three)
        usable = settle_epoch(epoch, roster.members, readies.values()).usable
        assert usable == tuple(range(MEMBERS))
        fresh = set_up(make_plan(MEMBERS), MEMBERS)
        fresh = replace(fresh, roster=roster, deposits=deposits, readies=readies, keys=keys)
        round_, survivors, reveals = close_without(fresh, dropped=[3])
        with pytest.raises(MemberAtFault, match=words) as failure:
            round_.open(survivors, reveals)
        assert failure.value.members == (org_name(3),)


def test_reveals_and_commits_of_another_round_set_or_member_are_not_counted():
    epoch = set_up(make_plan(MEMBERS), MEMBERS)
    first, survivors, reveals = close_without(epoch, dropped=[4])
    second, _, later = close_without(epoch, dropped=[4], number=2)
    with pytest.raises(ProtocolViolation, match="another round"):
        first.check_reveals(survivors, {0: later[0]})
    with pytest.raises(SignatureInvalid):
        first.check_reveals(survivors, {0: reveals[1]})
    with pytest.raises(ProtocolViolation, match="another survivor set"):
        first.check_reveals((0, 1, 2, 4), {0: reveals[0]})
    commit = second.masking(4).abandon().bind(survivors, second.receipts_of(survivors)).message
    verify_commit(second.context, survivors, commit, sender=4)
    with pytest.raises(ProtocolViolation, match="another survivor set"):
        verify_commit(second.context, (0, 1, 2, 4), commit, sender=4)
    with pytest.raises(ProtocolViolation, match="another member's name"):
        verify_commit(second.context, survivors, commit, sender=1)
    with pytest.raises(ProtocolViolation, match="another round"):
        verify_commit(first.context, survivors, commit, sender=4)


def test_a_wrong_unmask_shows_in_the_count_word():
    epoch = set_up(make_plan(MEMBERS), MEMBERS)
    round_, survivors, reveals = close_without(epoch, dropped=[4])
    unmasking = open_masks(
        round_.context, epoch.roster, survivors, round_.check_reveals(survivors, reveals), epoch.readies
    )
    partial = round_.sum(survivors[:-1])
    unmasking.unmasker().add_into(len(partial) - 1, partial[-1])
    with pytest.raises(AggregationFailed, match="count word"):
        unmasking.check_tail(partial[-1])
