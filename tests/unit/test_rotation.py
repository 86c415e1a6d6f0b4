"""Another CA in the place of the coordinator's: the files after each step and each kill, and who would be cut off."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from common.certificates import serial_text, to_pem
from common.charter import CHARTER_FORM, USUAL_BOUNDS, Charter
from common.durable import write_durably
from common.errors import OutOfTurn
from common.identifiers import FederationId, ParticipantId
from coordinator.identity import OwnAuthority
from coordinator.keystore import PkiFolder
from coordinator.rotation import Holder, OpenRun, Step, issuer_of, not_listing, not_told, of_former, step_of
from tests.fakes import FakeClock
from tests.unit.test_charter import member

NORTH = FederationId("north")


class Killed(BaseException):
    """What a kill is to the process that it ends."""


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def folder(tmp_path, clock):
    made = PkiFolder(tmp_path / "pki")
    made.create_authority(NORTH, clock)
    return made


def holder(authority, name="participants/bank", *, at) -> Holder:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return Holder(name, authority.issue_participant(key, ParticipantId("bank"), now=at).chain_pem, at)


def test_the_steps_lead_from_one_ca_to_another(folder, clock):
    first = folder.load_authority(NORTH).certificate
    assert step_of(folder.rotation(NORTH)) is Step.NONE

    staged = folder.stage_authority(NORTH, clock)
    assert step_of(folder.rotation(NORTH)) is Step.STAGED
    assert folder.load_authority(NORTH).certificate == first
    assert folder.trust_bundle() == to_pem([first, staged])

    assert folder.switch_authority(NORTH).certificate == staged
    assert step_of(folder.rotation(NORTH)) is Step.SWITCHED
    assert folder.trust_bundle() == to_pem([staged, first])
    assert not folder.next_authority_key.exists()

    assert folder.retire_authorities(NORTH) == (first,)
    assert folder.trust_bundle() == to_pem([staged])
    assert step_of(folder.rotation(NORTH)) is Step.NONE


@pytest.mark.parametrize("step", ["stage", "switch", "retire"])
@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_step_that_was_killed_leaves_a_ca_that_issues_and_can_be_taken_again(
    folder, clock, monkeypatch, step, writes
):
    if step != "stage":
        folder.stage_authority(NORTH, clock)
    if step == "retire":
        folder.switch_authority(NORTH)
    steps = {
        "stage": lambda: folder.stage_authority(NORTH, clock),
        "switch": lambda: folder.switch_authority(NORTH),
        "retire": lambda: folder.retire_authorities(NORTH),
    }
    left = [writes]

    def until_killed(*args, **kwargs):
        if not left[0]:
            raise Killed
        left[0] -= 1
        write_durably(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr("coordinator.keystore.write_durably", until_killed)
        try:
            steps[step]()
        except Killed:
            was_killed = True
        else:
            was_killed = False

    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    folder.load_authority(NORTH).issue_participant(key, ParticipantId("bank"), now=clock.now())
    if was_killed:
        steps[step]()
    expected = {"stage": Step.STAGED, "switch": Step.SWITCHED, "retire": Step.NONE}
    assert step_of(folder.rotation(NORTH)) is expected[step]
    if step != "stage":
        assert not folder.next_authority_key.exists()


def test_a_running_coordinator_issues_by_the_new_ca_without_a_restart(folder, clock):
    own = OwnAuthority(folder, NORTH, ["localhost"], clock)
    before, first = own.bundle_sha256(), own.authority().certificate
    staged = folder.stage_authority(NORTH, clock)
    assert own.authority().certificate == first
    assert own.bundle_sha256() != before
    folder.switch_authority(NORTH)
    assert own.authority().certificate == staged
    assert own.trust().certificates == (to_pem([staged]), to_pem([first]))
    folder.authority_key.write_text("broken")
    assert own.authority().certificate == staged  # what was read before goes on serving


def test_steps_out_of_turn_are_refused(folder, clock):
    with pytest.raises(OutOfTurn, match="no CA to switch to"):
        folder.switch_authority(NORTH)
    folder.stage_authority(NORTH, clock)
    folder.switch_authority(NORTH)
    with pytest.raises(OutOfTurn, match="being brought in already"):
        folder.stage_authority(NORTH, clock)


def test_who_would_be_cut_off_is_named(folder, clock):
    early = holder(folder.load_authority(NORTH), "participants/early", at=clock.now())
    clock.advance(hours=1)
    folder.stage_authority(NORTH, clock)
    staged = folder.rotation(NORTH)
    told = holder(folder.load_authority(NORTH), "participants/told", at=clock.now() + timedelta(seconds=2))
    assert not_told([early, told], staged) == ("participants/early",)
    assert issuer_of(told, staged) == "issuing"

    folder.switch_authority(NORTH)
    switched = folder.rotation(NORTH)
    new = holder(folder.load_authority(NORTH), "participants/new", at=clock.now())
    assert of_former([early, told, new], switched) == ("participants/early", "participants/told")
    folder.retire_authorities(NORTH)
    assert issuer_of(early, folder.rotation(NORTH)) == "another"


def test_a_certificate_that_has_ended_or_was_revoked_holds_nobody_up(folder, clock):
    one = holder(folder.load_authority(NORTH), at=clock.now())
    assert not one.is_over(revoked=(), now=clock.now())
    assert one.is_over(revoked=(), now=clock.now() + timedelta(days=31))
    assert one.is_over(revoked={serial_text(one.certificate)}, now=clock.now())


def test_runs_whose_charter_lists_only_the_old_ca_are_named(folder, clock):
    staged = folder.stage_authority(NORTH, clock)
    old = Charter(
        federation=NORTH,
        members=tuple(member(name) for name in ("bank", "clinic", "office")),
        coordinator_public_key="ab" * 32,
        least_cohort=3,
        colluders=None,
        base_model_digests=(),
        bounds=USUAL_BOUNDS,
        form=CHARTER_FORM,
    )
    both = replace(
        old,
        members=tuple(replace(one, ca_certificates=(*one.ca_certificates, to_pem([staged]))) for one in old.members),
    )
    certified = old.member_ids
    runs = [
        OpenRun("runs/old", old, certified),
        OpenRun("runs/both", both, certified),
        OpenRun("runs/own-pki", old, ()),
    ]
    assert not_listing(runs, staged) == ("runs/old",)
