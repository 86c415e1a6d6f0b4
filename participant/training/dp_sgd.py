"""Steps that keep single records private: DP-SGD (Abadi et al., arXiv 1607.00133), record by record.

Every step draws each record with the same probability, bounds each one's gradient by C, adds Gaussian noise of standard
deviation z C to the sum and divides it by the expected number of records. One record is one row; nothing is packed.
Domain weights scale a record's bounded gradient down, never up. Knows nothing of budgets: the site has counted these
steps before the first of them (`participant.privacy`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray
from torch import Tensor, nn

from common.errors import InvalidArgument
from participant.training.answers import answer_flags, answer_losses
from participant.training.job import NOISE_KEY_BYTES, PrivateSettings
from participant.training.model import AdaptedModel
from participant.training.per_record import PerRecord, per_record_gradients
from participant.training.tokens import Encoded

_DRAW, _NOISE = 0, 1
_NORMALS_PER_VALUE: Final = 4


@dataclass(frozen=True, slots=True)
class SecretNoise:
    """Numbers drawn from AES-256-CTR under a key of the operating system's randomness, made for one job.

    They follow from key and step, so a job that was killed goes on with the noise that it would have had. No plan's
    seed is in them: who knows the plan must not know the noise.
    """

    key: bytes = field(repr=False)

    @classmethod
    def read(cls, file: Path) -> SecretNoise:
        """Raises InvalidArgument if the job has no key: without one there is no noise, and nothing is trained."""
        try:
            key = file.read_bytes()
        except OSError as error:
            raise InvalidArgument(f"the private job's key {file} cannot be read: {error.strerror}") from error
        if len(key) != NOISE_KEY_BYTES:
            raise InvalidArgument(f"the private job's key {file} has {len(key)} bytes, not {NOISE_KEY_BYTES}")
        return cls(key)

    def drawn(self, records: int, *, rate: float, step: int) -> tuple[int, ...]:
        """Indices of the records of a step, each in it with probability `rate` by itself (Poisson sampling)."""
        uniform = self._uniform(records, step=step, purpose=_DRAW, tensor=0)
        return tuple(int(index) for index in np.flatnonzero(uniform < rate))

    def normal(self, count: int, *, step: int, tensor: int) -> NDArray[np.float64]:
        """`count` standard normal numbers.

        Each is half the sum of four, so that its lowest bits do not give the number away that it was added to (Holohan
        and Braghin, arXiv 2107.10138).
        """
        uniform = self._uniform(_NORMALS_PER_VALUE * count, step=step, purpose=_NOISE, tensor=tensor)
        first, second = uniform.reshape(2, -1)
        radius = np.sqrt(-2.0 * np.log1p(-first))
        angle: NDArray[np.float64] = 2.0 * math.pi * second
        four = np.concatenate((radius * np.cos(angle), radius * np.sin(angle))).reshape(_NORMALS_PER_VALUE, count)
        halved: NDArray[np.float64] = four.sum(axis=0) / 2.0
        return halved

    def _uniform(self, count: int, *, step: int, purpose: int, tensor: int) -> NDArray[np.float64]:
        """In [0, 1), 53 bits each. A stream of its own for each step, purpose and tensor."""
        start = b"".join(number.to_bytes(4, "big") for number in (step, purpose, tensor, 0))
        stream = Cipher(AES(self.key), CTR(start)).encryptor()
        words = np.frombuffer(stream.update(bytes(8 * count)), dtype=np.uint64)
        return (words >> np.uint64(11)).astype(np.float64) * np.float64(2.0**-53)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateRecords:
    """The private steps of one job. micro_batch_size: records whose single gradients are in memory at once.

    heaviest: the greatest weight that any record could have, by what is public. The greatest of those that are here
    would be one record's to say: with it in, all others would count less.
    """

    records: Sequence[Encoded]
    weights: Sequence[float]
    heaviest: float
    settings: PrivateSettings
    noise: SecretNoise
    micro_batch_size: int

    def batches(self, *, first_step: int) -> Iterator[tuple[int, ...]]:
        step = first_step
        while True:
            yield self.noise.drawn(len(self.records), rate=self.settings.sample_rate, step=step)
            step += 1

    def fill_gradients(
        self, model: AdaptedModel, trained: Mapping[str, nn.Parameter], indices: tuple[int, ...], *, step: int
    ) -> float:
        """As `loop.PrivateSteps` says. A record whose gradient is not finite counts as one without a gradient."""
        _check_all_are_private(model, trained)
        sums = {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
        loss = 0.0
        if not all(0.0 <= weight <= self.heaviest for weight in self.weights):
            raise InvalidArgument("a record weighs more than any may; nothing is trained")
        for first in range(0, len(indices), self.micro_batch_size):
            part = indices[first : first + self.micro_batch_size]
            gradients, losses = per_record_gradients(
                model.causal, trained, lambda rows: record_losses(model, [self.records[row] for row in rows]), part
            )
            weights = torch.tensor([self.weights[index] / self.heaviest for index in part], device=model.device)
            for name, total in clipped_sum(gradients, clip=self.settings.clip, weights=weights).items():
                sums[name] += total
            loss += float(losses.nansum())
        expected = self.settings.expected_batch
        spread = self.settings.noise_multiplier * self.settings.clip
        for number, (name, parameter) in enumerate(sorted(trained.items())):
            drawn = self.noise.normal(parameter.numel(), step=step, tensor=number).reshape(tuple(parameter.shape))
            noisy = sums[name].double() + spread * torch.from_numpy(drawn).to(parameter.device)
            parameter.grad = (noisy / expected).to(parameter.dtype)
        return loss / len(indices) if indices else 0.0


def record_losses(model: AdaptedModel, records: Sequence[Encoded]) -> Tensor:
    """Mean nats per answer token of every record, float32[records]."""
    batch = model.batch([record.ids for record in records])
    flags = answer_flags(model, records, batch.ids.shape[1])
    losses = answer_losses(model, model.hidden(batch), batch, flags)
    counts = flags[:, 1:].sum(dim=1)
    rows = torch.repeat_interleave(torch.arange(len(records), device=losses.device), counts)
    return torch.zeros(len(records), device=losses.device).index_add(0, rows, losses) / counts.clamp(min=1)


def clipped_sum(gradients: PerRecord, *, clip: float, weights: Tensor) -> dict[str, Tensor]:
    """Sum of the records' gradients, each scaled to an L2 norm of at most `clip` over all tensors, times its weight.

    weights: float32[records], in [0, 1].
    """
    squares = torch.stack([gradient.flatten(1).square().sum(dim=1) for gradient in gradients.values()]).sum(dim=0)
    norms = squares.double().sqrt()
    # A little under the clip, so that float32 sums stay within it.
    factors = (clip * (1 - 1e-6) / norms.clamp(min=1e-30)).clamp(max=1.0) * weights
    usable = torch.isfinite(norms)
    factors = torch.where(usable, factors, torch.zeros_like(factors)).float()
    found: dict[str, Tensor] = {}
    for name, gradient in gradients.items():
        kept = torch.where(usable.reshape(-1, *[1] * (gradient.dim() - 1)), gradient, torch.zeros_like(gradient))
        found[name] = torch.einsum("n,n...->...", factors, kept)
    return found


def _check_all_are_private(model: AdaptedModel, trained: Mapping[str, nn.Parameter]) -> None:
    known = {id(parameter) for parameter in trained.values()}
    others = [
        name
        for name, parameter in model.causal.named_parameters()
        if parameter.requires_grad and id(parameter) not in known
    ]
    if others:
        raise InvalidArgument(
            f"{others[0]} would be trained without privacy; a private job trains the method's tensors alone"
        )
