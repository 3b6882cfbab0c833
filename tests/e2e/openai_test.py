"""The OpenAI front: the unmodified openai package chats through it; bad requests get its errors."""
import base64
import concurrent.futures
import json
import socket
import unittest
import urllib.error
import urllib.request

import openai
from stack import SCENES, SLOWDOWN, Stack, run, until

LION = "data:image/png;base64," + base64.b64encode((SCENES / "lion.png").read_bytes()).decode()
LONG = {"max_tokens": 1500, "extra_body": {"repetition_penalty": 1.0}}


def question(text, *pictures):
    return {"role": "user", "content": [*({"type": "image_url", "image_url": {"url": p}} for p in pictures),
                                        {"type": "text", "text": text}]}


class FrontCase(unittest.TestCase):
    arguments = ()

    @classmethod
    def setUpClass(cls):
        cls.stack = Stack(gateway=["--http-port", "0", *cls.arguments])
        cls.stack.__enter__()
        cls.address = next(line["http"] for line in cls.stack.gateway.log_lines() if line.get("msg") == "serving HTTP")

    @classmethod
    def tearDownClass(cls):
        cls.stack.__exit__()

    def client(self, key="none", **options):
        options.setdefault("max_retries", 0)
        return openai.OpenAI(base_url=f"http://{self.address}/v1", api_key=key, timeout=240 * SLOWDOWN, **options)

    def ask(self, *messages, **options):
        options.setdefault("temperature", 0)
        return self.client().chat.completions.create(model="emoji", messages=list(messages), **options)

    def raw(self, request):
        """Status and body of whatever bytes are sent."""
        host, port = self.address.split(":")
        with socket.create_connection((host, int(port)), timeout=240 * SLOWDOWN) as connection:
            connection.sendall(request if isinstance(request, bytes) else request.encode())
            answer = b""
            while True:
                piece = connection.recv(65536)
                if not piece:
                    break
                answer += piece
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), head.decode(), body.decode()

    def post(self, body, headers="Content-Type: application/json\r\n", path="/v1/chat/completions"):
        body = body if isinstance(body, str) else json.dumps(body)
        data = body.encode()
        return self.raw(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}Content-Length: {len(data)}\r\n\r\n"
                        .encode() + data)


class OpenAiTest(FrontCase):
    def test_two_turns_about_a_picture(self):
        first = self.ask(question("What is this?", LION))
        text = first.choices[0].message.content
        self.assertIn("lion", text.lower())
        self.assertEqual(first.object, "chat.completion")
        self.assertEqual(first.model, "emoji")
        self.assertEqual(first.choices[0].finish_reason, "stop")
        self.assertGreater(first.usage.prompt_tokens, 10)
        self.assertGreater(first.usage.completion_tokens, 1)
        self.assertEqual(first.usage.total_tokens, first.usage.prompt_tokens + first.usage.completion_tokens)
        second = self.ask(question("What is this?", LION), {"role": "assistant", "content": text},
                          {"role": "user", "content": "How many things are there?"})
        self.assertTrue(second.choices[0].message.content)

    def test_streams_are_the_same_text(self):
        whole = self.ask(question("What is this?", LION)).choices[0].message.content
        chunks = list(self.ask(question("What is this?", LION), stream=True, stream_options={"include_usage": True}))
        self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks if c.choices), whole)
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        self.assertEqual(chunks[-2].choices[0].finish_reason, "stop")
        self.assertEqual(chunks[-1].choices, [])
        self.assertGreater(chunks[-1].usage.completion_tokens, 1)
        self.assertEqual(len({chunk.id for chunk in chunks}), 1)
        plain = list(self.ask(question("What is this?", LION), stream=True))
        self.assertTrue(all(chunk.usage is None for chunk in plain))

    def test_parameters_have_an_effect(self):
        ask = lambda **options: self.ask(question("What is this?", LION), **options).choices[0]
        self.assertEqual(ask(max_tokens=2).finish_reason, "length")
        self.assertEqual(ask(max_completion_tokens=2).finish_reason, "length")
        text = ask().message.content
        word = text.split()[1]
        self.assertNotIn(word, ask(stop=word).message.content)
        self.assertNotIn(word, ask(stop=["nothing", word]).message.content)
        warm = [ask(temperature=1.5, seed=seed, top_p=0.99).message.content for seed in (7, 7, -7)]
        self.assertEqual(warm[0], warm[1])
        tokens = ask(logprobs=True, top_logprobs=3).logprobs.content
        self.assertEqual(len(tokens[0].top_logprobs), 3)
        self.assertEqual(tokens[0].token, tokens[0].top_logprobs[0].token)
        self.assertLessEqual(tokens[0].logprob, 0)
        self.assertEqual("".join(token.token for token in tokens).strip()[:len(text)], text)

    def test_harmless_parameters_are_taken(self):
        self.ask(question("What is this?", LION), n=1, user="me", metadata={"a": "b"}, parallel_tool_calls=True,
                 response_format={"type": "text"}, logit_bias={}, extra_body={"tools": None})

    def test_unsupported_parameters_are_refused_by_name(self):
        for name, value in (("n", 2), ("tools", [{"type": "function", "function": {"name": "f", "parameters": {}}}]),
                            ("response_format", {"type": "xml"}), ("logit_bias", {"5": 1}), ("temperature", "warm"),
                            ("temperature", 9), ("top_p", 0), ("max_tokens", 0), ("stop", 5), ("seed", 1.5),
                            ("top_logprobs", 3), ("stream", 1), ("nonsense", 1), ("messages", []), ("messages", [{}])):
            body = {"model": "emoji", "messages": [{"role": "user", "content": "Hello?"}], name: value}
            status, _, text = self.post(body)
            error = json.loads(text)["error"]
            self.assertEqual((status, error["type"]), (400, "invalid_request_error"), (name, text))
            self.assertIn(name, error["message"])

    def test_bad_messages_are_refused(self):
        for content, hint in ((None, "messages"), ("", "empty"), ([{"type": "video"}], "video"), (5, "content"),
                              ([{"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}], "data URI"),
                              ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,!!"}}], "base64"),
                              ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}], "content[0].image_url: the file")):
            status, _, text = self.post({"model": "emoji", "messages": [{"role": "user", "content": content}]})
            self.assertEqual(status, 400, text)
            self.assertIn(hint, json.loads(text)["error"]["message"])
        status, _, text = self.post({"model": "emoji", "messages": [{"role": "assistant", "content": "x"}]})
        self.assertEqual(status, 400)
        with self.assertRaises(openai.NotFoundError):
            self.client().chat.completions.create(model="gpt", messages=[question("x")])

    def test_what_fails_raises_the_same_whole_and_streamed(self):
        half = SCENES.joinpath("lion.png").read_bytes()
        half = "data:image/png;base64," + base64.b64encode(half[:len(half) // 2]).decode()
        for stream in (False, True):
            with self.assertRaises(openai.BadRequestError) as caught:
                self.ask(question("word " * 5000), stream=stream)
            self.assertEqual(caught.exception.code, "context_length_exceeded")
            with self.assertRaises(openai.BadRequestError):
                self.ask(question("What is this?", half), stream=stream)
            with self.assertRaises(openai.NotFoundError) as caught:
                self.client().chat.completions.create(model="gpt", messages=[question("x")], stream=stream)
            self.assertEqual(caught.exception.code, "model_not_found")

    def test_bad_bytes_are_refused(self):
        for body in ("", "{", "[]", "nul", '"x"', "[" * 100000, "{\"model\": \"\xff\"}", "[" + "1," * 300000 + "1]"):
            status, _, text = self.post(body)
            self.assertEqual(status, 400, text)
            self.assertIn("error", json.loads(text))
        self.assertEqual(self.post("{}", headers="")[0], 415)
        self.assertEqual(self.post("{}", path="/v1/nothing")[0], 404)
        self.assertEqual(self.raw("GET /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")[0], 405)
        self.assertEqual(self.raw("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                                  "Content-Length: 99999999999\r\n\r\n")[0], 413)
        self.assertEqual(self.raw("GET / HTTP/1.1\r\nHost: localhost\r\nX: " + "x" * 20000 + "\r\n\r\n")[0], 431)
        self.assertEqual(self.raw("GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")[0], 403)
        self.assertEqual(self.raw("\0\1\2\r\n\r\n")[0], 400)
        self.assertTrue(self.ask(question("What is this?", LION)).choices[0].message.content, "it still answers")

    def test_models(self):
        models = self.client().models.list().data
        self.assertEqual([model.id for model in models], ["emoji"])
        self.assertEqual(self.client().models.retrieve("emoji").id, "emoji")
        with self.assertRaises(openai.NotFoundError):
            self.client().models.retrieve("gpt")

    def test_a_client_that_goes_stops_its_answer(self):
        stream = self.ask({"role": "user", "content": "Hello?"}, stream=True, max_tokens=1500,
                          extra_body={"stop": ["never said"]})
        next(iter(stream))
        stream.close()
        until(lambda: self.stack.gateway.metrics()["llava_gateway_turns_running"] == 0)

    def test_many_at_once(self):
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            texts = set(pool.map(lambda _: self.ask(question("What is this?", LION)).choices[0].message.content, range(32)))
        self.assertEqual(len(texts), 1)

    def test_pages(self):
        get = lambda path: urllib.request.urlopen(f"http://{self.address}{path}")
        for path in ("/livez", "/readyz", "/metrics"):
            self.assertEqual(get(path).status, 200)
        page = get("/")
        policy = page.headers["Content-Security-Policy"]
        self.assertIn("default-src 'none'", policy)
        self.assertNotIn("unsafe", policy)
        self.assertNotRegex(page.read().decode(), r"""(src|href)=["']?(https?:)?//""")


class KeysOverHttpTest(FrontCase):
    @classmethod
    def setUpClass(cls):
        import tempfile
        cls.folder = tempfile.TemporaryDirectory(prefix="llava-keys-")
        cls.keys_file = cls.folder.name + "/keys.yaml"
        add = lambda *arguments: run("llava-gateway", "keys", "add", *arguments, "--keys-file", cls.keys_file).stdout.strip()
        cls.ann, cls.few = add("ann"), add("few", "--requests-per-minute", "2")
        cls.arguments = ("--keys-file", cls.keys_file)
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.folder.cleanup()

    def test_keys(self):
        ask = lambda key: self.client(key).chat.completions.create(model="emoji", messages=[question("What is this?", LION)])
        self.assertTrue(ask(self.ann).choices[0].message.content)
        with self.assertRaises(openai.AuthenticationError) as caught:
            ask("wrong")
        self.assertEqual(caught.exception.code, "invalid_api_key")
        self.assertEqual(self.post({}, headers="Content-Type: application/json\r\n")[0], 401)
        ask(self.few), ask(self.few)
        with self.assertRaises(openai.RateLimitError) as caught:
            ask(self.few)
        self.assertGreaterEqual(int(caught.exception.response.headers["retry-after"]), 1)
        self.assertEqual(urllib.request.urlopen(f"http://{self.address}/livez").status, 200)
        self.assertNotIn(self.ann, self.stack.gateway.text())
        self.assertNotIn("lion", self.stack.gateway.text().lower())


if __name__ == "__main__":
    unittest.main(verbosity=2)
