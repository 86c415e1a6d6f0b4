"""What each site's own people write before they join: participant.toml, policy.toml, and their records beside them.

Knows the forms of these two files, and nothing of processes.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from demo.domains import Site
from demo.settings import DemoSettings

CONFIG_FILE: Final = "participant.toml"
POLICY_FILE: Final = "policy.toml"
CHARTER_FILE: Final = "charter.json"


@dataclass(frozen=True, slots=True)
class BaseModelFolder:
    """The base model as all sites have it: a safetensors folder, its digest, and where digests are remembered."""

    folder: Path
    digest: str
    cache: Path


@dataclass(frozen=True, slots=True)
class PolicyStyle:
    """How careful a site is. Three organisations, three legal departments."""

    reason: str
    most_rank: int
    most_learning_rate: float
    most_steps_per_round: int
    most_rounds_in_a_run: int
    most_rounds_in_a_day: int
    most_upload_mebibytes_a_day: int
    most_records: int
    shows_domain: bool


# The first is the strictest. A plan beyond any of these would be refused, with every reason.
STYLES: Final = (
    PolicyStyle("Patients' wording is in here: small adapters, few rounds.", 8, 0.002, 200, 20, 40, 500, 2_000, False),
    PolicyStyle("Customers' requests: nothing leaves but masked sums.", 16, 0.005, 500, 50, 100, 1_000, 5_000, True),
    PolicyStyle("Internal know-how; its owner signs for changes.", 32, 0.005, 1_000, 100, 200, 2_000, 10_000, True),
)


def prepare_site(folder: Path, site: Site, *, model: BaseModelFolder, settings: DemoSettings, style: int) -> None:
    """Records, policy and a configuration that pins no charter yet: there is none before all have enrolled."""
    data = folder / "data"
    data.mkdir(parents=True)
    shutil.copyfile(site.train_path, data / "train.jsonl")
    shutil.copyfile(site.held_out_path, data / "heldout.jsonl")
    (folder / POLICY_FILE).write_text(policy_text(site, STYLES[style % len(STYLES)], model.digest, settings))
    (folder / CONFIG_FILE).write_text(config_text(site, model, settings, charter_digest=None))


def pin_charter(folder: Path, site: Site, digest: str, *, model: BaseModelFolder, settings: DemoSettings) -> None:
    """Write the digest that the partners have agreed on into the site's configuration."""
    (folder / CONFIG_FILE).write_text(config_text(site, model, settings, charter_digest=digest))


def config_text(site: Site, model: BaseModelFolder, settings: DemoSettings, *, charter_digest: str | None) -> str:
    """participant.toml."""
    judging = settings.judging
    digest = f"digest = {_text(charter_digest)}" if charter_digest else "# digest = ...   agreed once all have enrolled"
    return f"""# {site.title}
# Records: {site.source}
# `accord-participant check --config {CONFIG_FILE}` looks this over.
state_directory = "state"        # key, certificate, journal, adapters: this site's alone
policy_file = "{POLICY_FILE}"
base_model_cache = {_text(str(model.cache))}
least_free_mebibytes = 512

[[base_models]]
source = {_text(str(model.folder))}
digest = {_text(model.digest)}

[data]
train_file = "data/train.jsonl"
held_out_file = "data/heldout.jsonl"   # never trained on: they judge every global adapter
default_domain = {_text(site.domain)}
most_train_records = {settings.records}

# Who takes part is what the members agreed, not what the coordinator says.
[charter]
mode = "pinned"
file = "{CHARTER_FILE}"
{digest}

[training]
threads = 1
micro_batch_size = {settings.training.batch_size}

[evaluation]
loss_records = {judging.loss_records}
ner_records = {judging.ner_records}
instruction_records = {judging.instruction_records}
max_new_tokens = {judging.max_new_tokens}
"""


def policy_text(site: Site, style: PolicyStyle, base_model_digest: str, settings: DemoSettings) -> str:
    """policy.toml."""
    placeholders = ["instruction", "input", "output", *(["domain"] if style.shows_domain else [])]
    training = settings.training
    return f"""# What {site.name} agrees to. {style.reason}
# A plan that goes beyond it anywhere is refused; nothing that a coordinator sends can loosen it.

[base_models]
allow = [{_text(base_model_digest)}]

[adapter]
most_rank = {max(style.most_rank, training.rank)}
modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
most_parameters = 50_000_000

# Only a sum over at least three sites is ever opened, and this site's part in it is bounded.
[masking]
least_cohort = 3
most_element_clip = {max(0.2, 2 * training.learning_rate * training.steps_per_round)}
most_update_norm = 1000.0

[training]
most_learning_rate = {max(style.most_learning_rate, training.learning_rate)}
most_steps_per_round = {max(style.most_steps_per_round, training.steps_per_round)}
most_batch_size = 64
most_length = 1024

[rounds]
most_in_a_run = {max(style.most_rounds_in_a_run, training.rounds)}
most_in_a_day = {max(style.most_rounds_in_a_day, 2 * training.rounds + 2)}

[transfer]
most_upload_mebibytes_a_day = {max(style.most_upload_mebibytes_a_day, 40 * training.rounds)}
most_download_mebibytes_a_day = {max(style.most_upload_mebibytes_a_day, 40 * training.rounds)}

[data]
most_records = {style.most_records}

[instruction_set]
most_template_characters = 500
placeholders = [{", ".join(_text(name) for name in placeholders)}]
"""


def _text(value: str) -> str:
    """A TOML string: JSON's escapes are among TOML's."""
    return json.dumps(value, ensure_ascii=False)
