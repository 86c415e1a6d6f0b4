"""How a round's masked sums change the instruction set: the domains' shares, and the candidate templates.

Shares follow group DRO by the regret against staying alone (Xie et al. 2023, DoReMi; Sagawa et al. 2020), probabilities
of templates follow Hedge (Freund and Schapire 1997); what made macro and worst domain both worse is taken back. Pure,
and the same to the last bit wherever it is computed: all arithmetic is decimal, whose exponential and root are rounded
correctly, which a machine's own need not be. So anybody who has the sums can check what the coordinator sends out.
Knows nothing of masks, rounds and texts of templates.
"""

from common.instruction_updates.step import next_round
from common.instruction_updates.terms import (
    DomainLoss,
    Mixture,
    NextRound,
    Odds,
    Reference,
    Start,
    Streak,
    Updates,
    UpdateState,
)

__all__ = [
    "DomainLoss",
    "Mixture",
    "NextRound",
    "Odds",
    "Reference",
    "Start",
    "Streak",
    "UpdateState",
    "Updates",
    "next_round",
]
