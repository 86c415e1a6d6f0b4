"""The three attacks that open Flower's SecAgg+, tried on Accord: `python -m benchmarks.attacks`.

`attacker` is the lying coordinator's script and what it computes from the answers; then one module for each attack.
"""
