"""Versions that must not be served: the old one serves on, status and metric say exactly why, and what is repaired
loads without a restart. And a conversation that goes on while version after version takes over."""
import ctypes
import os
import pathlib
import re
import shutil
import tempfile
import unittest

from chat_case import ChatCase
from stack import FREE_PORTS, ROOT, Client, Service, Stack, until
from versions import cut_short, edit_json, no_numbers, publish_copy, reseal, wrong_digest

SOURCES = [ROOT / "deploy/models" / name / "1" for name in ("emoji", "emoji-base")]
READY, FAILED, UNLOADED = 4, 7, 6  # llava.v1.ModelState


def meet_permissions():
    """Services that root starts from here on are refused by modes of files, as others are."""
    if os.geteuid() == 0:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            there = prctl(23, capability, 0, 0, 0) == 1  # PR_CAPBSET_READ; in a container it may be gone, and so may the right to drop any
            if there and prctl(24, capability, 0, 0, 0) != 0:  # PR_CAPBSET_DROP
                raise OSError(ctypes.get_errno(), "prctl")


def other_shapes(folder):
    edit_json(folder / "config.json", lambda config: config["decoder"].update(intermediate_size=96))
    reseal(folder, "config.json")


def unknown_format(folder):
    edit_json(folder / "manifest.json", lambda manifest: manifest.update(format_version=9))


def no_tokenizer(folder):
    (folder / "tokenizer.model").unlink()


def not_allowed(folder):
    os.chmod(folder / "model.safetensors", 0)


# What is said of each, and by which reason loads are counted.
DAMAGES = [
    (cut_short, " bytes of the file (cut off?)", "data_loss"),
    (wrong_digest, "is not what its manifest says: model.safetensors has another SHA-256", "data_loss"),
    (no_numbers, '" are NaN or infinite', "data_loss"),
    (other_shapes, "the tensors do not fit the configuration; misshapen: ", "data_loss"),
    (unknown_format, 'manifest.json: "format_version" is 9; this program reads 1', "data_loss"),
    (no_tokenizer, "tokenizer.model: there is no such file", "data_loss"),
    (not_allowed, "model.safetensors: cannot open: Permission denied", "permission_denied")]


class VersionTest(ChatCase):
    @classmethod
    def setUpClass(cls):
        meet_permissions()
        cls.temporary = tempfile.TemporaryDirectory(prefix="llava-versions-")
        cls.models = pathlib.Path(cls.temporary.name) / "models"
        cls.last = 0
        cls.publish(SOURCES[0])
        # Nothing is tried again by time: only what changes helps.
        cls.stack = Stack(llm_model=cls.models / "emoji", llm=["--retry-delay", "0s"])
        cls.stack.__enter__()
        cls.chat = cls.stack.chat()
        cls.service = cls.stack.client("llm", "llava.v1.ModelService")

    @classmethod
    def tearDownClass(cls):
        cls.stack.__exit__()
        cls.temporary.cleanup()

    @classmethod
    def publish(cls, source, damage=None):
        """The next version, whole or damaged: its folder."""
        cls.last += 1
        return publish_copy(source, cls.models / "emoji", cls.last, damage)

    def status(self, version, service=None):
        service = service or self.service
        answer = service.GetModelStatus(service.new("GetModelStatusRequest", model={"name": "emoji"}))
        found = [each for each in answer.versions if each.model.version == version]
        return found[0] if found else None

    def wait_for(self, version, state, service=None):
        def reached():
            status = self.status(version, service)
            return status if status is not None and status.state == state else None

        return until(reached, lambda: f"version {version}: {self.status(version, service)}\n{self.stack.llm.text()[-3000:]}", seconds=240)

    def failures(self):
        """Failed loads by reason, from the metrics."""
        counts = {}
        for name, value in self.stack.llm.metrics().items():
            found = re.fullmatch(r'llava_model_loads_total\{model="emoji",result="(\w+)"\}', name)
            if found and found[1] not in ("ok", "cancelled"):
                counts[found[1]] = value
        return counts

    def answered_by(self, version):
        """The next turns are, as soon as the gateway has heard of it."""
        until(lambda: self.ask(self.session(), "Hello?").finished.model.version == version,
              f"version {version} does not answer", seconds=240)

    def newest(self):
        """A version that serves, for what comes next to take over from. Odd ones know what they see."""
        self.publish(SOURCES[self.last % 2])
        self.wait_for(self.last, READY)
        self.answered_by(self.last)
        return self.last

    def test_bad_versions_are_told_and_repaired(self):
        for damage, why, result in DAMAGES:
            with self.subTest(damage.__name__):
                source, good = SOURCES[self.last % 2], self.newest()
                before = self.failures()
                folder = self.publish(source, damage)
                bad = self.last
                message = self.wait_for(bad, FAILED).message
                self.assertIn(why, message)
                self.assertIn(str(folder), message)
                until(lambda: self.failures() != before)
                self.assertEqual(self.failures(), {**before, result: before.get(result, 0) + 1})
                self.assertEqual(self.wait_for(good, READY).message, "")
                self.assertEqual(self.ask(self.session(), "Hello?").finished.model.version, good)
                # As it should have been; nobody restarts anything.
                for file in source.iterdir():
                    if file.name != "manifest.json":
                        shutil.copyfile(file, folder / file.name)
                        os.chmod(folder / file.name, 0o644)
                shutil.copyfile(source / "manifest.json", folder / "manifest.json.new")
                edit_json(folder / "manifest.json.new", lambda manifest: manifest.update(version=bad))
                os.rename(folder / "manifest.json.new", folder / "manifest.json")
                self.wait_for(bad, READY)
                self.answered_by(bad)

    def test_services_end_with_a_broken_model(self):
        for program, source in (("llava-llm", SOURCES[0]), ("llava-vision", ROOT / "deploy/models/emoji-tower/1")):
            for damage in (cut_short, wrong_digest, not_allowed):
                with self.subTest(program=program, damage=damage.__name__):
                    folder = pathlib.Path(self.temporary.name) / f"{program}-{damage.__name__}"
                    shutil.copytree(source, folder)
                    damage(folder)
                    service = Service(program, ["--model", folder, "--port", 0, "--metrics-port", 0], self.temporary.name)
                    self.addCleanup(service.stop)
                    code, text = service.wait_end()
                    self.assertEqual(code, 4, text)
                    self.assertIn(f"{program}: {folder}", text)

    def test_deleted_while_it_serves(self):
        good = self.newest()
        # The one that is served last: an older one that is there takes the place of a newer one that is gone.
        for folder in sorted((self.models / "emoji").iterdir(), key=lambda each: int(each.name)):
            shutil.rmtree(folder)
        self.publish(SOURCES[0], cut_short)  # nothing that could take over
        self.wait_for(self.last, FAILED)
        for _ in range(3):
            self.assertEqual(self.ask(self.session(), "Hello?").finished.model.version, good)
        self.assertIn("served from memory", self.wait_for(good, READY).message)
        self.newest()

    def test_deleted_while_it_loads(self):
        size = sum(file.stat().st_size for file in SOURCES[0].iterdir())
        slow = Service("llava-llm", ["--model", self.models / "emoji", *FREE_PORTS, "--load-rate", size // 10], self.temporary.name)
        self.addCleanup(slow.stop)
        good = self.newest()
        slow.wait_listening().wait_ready()
        service = Client(slow.grpc, "llava.v1.ModelService")
        self.addCleanup(service.close)
        self.wait_for(good, READY, service)
        folder = self.publish(SOURCES[self.last % 2])
        self.wait_for(self.last, 2, service)  # LOADING
        shutil.rmtree(folder)
        status = lambda: self.status(self.last, service)
        until(lambda: (found := status()) is None or found.state in (FAILED, UNLOADED), lambda: str(status()), seconds=240)
        self.assertEqual(self.status(good, service).state, READY)
        self.newest()
        self.wait_for(self.last, READY, service)

    def test_a_conversation_spans_five_versions_on_two_hosts(self):
        """Both services read one folder; features of the picture stay."""
        other = Service("llava-llm", ["--model", self.models / "emoji", *FREE_PORTS], self.temporary.name)
        self.addCleanup(other.stop)
        self.newest()
        other.wait_listening().wait_ready()
        service = Client(other.grpc, "llava.v1.ModelService")
        self.addCleanup(service.close)
        session = self.session()
        answers = [self.ask(session, "What is this?", [{"data": (ROOT / "deploy/scenes/lion.png").read_bytes()}])]
        encoded = self.stack.vision.metrics()["llava_vision_feature_cache_misses_total"]
        versions = [self.last]
        for _ in range(4):
            versions.append(self.newest())
            self.wait_for(self.last, READY, service)
            answers.append(self.ask(session, "What is this?"))
        self.assertEqual([answer.finished.model.version for answer in answers], versions)
        self.assertEqual(len({answer.finished.model.digest for answer in answers}), 5)
        for version, answer in zip(versions, answers):
            if version % 2 == 1:  # the other one was never taught
                self.assertIn("lion", answer.text)
        turns = self.chat.ListTurns(self.chat.new("ListTurnsRequest", session_id=session)).turns
        self.assertEqual([turn.model.version for turn in turns], versions)
        self.assertEqual(self.stack.vision.metrics()["llava_vision_feature_cache_misses_total"], encoded)


if __name__ == "__main__":
    unittest.main(verbosity=2)
