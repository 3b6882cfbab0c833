"""Services die and come back; the conversation stays."""
import pathlib
import shutil
import signal
import threading
import unittest

import grpc
from chat_case import ChatCase
from stack import SCENES, SLOWDOWN, Service, eventually, until, words
from versions import edit_json


class FaultTest(ChatCase):
    def picture_session(self):
        session = self.session()
        answer = self.ask(session, "What is on the left?", [{"data": (SCENES / "train_and_helicopter.png").read_bytes()}])
        self.assertIn("train", words(answer.text))
        return session

    def until_not_ready(self):
        """The gateway has noticed: from now on it refuses at once what it would have waited for."""
        until(lambda: self.stack.gateway.get("/readyz")[0] != 200, "the gateway does not notice")

    def test_gateway_killed(self):
        session = self.picture_session()
        self.assertEqual(self.stack.restart("gateway", signal.SIGKILL), -signal.SIGKILL)
        answer = eventually(lambda: self.ask(session, "And on the right?"))
        self.assertIn("helicopter", words(answer.text))
        turns = self.chat.ListTurns(self.chat.new("ListTurnsRequest", session_id=session)).turns
        self.assertEqual(len(turns), 2)

    def test_llm_killed(self):
        session = self.picture_session()
        self.stack.llm.stop(signal.SIGKILL)
        self.until_not_ready()
        self.assert_fails(grpc.StatusCode.UNAVAILABLE, "llava-llm", lambda: self.ask(session, "And on the right?"))
        self.stack.restart("llm", signal.SIGKILL)
        answer = eventually(lambda: self.ask(session, "And on the right?"))
        self.assertIn("helicopter", words(answer.text))

    def test_llm_killed_in_an_answer(self):
        session = self.picture_session()
        stream = iter(self.chat.Chat(self.chat.new(
            "ChatRequest", session_id=session, text="Describe the picture.",
            sampling={"max_new_tokens": 600, "ignore_eos": True}), timeout=240 * SLOWDOWN))
        text = "".join(next(stream).event.text.text for _ in range(3))
        self.stack.restart("llm", signal.SIGKILL)
        text += "".join(response.event.text.text for response in stream)  # the new one goes on with it
        turn = self.chat.ListTurns(self.chat.new("ListTurnsRequest", session_id=session)).turns[1]
        self.assertEqual(turn.state, 2)
        self.assertEqual(turn.answer_text, text)
        self.assertEqual(turn.usage.generated_tokens, 600)
        eventually(lambda: self.ask(session, "What color is the background?"))

    def test_vision_killed(self):
        session = self.picture_session()
        self.stack.vision.stop(signal.SIGKILL)
        self.assertIn("helicopter", words(self.ask(session, "And on the right?").text))  # features are there
        other = {"data": (SCENES / "lion.png").read_bytes()}
        self.until_not_ready()
        self.assert_fails(grpc.StatusCode.UNAVAILABLE, "llava-vision", lambda: self.ask(session, "What is this?", [other]))
        self.stack.restart("vision", signal.SIGKILL)
        eventually(lambda: self.ask(session, "What is this?", [other]))

    def test_sigterm_lets_the_answer_end(self):
        session = self.session()
        stream = iter(self.chat.Chat(self.chat.new(
            "ChatRequest", session_id=session, text="Describe the picture.",
            sampling={"max_new_tokens": 900, "ignore_eos": True}), timeout=240 * SLOWDOWN))
        next(stream), next(stream)
        codes = []
        stopper = threading.Thread(target=lambda: codes.append(self.stack.gateway.stop()))
        stopper.start()
        finished = list(stream)[-1].event.turn_finished
        stopper.join()
        self.assertEqual((codes, finished.reason, finished.usage.generated_tokens), ([0], 2, 900))
        self.stack.restart("gateway")

    def test_services_say_why_they_cannot_start(self):
        cases = [("llava-llm", ["--model", "/no/such/folder"], 4, "/no/such/folder"),
                 ("llava-vision", ["--model", "/no/such/folder"], 4, "/no/such/folder"),
                 ("llava-llm", ["--device", "cuda:0"], 5, "cuda"),
                 ("llava-gateway", ["--port", self.stack.llm.grpc.split(":")[1]], 3, "cannot listen"),
                 ("llava-gateway", ["--host", "0.0.0.0"], 2, "--insecure"),
                 ("llava-vision", ["--no-such-flag"], 2, "--no-such-flag")]
        for program, arguments, code, hint in cases:
            extra = [] if "--model" in arguments or program == "llava-gateway" else ["--model", self.stack.models[program[6:]]]
            if program == "llava-gateway":  # never the user's own sessions
                extra += ["--data-dir", self.stack.folder / "other"]
            if "--port" not in arguments:
                extra += ["--port", "0"]
            service = Service(program, [*arguments, *extra, "--metrics-port", "0"], self.stack.folder)
            ended, text = service.wait_end()
            self.assertEqual(ended, code, text)
            self.assertIn(hint, text)

    def test_a_version_that_fails_its_self_test_is_not_served(self):
        for which, program in (("llm", "llava-llm"), ("vision", "llava-vision")):
            folder = pathlib.Path(self.stack.folder) / f"untrue-{which}"
            shutil.copytree(pathlib.Path(self.stack.models[which]) / "1", folder)
            edit_json(folder / "manifest.json", lambda manifest: manifest.update(self_test=dict.fromkeys(manifest["self_test"], -1)))
            service = Service(program, ["--model", folder, "--port", "0", "--metrics-port", "0"], self.stack.folder)
            ended, text = service.wait_end()
            self.assertEqual(ended, 1, text)
            self.assertIn("the self-test fails", text)


if __name__ == "__main__":
    unittest.main(verbosity=2)
