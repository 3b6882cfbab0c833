"""Answers that must be JSON: whatever the default model, which was never taught any, is asked and however it is sampled,
what ends with "stop" parses and fits the schema, over both APIs, in sessions, and when processes die in the middle."""
import json
import unittest

import grpc
from chat_case import ChatCase
from openai_test import LION, FrontCase, question
from stack import RUNNING, Answer, eventually, until

THING = {
    "$ref": "#/$defs/thing",
    "$defs": {"thing": {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "count": {"type": "integer", "minimum": -9, "maximum": 99},
                       "weight": {"type": "number", "minimum": 0, "exclusiveMaximum": 1}, "kind": {"enum": ["animal", "fruit", None]},
                       "parts": {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/thing"}, {"type": "boolean"}]}, "maxItems": 2}},
        "required": ["name", "count", "kind"], "additionalProperties": False}}}


# Takes a while, and ends.
LONG = {"type": "array", "items": {"type": "string", "minLength": 20, "maxLength": 24}, "minItems": 20, "maxItems": 22}


def check_thing(case, thing):
    """As THING has it, by hand."""
    case.assertIsInstance(thing, dict)
    case.assertLessEqual({"name", "count", "kind"}, set(thing))
    case.assertLessEqual(set(thing), {"name", "count", "weight", "kind", "parts"})
    case.assertIsInstance(thing["name"], str)
    case.assertLessEqual(len(thing["name"]), 12)
    case.assertIs(type(thing["count"]), int)
    case.assertTrue(-9 <= thing["count"] <= 99)
    case.assertIn(thing["kind"], ("animal", "fruit", None))
    if "weight" in thing:
        case.assertTrue(0 <= thing["weight"] < 1)
    for part in thing.get("parts", []):
        if not isinstance(part, bool):
            check_thing(case, part)
    case.assertLessEqual(len(thing.get("parts", [])), 2)


def schema_format(schema, **fields):
    return {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, **fields}}


class OpenAiConstraintTest(FrontCase):
    def test_whatever_is_drawn_the_answer_is_valid(self):
        stopped = 0
        for seed in range(12):
            choice = self.ask(question("What is this?", LION), temperature=seed % 4 * 0.5, seed=seed, max_tokens=400,
                              response_format=schema_format(THING, strict=seed % 2 == 0, description="a thing")).choices[0]
            self.assertIn(choice.finish_reason, ("stop", "length"))
            if choice.finish_reason == "stop":
                stopped += 1
                check_thing(self, json.loads(choice.message.content))
        self.assertGreater(stopped, 6)

    def test_streams_and_logprobs_are_the_same_text(self):
        options = dict(temperature=1.2, seed=3, max_tokens=300, response_format=schema_format(THING))
        whole = self.ask(question("What is this?", LION), **options).choices[0]
        chunks = list(self.ask(question("What is this?", LION), stream=True, **options))
        self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks if c.choices), whole.message.content)
        self.assertEqual([c.choices[0].finish_reason for c in chunks if c.choices][-1], whole.finish_reason)
        tokens = self.ask(question("What is this?", LION), logprobs=True, top_logprobs=2, **options).choices[0].logprobs.content
        self.assertEqual(bytes(b for token in tokens for b in token.bytes).decode().strip(), whole.message.content)

    def test_any_object(self):
        for seed in range(6):
            choice = self.ask(question("What is this?", LION), temperature=0.4, seed=seed, max_tokens=200,
                              response_format={"type": "json_object"}).choices[0]
            self.assertTrue(choice.message.content.startswith("{"))
            if choice.finish_reason == "stop":
                self.assertIsInstance(json.loads(choice.message.content), dict)

    def test_members_come_in_the_order_of_the_schema(self):
        schema = {"type": "object", "properties": {name: {"const": name.upper()} for name in ("zebra", "ant", "mule")},
                  "required": ["ant", "mule", "zebra"], "additionalProperties": False}
        text = self.ask(question("What is this?", LION), response_format=schema_format(schema)).choices[0].message.content
        self.assertEqual(list(json.loads(text).items()), [("zebra", "ZEBRA"), ("ant", "ANT"), ("mule", "MULE")])

    def test_what_is_cut_says_so(self):
        cut = self.ask(question("What is this?", LION), max_tokens=2, response_format=schema_format(THING)).choices[0]
        self.assertEqual(cut.finish_reason, "length")
        cut = self.ask(question("What is this?", LION), stop=['"count"'], max_tokens=300,
                       response_format=schema_format(THING)).choices[0]
        self.assertEqual(cut.finish_reason, "length")
        self.assertNotIn("count", cut.message.content)

    def test_what_is_not_supported_is_refused_by_name(self):
        for schema, hint in (({"type": "object", "properties": {"a": {"type": "string", "format": "date"}}}, "#/properties/a/format"),
                             ({"not": {}}, "#/not"), ({"$ref": "#/$defs/x"}, "#/$ref"), ({"$ref": "#"}, "itself"),
                             ({"type": "string", "maxLength": 10**9}, "maxLength"), ({"enum": ["x" * 70000]}, "65536")):
            status, _, body = self.post({"model": "emoji", "messages": [{"role": "user", "content": "Hello?"}],
                                         "response_format": schema_format(schema)})
            self.assertEqual(status, 400, body)
            self.assertEqual(json.loads(body)["error"]["param"], "response_format")
            self.assertIn(hint, json.loads(body)["error"]["message"])
        for value, hint in (({"type": "xml"}, "json_schema"), ("json", "type"), ({"type": "json_schema"}, "json_schema is missing"),
                            ({"type": "json_schema", "json_schema": None}, "json_schema is missing"),
                            ({"type": "json_schema", "json_schema": {"name": "x"}}, "schema is missing"),
                            ({"type": "json_schema", "json_schema": {"schema": [1]}}, "an object"),
                            ({"type": "json_object", "json_schema": {}}, "not a parameter")):
            status, _, body = self.post({"model": "emoji", "messages": [{"role": "user", "content": "Hello?"}],
                                         "response_format": value})
            self.assertEqual(status, 400, body)
            self.assertIn(hint, json.loads(body)["error"]["message"])


class ChatConstraintTest(ChatCase):
    SAMPLING = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 400, "constraint": {"json_schema": json.dumps(THING)}}

    def test_a_session_its_questions_and_answers_anew(self):
        session = self.session(sampling=self.SAMPLING)
        for number in range(3):
            answer = self.ask(session, f"Question {number}?", sampling={"seed": number})
            if answer.finished.reason == 1:
                check_thing(self, json.loads(answer.text))
        request = self.chat.new("RegenerateTurnRequest", session_id=session, turn_id=self.turns(session)[-1].id,
                                sampling={"seed": 77, "constraint": {"choices": {"texts": ["yes", "no"]}}})
        self.assertIn(Answer(self.chat.RegenerateTurn(request)).text, ("yes", "no"))
        free = self.ask(session, "What is a lion?", sampling={"temperature": 0, "constraint": {"text": {}}})
        self.assertFalse(free.text.startswith("{"), "this one has no constraint")

    def test_refused_before_anything_is_kept(self):
        bad = {"constraint": {"json_schema": '{"type": "array", "uniqueItems": true}'}}
        self.assert_fails(grpc.StatusCode.INVALID_ARGUMENT, "#/uniqueItems", lambda: self.session(sampling=bad))
        session = self.session()
        self.assert_fails(grpc.StatusCode.INVALID_ARGUMENT, "#/uniqueItems", lambda: self.ask(session, "Hello?", sampling=bad))
        self.assert_fails(grpc.StatusCode.INVALID_ARGUMENT, "ignore_eos",
                          lambda: self.ask(session, "Hello?", sampling={**self.SAMPLING, "ignore_eos": True}))
        self.assertEqual(len(self.turns(session)), 0)

    def killed(self, which):
        """The same text as without a death in the middle."""
        sampling = {**self.SAMPLING, "seed": 5, "max_new_tokens": 900, "constraint": {"json_schema": json.dumps(LONG)}}
        with self.answer_held(sampling=sampling) as (session, stream):
            self.stack.services[which].process.kill()
            self.stack.services[which].process.wait()
        self.stack.restart(which)
        until(lambda: eventually(lambda: self.turns(session))[0].state != RUNNING, "the answer does not end")
        turn = self.turns(session)[0]
        whole = self.ask(self.session(), "Describe the picture.", sampling=sampling)
        self.assertEqual(turn.answer_text, whole.text)
        self.assertEqual(turn.finish_reason, whole.finished.reason)
        self.assertEqual(turn.finish_reason, 1)
        items = json.loads(turn.answer_text)
        self.assertTrue(len(items) >= 20 and all(20 <= len(item) <= 24 for item in items))
        del stream  # read by nobody, but there

    def test_the_language_service_dies_in_the_middle(self):
        self.killed("llm")

    def test_the_gateway_dies_in_the_middle(self):
        self.killed("gateway")


if __name__ == "__main__":
    unittest.main()
