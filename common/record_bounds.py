"""The largest part that one record may have in a sum: known to who measures, to who sums, and to who adds noise."""

from __future__ import annotations

from typing import Final

# Mean loss of one record, in nats per token: so that a sum says little about its worst record.
LOSS_BOUND: Final = 6.0
# Spans of one record that count as found, wrong or missed, each, where the figures are noisy.
MOST_SPANS: Final = 8.0
