"""Makes and signs the manifests of global adapters; `common.manifest` reads and verifies them.

Pure: the key, the time and all that a manifest says are passed in.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.instruction_updates import NextRound
from common.manifest import Manifest, signed_bytes
from common.plan import Plan
from common.privacy import Privacy, guarantee_of


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """A manifest's canonical bytes and the coordinator's Ed25519 signature (64 bytes) over them."""

    content: bytes
    signature: bytes = field(repr=False)


def build_manifest(
    plan: Plan,
    *,
    plan_digest: str,
    round_number: int,
    digest: str,
    parent: str | None,
    survivors: tuple[str, ...],
    metrics: tuple[tuple[str, float], ...],
    instruction_set: str,
    at: datetime,
    domain_sums: dict[str, float] | None = None,
    next_round: NextRound | None = None,
) -> Manifest:
    """What is said of the adapter `digest` that round `round_number` publishes; round 0 is the initial adapter.

    instruction_set: JSON of the set that the round used; the manifest carries its digest. domain_sums, next_round: as
    in the manifest, of a plan with updates.
    """
    return Manifest(
        federation=plan.federation,
        run=plan.run,
        round=round_number,
        digest=digest,
        parent=parent,
        base_model=plan.base_model.name,
        base_model_digest=plan.base_model.digest,
        plan_digest=plan_digest,
        charter_digest=plan.charter_digest,
        adapter=plan.adapter,
        method=plan.method.name,
        server_optimizer=plan.method.server_optimizer,
        instruction_set_digest=hashlib.sha256(instruction_set.encode()).hexdigest(),
        survivor_count=len(survivors),
        survivors=tuple(sorted(survivors)) if plan.name_survivors else None,
        metrics=dict(metrics),
        privacy=plan.privacy if plan.privacy != Privacy() else None,
        guarantee=guarantee_of(plan.privacy),
        created_at=at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        domain=plan.domain,
        beneath=plan.beneath.adapter if plan.beneath is not None else None,
        domain_sums=domain_sums or {},
        next_round=next_round,
    )


def sign_manifest(manifest: Manifest, key: Ed25519PrivateKey) -> SignedManifest:
    """The manifest as it is published."""
    content = manifest.to_bytes()
    return SignedManifest(content, key.sign(signed_bytes(content)))


def public_key_hex(key: Ed25519PrivateKey) -> str:
    """How plans name the coordinator's signing key: the raw 32 bytes of its public half, hex."""
    return key.public_key().public_bytes_raw().hex()
