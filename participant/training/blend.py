"""The process that tries scales: `python -m participant.training.blend JOB_FOLDER`, started by `process.run_blend`.

Keeps the adapted layers' own weights beside the model, and writes them anew with each choice of scales: a forward pass
costs what it costs without adapters.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from common import basemodel
from common.adapters import AdapterLayout, LinearLayer
from common.errors import BaseModelMismatch, DataInvalid, InvalidArgument
from common.methods import LoraFactors
from participant.merged import factors_of
from participant.scales import Scales, search_scales
from participant.training import data
from participant.training.blend_job import (
    BLEND_JOB_FILE,
    BLEND_RESULT_FILE,
    BlendJob,
    BlendResult,
    BlendRow,
    NamedAdapter,
)
from participant.training.child import Reporter, StopRequest, run_child, write_atomically
from participant.training.data import choose
from participant.training.evaluate import Question, evaluate
from participant.training.job import EvaluationSettings
from participant.training.model import AdaptedModel, after_head_of, choose_device, choose_precision, load_base
from participant.training.result import Phase, Progress, total_scores
from participant.training.tokens import Encoded, Encoder, encode_all, load_tokenizer

_LEAST_RECORDS = 2


class Blend:
    """A base model with several adapters in its weights, by scales that can be changed."""

    def __init__(
        self, model: AdaptedModel, layers: Sequence[LinearLayer], parts: Sequence[Mapping[str, LoraFactors]]
    ) -> None:
        """parts: of each adapter its factors by layer name, scale folded into b."""
        self.model = model
        self._parts = tuple(parts)
        names = {layer.name for layer in layers if any(layer.name in part for part in parts)}
        self._own: dict[str, Tensor] = {name: self._weight(name).detach().clone() for name in sorted(names)}

    def use(self, scales: Scales) -> None:
        """Make the model the base with each adapter by its scale."""
        with torch.no_grad():
            for name, own in self._own.items():
                moved = own.to(torch.float32)
                for part, scale in zip(self._parts, scales, strict=True):
                    if scale and name in part:
                        b, a = (torch.from_numpy(side).to(own.device) for side in (part[name].b, part[name].a))
                        moved = moved + scale * (b @ a)
                self._weight(name).copy_(moved.to(own.dtype))

    def _weight(self, name: str) -> nn.Parameter:
        weight = self.model.causal.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)  # noqa: S101  (for mypy)
        return weight


def run_blend(folder: Path, report: Reporter, stop: StopRequest) -> None:
    """Do the job in `folder`. Raises what `run_child` turns into exit codes."""
    try:
        job = BlendJob.from_json((folder / BLEND_JOB_FILE).read_bytes()).resolved(folder.resolve())
    except OSError as error:
        raise InvalidArgument(f"cannot read {folder / BLEND_JOB_FILE}: {error.strerror}") from error
    torch.set_num_threads(job.resources.threads)
    described = basemodel.describe(job.base_model)
    if described.digest != job.base_model_digest:
        raise BaseModelMismatch(f"the base model in {job.base_model} has digest {described.digest}")
    report(Progress(phase=Phase.LOAD, step=1, total_steps=2, detail="read records"))
    encoder = Encoder(load_tokenizer(job.base_model), job.instruction_set, max_length=job.max_length)
    choosing, telling = _halves(job, encoder)
    report(Progress(phase=Phase.LOAD, step=2, total_steps=2, detail="load the base model"))
    device = choose_device(job.resources.device)
    precision = choose_precision(job.resources.precision, device)
    base = load_base(job.base_model, precision)
    base.requires_grad_(False)
    nn.Module.to(base, device)
    base.eval()
    model = AdaptedModel(
        causal=base,
        factors={},
        layout=AdapterLayout(()),
        device=device,
        precision=precision,
        after_head=after_head_of(base, device),
    )
    parts = [{layer.name: found for layer, found in factors_of(described.layers, one.adapter)} for one in job.adapters]
    blend = Blend(model, described.layers, parts)

    def loss(scales: Scales, asked: Sequence[Encoded]) -> float:
        blend.use(scales)
        return _loss(model, encoder, asked, batch_size=job.resources.evaluation_batch_size, report=report, stop=stop)

    starts = starting_scales(job.adapters)
    best, _ = search_scales(lambda scales: loss(scales, choosing), list(starts.values()))
    table = [*starts.items(), ("chosen scales", best)]
    rows = tuple(
        BlendRow(name=name, scales=scales, choosing_loss=loss(scales, choosing), loss=loss(scales, telling))
        for name, scales in table
    )
    result = BlendResult(rows=rows, choosing_records=len(choosing), records=len(telling))
    write_atomically(folder / BLEND_RESULT_FILE, result.to_json())


def starting_scales(adapters: Sequence[NamedAdapter]) -> dict[str, Scales]:
    """By what people call it: the base, each adapter on top of those before it, and those that stand alone."""
    found = {"base": (0.0,) * len(adapters)}
    used: set[int] = set()
    for place, one in enumerate(adapters):
        if not one.stands_alone:
            used.add(place)
        ones = {place} if one.stands_alone else used
        name = one.name if one.stands_alone else f"+ {one.name}"
        found[name] = tuple(float(at in ones) for at in range(len(adapters)))
    return found


def _halves(job: BlendJob, encoder: Encoder) -> tuple[list[Encoded], list[Encoded]]:
    """Held-out records that choose, and as many others; by record hash, so that they are the same every time."""
    held_out, _ = encode_all(encoder, choose(data.load(job.data).held_out, job.rows))
    if len(held_out) < _LEAST_RECORDS:
        raise DataInvalid(f"{len(held_out)} held-out records can be used, at least {_LEAST_RECORDS} are needed")
    return list(held_out[::2]), list(held_out[1::2])


def _loss(
    model: AdaptedModel,
    encoder: Encoder,
    asked: Sequence[Encoded],
    *,
    batch_size: int,
    report: Reporter,
    stop: StopRequest,
) -> float:
    scores = evaluate(
        model,
        [Question(one, has_loss=True, is_answered=False) for one in asked],
        encoder=encoder,
        settings=EvaluationSettings(loss_records=len(asked), ner_records=0),
        batch_size=batch_size,
        on_progress=report,
        should_stop=stop.is_set,
    )
    return total_scores(scores).mean_loss or 0.0


def main(arguments: list[str]) -> int:
    """Exit code of the process (`result.ExitCode`)."""
    if len(arguments) != 1:
        print("usage: python -m participant.training.blend JOB_FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    return run_child(lambda report, stop: run_blend(folder, report, stop), folder=folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
