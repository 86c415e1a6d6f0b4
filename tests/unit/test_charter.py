"""The charter: one digest for one meaning, and every mistake named."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from common.certificates import to_pem
from common.charter import CHARTER_FORM, USUAL_BOUNDS, Charter, CharterMember, canonical_authority
from common.errors import CharterInvalid
from common.identifiers import FederationId
from coordinator.pki import new_authority
from tests.fakes import START_OF_TIME

CA = to_pem([new_authority(FederationId("north"), now=START_OF_TIME).certificate])


def member(name: str, *, key: str | None = None) -> CharterMember:
    return CharterMember(
        id=name,
        uri=f"accord://north/participants/{name}",
        ca_certificates=(CA,),
        identity_key_sha256=key,
    )


@pytest.fixture
def charter() -> Charter:
    return Charter(
        federation="north",
        members=(member("bank", key="a" * 64), member("clinic", key="b" * 64), member("newsroom")),
        coordinator_public_key="c" * 64,
        least_cohort=3,
        colluders=None,
        base_model_digests=("d" * 64,),
        bounds=USUAL_BOUNDS,
        form=CHARTER_FORM,
    )


def mistakes_in(charter: Charter) -> str:
    with pytest.raises(CharterInvalid) as caught:
        charter.check()
    return caught.value.message


def changed(charter: Charter, **entries: object) -> bytes:
    return json.dumps({**json.loads(charter.to_bytes()), **entries}).encode()


def test_a_charter_comes_back_from_its_bytes_with_the_same_digest(charter):
    again = Charter.from_bytes(charter.to_bytes())

    assert again == charter
    assert again.digest == charter.digest


def test_indentation_and_order_of_keys_do_not_change_the_digest(charter):
    reordered = dict(reversed(json.loads(charter.to_bytes()).items()))

    assert Charter.from_bytes(json.dumps(reordered, indent=4).encode()).digest == charter.digest


def test_a_whole_number_and_a_decimal_of_the_same_value_have_one_digest(charter):
    bounds = {**json.loads(charter.to_bytes())["bounds"], "most_alpha": 1024}

    assert Charter.from_bytes(changed(charter, bounds=bounds)).digest == charter.digest


@pytest.mark.parametrize("name", ["least_cohort", "colluders", "federation", "coordinator_public_key"])
def test_every_field_changes_the_digest(charter, name):
    other = {"least_cohort": 4, "colluders": 1, "federation": "south", "coordinator_public_key": "e" * 64}[name]

    assert replace(charter, **{name: other}).digest != charter.digest


def test_every_bound_changes_the_digest(charter):
    entries = json.loads(charter.to_bytes())
    for name, value in entries["bounds"].items():
        other = {bool: True, list: ["fedit"], int: 7, float: 0.5}[type(value)]
        bounds = {**entries["bounds"], name: other}
        assert Charter.from_bytes(changed(charter, bounds=bounds)).digest != charter.digest, name


def test_an_unknown_key_is_a_mistake_with_its_path(charter):
    bounds = {**json.loads(charter.to_bytes())["bounds"], "most_rouns": 1}

    with pytest.raises(CharterInvalid, match=r"bounds\.most_rouns"):
        Charter.from_bytes(changed(charter, bounds=bounds))


def test_a_missing_key_is_a_mistake_because_a_digest_must_not_depend_on_defaults(charter):
    entries = json.loads(charter.to_bytes())
    del entries["bounds"]["most_rank"]

    with pytest.raises(CharterInvalid, match=r"bounds\.most_rank"):
        Charter.from_bytes(json.dumps(entries).encode())


def test_a_key_that_is_given_twice_is_refused(charter):
    text = charter.to_bytes().replace(b'"least_cohort":3', b'"least_cohort":4,"least_cohort":3')

    with pytest.raises(CharterInvalid, match="more than once: least_cohort"):
        Charter.from_bytes(text)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_garbage_is_a_typed_error(content):
    with pytest.raises(CharterInvalid):
        Charter.from_bytes(content)


def test_infinity_is_not_a_bound(charter):
    text = charter.to_bytes().replace(b'"most_alpha":1024.0', b'"most_alpha":Infinity')

    with pytest.raises(CharterInvalid, match="most_alpha"):
        Charter.from_bytes(text)


def test_two_members_are_too_few(charter):
    assert "members: 2 is too few" in mistakes_in(replace(charter, members=charter.members[:2]))


def test_all_mistakes_are_named_at_once(charter):
    wrong = replace(
        charter,
        members=(
            replace(charter.members[0], uri="accord://south/participants/bank"),
            replace(charter.members[1], ca_certificates=()),
            replace(charter.members[2], identity_key_sha256="a" * 64),
        ),
        coordinator_public_key="C" * 64,
        least_cohort=2,
        colluders=2,
        base_model_digests=("d" * 64, "d" * 64),
        bounds=replace(USUAL_BOUNDS, most_rank=0),
        form=2,
    )

    message = mistakes_in(wrong)

    for part in (
        "form: 2 is not known",
        "coordinator_public_key: must be 64",
        "least_cohort: must be from 3",
        "colluders: must be from 0",
        "base_model_digests: one of them is there twice",
        "members.bank.uri: must be accord://north/participants/bank",
        "members.clinic.ca_certificates: must name",
        "two of them have the same identity_key_sha256",
        "bounds.most_rank: must be a positive number",
    ):
        assert part in message


def test_members_come_in_one_order_and_once(charter):
    first, second, third = charter.members

    assert "in the order of their ids" in mistakes_in(replace(charter, members=(second, first, third)))
    assert "in the order of their ids" in mistakes_in(replace(charter, members=(first, second, second)))


def test_a_certificate_that_is_no_ca_is_refused_as_an_issuer(charter):
    authority = new_authority(FederationId("north"), now=START_OF_TIME)
    leaf = authority.issue_server(["localhost"], now=START_OF_TIME).chain_pem
    wrong = replace(charter.members[0], ca_certificates=(leaf,))

    assert "is not a CA's" in mistakes_in(replace(charter, members=(wrong, *charter.members[1:])))


def test_a_ca_has_one_spelling(charter):
    loose = "Issued by the partner\n" + CA.replace("\n", "\r\n")
    wrong = replace(charter.members[0], ca_certificates=(loose,))

    assert "text or spaces beside" in mistakes_in(replace(charter, members=(wrong, *charter.members[1:])))
    assert canonical_authority(loose) == CA
