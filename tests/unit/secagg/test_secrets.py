"""Secrets are nowhere but where they must be: not in what is printed, raised or logged."""

from __future__ import annotations

import base64
import copy
import dataclasses
import importlib
import io
import logging
import pickle
import pkgutil
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import structlog

import common.secagg
from common.errors import AccordError
from common.log import LogForm, configure
from common.secagg import (
    Advertising,
    Bound,
    Dealt,
    EpochKeys,
    Masked,
    Masking,
    OpenedKeys,
    Packer,
    Reveal,
    Revealed,
    Signed,
    open_keys,
    sealing,
    shamir,
)
from common.secagg.coordinator import CheckedReveal
from common.secagg.messages import OpenedShare
from common.secagg.participant_epoch import _Secrets
from common.secagg.unmask import Unmasking
from participant.journal import EpochEntry, EpochPhase, RoundEntry, RoundPhase
from tests.secrets_spy import Spy, pieces, spying
from tests.unit.participant.desks import Fate, play
from tests.unit.secagg.federation import NOW, Round, advertise, deal, make_plan, random_chunks, set_up

MEMBERS = 4


@dataclasses.dataclass
class Made:
    """Every state and value of an epoch and a slow round, and the secrets of both."""

    spy: Spy
    values: list[Any]


@pytest.fixture(scope="module")
def made() -> Made:
    with spying() as spy:
        plan = make_plan(MEMBERS)
        epoch = set_up(plan, MEMBERS)
        advertised = list(advertise(epoch.epoch, MEMBERS, seed=9).values())
        _, dealt = deal(epoch.epoch, MEMBERS, seed=9)
        keys = dict(epoch.keys)
        round_ = Round.start(epoch)
        masking = dict(round_.phases)
        for i in (0, 1, 2):
            round_.mask(i, random_chunks(round_.context, i))
            round_.hand_in(i)
        masked = dict(round_.phases)
        survivors = (0, 1, 2)
        bound = {i: round_.masked(i).bind(survivors, round_.receipts_of(survivors)) for i in survivors}
        reveals = round_.slow_close(survivors, commit=range(MEMBERS), reveal=range(MEMBERS))
        checked = round_.check_reveals(survivors, reveals)
        opened = open_keys(round_.context, epoch.roster, survivors, checked, epoch.readies)
        signed = [Signed.decode(message) for message in reveals.values()]
        values = [
            *advertised,
            *dealt.values(),
            *keys.values(),
            *masking.values(),
            *masked.values(),
            *bound.values(),
            *round_.phases.values(),
            *checked,
            opened,
            opened.unmasking(round_.context, survivors),
            *signed,
            *(Reveal.decode(one.body) for one in signed),
            _Secrets.of(epoch.epoch, keys[0].chain),
            EpochEntry("run", 0, EpochPhase.KEYS, keys[0].to_bytes()),
            RoundEntry("run", 1, "train", RoundPhase.BOUND, "ab", b"m" * 32, NOW, NOW, state=bound[0].to_bytes()),
        ]
    spy.secrets |= pieces(shares for phase in keys.values() for shares in phase.shares.values())
    return Made(spy, values)


def dataclasses_in(value: Any) -> Iterator[Any]:
    """The value and every dataclass in it, at any depth."""
    if dataclasses.is_dataclass(value):
        yield value
        for one in dataclasses.fields(value):
            yield from dataclasses_in(getattr(value, one.name))
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from dataclasses_in(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from dataclasses_in(one)


SECRET_HOLDERS = {
    Advertising, Dealt, EpochKeys, Masking, Masked, Bound, Revealed, CheckedReveal, OpenedKeys, Unmasking, Signed,
    Reveal, OpenedShare, _Secrets, EpochEntry, RoundEntry,
}  # fmt: skip


def test_the_spy_finds_a_secret_in_every_form_in_which_it_could_be_written(made):
    assert len(made.spy.secrets) > 200
    secret = made.values[0].master
    assert secret in made.spy.secrets
    for text in (
        f"{secret!r}",
        f"key={secret.hex()}",
        secret.hex().upper(),
        str([secret]),
        f"n={int.from_bytes(secret, 'big')}",
        base64.b64encode(b"x" + secret).decode(),
        base64.urlsafe_b64encode(secret).decode(),
    ):
        assert made.spy.found_in(text), text
    assert not made.spy.found_in("an event without any")


def test_what_is_made_holds_every_type_that_has_secrets(made):
    assert {type(one) for value in made.values for one in dataclasses_in(value)} >= SECRET_HOLDERS


def test_no_secret_is_in_what_any_value_prints(made):
    for value in made.values:
        for one in dataclasses_in(value):
            for text in (repr(one), str(one), f"{one}", f"{[one]}", f"{ {'x': one} }"):
                assert made.spy.found_in(text) == [], type(one).__name__


# Bytes that a repr may show: digests, public keys, signatures, sealed boxes, ids.
SHOWN = {
    "Advertisement": "certificate_chain epoch_hash escrow_commitments kem_key nonce self_commitments signing_key",
    "Bound": "message",
    "Commit": "context",
    "Deposit": "envelopes roster_hash",
    "Masked": "message upload_hash",
    "Members": "roster_hash signing_keys",
    "OpenedShare": "sibling",
    "OwnUpload": "chunk_digests",
    "PinnedMember": "ca_certificates key_sha256",
    "PublishedAdapter": "manifest manifest_signature",
    "Ready": "escrows pair_commitments roster_hash",
    "Receipt": "context upload_hash",
    "Reveal": "context",
    "Roster": "message",
    "RoundContext": "hash",
    "RoundEntry": "model_hash",
    "RunTerms": "plan_digest",
    "SealedShare": "box commitments roster_hash",
    "SecaggPlan": "plan_hash run_id",
    "ShownRound": "commits",
    "ShownUpload": "chunk_digests receipt",
    "Signed": "signature",
    "Spooled": "digests",
    "Start": "epoch_hash model_hash roster_hash",
}


def test_every_field_of_bytes_that_a_repr_shows_is_known_to_be_public():
    """A new field of bytes is secret until somebody has put it on the list above."""
    modules = [f"common.secagg.{one.name}" for one in pkgutil.iter_modules(common.secagg.__path__)]
    modules += [f"participant.{name}" for name in ("client", "identity", "journal", "masking", "spool", "update")]
    found: dict[str, str] = {}
    for name in modules:
        module = importlib.import_module(name)
        for kind in vars(module).values():
            if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == name:
                shown = [one.name for one in dataclasses.fields(kind) if one.repr and "bytes" in str(one.type)]
                if shown:
                    found[kind.__name__] = " ".join(sorted(shown))
    assert found == SHOWN


# --- errors -----------------------------------------------------------------------------------------------------


def all_of(error: BaseException) -> str:
    """Everything that a log of this error could hold, its causes too."""
    parts = ["".join(traceback.format_exception(error))]
    at: BaseException | None = error
    while at is not None:
        parts += [str(at), repr(at), repr(at.args), repr(getattr(at, "metadata", ""))]
        at = at.__cause__ or at.__context__
    return "\n".join(parts)


def error_of(call: Callable[[], object]) -> BaseException | None:
    try:
        call()
    except (AccordError, ValueError, TypeError, AttributeError, KeyError, pickle.PicklingError) as error:
        return error
    return None


def test_no_error_about_a_damaged_state_holds_a_secret_of_it(made):
    refused = 0
    for kind in (Advertising, Dealt, EpochKeys, Masking, Masked, Bound, Revealed, Reveal):
        phase = next(one for value in made.values for one in dataclasses_in(value) if type(one) is kind)
        data = phase.encode() if isinstance(phase, Reveal) else phase.to_bytes()
        parse = Reveal.decode if isinstance(phase, Reveal) else type(phase).from_bytes
        damaged = [data + b"\0", *(data[:at] for at in range(0, len(data), max(1, len(data) // 40)))]
        damaged += [data[:at] + b"\xff" + data[at + 1 :] for at in range(0, len(data), max(1, len(data) // 40))]
        for bad in damaged:
            error = error_of(lambda parse=parse, bad=bad: parse(bad))  # type: ignore[misc]
            if error is not None:
                refused += 1
                assert made.spy.found_in(all_of(error)) == []
    assert refused > 200


def test_no_error_about_a_step_that_may_not_be_taken_holds_a_secret(made):
    of: dict[type, Any] = {
        kind: next(one for one in made.values if type(one) is kind) for kind in SECRET_HOLDERS - {OpenedShare}
    }
    share = next(iter(of[Masking].shares.values()))[:33]
    attempts: list[Callable[[], object]] = [
        lambda: of[Advertising].deal(b"no roster", None),
        lambda: of[EpochKeys].skip_to(99),
        lambda: of[EpochKeys].start(b"no start", model_hash=b""),
        lambda: of[Masking].masker().add_into(99, None),
        lambda: of[Masking].seal(b"too short"),
        lambda: of[Masking].pack_tail(fixed_alpha=0, metrics={}),
        lambda: of[Masked].bind((0,), ()),
        lambda: of[Masked].accept_fast_close([b"no receipt"]),
        lambda: of[Bound].bind((0, 1), ()),
        lambda: of[Bound].accept([]),
        lambda: of[Revealed].bind((0, 1), ()),
        lambda: shamir.check_share(share + b"\0"),
        lambda: shamir.combine((1, 1), [share, share]),
        lambda: shamir.split(share, (1,), b""),
        lambda: sealing.open_share(of[Advertising].kem_seed, share, roster_hash=b"", owner=0, holder=1),
        lambda: sealing.open_share(share, share, roster_hash=b"", owner=0, holder=1),
        lambda: sealing.open_escrow(share[1:], share, roster_hash=b"", owner=0, round_=1),
        lambda: sealing.public_key(of[Advertising].master),
        lambda: Signed.by_epoch_key(share, "share", b""),
        lambda: Packer(make_plan(3), round_=1, alpha=1.0, rounding_key=share),
        lambda: setattr(of[Masking], "self_seed", share),
        lambda: dataclasses.replace(of[Masking], no_such_field=share),
        lambda: Advertising(share),  # type: ignore[call-arg]
        lambda: pickle.dumps(of[Masking].masker()),
        lambda: copy.deepcopy(of[Unmasking].unmasker()),
    ]
    for number, attempt in enumerate(attempts):
        error = error_of(attempt)
        assert error is not None, number
        assert made.spy.found_in(all_of(error)) == [], error


# --- logs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", LogForm)
def test_nothing_that_a_site_logs_in_a_round_holds_a_secret(form, tmp_path):
    """Through kills and repeats, at the lowest level, in both forms."""
    stream, handlers, level = io.StringIO(), logging.getLogger().handlers[:], logging.getLogger().level
    try:
        configure(form=form, level=logging.DEBUG, stream=stream)
        with spying() as spy:
            _, desks = play(tmp_path, Fate(8, 20, 30), uploading=(0, 1, 2))
            for desk in desks:
                structlog.get_logger("test").info("a_state_is_logged", entry=desk.journal.round("run", 1))
    finally:
        structlog.reset_defaults()
        logging.getLogger().handlers[:] = handlers
        logging.getLogger().setLevel(level)
    text = stream.getvalue()
    assert "key_epoch_begun" in text
    assert "a_state_is_logged" in text
    assert len(spy.secrets) > 100
    assert spy.found_in(text) == []
