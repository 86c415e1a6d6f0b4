"""Server side of the federated methods: pure functions from (global adapter, mean delta) to the next global adapter.

`server_optimizer(method)` is the only way in; all of them work chunk by chunk, element by element, so the
coordinator's memory does not grow with the adapter, and a participant can audit one chunk of what it was given.
"""

from common.strategies.optimizers import (
    MOMENTUM,
    SERVER_OPTIMIZERS,
    SQUARES,
    FedAvg,
    ServerOptimizer,
    server_optimizer,
)

__all__ = ["MOMENTUM", "SERVER_OPTIMIZERS", "SQUARES", "FedAvg", "ServerOptimizer", "server_optimizer"]
