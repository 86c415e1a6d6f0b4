"""Held-out scores of the present adapter: answer loss, accuracy, span F1, ROUGE-L, as sums per domain.

One forward pass over question and right answer gives the loss and, at the same time, the start of every greedy answer:
greedy decoding follows the right answer up to the first token where the model's choice differs. So a choice among
labels needs no further pass, and a free answer only goes on, from the cached pass, where it leaves the right one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache

from common.errors import TrainingStopped
from common.instructions import Task
from participant.training.answers import HEAD_ROWS, answer_flags, answer_states
from participant.training.asked import asked_of
from participant.training.bounds import bounded
from participant.training.data import Exchange, Record
from participant.training.job import EvaluationSettings
from participant.training.model import AdaptedModel
from participant.training.preferences import dpo_losses, margins, without_adapter
from participant.training.result import DomainScores, Phase, Progress
from participant.training.scoring import count_spans, rouge_l
from participant.training.states import States, quick_states
from participant.training.tokens import Encoded, Encoder

Choices = Mapping[tuple[int, ...], frozenset[int]]  # after these answer tokens, these may follow


@dataclass(frozen=True, slots=True)
class Question:
    """One held-out record. has_loss: its loss counts, and for a classification its choice among `choices`.

    is_answered: a free answer is wanted.
    """

    encoded: Encoded
    has_loss: bool
    is_answered: bool
    choices: Choices | None = None


@dataclass(frozen=True, slots=True)
class _Prediction:
    """One record's forward pass: nats per answer token, the model's free choice at each, and its constrained one."""

    losses: tuple[float, ...]
    free: tuple[int, ...]
    is_right_choice: bool


@dataclass(frozen=True, slots=True)
class _Pass:
    """A batch's forward pass. cache: None unless free answers go on from it; length: of its rows, padding included."""

    predictions: tuple[_Prediction, ...]
    cache: Cache | None
    length: int


def questions(
    held_out: Sequence[Encoded], *, known: Sequence[Encoded], encoder: Encoder, settings: EvaluationSettings
) -> tuple[Question, ...]:
    """What to ask, as `asked_of` chooses it.

    known: all of the site's records; the labels of a domain are the answers that occur there, unless the plan has them.
    Where one record's part of the sums is bounded, the plan's labels alone count: another record's answer among the
    choices could change the answers to all. Without them nothing is chosen.
    """
    by_record = {id(item.record): item for item in held_out}
    choices: dict[str, Choices] = {}
    chosen: list[Question] = []
    for asked in asked_of([item.record for item in held_out], settings):
        record, domain = asked.record, asked.record.domain
        is_choice = record.task is Task.CLASSIFICATION
        if is_choice and domain not in choices:
            labels = encoder.labels(record) or (() if settings.is_bounded else _site_labels(known, domain))
            choices[domain] = label_choices([encoder.encode_answer(record, label) for label in labels])
        chosen.append(
            Question(
                by_record[id(record)],
                has_loss=asked.has_loss,
                is_answered=asked.is_answered,
                choices=(choices[domain] or None) if is_choice else None,
            )
        )
    return tuple(chosen)


def evaluate(
    model: AdaptedModel,
    asked: Sequence[Question],
    *,
    encoder: Encoder,
    settings: EvaluationSettings,
    batch_size: int,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    on_record: Callable[[Record, DomainScores], None] = lambda record, scores: None,
    dpo_beta: float = 0.0,
) -> tuple[DomainScores, ...]:
    """Scores per domain, sorted by name. Raises TrainingStopped if asked to.

    on_record: told each record's own part of the sums, its loss and its free answer apart from one another.
    dpo_beta: of the loss by which preference pairs are judged.
    """
    began = time.perf_counter()
    ordered = sorted(asked, key=lambda question: (question.is_answered, -len(question.encoded.ids)))
    groups = list(_groups(ordered, batch_size))
    scores: dict[str, DomainScores] = {}
    tokens = 0
    with torch.inference_mode(), quick_states(model) as states:
        for number, group in enumerate(groups, start=1):
            if should_stop():
                raise TrainingStopped("stopped during evaluation; start the job again to go on")
            if group[0].encoded.rejected is not None:
                found = _pair_scores(model, states, group, beta=dpo_beta)
            else:
                found = _score(model, states, group, encoder=encoder, settings=settings)
            for record, whole in found:
                score = bounded(whole) if settings.is_bounded else whole
                on_record(record, score)
                scores[score.domain] = scores.get(score.domain, DomainScores(domain=score.domain)) + score
            seconds = time.perf_counter() - began
            tokens += sum(len(question.encoded.ids) for question in group)
            on_progress(
                Progress(
                    phase=Phase.EVALUATE,
                    step=number,
                    total_steps=len(groups),
                    tokens_per_second=tokens / seconds if seconds else None,
                    seconds_left=seconds / number * (len(groups) - number),
                )
            )
    return tuple(scores[domain] for domain in sorted(scores))


def label_choices(answers: Sequence[Sequence[int]]) -> Choices:
    """For every beginning of an answer, the tokens that may follow in one of the answers; each ends with its mark."""
    following: dict[tuple[int, ...], set[int]] = {}
    for answer in answers:
        for position, token in enumerate(answer):
            following.setdefault(tuple(answer[:position]), set()).add(token)
    return {start: frozenset(tokens) for start, tokens in following.items()}


def _site_labels(known: Sequence[Encoded], domain: str) -> tuple[str, ...]:
    outputs = {
        item.record.content.output
        for item in known
        if item.record.domain == domain
        and item.record.task is Task.CLASSIFICATION
        and isinstance(item.record.content, Exchange)
    }
    return tuple(sorted(outputs))


def _groups(asked: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    """Batches of like length that hold either answered questions or others."""
    for wanted in (False, True):
        part = [question for question in asked if question.is_answered == wanted]
        for first in range(0, len(part), size):
            yield part[first : first + size]


def _score(
    model: AdaptedModel, states: States, group: Sequence[Question], *, encoder: Encoder, settings: EvaluationSettings
) -> Iterator[tuple[Record, DomainScores]]:
    done = _forward(model, states, group)
    for question, prediction in zip(group, done.predictions, strict=True):
        if question.has_loss and prediction.losses:
            yield question.encoded.record, _loss_scores(question, prediction)
    if done.cache is None:
        return
    answers = _answers(model, group, done, encoder, settings.max_new_tokens)
    for question, answer in zip(group, answers, strict=True):
        yield question.encoded.record, _answer_scores(question.encoded.record, answer)


def _pair_scores(
    model: AdaptedModel, states: States, group: Sequence[Question], *, beta: float
) -> Iterator[tuple[Record, DomainScores]]:
    pairs = [question.encoded for question in group]
    own = margins(model, states, pairs)
    with without_adapter(model):
        reference = margins(model, states, pairs)
    losses = dpo_losses(own, reference, beta=beta).tolist()
    for pair, gain, loss in zip(pairs, (own - reference).tolist(), losses, strict=True):
        yield (
            pair.record,
            DomainScores(
                domain=pair.record.domain,
                loss_sum=loss,
                loss_tokens=1,
                loss_records=1,
                loss_square_sum=loss**2,
                pairs=1,
                preferred=int(gain > 0.0),
                margin_sum=gain,
            ),
        )


def _loss_scores(question: Question, prediction: _Prediction) -> DomainScores:
    total = sum(prediction.losses)
    is_classified = question.choices is not None
    return DomainScores(
        domain=question.encoded.record.domain,
        loss_sum=total,
        loss_tokens=len(prediction.losses),
        loss_records=1,
        loss_square_sum=(total / len(prediction.losses)) ** 2,
        classified=int(is_classified),
        correct=int(is_classified and prediction.is_right_choice),
    )


def _answer_scores(record: Record, answer: str) -> DomainScores:
    if record.task is Task.NER:
        counts = count_spans(answer, record.mentions)
        return DomainScores(
            domain=record.domain,
            ner_records=1,
            true_positives=counts.true_positives,
            false_positives=counts.false_positives,
            false_negatives=counts.false_negatives,
            malformed_lines=counts.malformed_lines,
        )
    reference = record.content.output if isinstance(record.content, Exchange) else ""
    return DomainScores(domain=record.domain, rouge_records=1, rouge_sum=rouge_l(answer, reference))


def _forward(model: AdaptedModel, states: States, group: Sequence[Question]) -> _Pass:
    """One pass over questions with their right answers; keeps the cache if the group's free answers are wanted."""
    records = [question.encoded for question in group]
    batch = model.batch([record.ids for record in records])
    length = int(batch.ids.shape[1])
    cache: Cache | None = None
    if group[0].is_answered:
        positions = torch.arange(length, device=model.device).expand(len(records), -1)
        hidden, cache = model.hidden_and_cache(batch.ids, mask=batch.mask, positions=positions)
    else:
        hidden = states.hidden([record.ids for record in records])
    wanted, targets = answer_states(hidden, batch, answer_flags(model, records, length))
    allowed = [token_set for question in group for token_set in _allowed(question)]
    losses: list[float] = []
    free: list[int] = []
    bound: list[int] = []
    for first in range(0, len(targets), HEAD_ROWS):
        logits = model.logits(wanted[first : first + HEAD_ROWS])
        losses.extend(functional.cross_entropy(logits, targets[first : first + HEAD_ROWS], reduction="none").tolist())
        free.extend(logits.argmax(dim=1).tolist())
        bound.extend(_bound_choices(logits, allowed[first : first + HEAD_ROWS]))
    predictions: list[_Prediction] = []
    position = 0
    for record in records:
        span = slice(position, position + record.answer_tokens)
        right = targets[span].tolist()
        predictions.append(_Prediction(tuple(losses[span]), tuple(free[span]), bound[span] == right))
        position = span.stop
    return _Pass(tuple(predictions), cache, length)


def _allowed(question: Question) -> Iterator[frozenset[int]]:
    """Per answer token, what may stand there after the right answer so far; empty where nothing is asked."""
    answer = question.encoded.ids[question.encoded.prompt_tokens :]
    for position in range(question.encoded.answer_tokens):
        yield (question.choices or {}).get(tuple(answer[:position]), frozenset())


def _bound_choices(logits: Tensor, allowed: Sequence[frozenset[int]]) -> Iterator[int]:
    """The best allowed token of each row; -1 where none is."""
    for row, tokens in enumerate(allowed):
        if len(tokens) <= 1:
            yield next(iter(tokens), -1)
        else:
            options = sorted(tokens)
            yield options[int(logits[row, options].argmax())]


def _answers(
    model: AdaptedModel, group: Sequence[Question], done: _Pass, encoder: Encoder, max_new_tokens: int
) -> list[str]:
    """Free greedy answers: each begins where the pass agreed with the right answer, and goes on from the cache."""
    drafts = [
        _own_start(question.encoded, prediction, max_new_tokens)
        for question, prediction in zip(group, done.predictions, strict=True)
    ]
    is_open = [_goes_on(draft, encoder, max_new_tokens) for draft in drafts]
    rows = [row for row, open_ in enumerate(is_open) if open_]
    cache = done.cache
    if rows and cache is not None:
        cache.batch_select_indices(torch.tensor(rows, device=model.device))
        prompts = torch.tensor([group[row].encoded.prompt_tokens for row in rows], device=model.device)
        kept = prompts + torch.tensor([len(drafts[row]) - 1 for row in rows], device=model.device)
        # The cache still holds the rest of the right answer: it must stay unseen.
        mask = (torch.arange(done.length, device=model.device).unsqueeze(0) < kept.unsqueeze(1)).to(torch.int64)
        _go_on(model, drafts, rows, cache, mask, kept, encoder=encoder, max_new_tokens=max_new_tokens)
    return [encoder.decode([token for token in draft if token not in encoder.stop_ids]) for draft in drafts]


def _go_on(
    model: AdaptedModel,
    drafts: list[list[int]],
    rows: list[int],
    cache: Cache,
    mask: Tensor,
    positions: Tensor,
    *,
    encoder: Encoder,
    max_new_tokens: int,
) -> None:
    """Extend the drafts of `rows` in place, a token a pass, until each has ended."""
    while rows:
        ids = torch.tensor([[drafts[row][-1]] for row in rows], device=model.device)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        hidden, cache = model.hidden_and_cache(ids, mask=mask, positions=positions.unsqueeze(1), cache=cache)
        for row, token in zip(rows, model.logits(hidden[:, -1]).argmax(dim=1).tolist(), strict=True):
            drafts[row].append(int(token))
        positions = positions + 1
        staying = [place for place, row in enumerate(rows) if _goes_on(drafts[row], encoder, max_new_tokens)]
        if len(staying) < len(rows):
            keep = torch.tensor(staying, dtype=torch.int64, device=model.device)
            rows = [rows[place] for place in staying]
            mask, positions = mask[keep], positions[keep]
            cache.batch_select_indices(keep)


def _own_start(encoded: Encoded, prediction: _Prediction, max_new_tokens: int) -> list[int]:
    """The model's own first tokens: those of the right answer while it agrees, and the one where it first does not."""
    right = encoded.ids[encoded.prompt_tokens :]
    for position, (token, wanted) in enumerate(zip(prediction.free, right, strict=True)):
        if token != wanted:
            return list(prediction.free[: position + 1])[:max_new_tokens]
    return list(prediction.free)[:max_new_tokens]


def _goes_on(draft: Sequence[int], encoder: Encoder, max_new_tokens: int) -> bool:
    return len(draft) < max_new_tokens and draft[-1] not in encoder.stop_ids
