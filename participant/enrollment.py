"""Exchanges a join token for an identity, and renews it: the two calls that change who this site is.

Both may be repeated after a crash at any line: the key is made once, and the coordinator answers the same key with a
certificate again. Protobuf stops here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from accord.v1 import enrollment_pb2, enrollment_pb2_grpc
from common import join_token
from common.clock import Clock
from common.errors import AlreadyExists, Unauthenticated, Unavailable
from common.identifiers import participant_name
from common.join_token import Invitation
from common.rpc.channels import channel_options
from common.rpc.status import raised_as_errors
from common.rpc.tls import channel_credentials
from participant.identity import Enrollment, IdentityFolder, SiteIdentity, certificate_request
from participant.network.dialling import Line, dial, open_channel, straight
from participant.network.looking import Papers, explained

CALL_SECONDS: Final = 30.0


def enroll(
    folder: IdentityFolder, token: str, clock: Clock, *, line_to: Callable[[str], Line] = straight
) -> SiteIdentity:
    """Make a key, have it certified, and keep both. The server is verified by the CA that the token carries.

    line_to: how an address is dialled. Raises JoinTokenInvalid, AlreadyExists if the folder belongs to another
    enrolment, Unavailable (one of its kinds, where what stands in the way can be seen) if the coordinator cannot be
    reached or is not the one that the token is of, Unauthenticated if its answer is not for this site, ClockWrong.
    """
    invitation = join_token.from_text(token)
    _refuse_another(folder, invitation)
    request = enrollment_pb2.EnrollRequest(
        token_secret=invitation.secret, certificate_request=certificate_request(folder.ensure_key())
    )
    credentials = channel_credentials(trust_bundle=invitation.authority.encode())
    line = line_to(invitation.enrollment_address)
    try:
        with raised_as_errors(), open_channel(line, credentials, channel_options()) as channel:
            response = enrollment_pb2_grpc.EnrollmentServiceStub(channel).Enroll(request, timeout=CALL_SECONDS)
    except Unavailable as error:
        raise explained(error, line.route, Papers(invitation.authority), now=clock.now()) from error
    if (response.federation, response.participant) != (
        invitation.federation,
        participant_name(invitation.participant),
    ):
        raise Unauthenticated(
            f"the coordinator has enrolled this site as {response.participant!r} of {response.federation!r}, and the "
            f"join token is for {invitation.participant} of {invitation.federation}"
        )
    enrollment = Enrollment(
        federation=invitation.federation,
        participant=invitation.participant,
        coordinator_address=invitation.coordinator_address,
        is_renewed_by_coordinator=True,
    )
    return folder.enroll(
        enrollment,
        certificate_chain=response.certificate_chain,
        trust_bundle=response.trust_bundle,
        now=clock.now(),
    )


def renew(folder: IdentityFolder, clock: Clock, *, line: Line | None = None) -> SiteIdentity:
    """Ask for a new certificate for the same key, and keep it; open channels go on with the old one.

    line: None for the address of the enrolment, without a proxy.

    Raises CertificateRevoked, Unavailable, or Unauthenticated if the present certificate has expired, or the answer is
    not for this site.
    """
    identity = folder.load()
    if clock.now() >= identity.expires_at:
        raise Unauthenticated(
            f"the certificate expired at {identity.expires_at.isoformat()} and cannot be renewed any more; ask the "
            "federation's operator for a join token and enrol again"
        )
    request = enrollment_pb2.RenewCertificateRequest(certificate_request=certificate_request(identity.private_key))
    with raised_as_errors(), dial(identity, line) as channel:
        stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
        response = stub.RenewCertificate(request, timeout=CALL_SECONDS)
    return folder.renew(
        certificate_chain=response.certificate_chain, trust_bundle=response.trust_bundle, now=clock.now()
    )


def _refuse_another(folder: IdentityFolder, invitation: Invitation) -> None:
    if not folder.is_there:
        return
    present = folder.load()
    if (present.federation, present.participant) != (invitation.federation, invitation.participant):
        raise AlreadyExists(
            f"{folder.path} is enrolled as {present.participant} of {present.federation}, and the join token is for "
            f"{invitation.participant} of {invitation.federation}; use another folder"
        )
