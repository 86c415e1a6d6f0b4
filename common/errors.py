"""Every error that a caller, an operator or a partner can act on: one tree, a class per case.

A class carries a stable `reason` (google.rpc.ErrorInfo.reason, AIP-193); the message says what to do.
How a class becomes a gRPC status is known to `common.rpc.status` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class AccordError(Exception):
    """Root of all errors that Accord raises on purpose.

    `metadata` holds short facts for programs (google.rpc.ErrorInfo.metadata); the message is for people.
    """

    reason: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str = "", *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.metadata: Mapping[str, str] = dict(metadata or {})

    @property
    def message(self) -> str:
        return str(self)


# --- input that does not fit -----------------------------------------------------------------------------------


class InvalidArgument(AccordError):
    """A field of a request is missing, malformed or out of range."""

    reason = "INVALID_ARGUMENT"


class ConfigInvalid(AccordError):
    """The configuration file has mistakes; the message lists all of them with their paths."""

    reason = "CONFIG_INVALID"


class PlanInvalid(AccordError):
    """The plan of a run contradicts itself, the charter, or names something unknown."""

    reason = "PLAN_INVALID"


class CharterInvalid(AccordError):
    """The charter is malformed or is not the one that this site has pinned."""

    reason = "CHARTER_INVALID"


# --- things that are not there or are there already ------------------------------------------------------------


class NotFound(AccordError):
    """The named resource does not exist."""

    reason = "NOT_FOUND"


class AlreadyExists(AccordError):
    """A resource of that name exists, or a repeated request differs from the first one."""

    reason = "ALREADY_EXISTS"


# --- order and state -------------------------------------------------------------------------------------------


class TransitionNotAllowed(AccordError):
    """The state machine has no such step from the present state."""

    reason = "TRANSITION_NOT_ALLOWED"


class OutOfTurn(AccordError):
    """The call does not belong to the present phase of the round or key epoch."""

    reason = "OUT_OF_TURN"


class VersionConflict(AccordError):
    """Somebody else changed the row first; read it again and repeat."""

    reason = "VERSION_CONFLICT"


class LeaseLost(AccordError):
    """The lease of this piece of work has passed to another process."""

    reason = "LEASE_LOST"


# --- identity and permission -----------------------------------------------------------------------------------


class Unauthenticated(AccordError):
    """The caller has shown no certificate that this federation knows."""

    reason = "UNAUTHENTICATED"


class PermissionDenied(AccordError):
    """The caller is known, and may not do this."""

    reason = "PERMISSION_DENIED"


class CertificateRevoked(AccordError):
    """The caller's certificate or the caller itself was revoked."""

    reason = "CERTIFICATE_REVOKED"


class NotInCohort(AccordError):
    """The caller is not a member of this round's cohort or of this run."""

    reason = "NOT_IN_COHORT"


class JoinTokenInvalid(AccordError):
    """The join token is unknown, used, expired, revoked or made for another name."""

    reason = "JOIN_TOKEN_INVALID"


# --- updates and uploads ---------------------------------------------------------------------------------------


class UploadMismatch(AccordError):
    """What was uploaded differs in length or digest from what its first message declared."""

    reason = "UPLOAD_MISMATCH"


class UploadIncomplete(AccordError):
    """The stream ended early; what is durable so far is kept, go on from there."""

    reason = "UPLOAD_INCOMPLETE"


class UpdateLost(AccordError):
    """This site cannot send its masked update of the round, and another one is never made: it is out of the round."""

    reason = "UPDATE_LOST"


class UpdateNotFinite(AccordError):
    """The update holds a NaN or an infinity."""

    reason = "UPDATE_NOT_FINITE"


class ShapeMismatch(AccordError):
    """An array or a set of tensors does not have the shape that the plan's layout asks for."""

    reason = "SHAPE_MISMATCH"


class NormExceeded(AccordError):
    """The L2 norm is over the plan's bound."""

    reason = "NORM_EXCEEDED"


class DigestMismatch(AccordError):
    """Bytes do not have the digest by which they were named."""

    reason = "DIGEST_MISMATCH"


class TooLarge(AccordError):
    """A message, a file or an adapter is over its limit."""

    reason = "TOO_LARGE"


# --- what a participant will not do ----------------------------------------------------------------------------


class PolicyRefusal(AccordError):
    """The site's policy does not allow what the coordinator asks for."""

    reason = "POLICY_REFUSAL"


class BaseModelMismatch(AccordError):
    """The site's base model is not the one that the plan names."""

    reason = "BASE_MODEL_MISMATCH"


class BaseModelUnavailable(AccordError):
    """The base model cannot be found or loaded from where the configuration points."""

    reason = "BASE_MODEL_UNAVAILABLE"


class DataInvalid(AccordError):
    """The data file cannot be read, or not one of its records can be used."""

    reason = "DATA_INVALID"


class TrainingFailed(AccordError):
    """The training process ended without a result; the message has its exit code and last words."""

    reason = "TRAINING_FAILED"


class TrainingStopped(AccordError):
    """The training process was asked to stop; what it has done so far is in its checkpoint."""

    reason = "TRAINING_STOPPED"


# --- secure aggregation ----------------------------------------------------------------------------------------


class ProtocolViolation(AccordError):
    """The other side broke the masking protocol; nothing was revealed."""

    reason = "PROTOCOL_VIOLATION"


class AggregationFailed(AccordError):
    """The sum could not be opened or does not pass its checks; nothing was published."""

    reason = "AGGREGATION_FAILED"


class MalformedMessage(ProtocolViolation):
    """The bytes of a masking message do not parse: wrong version, wrong length, trailing bytes, or over a limit."""

    reason = "MALFORMED_MESSAGE"


class SignatureInvalid(ProtocolViolation):
    """The signature of a masking message does not verify under its sender's key."""

    reason = "SIGNATURE_INVALID"


class MemberRejected(ProtocolViolation):
    """A key roster names an organisation that is not in the charter, or whose certificate is not the pinned one."""

    reason = "MEMBER_REJECTED"


class SecondSurvivorSet(ProtocolViolation):
    """The coordinator asked for a second, different survivor set in one round; keep its request as evidence."""

    reason = "SECOND_SURVIVOR_SET"


class AuditFailed(AccordError):
    """What a finished round has published does not follow from what its members signed; keep what was shown."""

    reason = "AUDIT_FAILED"


class TooFewMembers(AggregationFailed):
    """Fewer members are usable, or fewer survived, than the plan's floor; close the round and start another."""

    reason = "TOO_FEW_MEMBERS"


class MemberAtFault(AggregationFailed):
    """The sum cannot be opened because of these members; leave them out of the next key epoch."""

    reason = "MEMBER_AT_FAULT"

    def __init__(
        self, message: str = "", members: tuple[str, ...] = (), *, metadata: Mapping[str, str] | None = None
    ) -> None:
        facts = dict(metadata or {})
        if members:
            facts["members"] = " ".join(members)
        super().__init__(message, metadata=facts)
        self.members = tuple(facts.get("members", "").split())


# --- the world -------------------------------------------------------------------------------------------------


class Unavailable(AccordError):
    """The other side cannot be reached at present; try again."""

    reason = "UNAVAILABLE"


class HostNotFound(Unavailable):
    """The name of the coordinator, or of the proxy on the way to it, has no address."""

    reason = "HOST_NOT_FOUND"


class ConnectionRefused(Unavailable):
    """The host answers and the port does not: nothing listens there, or a firewall rejects the connection."""

    reason = "CONNECTION_REFUSED"


class ConnectionFiltered(Unavailable):
    """Nothing comes back from the host: packets vanish on the way."""

    reason = "CONNECTION_FILTERED"


class ProxyFailed(Unavailable):
    """The HTTP proxy on the way is down, wants a password, or does not connect to the coordinator."""

    reason = "PROXY_FAILED"


class HandshakeStalled(Unavailable):
    """The connection stands and the TLS handshake does not get on: large packets vanish on the way."""

    reason = "HANDSHAKE_STALLED"


class TlsIntercepted(Unavailable):
    """TLS ends at a box on the way, and not at the coordinator."""

    reason = "TLS_INTERCEPTED"


class WrongHost(Unavailable):
    """The coordinator's certificate is not for the name that was dialled."""

    reason = "WRONG_HOST"


class ClockWrong(AccordError):
    """This machine's clock and the coordinator's, or the dates of a certificate, do not go together."""

    reason = "CLOCK_WRONG"


class StorageFailed(AccordError):
    """The database or the blob store refused: disk full, no permission, or broken."""

    reason = "STORAGE_FAILED"


class StorageUnreachable(StorageFailed):
    """The object store or the database server does not answer, is overloaded, or TLS with it fails."""

    reason = "STORAGE_UNREACHABLE"


class StorageDenied(StorageFailed):
    """The storage knows us not or lets us not: wrong credentials, missing rights, a clock that is wrong."""

    reason = "STORAGE_DENIED"


class StorageMissing(StorageFailed):
    """The bucket or the database is not there."""

    reason = "STORAGE_MISSING"


class StorageFull(StorageFailed):
    """No space is left, or a quota is used up."""

    reason = "STORAGE_FULL"


class ResourceExhausted(AccordError):
    """The caller has used up its rate, its streams or its quota."""

    reason = "RESOURCE_EXHAUSTED"
