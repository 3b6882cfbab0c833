"""llava-train as a user runs it: every subcommand on tiny models, interruptions of every kind, wrong
input."""

import json
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.request

from stack import BIN, SLOWDOWN, run, until

TRAIN = BIN / "llava-train"
TINY = ["--set", "threads=1", "--set", "model.layers=2", "--set", "model.width=32", "--set", "model.heads=2",
        "--set", "model.ffn=64"]


def train(*arguments, **more):
    return run("llava-train", *arguments, **more)


def settings(**values):
    arguments = []
    for key, value in values.items():
        arguments += ["--set", f"{key}={value}"]
    return arguments


def log(folder):
    """Lines of metrics.jsonl without what a clock has written."""
    lines = []
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        del line["seconds"], line["waited_seconds"]
        lines.append(line)
    return lines


class TrainTest(unittest.TestCase):
    """One world of tiny base parts and data, made by the programs themselves."""

    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="llava-train-")
        cls.world = pathlib.Path(cls.temporary.name)
        world = cls.world
        train("tokenizer", "--out", world / "tokenizer", "--scenes", 1000)
        train("pretrain-vision", "--out", world / "tower", "--publish", world / "models", "--name", "tower",
            *settings(tokenizer=world / "tokenizer", steps=3, pictures=8, threads=1),
            *settings(**{"tower.width": 32, "tower.heads": 2, "tower.layers": 2, "evaluation.scenes": 200}))
        train("pretrain-lm", "--out", world / "lm", "--publish", world / "models", "--name", "base", *TINY,
            *settings(tokenizer=world / "tokenizer", tower=world / "models/tower", steps=4, rows=4,
                      dense_steps=2, text_map=world / "map.safetensors"),
            *settings(**{"evaluation.scenes": 8}))
        run("llava-datagen", "scenes", "--out", world / "data", "--count", 40, "--seed", 5, "--stage1", "--stage2")

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def flags(self, stage="finetune", **more):
        world = self.world
        data = "stage1.json" if stage == "align" else "stage2.json"
        values = dict(model=world / "models/base", tower=world / "models/tower", data=world / "data" / data,
                      images=world / "data/images", image_order="front", batch_size=4, threads=1,
                      learning_rate="1e-3", evaluate_every=0)
        return settings(**{**values, **more})

    def test_both_stages_make_a_model_that_serves(self):
        world = self.world
        held_out = dict(held_out_data=world / "data/stage1.json", evaluate_every=3)
        aligned = train("align", *self.flags("align", **held_out), "--out", world / "align", "--publish", world / "models",
                      "--name", "aligned").stdout.strip()
        self.assertTrue((pathlib.Path(aligned) / "manifest.json").exists(), aligned)
        tuned = train("finetune", *self.flags(model=world / "models/aligned", packing="picture", epochs=1),
                    "--out", world / "tuned", "--publish", world / "models", "--name", "tuned").stdout.strip()
        run("llava-model", "verify", tuned)
        manifest = json.loads((pathlib.Path(tuned) / "manifest.json").read_text())
        self.assertEqual(manifest["recipe"]["kind"], "finetune")
        # Publishing again gives no second version.
        again = train("finetune", *self.flags(model=world / "models/aligned", packing="picture", epochs=1),
                    "--out", world / "tuned", "--publish", world / "models", "--name", "tuned").stdout.strip()
        self.assertEqual(again, tuned)
        figures = json.loads(run(
            "llava-eval", "chat-quality", tuned, "--tower", world / "models/tower", "--per-type", 4, "--json", "--threads", 1,
            "--oracle-map", world / "map.safetensors").stdout)
        for group in ("naming", "counting", "left_right", "existence", "place", "reasoning", "follow_up"):
            for key in ("accuracy", "low", "high", "n", "blind", "majority", "oracle"):
                self.assertIsNotNone(figures[group][key], f"{group}.{key}")
        lines = [json.loads(line) for line in (world / "align/metrics.jsonl").read_text().splitlines()]
        evaluations = [(line["step"], line["evaluation"]) for line in lines if line.get("evaluation")]
        self.assertEqual([step for step, _ in evaluations[:2]], [3, 6])
        self.assertEqual(evaluations[-1][0], lines[-1]["step"])
        for _, evaluation in evaluations:
            self.assertGreater(evaluation["held_out_loss"], 0)
            self.assertTrue(0 <= evaluation["held_out_accuracy"] <= 1, evaluation)
        self.assertLess(evaluations[-1][1]["held_out_loss"], evaluations[0][1]["held_out_loss"])
        train("plot", world / "align", world / "tuned", "--out", world / "curves.png")
        self.assertEqual((world / "curves.png").read_bytes()[:4], b"\x89PNG")

    def test_killed_runs_repeat_the_log(self):
        flags = self.flags(accumulation=4, save_every=3, steps=14, batch_size=2, packing="picture")
        whole, killed = self.world / "whole", self.world / "killed"
        train("finetune", *flags, "--out", whole)
        deaths, goals = 0, (2, 5, 7, 8, 12)
        for _ in range(100):
            if deaths == len(goals):
                break
            goal = goals[deaths]
            process = subprocess.Popen([str(TRAIN), "finetune", *flags, "--out", str(killed)],
                                       stderr=subprocess.DEVNULL)
            path = killed / "metrics.jsonl"
            while process.poll() is None:
                if path.exists() and path.read_text().count("\n") >= goal:
                    process.kill()
                    break
                time.sleep(0.001)
            if process.wait() == -signal.SIGKILL:
                deaths += 1
            elif deaths >= 3:
                break
            else:  # it came to its end before it could be killed: from the start
                shutil.rmtree(killed)
                deaths = 0
        self.assertGreaterEqual(deaths, 3, "the runs were too quick to be killed")
        train("finetune", *flags, "--out", killed)
        self.assertEqual(log(killed), log(whole))

    def test_a_signal_saves_and_exits_75(self):
        for sent in (signal.SIGTERM, signal.SIGINT):
            folder = self.world / f"signal-{sent}"
            flags = self.flags(steps=100_000, batch_size=2)
            process = subprocess.Popen([str(TRAIN), "finetune", *flags, "--out", str(folder)],
                                       stderr=subprocess.PIPE, text=True)
            self.addCleanup(process.kill)
            path = folder / "metrics.jsonl"
            until(lambda: path.exists() and path.read_text().count("\n") > 3, seconds=240, process=process)
            process.send_signal(sent)
            _, errors = process.communicate(timeout=240 * SLOWDOWN)
            self.assertEqual(process.returncode, 75, errors)
            self.assertIn("the same command goes on", errors)
            steps = path.read_text().count("\n")
            states = [int(re.search(r"\d+", p.name)[0]) for p in folder.glob("state-*.safetensors")]
            self.assertEqual(max(states), steps)

    def test_bad_records_are_named_or_skipped(self):
        records = json.loads((self.world / "data/stage2.json").read_text())
        broken = self.world / "broken.json"
        records[3]["image"] = "nowhere.png"
        records[5]["conversations"][1]["from"] = "human"
        broken.write_text(json.dumps(records))
        failed = train("finetune", *self.flags(data=broken, steps=2), "--out", self.world / "bad", code=1)
        self.assertIn("broken.json", failed.stderr)
        self.assertRegex(failed.stderr, r"record 3\b|record 4\b")
        self.assertIn("nowhere.png", failed.stderr)
        train("finetune", *self.flags(data=broken, steps=2), "--skip-bad", "--out", self.world / "skipped")
        dry = train("finetune", *self.flags(data=broken, steps=2), "--skip-bad", "--dry-run")
        report = json.loads(dry.stdout)
        self.assertGreater(report["estimated_memory_bytes"], 1 << 20)
        self.assertGreater(report["tokens_per_step"], 0)
        self.assertEqual(report["data"]["usable"], len(records) - 2)
        self.assertEqual(sum(report["data"]["bad"].values()), 2)

    def test_wrong_settings_are_refused_by_name(self):
        folder = self.world / "refused"
        failed = train("finetune", *self.flags(learning_rat="1"), "--out", folder, code=2)
        self.assertIn("learning_rat (did you mean learning_rate?)", failed.stderr)
        failed = train("finetune", *self.flags(batch_size="many"), "--out", folder, code=2)
        self.assertIn('"batch_size" is "many"', failed.stderr)
        failed = train("finetune", *self.flags(steps=2), code=2)
        self.assertIn("--out", failed.stderr)
        train("finetune", *self.flags(steps=2), "--out", self.world / "first")
        failed = train("finetune", *self.flags(steps=3), "--out", self.world / "first", code=2)
        self.assertIn("/steps: was 2, now 3", failed.stderr)
        failed = train("align", "--recipe", self.world / "first/recipe.json", "--out", folder, code=2)
        self.assertIn("llava-train finetune", failed.stderr)

    def test_describe_lists_every_setting(self):
        out = train("describe", "finetune", *self.flags()).stdout
        for text in ("learning_rate", "clip_norm", "image_order", "trains projector", "trains decoder"):
            self.assertIn(text, out)
        out = train("describe", "align").stdout  # without a model
        self.assertIn("projector.type", out)
        self.assertIn("not opened", out)

    def test_a_full_disk_keeps_the_older_state(self):
        folder = self.world / "full"
        flags = self.flags(steps=6, save_every=2, keep_states=10)
        train("finetune", *flags, "--out", folder)
        size = (folder / "state-00000006.safetensors").stat().st_size
        shutil.rmtree(folder)
        # No file of the process may grow beyond this: the state does not fit, the log does.
        limit = (size - 4096) // 1024
        shell = f"trap '' XFSZ; ulimit -f {limit}; exec \"$@\""
        done = subprocess.run(["bash", "-c", shell, "-", str(TRAIN), "finetune", *map(str, flags), "--out",
                               str(folder)], text=True, capture_output=True, timeout=300 * SLOWDOWN)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("state-00000002.safetensors", done.stderr)
        self.assertEqual([p.name for p in folder.glob("state-*")], [])
        train("finetune", *flags, "--out", folder)
        self.assertEqual(len(log(folder)), 6)

    def test_prometheus_finds_the_run(self):
        folder = self.world / "watched"
        process = subprocess.Popen(
            [str(TRAIN), "finetune", *self.flags(steps=100_000, batch_size=2), "--out", str(folder),
             "--metrics-listen", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True)
        try:
            address = None
            while address is None:
                line = process.stderr.readline()
                self.assertTrue(line, "the run ended before it served metrics")
                found = re.search(r"metrics at (http://\S+)", line)
                address = found and found[1]
            page = lambda: urllib.request.urlopen(address, timeout=60).read().decode()
            until(lambda: "llava_train_loss" in page(), page, seconds=240)
            text = page()
            self.assertRegex(text, r'(?m)^llava_train_loss\{kind="finetune"\} [0-9.]+$')
            self.assertRegex(text, r'(?m)^llava_train_tokens_per_second\{kind="finetune"\} [0-9.e+]+$')
        finally:
            process.terminate()
            process.communicate(timeout=240 * SLOWDOWN)
        self.assertEqual(process.returncode, 75)


if __name__ == "__main__":
    unittest.main()
