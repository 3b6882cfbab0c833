"""Ports that a test may give to a service, now and again after a restart: nobody else is given them meanwhile."""
import random
import socket

_held = []


def hold(port=0):
    """A port of 127.0.0.1, or this one, for as long as the test runs. OSError: it is somebody else's.

    It is bound, so that the kernel hands it to nobody, and never listened on, so that calls are refused until the service
    listens. Whoever sets SO_REUSEADDR, as servers do, may; the next `hold` does not, and finds it taken."""
    holder = socket.socket()
    try:
        holder.bind(("127.0.0.1", port))
    except OSError:
        holder.close()
        raise
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _held.append(holder)
    return holder.getsockname()[1]


def hold_base(offsets):
    """A number from which on the ports at these offsets are held."""
    while True:
        base, count = random.randrange(20000, 30000), len(_held)
        try:
            for offset in offsets:
                hold(base + offset)
            return base
        except OSError:
            while len(_held) > count:
                _held.pop().close()
