"""What the gateway's flags about canaries change, with a language service that has a stable version and a canary."""
import pathlib
import re
import tempfile
import time

from stack import LLM_MODEL, Answer, Client, Stack, until
from versions import publish_copy

AS_GOOD, WORSE = 2, 3  # RolloutVerdict


class RolloutFlags:
    """A mixin of FlagsCase."""
    rollouts = None  # (folder, services); the first check starts them

    @classmethod
    def end_rollouts(cls):
        if cls.rollouts:
            cls.rollouts[1].__exit__()
            cls.rollouts[0].cleanup()

    def canary(self, *arguments):
        """A gateway with these arguments; clients of its ChatService and RolloutService."""
        if not self.rollouts:
            folder = tempfile.TemporaryDirectory(prefix="llava-canary-")
            model = pathlib.Path(folder.name) / "emoji"
            for version in (1, 2):
                publish_copy(LLM_MODEL / "1", model, version)
            # In float32 the self-test may be met to the bit.
            stack = Stack(llm_model=model, llm=["--version-policy", "1,2", "--dtype", "bfloat16"])
            stack.__enter__()
            type(self).rollouts = folder, stack
            self.label(stable=1, canary=2)
        stack = self.rollouts[1]
        service = self.start("--vision", stack.vision.grpc, "--llm", stack.llm.grpc, "--data-dir",
                             tempfile.mkdtemp(dir=self.folder), *arguments)
        clients = [Client(service.grpc, f"llava.v1.{name}Service") for name in ("Chat", "Rollout")]
        for client in clients:
            self.addCleanup(client.close)
        return clients

    def models(self):
        return self.rollouts[1].client("llm", "llava.v1.ModelService")

    def label(self, **labels):
        models = self.models()
        for label, version in labels.items():
            models.SetLabel(models.new("SetLabelRequest", name="emoji", label=label.replace("_", "-"), version=version))

    def labels(self):
        models = self.models()
        listed = models.ListModels(models.new("ListModelsRequest", name="emoji")).models
        return {label: each.model.version for each in listed for label in each.labels}

    def turns(self, chat, count, **model):
        """The versions that answered so many sessions."""
        versions = []
        for _ in range(count):
            session = chat.CreateSession(chat.new("CreateSessionRequest")).session.id
            answer = Answer(chat.Chat(chat.new("ChatRequest", session_id=session, text="Hello?", model=model,
                                               sampling={"max_new_tokens": 4, "ignore_eos": True})))
            versions.append(answer.finished.model.version)
        return versions

    def rollout(self, client, wanted):
        """The rollout, as soon as it is as wanted."""
        rollouts = lambda: client.GetRollout(client.new("GetRolloutRequest", name="emoji")).rollouts
        return until(lambda: next((each for each in rollouts()[:1] if wanted(each)), None), lambda: str(rollouts()))

    def judged(self, *arguments, wanted=lambda rollout: rollout.canary_evidence.turns == 10):
        """A rollout with enough turns of both versions, as soon as it is as wanted."""
        chat, client = self.canary("--rollout-min-turns", "10", "--rollout-min-time", "0s", *arguments)
        self.rollout(client, lambda rollout: rollout.canary.version == 2)
        for version in (1, 2):
            self.assertEqual(set(self.turns(chat, 10, version=version)), {version})
        return self.rollout(client, wanted)

    def check_canary_share(self):
        chat, client = self.canary("--canary-share", "1")
        self.assertEqual(self.turns(chat, 2), [2, 2])
        self.assertEqual(self.rollout(client, lambda _: True).canary_share, 1)
        self.assertEqual(self.turns(self.canary("--canary-share", "0")[0], 2), [1, 1])

    def check_rollout(self):
        _, client = self.canary("--rollout", "off")
        time.sleep(2)
        self.assertFalse(client.GetRollout(client.new("GetRolloutRequest", name="emoji")).rollouts)
        self.rollout(self.canary("--rollout", "observe")[1], lambda _: True)
        self.assertEqual(self.labels(), {"stable": 1, "canary": 2})
        self.acts_by_itself()

    def acts_by_itself(self):
        """What --rollout auto does to a good canary and to a bad one."""
        rollout = self.judged("--rollout", "auto", "--rollout-latency-ratio", "1000", wanted=lambda each: each.applied)
        self.assertEqual(rollout.verdict, AS_GOOD, rollout)
        self.assertEqual(self.labels(), {"stable": 2})
        self.label(stable=1, canary=2)
        chat, client = self.canary("--rollout", "auto", "--rollout-max-drift", "0")
        rollout = self.rollout(client, lambda rollout: rollout.applied)
        self.assertEqual(rollout.verdict, WORSE, rollout)
        self.assertEqual(self.labels(), {"stable": 1, "rejected-2": 2})
        self.assertEqual(self.turns(chat, 3), [1, 1, 1])
        self.label(rejected_2=0, canary=2)

    def check_rollout_min_turns(self):
        chat, client = self.canary("--rollout-min-turns", "7")
        self.rollout(client, lambda rollout: "0 turns of 7" in rollout.reason)

    def check_rollout_min_time(self):
        self.assertIn("of 3600", self.judged("--rollout-min-time", "1h", "--rollout-latency-ratio", "1000").reason)

    def check_rollout_window(self):
        chat, client = self.canary("--rollout-window", "3s")
        self.rollout(client, lambda rollout: rollout.canary.version == 2)
        def counted(rollout):
            self.turns(chat, 1, version=2)  # before the window has gone over it
            return rollout.canary_evidence.turns > 0
        self.rollout(client, counted)
        self.rollout(client, lambda rollout: rollout.canary_evidence.turns == 0)

    def check_rollout_error_tolerance(self):
        rollout = self.judged("--rollout-error-tolerance", "0.3", "--rollout-latency-ratio", "1000")
        self.assertEqual(rollout.verdict, AS_GOOD, rollout.reason)
        self.assertIn("allowed are 30% more", rollout.reason)

    def check_rollout_latency_ratio(self):
        reason = self.judged("--rollout-latency-ratio", "1000").reason
        limit, usual = re.search(r"more than (\d+) ms to the first text .*?stable: ([\d.]+) ms", reason).groups()
        self.assertGreater(float(limit), 900 * float(usual))

    def check_rollout_max_drift(self):
        _, client = self.canary("--rollout-max-drift", "0")
        rollout = self.rollout(client, lambda rollout: rollout.verdict == WORSE)
        self.assertIn("self-test", rollout.reason)
        self.assertFalse(rollout.applied)
