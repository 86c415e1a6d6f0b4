"""An adapter's manifest: where a global adapter comes from, signed by the coordinator and chained to its parent.

Participants and those who deploy an adapter verify it here; the coordinator makes it in `coordinator.manifests`.
The signed bytes are the canonical JSON itself, so nothing has to be encoded again to be checked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from common import jsonform
from common.adapters import AdapterSpec
from common.errors import AccordError, DigestMismatch, SignatureInvalid
from common.instruction_updates import NextRound
from common.privacy import Privacy

MANIFEST_FORM: Final = 1
SIGNATURE_FILE: Final = "manifest.json.sig"
# A signature over a manifest must never pass for one over anything else that the same key signs.
SIGNATURE_CONTEXT: Final = b"accord/manifest/v1\x00"


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that is said of one global adapter.

    digest: SHA-256 of its model file. parent: digest of the adapter that the round trained from, None for the first.
    round: 0 for the initial adapter. survivors: whose updates are in the sum, None where the plan says only to count.
    metrics: (name, mean over the survivors). base_model, base_model_digest, plan_digest, charter_digest: what was used.
    privacy: the bound that the plan asks each site to keep over the whole run, None where it asks for none, and
    guarantee: the same in sentences; what a site has spent only its own ledger knows.
    created_at: RFC 3339, UTC. domain, beneath: of a domain adapter, its domain and the digest of the global adapter
    that it is on top of. domain_sums: the round's summed words of its domains, by name; next_round: what follows
    from them for the round that trains from this adapter, where the plan has updates (`common.update_chain`).
    """

    federation: str
    run: str
    round: int
    digest: str
    parent: str | None
    base_model: str
    base_model_digest: str
    plan_digest: str
    charter_digest: str
    adapter: AdapterSpec
    method: str
    server_optimizer: str
    instruction_set_digest: str
    survivor_count: int
    survivors: tuple[str, ...] | None
    metrics: dict[str, float]
    privacy: Privacy | None
    created_at: str
    guarantee: tuple[str, ...] = ()
    domain: str = ""
    beneath: str | None = None
    domain_sums: dict[str, float] = field(default_factory=dict)
    next_round: NextRound | None = None
    form: int = MANIFEST_FORM

    def to_bytes(self) -> bytes:
        """Canonical JSON: what is signed, and the content of manifest.json."""
        return jsonform.encode(self, Manifest).encode()


def signed_bytes(content: bytes) -> bytes:
    """What the coordinator's key signs for a manifest of this content."""
    return SIGNATURE_CONTEXT + content


def read_manifest(content: bytes) -> Manifest:
    """The manifest in canonical bytes, unverified. Raises InvalidArgument that lists every mistake."""
    return jsonform.decode(content, Manifest, what="the adapter's manifest")


def verify_manifest(content: bytes, signature: bytes, *, public_key: str, digest: str) -> Manifest:
    """The manifest, once its signature and the adapter's digest fit.

    signature: 64 bytes (Ed25519). public_key: 32 bytes in hex, as the plan names the coordinator's key.
    digest: SHA-256 of the model file that was fetched.
    Raises SignatureInvalid, DigestMismatch or InvalidArgument.
    """
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(signature, signed_bytes(content))
    except (ValueError, InvalidSignature) as error:
        raise SignatureInvalid(
            f"the manifest of adapter {digest[:12]} is not signed by the coordinator's key that the plan names; "
            "do not use this adapter"
        ) from error
    manifest = read_manifest(content)
    if manifest.form != MANIFEST_FORM:
        raise AccordError(f"manifest form {manifest.form} is not known, this version reads form {MANIFEST_FORM}")
    if manifest.digest != digest:
        raise DigestMismatch(f"the manifest is of adapter {manifest.digest}, not of {digest}")
    return manifest
