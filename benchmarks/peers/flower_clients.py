"""Clients of Flower's SecAgg+ with the functions that a Flower client runs, up to the point where they may mask.

For the scripts beside it, which run in a Python that has `flwr` and nothing of Accord.
"""

from __future__ import annotations

import importlib
from typing import Any

mod: Any = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
common: Any = importlib.import_module("flwr.common")

CLIP, MOD = 0.02, 1 << 32
EXAMPLES = 1000


def new_client(node: int, *, clients: int, threshold: int, target_range: int) -> tuple[Any, dict[str, bytes]]:
    """A client's state and what it answers to the set-up: its public keys `pk1` and `pk2`."""
    state = mod.SecAggPlusState()
    state.nid = node
    configs = {
        "sample_num": clients,
        "share_num": clients,
        "threshold": threshold,
        "clipping_range": CLIP,
        "target_range": target_range,
        "mod_range": MOD,
        "max_weight": float(EXAMPLES),
    }
    return state, mod._setup(state, configs)


def clients_after_key_setup(
    clients: int, *, threshold: int, target_range: int
) -> tuple[dict[int, Any], dict[int, list[bytes]], dict[int, Any]]:
    """By node, from 1: clients with each other's keys, their public keys, and what the server forwards to each."""
    states, public = {}, {}
    for node in range(1, clients + 1):
        states[node], found = new_client(node, clients=clients, threshold=threshold, target_range=target_range)
        public[node] = [found["pk1"], found["pk2"]]
    named = {str(node): pair for node, pair in public.items()}
    boxes: dict[int, Any] = {node: {"srcs": [], "ctxts": []} for node in states}
    for node, state in states.items():
        answer = mod._share_keys(state, named)
        for to, box in zip(answer["dsts"], answer["ctxts"], strict=True):
            boxes[to]["srcs"].append(node)
            boxes[to]["ctxts"].append(box)
    return states, public, boxes
