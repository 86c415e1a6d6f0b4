"""The arms of the equal-token protocol: who trains on what, for how long, from which start, and what it is worth.

Every piece of work has a folder of its own and is done once: what lies there finished is not done again, so an
experiment that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from common import jsonform
from common.adapters import ADAPTER_FILE, AdapterSpec, file_digest, write_initial_folder
from common.basemodel import BaseModel
from common.durable import write_durably
from common.errors import InvalidArgument
from common.instruction_updates import Updates
from common.instructions import chat_instruction_set
from common.methods import Method
from common.plan import CONSTANT_RATE
from coordinator.planning import all_linear
from demo.sites import BaseModelFolder
from experiments.federation import ADAPTER_FOLDER, FederatedResult, add_adapters, run_federated
from experiments.judging import JudgeJob, Judgement, TestFile
from experiments.pool import Pool
from experiments.presets import ALL_RECORDS, FederatedMethod, Preset
from experiments.rates import Rates
from experiments.sites import Site, domains_of, with_rare
from participant.training.job import (
    DataSettings,
    EvaluationSettings,
    Hyperparameters,
    JobKind,
    Precision,
    Resources,
    TrainingJob,
)

Item = TypeVar("Item")
Result = TypeVar("Result")

POOLED_FILE: Final = "pooled.jsonl"
MADE_OF_FILE: Final = "made-of.json"
# More than there are slots: a job that waits for its turn costs nothing, and a federation's sites come in between.
_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Arms:
    """All that the arms of one experiment share. place: the folder of all work. A model is its PEFT folder."""

    preset: Preset
    place: Path
    sites: tuple[Site, ...]
    model: BaseModel
    base: BaseModelFolder
    pool: Pool
    say: Callable[[str], None]

    # --- training -------------------------------------------------------------------------------------------------

    @property
    def spec(self) -> AdapterSpec:
        """The adapter of every arm but those federated methods that name another."""
        return AdapterSpec(self.preset.rank, self.preset.alpha, all_linear(self.model))

    def prepare(self) -> None:
        """Write what many arms begin from, before they do so at once: each seed's first adapter, all records.

        Raises InvalidArgument if the folder holds work of another base model or of other records.
        """
        self._require_same()
        for seed in self.preset.seeds:
            folder = self._start(seed)
            if not folder.exists():
                partial = folder.with_suffix(".partial")
                shutil.rmtree(partial, ignore_errors=True)
                write_initial_folder(partial, self.model.layers, self.spec, seed=seed, base_model_name=self.model.name)
                partial.rename(folder)
        with (self.place / POOLED_FILE).open("wb") as pooled:
            for site in self.sites:
                pooled.write(site.train.read_bytes())

    def _require_same(self) -> None:
        """What lies finished is taken as it is, so it must have been made of the same."""
        digests = {
            f"{site.name}/{path.name}": file_digest(path)
            for site in self.sites
            for path in (site.train, site.validation, site.test)
        }
        made_of = json.dumps({"base_model": self.base.digest, "records": digests}, indent=2, sort_keys=True)
        file = self.place / MADE_OF_FILE
        if file.exists() and file.read_text() != made_of:
            raise InvalidArgument(
                f"{self.place} holds an experiment with another base model or other records: name another --out, or "
                "remove the folder"
            )
        write_durably(file, made_of.encode())

    def _start(self, seed: int) -> Path:
        """A seed's initial adapter: LoRA with A as PEFT draws it and B zero."""
        return self.place / f"seed-{seed}" / "start"

    def train(
        self, folder: Path, *, start: Path, data: Path, steps: int, batch_size: int, rate: float, seed: int
    ) -> Path:
        """Plain local training from `start`, as the product's participants train."""
        budget = self.preset.budget
        job = TrainingJob(
            kind=JobKind.TRAIN,
            base_model=self.base.folder.resolve(),
            base_model_digest=self.base.digest,
            global_adapter=start.resolve(),
            global_adapter_digest=file_digest(start / ADAPTER_FILE),
            adapter=self.spec,
            method=Method(),
            hyperparameters=Hyperparameters(
                learning_rate=rate, batch_size=batch_size, steps=steps, max_length=budget.max_length, seed=seed
            ),
            instruction_set=chat_instruction_set(),
            data=DataSettings(train_path=data.resolve(), held_out_fraction=0.0),
            evaluation=EvaluationSettings(loss_records=0, ner_records=0),
            resources=Resources(precision=Precision.AUTO),
        )
        self.pool.run(folder, job)
        return folder / ADAPTER_FOLDER

    def alone(self, site: Site, *, seed: int, rate: float) -> Path:
        """A site with its own share: R K steps on its own records."""
        budget = self.preset.budget
        return self.train(
            self.place / f"seed-{seed}" / f"alone-{rate:g}" / site.name,
            start=self._start(seed),
            data=site.train,
            steps=budget.own_steps,
            batch_size=budget.batch_size,
            rate=rate,
            seed=seed,
        )

    def alone_full(self, site: Site, *, seed: int, rate: float) -> Path:
        """A site with everybody's budget: own share after own share, until its own validation gets no better.

        Moments begin anew with each share, as they do with each round in a federation.
        """
        best, best_loss, without_gain = self.alone(site, seed=seed, rate=rate), float("inf"), 0
        present = best
        for share in range(1, len(self.sites) + 1):
            if share > 1:
                present = self.train(
                    self.place / f"seed-{seed}" / f"alone-full-{rate:g}" / site.name / f"share-{share}",
                    start=present,
                    data=site.train,
                    steps=self.preset.budget.own_steps,
                    batch_size=self.preset.budget.batch_size,
                    rate=rate,
                    seed=seed * 1000 + share,
                )
            loss = self.validated(present, [site]).of_site(site.name).mean
            if loss < best_loss:
                best, best_loss, without_gain = present, loss, 0
            else:
                without_gain += 1
            if without_gain >= self.preset.patience:
                break
        return best

    def central(self, *, seed: int, rate: float, is_wide: bool) -> Path:
        """All records in one place, all tokens: N R K steps of b records, or (wide) R K steps of N b."""
        budget, count = self.preset.budget, len(self.sites)
        name = "central-wide" if is_wide else "central"
        return self.train(
            self.place / f"seed-{seed}" / f"{name}-{rate:g}",
            start=self._start(seed),
            data=self.place / POOLED_FILE,
            steps=budget.own_steps * (1 if is_wide else count),
            batch_size=budget.batch_size * (count if is_wide else 1),
            rate=rate,
            seed=seed,
        )

    def federated(self, method: FederatedMethod, *, seed: int, rates: Rates) -> tuple[Path, FederatedResult]:
        """The product's own federation with masked rounds: R rounds of K steps at every site."""
        folder, settings = self._federation(method, seed=seed, rates=rates)
        result = run_federated(
            folder,
            sites=self.sites,
            model=self.model,
            base=self.base,
            pool=self.pool.socket,
            settings=settings,
            from_base=method.from_base,
            judged=self.preset.judging.round_records,
        )
        return folder / ADAPTER_FOLDER, result

    def with_adapters(
        self, method: FederatedMethod, *, beneath: str, seed: int, rates: Rates, own_rate: float
    ) -> dict[str, Path]:
        """Each site's own model: the global adapter, its domain's where that has three sites, a private one, and alone.

        beneath: digest of the federated run's adapter. Half a site's share of steps goes into the domain's and as much
        into the private one; all of it into what the site trains alone, which counts where its validation records say
        so. own_rate: of what a site trains by itself.
        """
        folder, settings = self._federation(method, seed=seed, rates=rates)
        half = max(1, self.preset.budget.rounds // 2)
        return add_adapters(
            folder,
            sites=self.sites,
            model=self.model,
            base=self.base,
            pool=self.pool.socket,
            settings={
                **settings,
                "rounds": half,
                "rank": max(1, self.preset.rank // 2),
                "alpha": self.preset.alpha / 2,
            },
            beneath=beneath,
            steps=half * self.preset.budget.steps,
            alone_steps=self.preset.budget.own_steps,
            own_rate=own_rate,
        )

    def _federation(self, method: FederatedMethod, *, seed: int, rates: Rates) -> tuple[Path, dict[str, object]]:
        """Folder and plan settings of a federated run."""
        budget = self.preset.budget
        settings: dict[str, object] = {
            "rank": self.preset.rank,
            "alpha": self.preset.alpha,
            "rounds": budget.rounds,
            "steps_per_round": budget.steps,
            "batch_size": budget.batch_size,
            "max_length": budget.max_length,
            "learning_rate": rates.first,
            "server_learning_rate": self.preset.server_learning_rate,
            "weight_cap": max(site.train_records for site in self.sites),
            "gate_loss_rise": 0.5,
            "seed": seed,
            "instruction_set_json": chat_instruction_set().to_json(),
            **dict(method.settings),
        }
        name = f"federated-{method.name}-{rates.first:g}"
        if rates.schedule != CONSTANT_RATE:
            settings["learning_rate_schedule"] = rates.schedule
            name += f"-{rates.schedule}"
        if method.from_base:
            name += "-from-base"
        return self.place / f"seed-{seed}" / name, settings

    def with_rare(self, domain: str, *, share: float) -> Arms:
        """The same arms, in a folder of their own, where a domain has that share of all training records.

        Sites judge by all their validation records: the updated shares follow from what they find.
        """
        place = self.place / "rare"
        judging = replace(self.preset.judging, round_records=ALL_RECORDS)
        return replace(
            self,
            preset=replace(self.preset, judging=judging),
            place=place,
            sites=with_rare(self.sites, domain, share=share, place=place / "sites"),
        )

    def by_rows(self) -> FederatedMethod:
        """The first method, in which a site weighs by its records."""
        return replace(self.preset.methods[0], name="by-rows")

    def by_updates(self) -> FederatedMethod:
        """The first method, in which a site weighs by its domain's share, and the masked sums update the shares."""
        first, domains = self.preset.methods[0], domains_of(self.sites)
        measured = [
            {"name": name, "tasks": sorted({site.task.value for site in members})} for name, members in domains.items()
        ]
        updates = (("domains", measured), ("updates_json", jsonform.encode(Updates(), Updates)))
        return replace(first, name="by-updates", settings=(*first.settings, *updates))

    # --- judging --------------------------------------------------------------------------------------------------

    def validated(self, trained: Path, sites: Sequence[Site]) -> Judgement:
        """Losses on the validation records of `sites`: what rates and early stopping go by."""
        return self._judged(trained, "validation", sites, answered=False)

    def tested(self, trained: Path | None, *, is_answered: bool = True) -> Judgement:
        """Losses and task metrics on everybody's test records. None: the base model as it is.

        is_answered: whether free answers are wanted too. They are dear, and a model for each site has no need of them.
        """
        return self._judged(trained, "test", self.sites, answered=is_answered)

    def tested_at_home(self, trained: Path, site: Site) -> Judgement:
        """Losses on a site's own test records alone."""
        return self._judged(trained, "test", [site], answered=False)

    def _judged(self, adapter: Path | None, part: str, sites: Sequence[Site], *, answered: bool) -> Judgement:
        judging = self.preset.judging
        place = adapter or self.place / "base-model"
        folder = place.with_name(f"{place.name}-{part}")
        job = JudgeJob(
            base_model=self.base.folder.resolve(),
            adapter=adapter.resolve() if adapter else None,
            instruction_set=chat_instruction_set(),
            tests=tuple(
                TestFile(
                    site=site.name,
                    path=(site.test if part == "test" else site.validation).resolve(),
                    known=tuple(other.train.resolve() for other in self.sites if other.domain == site.domain),
                )
                for site in sites
            ),
            max_length=self.preset.budget.max_length,
            ner_records=judging.ner_records if answered else 0,
            instruction_records=judging.instruction_records if answered else 0,
            max_new_tokens=judging.max_new_tokens,
        )
        return self.pool.judge(folder, job)


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`work` on each, several at once; the pool's slots are what bounds them. Raises the first failure.

    It and an interrupt wait for no other item: what is at work ends with the pool.
    """
    threads = ThreadPoolExecutor(_AT_ONCE)
    try:
        return list(threads.map(work, items))
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
