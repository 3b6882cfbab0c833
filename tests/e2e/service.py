"""A service as a process: started on free ports, watched over HTTP, stopped. Standard library only, so that
it runs where there is no gRPC for Python.

Environment, set by ctest: LLAVA_BIN_DIR, the folder of the binaries; LLAVA_SLOWDOWN, by how much a
sanitizer slows them down."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))
from waiting import SLOWDOWN, until  # noqa: E402

BIN = pathlib.Path(os.environ.get("LLAVA_BIN_DIR", ROOT / "build/release/bin"))
FREE_PORTS = ["--port", 0, "--metrics-port", 0, "--log-format", "json"]  # which the log then tells


def run(program, *arguments, code=0):
    """A program to its end, which is to be this exit code; its `stdout` and `stderr`."""
    done = subprocess.run([str(BIN / program), *map(str, arguments)], text=True, capture_output=True, timeout=300 * SLOWDOWN)
    assert done.returncode == code, (f"{program} {' '.join(map(str, arguments))}: exit {done.returncode}, expected {code}\n"
                                     f"{done.stdout}{done.stderr}")
    return done


class Service:
    """One process with its log; ports are read from its "listening" line."""

    def __init__(self, program, arguments, folder, environment=None):
        self.program = program
        self.arguments = [str(a) for a in arguments]
        self.log_path = pathlib.Path(folder) / f"{program}-{time.monotonic_ns()}.log"
        self.log = open(self.log_path, "w")
        self.process = subprocess.Popen(
            [str(BIN / program), *self.arguments], stdin=subprocess.DEVNULL, stdout=self.log,
            stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})})
        self.grpc = self.http = None

    def wait_listening(self, seconds=120):
        line = until(lambda: next((line for line in self.log_lines() if line.get("msg") == "listening"), None),
                     lambda: f"{self.program} did not start (exit {self.process.poll()}):\n{self.text()}", seconds, self.process)
        self.grpc, self.http = line["grpc"], line["metrics"]
        return self

    def wait_ready(self, seconds=240):
        until(lambda: self.get("/readyz")[0] == 200,
              lambda: f"{self.program} is not ready: {self.get('/readyz')}\n{self.text()}", seconds, self.process)
        return self

    def text(self):
        return self.log_path.read_text(errors="replace")

    def log_lines(self):
        lines = []
        for line in self.text().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                pass
        return lines

    def get(self, path):
        """(HTTP status, text); (0, reason) when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def metrics(self):
        """{"name{labels}": value} of /metrics."""
        status, text = self.get("/metrics")
        assert status == 200, (self.program, status, text)
        values = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                values[name] = float(value)
        return values

    def wait_end(self, seconds=120):
        """(exit code, log) of a process that ends by itself."""
        code = self.process.wait(seconds * SLOWDOWN)
        self.log.close()
        return code, self.text()

    def threads(self):
        """Number of threads of the process."""
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    @contextmanager
    def standing_still(self):
        """Whatever is asked of the process meanwhile waits for it, and what it was at does not end."""
        self.process.send_signal(signal.SIGSTOP)
        if self.process.returncode is None:  # its threads stop one after the other
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def stop(self, number=signal.SIGTERM, seconds=120):
        """Sends a signal and returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds * SLOWDOWN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise RuntimeError(f"{self.program} did not stop:\n{self.text()}")
        finally:
            self.log.close()
