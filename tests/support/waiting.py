"""Waiting for what another process does, longer where a sanitizer slows it down. Standard library only."""
import os
import time

SLOWDOWN = int(os.environ.get("LLAVA_SLOWDOWN", "1"))  # set by ctest: bounds of waiting are multiplied by it


def until(holds, otherwise="waited too long", seconds=120, process=None):
    """What `holds` gives as soon as that is true. AssertionError when time is up or `process` (a Popen) has ended; `otherwise`,
    a text or a function that makes one, says what is missing."""
    deadline = time.monotonic() + seconds * SLOWDOWN
    while True:
        over = time.monotonic() > deadline or process is not None and process.poll() is not None
        if found := holds():
            return found
        if over:
            raise AssertionError(otherwise() if callable(otherwise) else otherwise)
        time.sleep(0.02)
