"""Ports of this machine that stay whose they are, also while the process that listens there is started again."""

from __future__ import annotations

import random
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

HOST: Final = "127.0.0.1"
# Below the range from which the kernel gives ports to outgoing connections and to whoever asks for any.
_PORTS: Final = range(10_000, 32_000)

# A UDP socket of the same number says to every other process that the port is given away: as long as this process is
# there, and has not been given so many others that the first of them are out of use.
_marks: deque[socket.socket] = deque(maxlen=256)


def free_ports(count: int, *, among: Sequence[int] = _PORTS) -> list[int]:
    """Different TCP ports of loopback on which nobody listens, and that no other call of this function has given.

    Raises OSError if there are no more of them.
    """
    found: list[int] = []
    for port in random.sample(among, len(among)):
        if len(found) == count:
            break
        mark = socket.socket(type=socket.SOCK_DGRAM)
        with socket.socket() as listener, suppress(OSError):
            mark.bind((HOST, port))
            listener.bind((HOST, port))
            _marks.append(mark)
            found.append(port)
            continue
        mark.close()
    if len(found) < count:
        raise OSError(f"{count} ports were wanted, and {len(found)} of {len(among)} are free")
    return found
