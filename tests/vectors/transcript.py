"""Records one key epoch and one round of five members, one of which drops out, with every value worth comparing.

    python -m tests.vectors.transcript

writes tests/vectors/transcript.json anew. Certificates, identity signatures and HPKE boxes are randomised, so every run
gives another transcript; everything else follows from the seeds in it. README.md says how to read it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from common.secagg import (
    Advertising,
    ClipSlot,
    Dealt,
    EpochKeys,
    KeyEpoch,
    Masked,
    Masking,
    MetricGroup,
    Packer,
    RoundKind,
    SecaggPlan,
    add_into,
    assemble_roster,
    begin_epoch,
    check_deposit,
    check_ready,
    choose_close,
    decode_chunk,
    envelopes_for,
    fixed_weight,
    identity_signer,
    make_start,
    open_masks,
    settle_epoch,
    share_commitments,
    upload_hash,
    verify_reveal,
)
from tests.unit.secagg.federation import NOW, authority, identity, member_uri, org_name, verifier

TARGET: Final = Path(__file__).with_name("transcript.json")
MEMBERS: Final = 5
DROPPED: Final = 3
DECLARED: Final = {0: ("held_out", "ner"), 1: ("held_out",), 2: ("held_out",), 3: ("held_out",), 4: ("held_out",)}
ROUND: Final = 12


def seed_of(*words: object) -> bytes:
    """32 bytes that anybody can make again; the transcript holds them all the same."""
    return hashlib.sha256("/".join(map(str, words)).encode()).digest()


def plan() -> SecaggPlan:
    return SecaggPlan(
        plan_hash=seed_of("plan"),
        run_id=seed_of("run"),
        members_floor=3,
        members_limit=MEMBERS,
        rounds_per_epoch=2,
        vectors=((ClipSlot(20, 0.125),), (ClipSlot(100, 0.5), ClipSlot(35, 0.25))),
        schedule=(0, 1),
        metrics=("loss",),
        lanes=4,
        chunk_words=16,
        metric_groups=(MetricGroup("held_out", ("tokens",)), MetricGroup("ner", ("hits", "misses"))),
    )


def recorded_random(index: int, drawn: list[str]) -> Any:
    """What `begin_epoch` draws, in the order in which it draws it."""

    def draw(size: int) -> bytes:
        stream = hashlib.shake_256(seed_of("random", index, len(drawn))).digest(size)
        drawn.append(stream.hex())
        return stream

    return draw


def hexed(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, np.ndarray):
        return value.astype(value.dtype.newbyteorder("<")).tobytes().hex()
    if isinstance(value, dict):
        return {str(key): hexed(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [hexed(one) for one in value]
    return value


def update_of(index: int) -> np.ndarray:
    """float32[135]; some elements are over the clip."""
    return (np.random.default_rng(index).normal(0, 0.25, 135)).astype(np.float32)


def metrics_of(index: int) -> dict[str, float]:
    return {"loss": 1.5 + index, "tokens": 100.0 * (index + 1), "hits": 3.0, "misses": 2.0}


def record() -> dict[str, Any]:
    epoch = KeyEpoch(plan(), 3, 11)
    drawn: dict[int, list[str]] = {index: [] for index in range(MEMBERS)}
    advertising: list[Advertising] = [
        begin_epoch(
            epoch,
            org_id=org_name(index),
            certificate_chain=identity(org_name(index)).chain,
            identity_signer=identity_signer(identity(org_name(index)).key),
            metric_groups=DECLARED[index],
            random_bytes=recorded_random(index, drawn[index]),
        )
        for index in range(MEMBERS)
    ]
    roster = assemble_roster(epoch, [phase.message for phase in advertising], verifier(MEMBERS))
    dealt: list[Dealt] = [phase.deal(roster.message, verifier(MEMBERS)) for phase in advertising]
    deposits = [check_deposit(epoch, roster.members, phase.message, sender=i) for i, phase in enumerate(dealt)]
    keys: list[EpochKeys] = [
        phase.confirm(envelopes_for(roster.members, deposits, i))[0] for i, phase in enumerate(dealt)
    ]
    readies = {i: check_ready(epoch, roster.members, phase.message, sender=i) for i, phase in enumerate(keys)}
    settlement = settle_epoch(epoch, roster.members, readies.values())

    context = make_start(
        epoch,
        roster.members,
        round_number=ROUND,
        kind=RoundKind.TRAINING,
        cohort=settlement.usable,
        model_hash=seed_of("model"),
    )
    masking: list[Masking] = [phase.start(context.start.encode(), model_hash=seed_of("model"))[1] for phase in keys]
    uploads = [upload(phase) for phase in masking]
    masked: list[Masked] = [
        phase.abandon() if index == DROPPED else phase.seal(bytes.fromhex(uploads[index]["upload_hash"]))
        for index, phase in enumerate(masking)
    ]
    _, survivors = choose_close(context, [index for index in range(MEMBERS) if index != DROPPED])
    receipts = [masked[index].message for index in survivors]
    bound = [phase.bind(survivors, receipts) for phase in masked]
    commits = [phase.message for phase in bound]
    reveals = [phase.accept(commits).message for phase in bound]
    commitments = share_commitments(context, (envelope for deposit in deposits for envelope in deposit.envelopes))
    unmasking = open_masks(
        context,
        roster,
        survivors,
        [
            verify_reveal(context, survivors, message, sender=index, commitments=commitments)
            for index, message in enumerate(reveals)
        ],
        readies,
    )
    totals = [np.zeros(context.layout.words_in(at), np.uint64) for at in range(context.layout.chunks)]
    for index in survivors:
        for at, words in enumerate(uploads[index]["masked_chunks"]):
            add_into(totals[at], np.frombuffer(words, "<u8").astype(np.uint64))
    masked_sum = [words.copy() for words in totals]
    for at, words in enumerate(totals):
        unmasking.unmasker().add_into(at, words)
    tail = unmasking.check_tail(totals[-1])
    mean = np.concatenate([decode_chunk(plan(), at, words, tail, round_=ROUND) for at, words in enumerate(totals[:-1])])
    return {
        "protocol": "XSA1",
        "suite": 2,
        "plan": {**asdict(plan()), "encoded": plan().encode(), "lane_limit": plan().lane_limit},
        "epoch": {"number": 3, "first_round": 11, "encoded": epoch.encode(), "hash": epoch.hash},
        "checked_at": NOW.isoformat(),
        "ca": authority().pem.decode(),
        "set_up": [
            {
                "index": index,
                "org_id": org_name(index),
                "uri": member_uri(org_name(index)),
                "random": dict(zip(("master", "signing_seed", "kem_seed", "nonce"), drawn[index], strict=True)),
                "metric_groups": DECLARED[index],
                "advertise": advertising[index].message,
                "deposit": dealt[index].message,
                "ready": keys[index].message,
                "chain": keys[index].chain,
                "pair_chains": keys[index].pair_chains,
                "shares": keys[index].shares,
            }
            for index in range(MEMBERS)
        ],
        "roster": roster.message,
        "roster_hash": roster.members.roster_hash,
        "usable": settlement.usable,
        "round": {
            "number": ROUND,
            "kind": int(context.start.kind),
            "model_hash": context.start.model_hash,
            "cohort": context.cohort,
            "start": context.start.encode(),
            "context": context.hash,
            "open_groups": context.open_groups,
            "uploads": uploads,
            "receipts": [phase.message for phase in masked],
            "survivors": survivors,
            "commits": commits,
            "reveals": reveals,
            "mask_seeds_to_add": sorted(unmasking.added),
            "mask_seeds_to_subtract": sorted(unmasking.subtracted),
            "masked_sum": masked_sum,
            "sum": totals,
            "tail": asdict(tail),
            "mean": mean,
        },
    }


def upload(masking: Masking) -> dict[str, Any]:
    index, layout, values = masking.index, masking.context.layout, update_of(masking.index)
    alpha, rounding_key = (index + 1) / MEMBERS, seed_of("rounding", index)
    packer, masker = Packer(plan(), round_=ROUND, alpha=alpha, rounding_key=rounding_key), masking.masker()
    packed = [packer.pack_chunk(at, values[slice(*layout.parameters_in(at))])[0] for at in range(layout.lane_chunks)]
    packed.append(masking.pack_tail(fixed_alpha=fixed_weight(alpha), metrics=metrics_of(index)))
    masked = [words.copy() for words in packed]
    for at, words in enumerate(masked):
        masker.add_into(at, words)
    chunks = [words.astype("<u8").tobytes() for words in masked]
    return {
        "self_mask_seed": masking.self_seed,
        "pair_mask_seeds": dict(masking.pair_seeds),
        "update": values,
        "alpha": alpha,
        "metrics": metrics_of(index),
        "rounding_key": rounding_key,
        "packed_chunks": packed,
        "masked_chunks": chunks,
        "upload_hash": upload_hash([hashlib.sha256(chunk).digest() for chunk in chunks]).hex(),
    }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(hexed(record()), indent=1) + "\n")
