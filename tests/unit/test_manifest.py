"""Manifests of adapters: what is signed, and what a participant refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import DigestMismatch, SignatureInvalid
from common.manifest import Manifest, verify_manifest
from common.plan import Plan
from common.privacy import LargestPart, MetricNoise, Privacy, PrivateTraining
from coordinator.manifests import SignedManifest, build_manifest, public_key_hex, sign_manifest
from tests.fakes import START_OF_TIME
from tests.unit.test_planning import plan

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
DIGEST = "12" * 32


def manifest(of: Plan | None = None, **changes: object) -> Manifest:
    made = build_manifest(
        of or plan(),
        plan_digest="34" * 32,
        round_number=2,
        digest=DIGEST,
        parent="56" * 32,
        survivors=("newsroom", "bank", "clinic"),
        metrics=(("heldout_loss", 1.25),),
        instruction_set="",
        at=START_OF_TIME,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def verify(signed: SignedManifest, *, key: Ed25519PrivateKey = KEY, digest: str = DIGEST) -> Manifest:
    return verify_manifest(signed.content, signed.signature, public_key=public_key_hex(key), digest=digest)


def test_a_signed_manifest_reads_back_as_it_was_made():
    assert verify(sign_manifest(manifest(), KEY)) == manifest()


def test_survivors_are_counted_and_named_only_where_the_plan_says_so():
    assert manifest().survivor_count == 3
    assert manifest().survivors is None
    named = manifest(replace(plan(), name_survivors=True))
    assert named.survivors == ("bank", "clinic", "newsroom")


def test_the_time_is_utc_to_the_second():
    assert manifest().created_at == "2026-01-01T12:00:00Z"


def test_what_sites_were_asked_to_promise_is_in_the_manifest_in_words():
    noise = MetricNoise(3.0, (LargestPart("heldout_loss", 8.0),))

    def said(privacy: Privacy) -> str:
        made = manifest(replace(plan(), privacy=privacy))
        return "\n".join(verify(sign_manifest(made, KEY)).guarantee)

    assert said(Privacy()) == ""
    training = said(Privacy(PrivateTraining(4.0)))
    assert "epsilon 4, delta 1 / (10 n) at a site of n records" in training
    assert "one row of a site's data file" in training
    assert "Skellam" not in training
    assert "delta 1e-06" in said(Privacy(PrivateTraining(4.0, delta=1e-6)))
    figures = said(Privacy(metrics=noise))
    assert "Skellam noise of 3 times" in figures
    assert "DP-SGD" not in figures


def test_a_changed_manifest_is_refused():
    signed = sign_manifest(manifest(), KEY)
    changed = json.loads(signed.content) | {"parent": None}
    content = json.dumps(changed, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(SignatureInvalid):
        verify(SignedManifest(content, signed.signature))


def test_another_keys_signature_is_refused():
    with pytest.raises(SignatureInvalid):
        verify(sign_manifest(manifest(), Ed25519PrivateKey.generate()))


def test_a_signature_over_the_bare_content_is_no_manifests():
    content = manifest().to_bytes()
    with pytest.raises(SignatureInvalid):
        verify(SignedManifest(content, KEY.sign(content)))


def test_a_manifest_of_another_adapter_is_refused():
    with pytest.raises(DigestMismatch):
        verify(sign_manifest(manifest(), KEY), digest="99" * 32)


@pytest.mark.parametrize("signature", [b"", b"\x00" * 64, b"\x00" * 63])
def test_what_is_no_signature_is_refused(signature):
    with pytest.raises(SignatureInvalid):
        verify(SignedManifest(manifest().to_bytes(), signature))
