"""What a lying participant uploads: each is refused with an error of its own, and leaves nothing in the round's sum.

Every case is a round in which all honest sites have uploaded and the liar's masked update is in the test's hands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import grpc
import pytest

from common.errors import (
    AccordError,
    AlreadyExists,
    InvalidArgument,
    MalformedMessage,
    NotFound,
    NotInCohort,
    OutOfTurn,
    ProtocolViolation,
    SignatureInvalid,
    TooLarge,
    UploadIncomplete,
    UploadMismatch,
)
from common.rpc.status import raised_as_errors
from common.rpc.tls import channel_credentials
from common.secagg import upload_hash
from common.secagg.messages import Receipt, Signed
from tests.rpc.federation import Federation
from tests.rpc.lab import Lab, lab_in, open_round
from tests.rpc.lying import HeldUpload, Part, held_upload, hold_upload, part, secagg_stub, send

LIAR = "site-1"
SITES = 4


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab_in(tmp_path_factory, rounds_per_epoch=64) as made:
        yield made


@pytest.fixture
def federation(lab: Lab) -> Iterator[Federation]:
    federation = lab.of(SITES)
    yield federation
    for site in federation.sites.values():
        site.line.mend()
    federation.play(int(federation.run()["round"]))


@pytest.fixture
def held(federation: Federation) -> HeldUpload:
    return hold_upload(federation, open_round(federation), LIAR)


def flipped(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


def receipt_over(held: HeldUpload, digests: list[bytes]) -> bytes:
    """A receipt that the liar has signed, over other chunks than it has sealed."""
    masked = held.masked
    body = Receipt(masked.context.hash, masked.index, upload_hash(digests)).encode()
    return Signed.by_epoch_key(masked.signing_seed, "upload", body).encode()


def receipt_of_another(held: HeldUpload) -> bytes:
    """The honest receipt of another member of the cohort."""
    other = next(name for name in sorted(held.site._federation.sites) if name != LIAR)
    return held_upload(held.site._federation.sites[other], held.round).receipt


REFUSED: dict[str, tuple[Callable[[HeldUpload], list[Part]], type[AccordError], str]] = {
    "no message at all": (lambda held: [], InvalidArgument, "begins with its header"),
    "a chunk before the header": (lambda held: [part(held.chunks[0])], InvalidArgument, "begins with its header"),
    "one chunk too many declared": (
        lambda held: [held.header(chunk_count=len(held.chunks) + 1)],
        UploadMismatch,
        "declares 3 chunks",
    ),
    "another length declared": (
        lambda held: [held.header(total_bytes=7)],
        UploadMismatch,
        "7 bytes, the plan's layout says",
    ),
    "a digest missing": (
        lambda held: [held.header(chunk_digests=bytes(32))],
        UploadMismatch,
        "one SHA-256 for each chunk",
    ),
    "begun at a later chunk": (lambda held: [held.header(first_chunk=1)], UploadMismatch, "next chunk to send is 0"),
    "a chunk with one bit flipped": (
        lambda held: [held.header(), part(flipped(held.chunks[0]))],
        UploadMismatch,
        "chunk 0 does not have the digest",
    ),
    "a chunk that is too short": (
        lambda held: [held.header(), part(held.chunks[0][:-8])],
        UploadMismatch,
        "chunk 0 has",
    ),
    "a chunk more than declared": (
        lambda held: [held.header(), *map(part, held.chunks), part(held.chunks[0])],
        UploadMismatch,
        "more than 2 chunks",
    ),
    "the receipt before the chunks": (
        lambda held: [held.header(), Part(receipt=held.receipt)],
        UploadMismatch,
        "after 0 of 2 chunks",
    ),
    "a second header": (lambda held: [held.header(), held.header()], InvalidArgument, "chunks and one receipt"),
    "an empty message": (lambda held: [held.header(), Part()], InvalidArgument, "chunks and one receipt"),
    "no receipt": (lambda held: [held.header(), part(held.chunks[0])], UploadIncomplete, "ended without its receipt"),
    "a receipt of garbage": (
        lambda held: [*held.honest()[:-1], Part(receipt=b"garbage")],
        MalformedMessage,
        ".",
    ),
    "a receipt with a forged signature": (
        lambda held: [
            *held.honest()[:-1],
            Part(receipt=Signed(Signed.decode(held.receipt).body, bytes(64)).encode()),
        ],
        SignatureInvalid,
        f"not that of {LIAR}",
    ),
    "another member's receipt": (
        lambda held: [*held.honest()[:-1], Part(receipt=receipt_of_another(held))],
        ProtocolViolation,
        "another member's name",
    ),
    "a receipt over another upload": (
        lambda held: [*held.honest()[:-1], Part(receipt=receipt_over(held, [bytes(32), bytes(32)]))],
        UploadMismatch,
        "another upload than the one that arrived",
    ),
    "a run that does not exist": (lambda held: [held.header(run="nowhere")], NotFound, "nowhere"),
    "a name that is no run's": (lambda held: [held.header(run="../run")], InvalidArgument, "run"),
    "a round that does not exist": (lambda held: [held.header(round=10_000)], NotFound, "10000"),
}


@pytest.mark.parametrize("lie", REFUSED)
def test_the_lie_is_refused_with_its_reason_and_the_honest_upload_still_counts(
    federation: Federation, held: HeldUpload, lie: str
) -> None:
    parts, error, text = REFUSED[lie]

    with pytest.raises(error, match=text) as refused:
        held.send(parts(held))

    assert type(refused.value) is error
    assert federation.round(held.round)["state"] == "collecting"
    assert federation.participations(held.round)[LIAR][0] == "prepared"
    held.site.line.mend()
    federation.play(held.round)
    errors, bound = federation.errors(held.round, sorted(federation.sites))
    assert errors.max() <= bound
    assert len(federation.round(held.round)["survivors"]) == SITES


def test_a_message_over_the_limit_is_refused_by_the_coordinator(federation: Federation, held: HeldUpload) -> None:
    identity, addresses = held.site.connection.identity, federation.addresses
    assert addresses is not None
    credentials = channel_credentials(
        trust_bundle=identity.trust_bundle.encode(),
        certificate_chain=identity.certificate_chain.encode(),
        key=identity.key_pem,
    )
    options = [("grpc.max_send_message_length", -1)]
    with (
        grpc.secure_channel(addresses.participants, credentials, options=options) as channel,
        pytest.raises(TooLarge, match="larger than max"),
        raised_as_errors(),
    ):
        secagg_stub(channel).UploadMaskedUpdate(iter([held.header(), part(bytes(5 * 1024 * 1024))]), timeout=30)

    assert held.durable_chunks() == 0


def test_what_was_durable_when_a_stream_broke_is_never_asked_for_again(
    federation: Federation, held: HeldUpload
) -> None:
    with pytest.raises(UploadIncomplete):
        held.send([held.header(), part(held.chunks[0])])

    assert held.durable_chunks() == 1
    with pytest.raises(UploadMismatch, match="next chunk to send is 1"):
        held.send(held.honest())
    held.send([held.header(first_chunk=1), part(held.chunks[1]), Part(receipt=held.receipt)])
    assert federation.participations(held.round)[LIAR][0] in ("uploaded", "revealed")


def test_an_upload_that_is_repeated_is_acknowledged_again_and_another_one_is_refused(
    federation: Federation, held: HeldUpload
) -> None:
    total = held.send(held.honest())

    assert held.send(held.honest()) == total
    assert held.send([held.header()]) == total
    with pytest.raises(AlreadyExists, match=f"another masked update of {LIAR}"):
        held.send([held.header([flipped(chunk) for chunk in held.chunks])])
    received = [event for event in federation.audit("update_received") if event["subject"].endswith(f"/{held.round}")]
    assert len(received) == SITES


def test_another_upload_is_refused_once_one_has_begun(federation: Federation, held: HeldUpload) -> None:
    with pytest.raises(UploadIncomplete):
        held.send([held.header()])

    with pytest.raises(AlreadyExists, match="has begun to arrive"):
        held.send([held.header([flipped(chunk) for chunk in held.chunks])])


def test_the_upload_of_an_earlier_round_is_refused_in_a_later_one(federation: Federation, held: HeldUpload) -> None:
    held.send(held.honest())
    held.site.line.mend()
    federation.play(held.round)
    later = hold_upload(federation, open_round(federation), LIAR)

    # To its own round, as a lost answer makes a site do: acknowledged, and nothing changes.
    assert held.send(held.honest()) == sum(map(len, held.chunks))
    replayed = [later.header(held.chunks), *map(part, held.chunks), Part(receipt=held.receipt)]
    with pytest.raises(ProtocolViolation, match="another round or context"):
        later.send(replayed)

    # The liar has spent its only upload of the round; the others go on without it.
    found = federation.play(later.round, sites=[name for name in federation.sites if name != LIAR])
    assert found["state"] == "succeeded"
    assert f"participants/{LIAR}" not in found["survivors"]


def test_an_upload_before_the_cohort_is_chosen_or_after_collecting_is_out_of_turn(federation: Federation) -> None:
    number = open_round(federation)
    site = federation.sites[LIAR]
    with pytest.raises(OutOfTurn, match="forming"):
        site.client.upload_state("run", number)
    site.line.cut(before="report_prepared")
    federation.turn_until(lambda: site.line.is_cut)
    header = {"run": "run", "round": number, "first_chunk": 0, "chunk_count": 2, "total_bytes": 1}
    with pytest.raises(OutOfTurn, match="its cohort is not chosen"):
        send(site, [HeldUpload(site, "run", number, (), None).header(**header)])  # type: ignore[arg-type]
    site.line.mend()

    held = hold_upload(federation, number, LIAR)
    federation.advance(11)

    assert federation.round(number)["state"] == "unmasking"
    with pytest.raises(OutOfTurn, match="takes no uploads"):
        held.send(held.honest())


def test_a_member_outside_the_cohort_uploads_nothing(federation: Federation) -> None:
    number = open_round(federation)
    outside = federation.sites["site-3"]
    outside.line.cut(before="report_prepared")
    inside = [name for name in federation.sites if name != "site-3"]
    federation.sites[LIAR].line.cut(before="upload")
    federation.turn_until(lambda: outside.line.is_cut)
    federation.advance(200.5)
    federation.turn_until(lambda: federation.sites[LIAR].line.is_cut, sites=inside)
    held = held_upload(federation.sites[LIAR], number)

    with pytest.raises(NotInCohort, match="site-3 is not in the cohort"):
        send(outside, held.honest())
    with pytest.raises(NotInCohort, match="site-3 is not in the cohort"):
        outside.client.evidence("run", number, for_reveal=False, wait_seconds=0)


def test_a_site_that_has_declared_itself_out_cannot_complete_its_upload(federation: Federation) -> None:
    number = open_round(federation)
    late = federation.sites["site-2"]
    late.line.cut(before="upload")
    federation.sites[LIAR].line.cut(before="upload")
    federation.turn_until(lambda: late.line.is_cut and federation.sites[LIAR].line.is_cut)
    held = held_upload(federation.sites[LIAR], number)
    with pytest.raises(UploadIncomplete):
        held.send([held.header(), *map(part, held.chunks)])
    for _ in range(2):  # said again, as a lost answer makes a site do, it is no error
        held.site.client.report_failure("run", number, reason="UPDATE_LOST", message="the disk is gone")

    assert federation.round(number)["state"] == "collecting"
    with pytest.raises(OutOfTurn, match="declared itself out"):
        held.send([held.header(first_chunk=2), Part(receipt=held.receipt)])
    with pytest.raises(OutOfTurn, match="is failed"):
        held.site.client.report_failure("run", number, reason="ANOTHER", message="")

    late.line.mend()
    found = federation.play(number, sites=[name for name in federation.sites if name != LIAR])
    assert found["state"] == "succeeded"
    assert f"participants/{LIAR}" not in found["survivors"]
    assert federation.participations(number)[LIAR] == ("failed", "UPDATE_LOST")
    assert federation.metric("accord_participations_dropped_total", participant=LIAR, reason="UPDATE_LOST") == 1


def test_every_digest_of_the_upload_is_in_the_audit_log(federation: Federation, held: HeldUpload) -> None:
    held.send(held.honest())

    digests = [hashlib.sha256(chunk).digest() for chunk in held.chunks]
    lines = [event["details_json"] for event in federation.audit("update_received") if LIAR in event["actor"]]
    assert upload_hash(digests).hex() in lines[-1]
