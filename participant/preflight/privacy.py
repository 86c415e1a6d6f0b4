"""Preflight check of the privacy budget: what is spent, what is left, and whether the ledger can be believed."""

from __future__ import annotations

from common.errors import DataInvalid, StorageFailed
from participant.config import ParticipantConfig
from participant.policy import Policy
from participant.preflight.report import Result, failed, ok, warning
from participant.privacy.accounting import epsilon_of
from participant.privacy.desk import usual_delta
from participant.privacy.files import ledger_of, private_records


def budget(config: ParticipantConfig, policy: Policy) -> Result:
    """The ledger is whole, the records can be trained on privately, and something of the budget is left."""
    try:
        spent = ledger_of(config, policy).training()
    except StorageFailed as error:
        return failed(error.message, "see to the ledger before anything else: no private round is begun until then")
    bounds = policy.privacy
    if bounds is None:
        said = f"; {len(spent)} private rounds are counted" if spent else ""
        return ok(f"the policy sets no privacy budget{said}")
    try:
        records = private_records(config.data.settings(policy))
    except DataInvalid as error:
        return failed(error.message, "correct the data file or its limits: with them no private round is begun")
    delta = usual_delta(records) if bounds.delta is None else bounds.delta
    epsilon = epsilon_of([entry.private_steps for entry in spent], delta=delta)
    left = max(bounds.epsilon - epsilon, 0.0)
    said = f"epsilon {epsilon:.2f} of {bounds.epsilon:g} is spent at delta {delta:.2g}, {left:.2f} is left"
    if delta * records > 1:
        return warning(
            f"{said}; a delta of {delta:.2g} for {records} records lets one record be told whole",
            "set privacy.delta in policy.toml well below one in the number of records",
        )
    if left < bounds.epsilon / 20:
        return warning(said, "private runs will be refused; the budget is in policy.toml, and so is who may raise it")
    return ok(said)
