"""Where a site's privacy ledger lies, and how many records its budget is for."""

from __future__ import annotations

from typing import Final

from common.errors import DataInvalid
from participant.config import ParticipantConfig
from participant.policy import Policy
from participant.privacy.ledger import Ledger
from participant.training import data
from participant.training.job import DataSettings

USUAL_DATA_SET: Final = "records"


def ledger_of(config: ParticipantConfig, policy: Policy) -> Ledger:
    """The ledger of the data set that the policy names, with its counter beside the journal's."""
    name = data_set_of(policy)
    counter = config.counter_file.with_name(f"privacy-{name}.counter")
    return Ledger(config.privacy_directory / f"{name}.jsonl", counter=counter)


def data_set_of(policy: Policy) -> str:
    """Its name, as the policy has it."""
    return USUAL_DATA_SET if policy.privacy is None else policy.privacy.data_set


def private_records(settings: DataSettings) -> int:
    """Records that private training samples from.

    Raises DataInvalid where a limit leaves records out: which ones are left then depends on all of them, so one record
    more would change more than one record's part, and the guarantee would not hold.
    """
    report = data.load(settings).train_report
    if report.left_out:
        raise DataInvalid(
            f"{settings.train_path}: {report.left_out} records are left out by most_records, most_train_records or "
            "most_none_fraction, which choose a record by looking at the others; private training needs a choice that "
            "does not. Make a file of the records that are to be used, and set no limit below their number"
        )
    return report.used
