"""LLaVA-1.6 from training to an answer: a model of tiles is tuned on pictures of several shapes, killed and continued, published, and
says over the gateway what it has learnt by heart."""
import json
import pathlib
import shutil
import signal
import subprocess
import tempfile
import unittest

from anyres_test import FIXTURES, PICTURES, TOKENS, write_next
from chat_case import ChatCase
from stack import Stack, run, until
from train_test import TRAIN, log, settings, train

QUESTION = "What is it?"
ANSWERS = {"plain.png": "A red house.", "tall_37x200.png": "A tower.", "small_upscale.png": "A cat.", "gray.png": "A boat at sea."}
STEPS = 60


class TilesTrainTest(ChatCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="llava-tiles-")
        cls.folder = folder = pathlib.Path(cls.temporary.name)
        (folder / "data.json").write_text(json.dumps([
            {"id": name, "image": name, "conversations": [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": answer}]}
            for name, answer in ANSWERS.items()]))
        run("llava-model", "publish", write_next(folder / "next"), "--repository", folder / "models", "--name", "next")
        flags = cls.flags(model=folder / "models/next", tower=folder / "models/next-tower", steps=STEPS)
        cls.whole, cls.killed = folder / "whole", folder / "killed"
        cls.version = train("finetune", *flags, "--out", cls.whole, "--publish", folder / "models", "--name", "tuned").stdout.strip()
        cls.deaths = cls.kill_again_and_again(flags)
        train("finetune", *flags, "--out", cls.killed)
        cls.stack = Stack(vision=["--dtype", "float32"], llm=["--dtype", "float32"], llm_model=cls.version,
                          tower_model=folder / "models/next-tower")
        cls.stack.__enter__()
        cls.chat = cls.stack.chat()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.temporary.cleanup()

    @classmethod
    def flags(cls, **more):
        return settings(**{**dict(data=cls.folder / "data.json", images=PICTURES, held_out_data=cls.folder / "data.json", image_order="front",
                                  batch_size=2, accumulation=2, order="by_length", learning_rate="2e-3", save_every=3, evaluate_every=10,
                                  threads=1), **more})

    @classmethod
    def kill_again_and_again(cls, flags):
        """At two steps of the run; returns how often it was quick enough."""
        path = cls.killed / "metrics.jsonl"
        for _ in range(20):  # it may be over before anybody sees those steps
            deaths = 0
            for steps in (8, 30):
                process = subprocess.Popen([str(TRAIN), "finetune", *map(str, flags), "--out", str(cls.killed)], stderr=subprocess.DEVNULL)
                until(lambda: process.poll() is not None or path.exists() and path.read_text().count("\n") >= steps, seconds=240)
                process.kill()
                code = process.wait()
                assert code in (0, -signal.SIGKILL), f"it failed: exit {code}"
                deaths += code != 0
            if deaths == 2:
                break
            shutil.rmtree(cls.killed)
        return deaths

    def test_a_killed_run_repeats_every_loss(self):
        self.assertEqual(self.deaths, 2, "the run was too quick to be killed")
        self.assertEqual(log(self.killed), log(self.whole))
        losses = [line["loss"] for line in log(self.whole)]
        self.assertEqual(len(losses), STEPS)
        self.assertLess(losses[-1], 0.1 * losses[0])
        evaluations = [line["evaluation"] for line in log(self.whole) if line.get("evaluation")]
        self.assertEqual(evaluations[-1]["held_out_accuracy"], 1)

    def test_the_services_say_what_it_has_learnt(self):
        run("llava-model", "verify", self.version)
        for name, expected in ANSWERS.items():
            session = self.session(sampling={"temperature": 0, "max_new_tokens": 16})
            answer = self.ask(session, QUESTION, [{"data": (PICTURES / name).read_bytes()}])
            self.assertEqual(answer.text.strip(), expected)
            self.assertEqual(answer.finished.usage.image_tokens, TOKENS[name])

    def test_a_dry_run_counts_tokens_by_shape(self):
        flags = self.flags(model=self.folder / "models/next", tower=self.folder / "models/next-tower", steps=4)
        report = json.loads(train("finetune", *flags, "--dry-run").stdout)
        self.assertEqual(report["data"]["image_tokens"], sum(TOKENS[name] for name in ANSWERS))
        self.assertEqual(report["trained_parameters"]["image newline"], 96)
        self.assertGreater(report["estimated_memory_bytes"], 1 << 20)

    def test_a_model_of_fixed_pictures_becomes_one_of_tiles(self):
        flags = self.flags(model=FIXTURES / "tiny-llava", image_mode="anyres", grid="56x112,112x56,112x112", steps=2, held_out_data="",
                           **{"lora.rank": 2})
        version = train("finetune", *flags, "--out", self.folder / "lora", "--publish", self.folder / "models", "--name", "lora").stdout.strip()
        run("llava-model", "verify", version)
        features = json.loads((pathlib.Path(version) / "config.json").read_text())["features"]
        self.assertEqual((features["image_mode"], features["grid"]), ("anyres", [[56, 112], [112, 56], [112, 112]]))


if __name__ == "__main__":
    unittest.main()
