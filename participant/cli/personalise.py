"""`accord-participant personalise`: this site's own model, a private adapter on top of the federation's."""

from __future__ import annotations

import argparse
import hashlib
import threading
from dataclasses import replace

from common.cli.output import print_json, print_note, print_table, print_text
from common.errors import InvalidArgument, NotFound
from common.instructions import InstructionSet
from common.methods import Method
from common.plan import DPO, Plan
from common.update_chain import handed_out
from participant.base_models import BaseModelSource, ConfiguredBaseModels
from participant.cli.adapters import ShelvedAdapter, shelved_adapters
from participant.cli.exits import Exit
from participant.config import ParticipantConfig, load_unpinned_config
from participant.guard import check_base_model
from participant.journal import Journal
from participant.personal import ALONE, SITE, OwnTraining, PersonalWork, personalise
from participant.policy_file import load_policy
from participant.training.blend_job import BlendResult, NamedAdapter
from participant.training.job import FrozenAdapter, Hyperparameters
from participant.training.result import Progress


def execute(options: argparse.Namespace) -> Exit:
    """Train, choose, export, and print what each part gains."""
    config = load_unpinned_config(options.config)
    run = options.run.removeprefix("runs/")
    plan = _plan(config, run)
    work = work_of(config, plan, options)
    result = personalise(work, options.folder, _tell)
    if options.json:
        print_json({"folder": str(options.folder), "adapters": _names(work), **_json(result)})
    else:
        names = _names(work)
        print_table(
            ["model", *(f"scale of {name}" for name in names), "loss", "loss where chosen"],
            [
                [row.name, *(f"{scale:g}" for scale in row.scales), f"{row.loss:.4f}", f"{row.choosing_loss:.4f}"]
                for row in result.rows
            ],
        )
        print_text(str(options.folder))
        print_note(
            f"losses in nats per answer token over {result.records} held-out records of this site; scales chosen by "
            f"{result.choosing_records} others. alone: what this site reaches without the federation. The folder is "
            "this site's own:\n"
            f'  PeftModel.from_pretrained(base_model, "{options.folder}")'
        )
    return Exit.OK


def _names(work: PersonalWork) -> list[str]:
    """Of the adapters that have a scale, in their order."""
    return [*(one.name for one in work.adapters), SITE, *([ALONE] if work.alone is not None else [])]


def _plan(config: ParticipantConfig, run: str) -> Plan:
    """The plan of a run that this site has joined."""
    if not config.journal_file.exists():
        raise NotFound("this site has taken part in nothing yet: there is no journal")
    journal = Journal(config.journal_file)
    try:
        entry = journal.run(run)
    finally:
        journal.close()
    if entry is None:
        raise NotFound(f"this site has not taken part in run {run}; `accord-participant status` shows what it has")
    return Plan.from_bytes(entry.plan)


def work_of(config: ParticipantConfig, plan: Plan, options: argparse.Namespace) -> PersonalWork:
    """Raises InvalidArgument for a run that nothing can be added to, NotFound before this site has an adapter of it."""
    if plan.training.objective == DPO:
        raise InvalidArgument(
            f"run {plan.run} was trained by preferences, and what is blended here is weighed by the loss of single "
            "answers: export the run's adapter and use it as it is"
        )
    policy = load_policy(config.policy_file)
    sources = tuple(BaseModelSource(model.source, model.digest) for model in config.base_models)
    models = ConfiguredBaseModels(sources, cache=config.cache_directory, stop=threading.Event())
    model = check_base_model(plan, models.own())
    shelved = shelved_adapters(config.adapters_directory)
    newest = next((one for one in shelved if one.manifest.run == plan.run), None)
    if newest is None:
        raise NotFound(f"this site has no adapter of run {plan.run}; the daemon fetches it as rounds begin")
    training, shape = plan.training, plan.adapter_method().lora_spec
    rank = options.rank or max(1, plan.adapter.rank // 2)
    hyperparameters = Hyperparameters(
        learning_rate=options.learning_rate or training.learning_rate,
        batch_size=training.batch_size,
        steps=options.steps or training.steps_per_round * plan.rounds,
        max_length=training.max_length,
        seed=int.from_bytes(hashlib.sha256(f"personal/{plan.run_id}".encode()).digest()[:7], "big"),
        max_gradient_norm=training.max_gradient_norm,
        weight_decay=training.weight_decay,
    )
    alone_steps = hyperparameters.steps if options.alone_steps is None else options.alone_steps
    return PersonalWork(
        base_model=model,
        base_folder=models.folder(model.digest),
        adapters=_adapters(plan, newest, shelved),
        private=OwnTraining(replace(shape, rank=rank, alpha=2.0 * rank), hyperparameters),
        alone=OwnTraining(shape, replace(hyperparameters, steps=alone_steps)) if alone_steps else None,
        instruction_set=InstructionSet.from_json(handed_out(plan, newest.manifest).instruction_set),
        data=replace(config.data.settings(policy), only_domain=plan.domain),
        resources=config.training.resources(),
        rows=options.rows,
        folder=config.state_directory / "personal" / plan.run,
    )


def _adapters(plan: Plan, own: ShelvedAdapter, shelved: tuple[ShelvedAdapter, ...]) -> tuple[NamedAdapter, ...]:
    """The run's adapter, with the one beneath it before it if it is a domain's."""
    top = _frozen(own, plan.method)
    if plan.beneath is None:
        return (NamedAdapter(name="global", adapter=top),)
    below = next((one for one in shelved if one.manifest.digest == plan.beneath.adapter), None)
    if below is None:
        raise NotFound(
            f"this site no longer has the adapter {plan.beneath.adapter[:12]} that lies beneath run {plan.run}"
        )
    return (
        NamedAdapter(name="global", adapter=_frozen(below, plan.beneath.method)),
        NamedAdapter(name=plan.domain, adapter=top),
    )


def _frozen(shelved: ShelvedAdapter, method: Method) -> FrozenAdapter:
    manifest = shelved.manifest
    return FrozenAdapter(folder=shelved.folder.resolve(), digest=manifest.digest, spec=manifest.adapter, method=method)


def _json(result: BlendResult) -> dict[str, object]:
    return {
        "scales": list(result.scales),
        "records": result.records,
        "choosing_records": result.choosing_records,
        "models": [
            {"name": row.name, "scales": list(row.scales), "loss": row.loss, "choosing_loss": row.choosing_loss}
            for row in result.rows
        ],
    }


def _tell(progress: Progress) -> None:
    if progress.step == progress.total_steps:
        print_note(f"{progress.phase.value} {progress.detail}".rstrip())
