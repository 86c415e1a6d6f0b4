"""The base model with its adapter, on one device: frozen base, float32 factors, logits where they are needed.

Knows the adapter spec and its layout, and nothing of records, losses and steps.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache

from common.adapters import (
    ADAPTER_FILE,
    AdapterLayout,
    AdapterSpec,
    FlatVector,
    flatten,
    unflatten,
    write_adapter_folder,
)
from common.errors import BaseModelUnavailable
from common.methods import Method, adapter_method
from common.methods.core import Core
from common.methods.ravan import Ravan, fold_scalars
from participant.training.adapted_layers import Adapted, adapt, check_shapes
from participant.training.job import Device, Precision

LoadBase = Callable[[Path, torch.dtype], PreTrainedModel]
Shard = Callable[[PreTrainedModel, Collection[nn.Parameter]], None]

_PEFT_ADAPTER: Final = ".default"
_HEAD_TOLERANCE: Final = 2e-2  # relative; far under any scaling of logits that a model may do after its head
_PROBE_TOKENS: Final = 8
FEDIT: Final = Method()


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Right-padded rows. ids: int64[rows, length]; mask: int64[rows, length], 1 where there is a token."""

    ids: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class AfterHead:
    """What some models do to their head's logits: multiply them, then bound them by a soft cap (0: no cap)."""

    factor: float
    soft_cap: float

    def apply(self, logits: Tensor) -> Tensor:
        scaled = logits if self.factor == 1.0 else logits * self.factor
        return torch.tanh(scaled / self.soft_cap) * self.soft_cap if self.soft_cap else scaled


@dataclass(frozen=True, slots=True)
class AdaptedModel:
    """A base model with an adapter.

    factors: the adapter's float32 parameters by their names in the adapter file, in the layout's order.
    scalars: RAVAN's s_j, float32[heads], by the name of the factor that they are folded into; others have none.
    """

    causal: PreTrainedModel
    factors: Mapping[str, nn.Parameter]
    layout: AdapterLayout
    device: torch.device
    precision: torch.dtype
    after_head: AfterHead
    scalars: Mapping[str, nn.Parameter] = field(default_factory=dict)

    @property
    def movable(self) -> dict[str, nn.Parameter]:
        """Everything that local training may move, by names that do not clash: factors, and behind them scalars."""
        return {**self.factors, **{f"{name}.scalars": scalar for name, scalar in self.scalars.items()}}

    def hidden(self, batch: TokenBatch) -> Tensor:
        """Last hidden states, [rows, length, width]; the way for training, it keeps no cache."""
        output = self.causal.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        states = output.last_hidden_state
        assert isinstance(states, Tensor)  # noqa: S101  (for mypy: the library says Any)
        return states

    def hidden_and_cache(
        self, ids: Tensor, *, mask: Tensor, positions: Tensor, cache: Cache | None = None
    ) -> tuple[Tensor, Cache]:
        """Last hidden states of `ids`, and the cache grown by them. mask covers what is cached, and `ids`."""
        output = self.causal.base_model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        return output.last_hidden_state, output.past_key_values

    def logits(self, hidden: Tensor) -> Tensor:
        """float32[n, vocabulary] of hidden states [n, width]."""
        head = self.causal.get_output_embeddings()
        assert isinstance(head, nn.Module)  # noqa: S101  (for mypy)
        return self.after_head.apply(head(hidden).float())

    def batch(self, rows: Sequence[Sequence[int]]) -> TokenBatch:
        """Token rows, padded on the right to the longest."""
        length = max(len(row) for row in rows)
        ids = torch.zeros((len(rows), length), dtype=torch.int64)
        mask = torch.zeros((len(rows), length), dtype=torch.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[index, : len(row)] = 1
        return TokenBatch(ids.to(self.device), mask.to(self.device))

    def flat(self) -> FlatVector:
        """The adapter as float32[d], scalars folded in."""
        tensors = {name: factor.detach().cpu().numpy() for name, factor in self.factors.items()}
        for name, scalar in self.scalars.items():
            tensors[name] = fold_scalars(tensors[name], scalar.detach().cpu().numpy())
        return flatten(tensors, self.layout)


def choose_device(wanted: Device) -> torch.device:
    """Raises BaseModelUnavailable if a GPU is asked for and there is none."""
    if wanted is Device.CUDA and not torch.cuda.is_available():
        raise BaseModelUnavailable("the site asks for a GPU (device = cuda), and torch sees none")
    return torch.device("cuda" if wanted is not Device.CPU and torch.cuda.is_available() else "cpu")


def choose_precision(wanted: Precision, device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware computes in it, float32 elsewhere: emulated bfloat16 is the slowest of all."""
    if wanted is not Precision.AUTO:
        return torch.bfloat16 if wanted is Precision.BFLOAT16 else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.bfloat16 if native else torch.float32


def load_base(folder: Path, precision: torch.dtype) -> PreTrainedModel:
    """The base model in a local folder, as the library loads it. Raises BaseModelUnavailable if it cannot."""
    try:
        base = AutoModelForCausalLM.from_pretrained(str(folder), dtype=precision, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BaseModelUnavailable(f"{folder}: the model cannot be loaded: {error}") from error
    assert isinstance(base, PreTrainedModel)  # noqa: S101  (for mypy)
    return base


def load_model(
    folder: Path,
    *,
    spec: AdapterSpec,
    layout: AdapterLayout,
    start: FlatVector,
    device: torch.device,
    precision: torch.dtype,
    method: Method = FEDIT,
    base_from: LoadBase = load_base,
    shard: Shard | None = None,
) -> AdaptedModel:
    """Load a base model, freeze it, and put the adapter `start` float32[d] on it.

    layout: of the method's stored tensors.
    base_from: who has the base model in memory already loads none; what it gives is changed here.
    shard: takes the frozen base apart between processes, but for the adapter's parameters.
    Raises BaseModelUnavailable if the library cannot load it, ShapeMismatch if its linear layers are not the layout's.
    """
    base = base_from(folder, precision)
    base.requires_grad_(False)
    adapted = _adapt(base, method, spec, layout)
    factors = adapted.factors
    with torch.no_grad():
        for name, value in unflatten(start, layout).items():
            factors[name].data = torch.from_numpy(value.copy()).to(torch.float32)
    if shard is not None:  # before the device is asked to hold all of it
        shard(base, [*factors.values(), *adapted.scalars.values()])
    nn.Module.to(base, device)  # the library's own `to` has no types
    # Dropout that a base model may have in its own configuration would make training depend on more than the seed.
    base.eval()
    return AdaptedModel(
        causal=base,
        factors=factors,
        layout=layout,
        device=device,
        precision=precision,
        after_head=after_head_of(base, device),
        scalars=adapted.scalars,
    )


def save_adapter(model: AdaptedModel, folder: Path, *, spec: AdapterSpec, base_model_name: str) -> str:
    """Write the adapter as a PEFT folder, in place of any other, and return the digest of its weights."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    digest = write_adapter_folder(partial, model.flat(), model.layout, spec.peft_config(base_model_name))
    with (partial / ADAPTER_FILE).open("rb") as stream:
        os.fsync(stream.fileno())  # on disk before the result that names its digest
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return digest


def _adapt(base: PreTrainedModel, method: Method, spec: AdapterSpec, layout: AdapterLayout) -> Adapted:
    kind = adapter_method(method, spec)
    return adapt(base, kind, layout) if isinstance(kind, Core | Ravan) else _with_lora(base, spec, layout)


def _with_lora(base: PreTrainedModel, spec: AdapterSpec, layout: AdapterLayout) -> Adapted:
    """PEFT's own LoRA layers, put into the model in place."""
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # annotated int; only ever divided by the rank
        target_modules=list(spec.target_modules),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        init_lora_weights=False,  # overwritten by the caller
    )
    found = {
        name.replace(_PEFT_ADAPTER, ""): parameter
        for name, parameter in get_peft_model(base, config).named_parameters()
        if f"{_PEFT_ADAPTER}." in name
    }
    check_shapes(found, layout)
    return Adapted({slot.name: found[slot.name] for slot in layout.slots}, {})


def after_head_of(causal: PreTrainedModel, device: torch.device) -> AfterHead:
    """What comes after the head, by the configuration's words for it; checked against the model's own logits."""
    config = causal.config
    factor = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    after = AfterHead(factor=factor, soft_cap=float(getattr(config, "final_logit_softcapping", None) or 0.0))
    ids = torch.arange(_PROBE_TOKENS, device=device).unsqueeze(0)
    with torch.no_grad():
        wanted = causal(input_ids=ids, use_cache=False).logits.float()
        head = causal.get_output_embeddings()
        found = after.apply(head(causal.base_model(input_ids=ids, use_cache=False).last_hidden_state).float())
    if not torch.allclose(found, wanted, rtol=_HEAD_TOLERANCE, atol=_HEAD_TOLERANCE * float(wanted.abs().max())):
        raise BaseModelUnavailable(
            f"{type(causal).__name__} does more to its logits than is known here; this architecture cannot be used yet"
        )
    return after
