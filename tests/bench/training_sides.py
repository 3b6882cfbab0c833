"""The two programs of train_vs_transformers.py, taking turns: while one steps, the other stands still."""

import json
import os
import pathlib
import signal
import subprocess
import time

PATIENCE = 600  # seconds for one step, or to start


class Failed(Exception):
    pass


class Ours:
    """`llava-train finetune`, stopped by SIGSTOP behind the last step of a turn. A step in which it stood
    still has that time taken off; the few milliseconds until the signal came count where they were spent."""

    def __init__(self, command, run_folder, log, poll):
        self.log_file = log
        self.metrics = run_folder / "metrics.jsonl"
        self.poll = poll
        self.steps = []
        self.given = 0  # of these, in turns
        self.rest = b""
        self.stood_still = 0.0
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        with open(log, "w", encoding="utf-8") as output:
            self.process = subprocess.Popen([*map(str, command), "--out", str(run_folder)], env=environment,
                                            stdout=output, stderr=subprocess.STDOUT)
        self.stopped_at = None
        self.file = None

    def turn(self, count):
        begin, self.given = self.given, self.given + count
        deadline = time.monotonic() + PATIENCE
        if self.stopped_at is not None:
            self.stood_still += time.perf_counter() - self.stopped_at
            self.stopped_at = None
            self.process.send_signal(signal.SIGCONT)
        while len(self.steps) < self.given:
            if self.process.poll() is not None:
                text = pathlib.Path(self.log_file).read_text(encoding="utf-8", errors="replace")
                raise Failed(f"llava-train ended with {self.process.returncode}: {text[-2000:]}")
            if time.monotonic() > deadline:
                raise Failed(f"llava-train made no step within {PATIENCE} s")
            if self.read():
                deadline = time.monotonic() + PATIENCE
            else:
                time.sleep(self.poll)
        self.process.send_signal(signal.SIGSTOP)
        self.stopped_at = time.perf_counter()
        self.read()  # a step that ended while the signal was under way; it opens the next turn
        return self.steps[begin:self.given]

    def read(self):
        if self.file is None:
            if not self.metrics.exists():
                return False
            self.file = open(self.metrics, "rb")
        *lines, self.rest = (self.rest + self.file.read()).split(b"\n")
        for line in lines:
            step = json.loads(line)
            step["whole"] = self.stood_still == 0  # its waiting for data was not stretched
            step["seconds"] -= self.stood_still
            self.stood_still = 0.0
            self.steps.append(step)
        return bool(lines)

    def peak_bytes(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def close(self):
        self.process.kill()  # saves nothing
        self.process.wait()
        if self.file:
            self.file.close()


class Peer:
    """transformers_peer.py; says "facts" about itself and then waits for turns."""

    def __init__(self, python, job, job_file, log):
        job_file.write_text(json.dumps(job))
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
                       "OMP_NUM_THREADS": str(job["threads"])}
        script = pathlib.Path(__file__).with_name("transformers_peer.py")
        self.log_file = log
        with open(log, "w", encoding="utf-8") as errors:
            self.process = subprocess.Popen([str(python), str(script), "train", str(job_file)], text=True,
                                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                                            env=environment)
        self.facts = self.hear()
        self.peak = 0

    def hear(self):
        line = self.process.stdout.readline()
        if not line:
            text = pathlib.Path(self.log_file).read_text(encoding="utf-8", errors="replace")
            raise Failed(f"transformers_peer.py ended with {self.process.wait()}: {text[-2000:]}")
        return json.loads(line)

    def turn(self, count):
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        answer = self.hear()
        self.peak = answer["peak_bytes"]
        return answer["steps"]

    def peak_bytes(self):
        return self.peak

    def close(self):
        self.process.kill()
        self.process.wait()
