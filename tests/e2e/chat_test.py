"""A stranger's view: a client built from reflection chats about the bundled pictures."""
import threading
import unittest

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chat_case import ChatCase
from stack import SCENES, eventually, scenes, until, words


class ChatTest(ChatCase):
    def test_names_what_it_sees(self):
        for scene in scenes():
            session = self.session()
            image = self.upload(session, scene["file"])
            self.assertEqual((image.width, image.height, image.format), (96, 96, "png"))
            answer = self.ask(session, "What is in the picture?", [{"id": image.id}])
            said = words(answer.text)
            for thing in scene["objects"]:
                self.assertTrue(thing["name"] in said or thing["plural"] in said, (scene["file"], answer.text))
            color = self.ask(session, "What color is the background?")
            self.assertIn(scene["background"], words(color.text))

    def test_streams_token_by_token_and_accounts_for_it(self):
        session = self.session()
        question = {"text": "Describe the picture.", "images": [{"data": (SCENES / "pizza_bee_pig.png").read_bytes()}]}
        count = self.chat.CountTokens(self.chat.new("ChatServiceCountTokensRequest", session_id=session, **question))
        answer = self.ask(session, **question)
        usage, timings = answer.finished.usage, answer.finished.timings
        self.assertGreater(len(answer.deltas), 5)
        self.assertEqual((usage.text_tokens, usage.image_tokens), (count.text_tokens, count.image_tokens))
        self.assertEqual(usage.image_tokens, 36)
        self.assertGreaterEqual(usage.generated_tokens, len(answer.deltas))
        self.assertEqual(usage.context_used_tokens, usage.text_tokens + 36 + usage.generated_tokens)
        self.assertEqual(usage.context_used_tokens + usage.context_free_tokens, count.context_tokens)
        self.assertGreater(timings.time_to_first_token_seconds, 0)
        self.assertGreaterEqual(timings.total_seconds, timings.time_to_first_token_seconds)
        self.assertEqual(answer.finished.model, answer.started.model)
        self.assertEqual(len(answer.started.model.digest), 32)

    def test_follow_up_refers_to_the_earlier_answer(self):
        session = self.session()
        first = self.ask(session, "What is on the left?", [{"data": (SCENES / "train_and_helicopter.png").read_bytes()}])
        self.assertIn("train", words(first.text))
        self.assertIn("helicopter", words(self.ask(session, "And on the right?").text))
        self.assertIn("yes", words(self.ask(session, "Can it fly?").text))
        turns = self.chat.ListTurns(self.chat.new("ListTurnsRequest", session_id=session)).turns
        self.assertEqual([turn.number for turn in turns], [1, 2, 3])
        self.assertEqual(turns[0].answer_text, first.text)
        self.assertEqual(len(turns[0].images), 1)

    def test_a_turn_computes_only_what_is_new(self):
        """Ten turns about a picture: the prompt of each begins with the one before and its answer."""
        session = self.session()
        picture = [{"data": (SCENES / "pizza_bee_pig.png").read_bytes()}]
        questions = ["What is in the picture?", "Describe the picture.", "What is on the left?", "And on the right?",
                     "How many pigs are there?", "What color is the background?", "Is there a bee?", "Can it fly?",
                     "Which of them can you eat?", "What is in the picture?"]
        cached = reusable = 0
        for number, question in enumerate(questions):
            usage = self.ask(session, question, picture if number == 0 else ()).finished.usage
            prompt = usage.text_tokens + usage.image_tokens
            self.assertLess(usage.cached_tokens, prompt)
            if number > 0:
                cached += usage.cached_tokens
                reusable += before
                self.assertGreaterEqual(usage.cached_tokens, 0.98 * before, question)
            before = prompt + usage.generated_tokens - 1  # the stop token is written by the template
        print(f"cached / reusable = {cached} / {reusable}")

    def test_same_seed_same_answer(self):
        texts = []
        for seed in (7, 7):
            session = self.session(sampling={"temperature": 1.5, "top_p": 1})
            answer = self.ask(session, "Describe the picture.", [{"data": (SCENES / "three_frogs.png").read_bytes()}],
                              sampling={"seed": seed})
            self.assertEqual(answer.started.seed, seed)
            texts.append(answer.text)
        self.assertEqual(*texts)
        drawn = self.ask(self.session(), "What is this?").started.seed
        self.assertNotEqual(drawn, self.ask(self.session(), "What is this?").started.seed)

    def test_many_at_once_answer_as_one_alone(self):
        def run(scene, out, index):
            session = self.session()
            out[index] = self.ask(session, "Describe the picture.", [{"data": (SCENES / scene["file"]).read_bytes()}]).text
        alone = {}
        for scene in scenes():
            run(scene, alone, scene["file"])
        together = {}
        threads = [threading.Thread(target=run, args=(scene, together, (scene["file"], i)))
                   for scene in scenes() for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(together), 24)
        for (name, _), text in together.items():
            self.assertEqual(text, alone[name])

    def test_cancel_stops_generation_and_keeps_the_text(self):
        with self.answer_held(sampling={"max_new_tokens": 1500, "ignore_eos": True}) as (session, events):
            self.assert_fails(grpc.StatusCode.ABORTED, "running",
                              lambda: self.ask(session, "What is this?"))
            self.assertTrue(self.chat.CancelTurn(self.chat.new("CancelTurnRequest", session_id=session)).was_running)
        last = list(events)[-1].event.turn_finished
        self.assertEqual(last.reason, 4)  # cancelled
        self.assertLess(last.usage.generated_tokens, 1500)
        turn = self.turns(session)[0]
        self.assertEqual(len(turn.answer_text.encode()), last.text_bytes)
        self.assertFalse(self.chat.CancelTurn(self.chat.new("CancelTurnRequest", session_id=session)).was_running)
        eventually(lambda: self.ask(session, "What is this?"))

    def test_hanging_up_stops_generation(self):
        with self.answer_held(on_disconnect=2, sampling={"max_new_tokens": 1900, "ignore_eos": True}) as (session, stream):
            stream.cancel()
            until(lambda: self.turns(session)[0].finish_reason, "the gateway never records what there was")
        turn = self.turns(session)[0]
        self.assertEqual(turn.finish_reason, 4)  # cancelled, with what there was until then
        self.assertLess(turn.usage.generated_tokens, 1900)
        until(lambda: self.stack.llm.metrics()["llava_llm_requests_running"] == 0, "generation goes on for a client that is gone")
        eventually(lambda: self.ask(session, "What is this?"))

    def test_deadline_passes_through(self):
        session = self.session()
        request = self.chat.new("ChatRequest", session_id=session, text="Describe the picture.",
                                sampling={"max_new_tokens": 1900, "ignore_eos": True})
        with self.assertRaises(grpc.RpcError) as caught:
            list(self.chat.Chat(request, timeout=0.2))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)

    def test_health_of_services_and_models(self):
        names = {"gateway": ["", "llava.v1.ChatService", "emoji"], "llm": ["", "llava.v1.LlmService", "emoji"],
                 "vision": ["", "llava.v1.VisionService", "emoji-tower"]}
        for which, served in names.items():
            with grpc.insecure_channel(self.stack.services[which].grpc) as channel:
                health = health_pb2_grpc.HealthStub(channel)
                for name in served:
                    status = health.Check(health_pb2.HealthCheckRequest(service=name)).status
                    self.assertEqual(status, health_pb2.HealthCheckResponse.SERVING, (which, name))
                with self.assertRaises(grpc.RpcError) as caught:
                    health.Check(health_pb2.HealthCheckRequest(service="no such model"))
                self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_pictures_of_an_old_turn_are_not_sent_again(self):
        session = self.session()
        self.ask(session, "What is in the picture?", [{"data": (SCENES / "lion.png").read_bytes()}])
        before = sum(v for k, v in self.stack.vision.metrics().items() if k.startswith("llava_vision_requests_total"))
        self.ask(session, "What color is the background?")
        after = sum(v for k, v in self.stack.vision.metrics().items() if k.startswith("llava_vision_requests_total"))
        self.assertEqual(before, after)

    def test_what_was_made_of_a_deleted_sessions_picture_goes(self):
        def kept():
            return (self.stack.vision.metrics()["llava_vision_feature_cache_entries"],
                    self.stack.llm.metrics()["llava_llm_feature_store_entries"])

        before = kept()
        session = self.session()
        picture = (SCENES / "lion.png").read_bytes() + b"another file, the same picture"
        self.ask(session, "What is in the picture?", [{"data": picture}])
        self.assertEqual(kept(), (before[0] + 1, before[1] + 1))
        self.chat.DeleteSession(self.chat.new("DeleteSessionRequest", session_id=session))
        until(lambda: kept() == before, "the features are still there")


if __name__ == "__main__":
    unittest.main(verbosity=2)
