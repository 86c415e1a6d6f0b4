"""What came of the attacks, as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.attacks.attacker import Finding


def told(finding: Finding) -> str:
    """The finding as a person reads it."""
    lines = [f"Attack: {finding.attack}"]
    for exchange in finding.exchanges:
        lines += [f"  sent      {exchange.sent}", f"  answered  {exchange.answered}"]
    lines += [f"  holds     {held}" for held in finding.holds]
    lines.append(f"  tried     {finding.attempt}")
    if finding.correlation is not None:
        lines.append(
            f"  found     correlation {finding.correlation:+.4f} with the true update "
            f"(noise: below {finding.noise:.4f}; without the victim's own masks: {finding.control:+.4f})"
        )
    lines.append(f"  learned:  {'PART OF THE UPDATE' if finding.has_learned else 'nothing'}")
    return "\n".join(lines)


def told_of_flower(found: Mapping[str, Any]) -> str:
    """One of them as a person reads it."""
    return "\n".join(
        [
            f"Attack on Flower {found['version']}: {found['attack']}",
            *(f"  answered  {answer}" for answer in found["answers"]),
            f"  tried     {found['attempt']}",
            f"  found     correlation {found['correlation']:+.4f} with the true update",
            f"  learned:  {'the update' if found['has_learned'] else 'nothing'}",
        ]
    )
