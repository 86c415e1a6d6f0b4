"""Signed proof that a member broke the masking protocol in a round: kept once, and named in the audit log.

What a member has signed for this very round and should not have is proof against it; a lie without its sender's own
signature proves nothing, and is refused without a trace. Of each member, round and kind the first proof alone is kept,
so that a liar that goes on lying does not fill the log. Decides nothing about what follows for the member.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

from common.clock import Clock
from common.errors import ProtocolViolation, UploadMismatch
from common.log import get_logger
from common.secagg import RoundContext, upload_hash
from common.secagg.messages import Reveal, Signed
from coordinator import audit_lines
from coordinator.masked import context_of
from coordinator.rounds.model import MessageKind, ProtocolMessage, Round, Upload
from coordinator.store.interface import Reader, Store
from coordinator.uploads import split_digests

Details = Mapping[str, object]

log = get_logger(__name__)


@contextmanager
def kept_as_proof(store: Store, clock: Clock, message: ProtocolMessage) -> Iterator[None]:
    """Around the checks of a signed message: what they refuse is kept where it is proof, and is still refused.

    message: as it came, with the kind of proof that it would be. Enter it outside of any transaction.
    """
    try:
        yield
    except (ProtocolViolation, UploadMismatch) as error:
        keep_proof(store, clock, message, error.message)
        raise


def keep_proof(store: Store, clock: Clock, message: ProtocolMessage, why: str) -> None:
    """Keep a refused message if it is proof against its sender; why: what it was refused with."""
    with store.write() as writer:
        if writer.has_message(message.run, message.kind, message.number, message.sender):
            return
        round_ = writer.round(message.run, message.number)
        context = context_of(writer, writer.run(message.run), round_)
        details: Details | None = None
        with suppress(ProtocolViolation):  # malformed, badly signed, or for another round: no proof
            details = _PROOFS[message.kind](writer, context, round_, message)
        if details is None:
            return
        writer.add_message(message)
        audit_lines.append(
            writer,
            clock,
            actor=f"participants/{message.sender}",
            action=message.kind.value,
            subject=round_.name,
            message=why,
            **details,
        )
    log.warning("proof_kept", round=round_.name, participant=message.sender, kind=message.kind.value)


def _second_receipt(reader: Reader, context: RoundContext, round_: Round, message: ProtocolMessage) -> Details | None:
    """A receipt for another upload than the first one, with the first one's if that has arrived."""
    first: Upload | None = reader.upload(round_.run, round_.number, message.sender)
    receipt = context.check_receipt(message.body)
    if first is None or receipt.index != context.members.index_of(message.sender):
        return None
    expected = upload_hash(split_digests(first.chunk_digests))
    if receipt.upload_hash == expected:
        return None
    return {"receipt": message.body.hex(), "first_upload_hash": expected.hex(), "first_receipt": first.receipt.hex()}


def _second_commit(reader: Reader, context: RoundContext, round_: Round, message: ProtocolMessage) -> Details | None:
    """A commit to another survivor set than the round's, which is the only one that anybody was told."""
    commit = context.check_commit(message.body)
    survivors = context.members.indices_of(round_.survivors)
    if not survivors or commit.index != context.members.index_of(message.sender) or commit.survivors == survivors:
        return None
    own = reader.message(round_.run, MessageKind.COMMIT, round_.number, message.sender)
    committed = context.members.names(commit.survivors)
    return {
        "commit": message.body.hex(),
        "committed": committed,
        "survivors": round_.survivors,
        "first_commit": own.body.hex() if own is not None else "",
    }


def _false_reveal(reader: Reader, context: RoundContext, round_: Round, message: ProtocolMessage) -> Details | None:
    """A reveal that was refused although it is for this round. It holds opened shares: the log has its digest alone."""
    sender = context.members.index_of(message.sender)
    signed = Signed.decode(message.body)
    context.members.check_signature(signed, "reveal", sender)
    reveal = Reveal.decode(signed.body)
    if not round_.survivors or (reveal.context, reveal.index) != (context.hash, sender):
        return None
    return {"reveal_digest": hashlib.sha256(message.body).hexdigest()}


_PROOFS: Final[Mapping[MessageKind, Callable[[Reader, RoundContext, Round, ProtocolMessage], Details | None]]] = {
    MessageKind.SECOND_RECEIPT: _second_receipt,
    MessageKind.SECOND_COMMIT: _second_commit,
    MessageKind.FALSE_REVEAL: _false_reveal,
}
