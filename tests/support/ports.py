"""Ports for the servers that tests start, which take a while."""

import random
import socket
from contextlib import suppress

# Below those that systems give to outgoing connections, one of which may take the port meanwhile.
_PORTS = range(20_000, 32_000)


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    while True:
        port = random.choice(_PORTS)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
