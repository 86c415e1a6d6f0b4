"""FedIT's product monitor: how far mean(B) mean(A) is from mean(B A), from random bilinear forms of the sites' updates.

For every layer there are m pairs of sign vectors (x, y), public and the same everywhere. A site adds to its masked
vector y^T (B_i A_i - B A) x, where B and A are the global factors; the coordinator sees the weighted mean of these
forms, which are linear in the product, and makes the same forms of the mean factors itself. As E[(y^T M x)^2] is
||M||_F^2 for independent signs, the root of their differences' mean square estimates the Frobenius norm of what
averaging A and B apart has lost, with a relative error of about sqrt(1 / (2 m)). No site's own form is ever seen.
Pure numpy. Signs come from SHAKE-256, because a generator's stream may change with its library.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.adapters import AdapterSpec, LinearLayer
from common.methods.base import Matrix

_CONTEXT: Final = "accord/product-probe/v1"

Wide = NDArray[np.float64]


def product_clip(layer: LinearLayer, spec: AdapterSpec, element_clip: float) -> float:
    """Bound on one form of a layer: the L2 norm of deltas of A and B whose elements are all at their clip.

    A form has the standard deviation ||dB A + B dA + dB dA||_F; with A of spectral norm one and a small B that is at
    most this norm, and a real update, whose elements are a tenth of the clip, is a tenth of it.
    """
    return element_clip * math.sqrt(spec.rank * (layer.in_features + layer.out_features))


def signs(run_id: bytes, layer: str, side: str, shape: tuple[int, int]) -> Matrix:
    """float32[shape] of +1 and -1, by the bits of SHAKE-256 over run id, layer and side: row by row, high bit first."""
    rows, width = shape
    name = "\x00".join((_CONTEXT, layer, side)).encode()
    stream = hashlib.shake_256(run_id + name).digest(-(-rows * width // 8))
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8))[: rows * width]
    return (1.0 - 2.0 * bits).astype(np.float32).reshape(shape)


@dataclass(frozen=True, slots=True)
class ProductProbe:
    """The pairs of one layer. x: float32[m, in], y: float32[m, out], signs."""

    x: Matrix
    y: Matrix

    @classmethod
    def of(cls, run_id: bytes, layer: LinearLayer, pairs: int) -> ProductProbe:
        return cls(
            signs(run_id, layer.name, "x", (pairs, layer.in_features)),
            signs(run_id, layer.name, "y", (pairs, layer.out_features)),
        )

    def forms(self, a: Matrix, b: Matrix) -> Wide:
        """float64[m]: y_j^T B A x_j. a: float32[r, in], b: float32[out, r]."""
        right = self.x.astype(np.float64) @ a.T.astype(np.float64)
        left = self.y.astype(np.float64) @ b.astype(np.float64)
        forms: Wide = np.einsum("jr,jr->j", left, right)
        return forms


def relative_error(products: Sequence[Wide], of_means: Sequence[Wide], *, noise: Sequence[float]) -> float:
    """||mean(BA) - mean(B) mean(A)||_F / ||mean(BA)||_F over all layers, both less the global B A; 0.0 of no update.

    products, of_means: float64[m] of each layer. noise: variance that the masked sum's rounding has put on the forms of
    each layer's `products`, which is taken off the squares, as it is there also where the two are equal. What is left
    and lies within three standard deviations of that noise's own mean square (2 v^2 / m of a layer) is told as 0.0.
    """
    rounded = sum(noise)
    spread = math.sqrt(sum(2.0 * one**2 / values.size for one, values in zip(noise, products, strict=True)))
    lost = squares = -rounded
    for one, other in zip(products, of_means, strict=True):
        lost += float(np.mean((one - other) ** 2))
        squares += float(np.mean(one**2))
    return math.sqrt(lost / squares) if squares > 0.0 and lost > 3.0 * spread else 0.0
