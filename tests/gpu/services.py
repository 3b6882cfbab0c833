"""The three services on a device, as users start them: chats that must equal the CPU's, a kill in the middle of
answers, loads, and a model of a published shape with random weights. Standard library only.

    services.py DEVICE OUT.json [--shape llava-1.5-7b] [--work FOLDER] [--seconds 330] [--phases cpu,chat]

Phases, each written to OUT.json when it ends: cpu, chat, train, int4, large, kill, load, refuse. One that fails takes
nothing from the others; one for which too little of --seconds is left is skipped (it bounds beginnings, not ends). Exit status: 0 if none failed.
LLAVA_BIN_DIR: the binaries; LLAVA_LIBRARIES: where these find their libraries. With DEVICE cpu and --shape tiny it
tries itself where no GPU is."""
import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from service import BIN, ROOT, Service  # noqa: E402

SCENES = ROOT / "deploy/scenes"
QUESTIONS = ["What is in the picture?", "How many things are there?"]
DEVICE_MISSING, NO_MEMORY = 5, 6  # exit codes: server/runtime/exit_code.h
# Seconds that must be left for a phase to be begun.
NEEDS = {"cpu": 20, "chat": 20, "train": 60, "int4": 70, "large": 100, "kill": 40, "load": 45, "refuse": 15}


class Wrong(RuntimeError):
    """What was found is not what must be; it is written all the same."""

    def __init__(self, message, found):
        super().__init__(message)
        self.found = found


def gpu_query(what):
    """What nvidia-smi says of the first GPU; empty where there is none."""
    try:
        done = subprocess.run(["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"],
                              capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


def gpu_memory():
    """MiB in use on the first GPU; 0 where there is none."""
    return int(gpu_query("memory.used") or 0)


class Trio:
    """The three services with one tower and one model."""

    def __init__(self, folder, device, tower, model, dtype="auto", vision=(), llm=()):
        folder.mkdir(parents=True)
        self.folder = folder
        self.arguments = {"vision": ["--model", tower, "--device", device, *vision],
                          "llm": ["--model", model, "--device", device, "--dtype", dtype, *llm]}
        self.services, self.seconds, self.codes = {}, {}, {}

    def start(self, which, port=0, metrics=0):
        begin = time.monotonic()
        service = Service(f"llava-{which}", [*self.arguments[which], "--port", port, "--metrics-port", metrics,
                                             "--log-format", "json"], self.folder)
        self.services[which] = service
        service.wait_listening(120).wait_ready(180)
        self.seconds[which] = round(time.monotonic() - begin, 2)

    def __enter__(self):
        try:
            for which in ("vision", "llm"):
                self.start(which)
            self.arguments["gateway"] = [
                "--http-port", 0, "--data-dir", self.folder / "data", "--vision", self.services["vision"].grpc,
                "--llm", self.services["llm"].grpc]
            self.start("gateway")
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, kind=None, *_):
        """Ends all that were started; what they said is printed where something went wrong."""
        for which in ("gateway", "llm", "vision"):
            service = self.services.get(which)
            if service is None:
                continue
            ended = service.process.poll()
            try:
                self.codes[which] = service.stop() if ended is None else ended
            except RuntimeError as error:
                self.codes[which] = str(error)
            if kind or ended is not None or self.codes[which]:
                print(f"services: llava-{which} ended with {self.codes[which]}:\n{service.text()[-3000:]}", flush=True)

    def said(self):
        """What the services' logs say of what they loaded and of the products that they chose."""
        return [line for service in self.services.values() for line in service.log_lines()
                if line.get("msg") in ("loaded", "chose products")]

    def restart_killed(self, which):
        """SIGKILL, then the same again on the same ports. Returns the seconds until it is ready."""
        old = self.services[which]
        old.stop(signal.SIGKILL)
        self.start(which, old.grpc.rsplit(":")[-1], old.http.rsplit(":")[-1])
        return self.seconds[which]

    def chat(self, picture, *questions, tokens=40, temperature=0):
        messages = [word for question in questions for word in ("--message", question)]
        done = subprocess.run(
            [str(BIN / "llava-chat"), "--gateway", self.services["gateway"].grpc, "--image", str(picture),
             "--temperature", str(temperature), "--seed", "7", "--max-new-tokens", str(tokens), *messages],
            capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise RuntimeError(f"llava-chat: {done.returncode}: {done.stderr[-400:]}")
        return done.stdout

    def bench_command(self, sessions, seconds, *more):
        return [str(BIN / "llava-bench"), "--gateway", self.services["gateway"].grpc, "--sessions", str(sessions),
                "--seconds", str(seconds), "--json", "-", "--ignore-eos", *map(str, more)]

    def bench(self, *arguments):
        done = subprocess.run(self.bench_command(*arguments), capture_output=True, text=True, timeout=150)
        return figures(done)


def figures(done, allowed=()):
    """Of llava-bench. Failures with other codes than `allowed` are errors here."""
    if done.returncode:
        raise RuntimeError(f"llava-bench: {done.returncode}: {(done.stderr or '')[-400:]}")
    all_of = json.loads(done.stdout)
    if set(all_of["errors"]) - set(allowed):
        raise RuntimeError(f"llava-bench: {all_of['failed']} answers failed: {all_of['errors']}")
    ms = lambda spread: {key: round(1e3 * spread[key], 2) for key in ("median", "p99", "max")}
    return {"tokens_per_second": round(all_of["tokens_per_second"], 1), "answers": all_of["turns"],
            "first_text_ms": ms(all_of["time_to_first_text_seconds"]),
            "first_text_ms_by_turn": {turn: ms(spread) for turn, spread in all_of["time_to_first_text_by_turn"].items()},
            "token_ms": ms(all_of["time_per_token_seconds"]), "gap_ms": ms(all_of["gap_seconds"]),
            **({"refused": all_of["failed"]} if allowed else {})}


class Run:
    def __init__(self, options):
        self.device, self.shape, self.out = options.device, options.shape, options.out
        self.work = options.work
        self.gpu = options.device != "cpu"
        self.deadline = time.monotonic() + options.seconds
        self.emoji = (ROOT / "deploy/models/emoji-tower", ROOT / "deploy/models/emoji")
        version = BIN.parent / "VERSION"
        self.found = {"device": options.device, "shape": options.shape, "gpu": gpu_query("name,driver_version"),
                      "version": version.read_text().strip() if version.exists() else None}
        self.reference = None
        self.making = {}
        self.trios = []

    def trio(self, name, **options):
        self.trios.append(Trio(self.work / name, options.pop("device", self.device), *options.pop("models", self.emoji),
                               **options))
        return self.trios[-1]

    def phase(self, name, needs):
        """Runs the method of that name; it returns what to write."""
        if self.deadline - time.monotonic() < needs:
            self.found[name] = {"result": f"skipped: less than {needs} s were left"}
        else:
            begin = time.monotonic()
            print(f"services: {name}", flush=True)
            self.trios = []
            try:
                found = getattr(self, name)()
                ended = {which: code for trio in self.trios for which, code in trio.codes.items() if code}
                if ended:
                    raise Wrong(f"services ended with {ended}", found)
                self.found[name] = {"result": "passed", **found}
            except Exception as error:
                self.found[name] = {"result": "failed", "error": "".join(traceback.format_exception_only(error))[-3000:],
                                    **getattr(error, "found", {})}
                print(self.found[name]["error"], flush=True)
            self.found[name]["seconds"] = round(time.monotonic() - begin, 1)
        self.out.write_text(json.dumps(self.found, indent=1) + "\n")
        print(f"services: {name}: {self.found[name]['result']}", flush=True)

    def make(self):
        """Begins to make the large tower and model in the background."""
        large = self.work / "models"
        tower = large / "tower"
        plain = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
        side = [] if self.shape == "tiny" else ["--large"]
        subprocess.run([sys.executable, str(ROOT / "tests/gpu/random_tower.py"), str(tower), *side], check=True, env=plain)
        for dtype in ("bf16", "int4"):
            log = open(self.work / f"random-{dtype}.log", "w")
            self.making[dtype] = subprocess.Popen(
                [str(BIN / "llava-model"), "random", str(large / dtype), "--shape", self.shape, "--dtype", dtype, "--tower",
                 str(tower), "--tokenizer", str(self.emoji[1])], stdout=log, stderr=subprocess.STDOUT)

    def made(self, dtype):
        """Tower and model of the shape, and the seconds waited for them."""
        begin = time.monotonic()
        if dtype not in self.making:
            raise RuntimeError("the tower could not be made")
        if self.making[dtype].wait(150):
            raise RuntimeError("llava-model random: " + (self.work / f"random-{dtype}.log").read_text()[-500:])
        models = self.work / "models"
        return (models / "tower", models / dtype), round(time.monotonic() - begin, 1)

    def answers(self, trio):
        return {picture.name: trio.chat(picture, *QUESTIONS) for picture in sorted(SCENES.glob("*.png"))}

    # Phases.

    def refuse(self):
        """What cannot be is said in one line, with its own exit code."""
        missing = "cuda:99" if self.gpu else "cuda:0"
        cases = [("llm", missing, [], DEVICE_MISSING), ("vision", missing, [], DEVICE_MISSING)]
        if self.gpu:
            cases.append(("llm", self.device, ["--kv-bytes", "2000G"], NO_MEMORY))
        said = {}
        for number, (which, device, more, expected) in enumerate(cases):
            folder = self.work / f"refuse{number}"
            folder.mkdir()
            model = self.emoji[0 if which == "vision" else 1]
            code, log = Service(f"llava-{which}", ["--model", model, "--device", device, "--port", 0, "--metrics-port", 0,
                                                   "--log-format", "json", *more], folder).wait_end(60)
            lines = [line for line in log.splitlines() if not line.startswith("{")]
            said[" ".join([which, device, *more])] = {"exit": code, "said": lines[:4]}
            if code != expected or len(lines) != 1:
                raise RuntimeError(f"exit code {expected} and one line were expected: {said}")
        return {"cases": said}

    def cpu(self):
        with self.trio("cpu", device="cpu", dtype="float32") as trio:
            self.reference = self.answers(trio)
            self.sampled = trio.chat(SCENES / "lion.png", *QUESTIONS, temperature=0.9)
        return {"ready_seconds": trio.seconds}

    def chat(self):
        with self.trio("chat", dtype="float32", vision=["--dtype", "float32"]) as trio:
            found = self.answers(trio)
            sampled = trio.chat(SCENES / "lion.png", *QUESTIONS, temperature=0.9)
        other = {name: [text, self.reference[name]] for name, text in found.items() if text != self.reference[name]}
        if other:
            raise RuntimeError(f"not the CPU's answers: {other}")
        # Features cross the wire in 16 bits: the last bit of one may turn a draw.
        return {"ready_seconds": trio.seconds, "chats_equal_to_the_cpu": len(found),
                "sampled_chat_equal": sampled == self.sampled,
                "lion.png": found["lion.png"].splitlines()}

    def kill(self):
        """The language service dies by SIGKILL under 16 answers; those begun go on to their ends."""
        with self.trio("kill") as trio:
            before = trio.chat(SCENES / "lion.png", *QUESTIONS)
            if "lion" not in before.lower():
                raise RuntimeError(f"no lion in {before!r}")
            load = subprocess.Popen(trio.bench_command(16, 14, "--turns", 2, "--picture", SCENES / "lion.png",
                                                       "--max-new-tokens", 400),
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            time.sleep(3)
            ready = trio.restart_killed("llm")
            out, errors = load.communicate(timeout=120)
            # Questions that come while nobody is there are refused; an answer once begun goes on.
            result = figures(subprocess.CompletedProcess([], load.returncode, out, errors), ("UNAVAILABLE",))
            if trio.chat(SCENES / "lion.png", *QUESTIONS) != before:
                raise RuntimeError("another answer after the kill")
        return {"ready_again_seconds": ready, "complete_answers": result["answers"], "refused": result["refused"],
                "longest_gap_ms": result["gap_ms"]["max"]}

    def loads(self, trio, sessions, seconds, tokens, *more):
        found = {}
        for count in sessions:
            try:
                found[str(count)] = trio.bench(count, seconds, "--warmup", 2, "--turns", 2, "--max-new-tokens", tokens, *more)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                raise Wrong(f"{count} sessions: {error}",
                            {"by_sessions": found, "ready_seconds": trio.seconds, "said": trio.said()}) from error
        return found

    def load(self):
        with self.trio("load") as trio:
            picture = SCENES / "lion.png"
            trio.bench(4, 2, "--max-new-tokens", 32, "--picture", picture)
            return {"ready_seconds": trio.seconds, "said": trio.said(),
                    "by_sessions": self.loads(trio, (1, 16, 64), 5, 128, "--picture", picture)}

    def train(self):
        """Some steps of stage 2 and of adapters learn what they learn on the CPU; also on two replicas."""
        pictures = sorted(SCENES.glob("*.png"))
        data = self.work / "train.json"
        data.write_text(json.dumps([{"id": picture.stem, "image": picture.name, "conversations": [
            {"from": "human", "value": "<image>\nWhat is in the picture?"},
            {"from": "gpt", "value": picture.stem.replace("_", " ")}]} for picture in pictures]))

        def losses(name, device, *more):
            out = self.work / "train" / (name + device.replace(":", "-"))
            settings = [f"model={self.emoji[1]}/1", f"tower={self.emoji[0]}/1", f"data={data}", f"images={SCENES}", "steps=6",
                        "batch_size=4", "learning_rate=1e-3", "save_every=0", "evaluate_every=0", f"device={device}", *more]
            done = subprocess.run([str(BIN / "llava-train"), "finetune", "--out", str(out),
                                   *(word for setting in settings for word in ("--set", setting))],
                                  capture_output=True, text=True, timeout=120)
            if done.returncode:
                raise RuntimeError(f"llava-train {name} on {device}: {done.returncode}: {done.stderr[-400:]}")
            return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]

        # Without dropout: devices draw other numbers.
        cases = {"all": [], "adapters": ["lora.rank=8", "lora.dropout=0"], "two": ["accumulation=2"], "offload": ["offload=true"]}
        found, bounds, wrong = {}, {"fp32": 0.01, "bf16": 0.1}, []
        for name, more in cases.items():
            if name == "offload" and not self.gpu:
                continue
            found[name] = {}
            device = f"{self.device},{self.device}" if name == "two" else self.device
            try:
                expected = found[name]["cpu"] = losses(name, "cpu", *(one for one in more if one != "offload=true"))
                for precision, bound in bounds.items():
                    here = found[name][precision] = losses(name + precision, device, *more, f"precision={precision}")
                    if any(abs(is_ - was) > bound * was for is_, was in zip(here, expected, strict=True)):
                        wrong.append(f"{name} in {precision} learns something else")
            except (RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
                wrong.append(f"{name}: {error}")
        if wrong:
            raise Wrong("; ".join(wrong), {"losses": found})
        return {"losses": found}

    def of_shape(self, dtype, sessions, kv):
        """The large model behind all three services: speed, memory, and that --kv-bytes bounds it, or what a GPU has."""
        models, waited = self.made(dtype)
        before, total = gpu_memory(), int(gpu_query("memory.total") or 0) << 20
        with self.trio("large-" + dtype, models=models, llm=["--kv-bytes", kv]) as trio:
            ready = gpu_memory() - before
            text = trio.chat(SCENES / "lion.png", *QUESTIONS, tokens=16)
            bench = self.loads(trio, sessions, 10, 128, "--picture", SCENES / "lion.png", "--unique-pictures",
                               "--connections", 4)
            held = sum(value for key, value in trio.services["llm"].metrics().items()
                       if key.startswith("llava_llm_kv_capacity_bytes"))
            found = {"waited_for_the_model_seconds": waited, "ready_seconds": trio.seconds, "gpu_mib_when_ready": ready,
                     "gpu_mib_after_the_load": gpu_memory() - before, "kv_capacity_bytes": held,
                     "characters_of_random_text": len(text), "by_sessions": bench, "said": trio.said()}
        if not 0 < held <= (kv or total or 4 << 30):
            raise Wrong("keys and values are not bounded by --kv-bytes", found)
        if found["gpu_mib_after_the_load"] > ready + 8192:
            raise Wrong("memory grew under load", found)
        return found

    def large(self):
        kv = 40 << 30 if self.gpu and self.shape != "tiny" else 1 << 30
        return self.of_shape("bf16", (1, 16, 64), kv)

    def int4(self):
        return self.of_shape("int4", (1, 64), kv=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--shape", default="llava-1.5-7b")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp/llava-services"))
    parser.add_argument("--seconds", type=float, default=330)
    parser.add_argument("--phases", default=",".join(NEEDS))
    options = parser.parse_args()
    run = Run(options)
    if os.environ.get("LLAVA_LIBRARIES"):
        os.environ["LD_LIBRARY_PATH"] = os.environ["LLAVA_LIBRARIES"]
    shutil.rmtree(run.work, ignore_errors=True)
    run.work.mkdir(parents=True)
    try:
        try:
            run.make()
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"services: no large model: {error}", flush=True)
        for name in options.phases.split(","):
            run.phase(name, NEEDS[name])
    finally:
        for making in run.making.values():
            making.kill()
        shutil.rmtree(run.work / "models", ignore_errors=True)
    failed = [name for name, part in run.found.items() if isinstance(part, dict) and part["result"] == "failed"]
    print(re.sub(r"[{}]", "", f"services: failed: {failed}") if failed else "services: none failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
