"""Local LoRA training: from the global adapter, so many steps, loss on answer tokens only.

Knows tokens and the adapted model; nothing of files of records, rounds and the daemon. On the CPU, with one number of
threads, the same job ends with the same bits, also after being killed and resumed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from common.errors import TrainingFailed, TrainingStopped
from participant.training.answers import answer_flags, answer_loss, answer_states
from participant.training.batches import batches, passes_of, share_of
from participant.training.checkpoint import Position, restore_checkpoint, save_checkpoint
from participant.training.job import Hyperparameters, Resources
from participant.training.methods import ClientMethod
from participant.training.model import AdaptedModel
from participant.training.preferences import Preferences
from participant.training.result import Phase, Progress, TrainingFigures
from participant.training.states import PlainStates, States, quick_states
from participant.training.tokens import Encoded

if TYPE_CHECKING:  # most jobs are of one process, and need nothing of torch.distributed
    from participant.training.group import Group

FillGradients = Callable[[Sequence[Encoded]], float]  # of one step's records; returns their mean loss


class PrivateSteps(Protocol):
    """Steps that keep single records private: which records a step sees, and gradients that are clipped and noisy.

    A step's records and noise follow from its number, so a job that is resumed does the same again.
    """

    def batches(self, *, first_step: int) -> Iterator[tuple[int, ...]]:
        """Record indices of one step after the other, endless; a step may have none, and is a step all the same."""
        ...

    def fill_gradients(
        self, model: AdaptedModel, trained: Mapping[str, nn.Parameter], indices: tuple[int, ...], *, step: int
    ) -> float:
        """Put the step's gradients on the parameters, in place of any. Returns the mean loss of its records, for this
        site's own people; 0 where there are none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTask:
    """What to train on and how. weights: of the records, for drawing. checkpoint: None keeps none.

    private: None for ordinary steps, each on the mean loss per answer token of its batch, or, where the job has a beta,
    on the mean DPO loss of its pairs. group: None where this process trains alone; otherwise all its processes do the
    same task, each on its share of every step's records, and come to the same parameters.
    """

    records: Sequence[Encoded]
    weights: Sequence[float]
    hyperparameters: Hyperparameters
    resources: Resources
    method: ClientMethod
    job_digest: str
    checkpoint: Path | None
    private: PrivateSteps | None = None
    group: Group | None = None


def train(
    model: AdaptedModel,
    task: TrainingTask,
    *,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> TrainingFigures:
    """Train the model's factors in place.

    Raises TrainingFailed if loss or gradients are not finite, and TrainingStopped, after a checkpoint, if asked to.
    """
    # Private steps take the layers apart themselves: they need each record's own gradient.
    with quick_states(model) if task.private is None else contextlib.nullcontext(PlainStates(model)) as states:
        fill: FillGradients = functools.partial(_fill_gradients, model, states, task)
        if task.private is None and task.hyperparameters.dpo_beta:
            fill = Preferences(
                model,
                states,
                beta=task.hyperparameters.dpo_beta,
                micro_batch_size=task.resources.micro_batch_size,
            ).fill_gradients
        if task.group is not None:
            fill = functools.partial(_fill_with_others, model, states, task, task.group)
            should_stop = _agreed(task.group, should_stop)
        return _train(model, fill, task, on_progress=on_progress, should_stop=should_stop)


def _train(
    model: AdaptedModel,
    fill: FillGradients,
    task: TrainingTask,
    *,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> TrainingFigures:
    settings = task.hyperparameters
    torch.manual_seed(settings.seed)
    movable = model.movable
    start = {name: factor.detach().clone() for name, factor in movable.items()}
    trained = {name: factor for name, factor in movable.items() if task.method.is_trained(name)}
    for name, factor in movable.items():
        factor.requires_grad_(name in trained)
    optimiser = torch.optim.AdamW(
        list(trained.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    position = _restored(task, trained, optimiser)
    resumed_at = position.step
    if task.group is not None:
        task.group.check_same(resumed_at)
    for indices in itertools.islice(_order(task, first_step=resumed_at), settings.steps - resumed_at):
        if should_stop():
            _checkpoint(task, position, trained, optimiser)
            raise TrainingStopped(f"stopped at step {position.step} of {settings.steps}; start the job again to go on")
        began = time.perf_counter()
        records = [task.records[index] for index in indices]
        loss = _step(model, fill, task, indices, start=start, trained=trained, optimiser=optimiser, step=position.step)
        position = replace(
            position,
            step=position.step + 1,
            losses=(*position.losses, loss),
            records=position.records + len(records),
            tokens=position.tokens + sum(record.tokens for record in records),
            answer_tokens=position.answer_tokens + sum(record.answer_tokens for record in records),
            seconds=position.seconds + time.perf_counter() - began,
        )
        on_progress(_progress(position, settings.steps))
        every = task.resources.checkpoint_every_steps
        if every and (position.step % every == 0 or position.step == settings.steps):
            _checkpoint(task, position, trained, optimiser)
    # After the last checkpoint: killed in here, the job begins with this again.
    task.method.finish(trained, start)
    return TrainingFigures(
        steps=position.step,
        records=position.records,
        distinct_records=len(task.records),
        tokens=position.tokens,
        answer_tokens=position.answer_tokens,
        losses=position.losses,
        seconds=position.seconds,
        tokens_per_second=_rate(position),
        resumed_at_step=resumed_at,
    )


def _order(task: TrainingTask, *, first_step: int) -> Iterator[tuple[int, ...]]:
    """Record indices of every step from `first_step` on."""
    if task.private is not None:
        return task.private.batches(first_step=first_step)
    lengths = [record.tokens for record in task.records]
    settings = task.hyperparameters
    order = batches(lengths, task.weights, batch_size=settings.batch_size, seed=settings.seed)
    return itertools.islice(order, first_step, None)


def _step(
    model: AdaptedModel,
    fill: FillGradients,
    task: TrainingTask,
    indices: tuple[int, ...],
    *,
    start: Mapping[str, Tensor],
    trained: Mapping[str, nn.Parameter],
    optimiser: torch.optim.AdamW,
    step: int,
) -> float:
    """One optimiser step; returns the mean loss of its records."""
    optimiser.zero_grad(set_to_none=True)
    if task.private is not None:
        loss = task.private.fill_gradients(model, trained, indices, step=step)
    else:
        loss = fill([task.records[index] for index in indices])
    penalty = task.method.penalty(trained, start)
    if penalty is not None:
        penalty.backward()
    norm = float(nn.utils.clip_grad_norm_(trained.values(), task.hyperparameters.max_gradient_norm))
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainingFailed(
            f"step {step + 1} gave loss {loss} and gradient norm {norm}: training has diverged; "
            f"the plan's learning rate {task.hyperparameters.learning_rate} may be too high for this site's records"
        )
    optimiser.step()
    task.method.after_step(trained, learning_rate=task.hyperparameters.learning_rate)
    return loss


def _fill_gradients(model: AdaptedModel, states: States, task: TrainingTask, records: Sequence[Encoded]) -> float:
    """Gradients of the batch's mean loss per answer token, which is returned.

    Micro-batches add up to the mean over the whole batch, so their size changes memory and not the gradient.
    """
    answer_tokens = sum(record.answer_tokens for record in records)
    loss = 0.0
    size = task.resources.micro_batch_size
    for first in range(0, len(records), size):
        loss += _add_gradients(model, states, records[first : first + size], answer_tokens)
    return loss


def _fill_with_others(
    model: AdaptedModel, states: States, task: TrainingTask, group: Group, records: Sequence[Encoded]
) -> float:
    """The same by several processes: this one's share, and then the sum of all shares. Raises where one is gone."""
    answer_tokens = sum(record.answer_tokens for record in records)
    own = [records[place] for place in share_of(len(records), rank=group.rank, processes=group.size)]
    loss = 0.0
    size = task.resources.micro_batch_size
    for number in range(passes_of(len(records), processes=group.size, micro_batch_size=size)):
        part = own[number * size : (number + 1) * size]
        if part:
            loss += _add_gradients(model, states, part, answer_tokens)
        elif group.is_sharded:
            # The others' pass needs this process's part of the layers: any record does, at a weight of nothing.
            _add_gradients(model, states, records[-1:], math.inf)
    return group.add_up([factor for factor in model.movable.values() if factor.requires_grad], loss)


def _add_gradients(model: AdaptedModel, states: States, part: Sequence[Encoded], answer_tokens: float) -> float:
    """Add the gradients of these records' share in a mean over so many answer tokens; returns that share."""
    rows = [record.ids for record in part]
    batch = model.batch(rows)
    wanted, targets = answer_states(states.hidden(rows), batch, answer_flags(model, part, batch.ids.shape[1]))
    mean = answer_loss(model, wanted, targets) / answer_tokens
    mean.backward()
    return float(mean.detach())


def _agreed(group: Group, should_stop: Callable[[], bool]) -> Callable[[], bool]:
    """Stopping is asked of one process, and done by all at the same step."""
    return lambda: group.any(should_stop())


def _restored(task: TrainingTask, trained: Mapping[str, nn.Parameter], optimiser: torch.optim.AdamW) -> Position:
    position = None
    if task.checkpoint is not None:
        position = restore_checkpoint(task.checkpoint, job_digest=task.job_digest, trained=trained, optimiser=optimiser)
    return position or Position(
        job_digest=task.job_digest, step=0, losses=(), records=0, tokens=0, answer_tokens=0, seconds=0.0
    )


def _checkpoint(
    task: TrainingTask, position: Position, trained: Mapping[str, nn.Parameter], optimiser: torch.optim.AdamW
) -> None:
    is_first = task.group is None or task.group.rank == 0
    if is_first and task.checkpoint is not None and position.step > 0:
        save_checkpoint(task.checkpoint, position, trained=trained, optimiser=optimiser)


def _progress(position: Position, steps: int) -> Progress:
    return Progress(
        phase=Phase.TRAIN,
        step=position.step,
        total_steps=steps,
        loss=position.losses[-1],
        tokens_per_second=_rate(position),
        seconds_left=position.seconds / position.step * (steps - position.step),
    )


def _rate(position: Position) -> float:
    return position.tokens / position.seconds if position.seconds > 0.0 else 0.0
