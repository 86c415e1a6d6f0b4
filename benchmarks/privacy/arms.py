"""Trains a model with and without privacy on the same records, and attacks what came of it."""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.privacy.canaries import Canary, exposure_bits, membership_auc
from common.adapters import AdapterSpec, flatten
from common.basemodel import BaseModel
from common.instructions import Task, chat_instruction_set
from common.methods import Method, adapter_method
from participant.privacy.accounting import noise_multiplier_for
from participant.privacy.desk import usual_delta
from participant.training.data import Exchange, Record
from participant.training.dp_sgd import PrivateRecords, SecretNoise, record_losses
from participant.training.job import NOISE_KEY_BYTES, Hyperparameters, Precision, PrivateSettings, Resources
from participant.training.loop import TrainingTask, train
from participant.training.methods import client_method
from participant.training.model import AdaptedModel, choose_precision, load_model
from participant.training.tokens import Encoded, Encoder, load_tokenizer

Losses = NDArray[np.float64]

_SEED: Final = 5
_EVALUATED_TOGETHER: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What every arm has in common. members, others: ordinary records, trained on and not; epsilons: None for no DP."""

    model: BaseModel
    folder: Path
    spec: AdapterSpec
    method: Method
    members: Sequence[Exchange]
    others: Sequence[Exchange]
    inserted: Sequence[Canary]
    reference: Sequence[Canary]
    batch_size: int
    steps: int
    learning_rate: float
    clip: float
    max_length: int
    threads: int = 1

    @property
    def records(self) -> int:
        return len(self.members) + len(self.inserted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One training. canary_auc, record_auc: of membership inference, 0.5 is chance. canary_exposure_bits: mean, of
    those that were trained on. heldout_loss: mean nats per answer token of ordinary records not trained on."""

    epsilon: float | None
    delta: float | None
    noise_multiplier: float | None
    canary_auc: float
    record_auc: float
    canary_exposure_bits: float
    heldout_loss: float
    heldout_loss_before: float
    seconds: float


class Attack:
    """The model with its adapter as it was at the start, and every record that is looked at."""

    def __init__(self, setting: Setting) -> None:
        torch.set_num_threads(setting.threads)
        kind = adapter_method(setting.method, setting.spec)
        self._layout = kind.layout(setting.model.layers)
        initial = {slot.name: flat.reshape(slot.shape) for slot, flat in kind.initial(setting.model.layers, seed=_SEED)}
        self._start = flatten(initial, self._layout)
        self._setting = setting
        self._encoder = Encoder(load_tokenizer(setting.folder), chat_instruction_set(), max_length=setting.max_length)
        self._members = self._encoded(setting.members)
        self._inserted = self._encoded(_exchange(canary) for canary in setting.inserted)
        reference = self._encoded(_exchange(canary) for canary in setting.reference)
        self._groups = (self._members, self._encoded(setting.others), self._inserted, reference)
        self._before: list[Losses] = []

    def arm(self, epsilon: float | None) -> Arm:
        """Train once, with the whole training within `epsilon`, or without privacy, and attack the adapter."""
        setting, model = self._setting, self._model()
        before = self._losses_before(model)
        began = time.process_time()
        private = None if epsilon is None else self._private(epsilon)
        train(
            model,
            TrainingTask(
                records=[*self._members, *self._inserted],
                weights=[1.0] * setting.records,
                hyperparameters=Hyperparameters(
                    learning_rate=setting.learning_rate,
                    batch_size=setting.batch_size,
                    steps=setting.steps,
                    max_length=setting.max_length,
                    seed=_SEED,
                ),
                resources=Resources(threads=setting.threads, checkpoint_every_steps=0),
                method=client_method(setting.method, setting.spec, round_=1),
                job_digest="",
                checkpoint=None,
                private=private,
            ),
            on_progress=lambda progress: None,
            should_stop=lambda: False,
        )
        seconds = time.process_time() - began
        after = [losses_of(model, group) for group in self._groups]
        members, others, inserted, reference = (old - new for old, new in zip(before, after, strict=True))
        return Arm(
            epsilon=epsilon,
            delta=None if private is None else usual_delta(setting.records),
            noise_multiplier=None if private is None else round(private.settings.noise_multiplier, 3),
            canary_auc=round(membership_auc(inserted, reference), 3),
            record_auc=round(membership_auc(members, others), 3),
            canary_exposure_bits=round(self._exposure(model, setting.inserted, after[2]), 2),
            heldout_loss=round(float(after[1].mean()), 4),
            heldout_loss_before=round(float(before[1].mean()), 4),
            seconds=round(seconds, 1),
        )

    def _losses_before(self, model: AdaptedModel) -> list[Losses]:
        """All arms start alike, so this is asked once."""
        if not self._before:
            self._before = [losses_of(model, group) for group in self._groups]
        return self._before

    def _model(self) -> AdaptedModel:
        setting = self._setting
        return load_model(
            setting.folder,
            spec=setting.spec,
            layout=self._layout,
            start=self._start,
            device=torch.device("cpu"),
            precision=choose_precision(Precision.AUTO, torch.device("cpu")),
            method=setting.method,
        )

    def _private(self, epsilon: float) -> PrivateRecords:
        setting = self._setting
        rate = min(1.0, setting.batch_size / setting.records)
        noise = noise_multiplier_for(
            epsilon=epsilon, delta=usual_delta(setting.records), sample_rate=rate, steps=setting.steps
        )
        return PrivateRecords(
            records=[*self._members, *self._inserted],
            weights=[1.0] * setting.records,
            heaviest=1.0,
            settings=PrivateSettings(
                sample_rate=rate, noise_multiplier=noise, clip=setting.clip, records=setting.records
            ),
            noise=SecretNoise(secrets.token_bytes(NOISE_KEY_BYTES)),
            micro_batch_size=8,
        )

    def _exposure(self, model: AdaptedModel, canaries: Sequence[Canary], own: Losses) -> float:
        guesses = [Exchange(canary.question, "", other) for canary in canaries for other in canary.others]
        losses = losses_of(model, self._encoded(guesses)).reshape(len(canaries), -1)
        return statistics.fmean(exposure_bits(float(loss), list(row)) for loss, row in zip(own, losses, strict=True))

    def _encoded(self, exchanges: Sequence[Exchange] | Iterator[Exchange]) -> list[Encoded]:
        found: list[Encoded] = []
        for number, exchange in enumerate(exchanges):
            encoded = self._encoder.encode(Record(number, "general", Task.INSTRUCTION, exchange, f"{number:08x}"))
            assert isinstance(encoded, Encoded), "a record is longer than max_length"
            found.append(encoded)
        return found


def losses_of(model: AdaptedModel, records: Sequence[Encoded]) -> Losses:
    """Mean nats per answer token of every record, float64[records]."""
    starts = range(0, len(records), _EVALUATED_TOGETHER)
    with torch.inference_mode():
        parts = [record_losses(model, records[first : first + _EVALUATED_TOGETHER]).double() for first in starts]
    found: Losses = torch.cat(parts).cpu().numpy()
    return found


def _exchange(canary: Canary) -> Exchange:
    return Exchange(canary.question, "", canary.secret)
