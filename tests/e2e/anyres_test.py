"""LLaVA-1.6 through all three services: pictures in tiles, of which each takes as many image tokens as its size asks for.

The model is tests/fixtures/tiny-llava with random weights, in transformers' llava_next layout; what it has to say comes from
llava-eval, which runs tower and model without a server."""
import json
import pathlib
import struct
import tempfile
import unittest

import grpc
from chat_case import ChatCase
from stack import ROOT, Stack, eventually, run

FIXTURES = ROOT / "tests/fixtures"
PICTURES = FIXTURES / "images"
# Image tokens as transformers counts them (tests/parity/next_golden.py).
TOKENS = {"plain.png": 70, "tall_37x200.png": 52, "gray.png": 88, "small_upscale.png": 46}
QUESTION = "What is shown in this image?"


def read_tensors(path):
    """Of a safetensors file: {name: (dtype, shape, bytes)}."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    body = data[8 + size:]
    return {name: (info["dtype"], info["shape"], body[slice(*info["data_offsets"])]) for name, info in header.items()}


def write_tensors(path, tensors):
    header, body = {}, b""
    for name, (dtype, shape, data) in sorted(tensors.items()):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def write_next(folder):
    folder.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json", "preprocessor_config.json"):
        (folder / name).write_bytes((FIXTURES / "tiny-llava" / name).read_bytes())
    config = json.loads((FIXTURES / "tiny-llava/config.json").read_text())
    config.update(model_type="llava_next", image_grid_pinpoints=[[112, 56], [56, 112], [112, 112], [56, 168], [168, 56]])
    (folder / "config.json").write_text(json.dumps(config))
    tensors = read_tensors(FIXTURES / "tiny-llava/model.safetensors")
    tensors["image_newline"] = read_tensors(ROOT / "tests/parity/next.safetensors")["image_newline"]
    write_tensors(folder / "model.safetensors", tensors)
    return folder


class AnyresTest(ChatCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="llava-anyres-")
        cls.folder = pathlib.Path(cls.temporary.name)
        cls.source = write_next(cls.folder / "tiny-next")
        run("llava-model", "publish", cls.source, "--repository", cls.folder / "models", "--name", "next")
        cls.stack = Stack(vision=["--dtype", "float32", "--exif", "apply", "--feature-cache-dir", cls.folder / "features"],
                          llm=["--dtype", "float32"], llm_model=cls.folder / "models/next", tower_model=cls.folder / "models/next-tower")
        cls.stack.__enter__()
        cls.chat = cls.stack.chat()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.temporary.cleanup()

    def reference(self, pictures, tokens):
        """What the checkpoint says without a server."""
        questions, out = self.folder / "questions.jsonl", self.folder / "answers.jsonl"
        questions.write_text("".join(json.dumps({"question_id": name, "text": QUESTION, "image": name}) + "\n" for name in pictures))
        run("llava-eval", "answer", "--questions", questions, "--pictures", PICTURES, "--checkpoint", self.source,
            "--out", out, "--temperature", "0", "--max-tokens", tokens)
        return {line["question_id"]: line["text"] for line in map(json.loads, out.read_text().splitlines())}

    @staticmethod
    def data(name):
        return {"data": (PICTURES / name).read_bytes()}

    def says(self, name, tokens=8):
        return self.ask(self.session(sampling={"temperature": 0, "max_new_tokens": tokens}), QUESTION, [self.data(name)])

    def test_the_gateway_says_what_the_model_says(self):
        expected = self.reference(TOKENS, 8)
        answers = {name: self.says(name) for name in TOKENS}
        self.assertEqual({name: answer.text.strip() for name, answer in answers.items()},
                         {name: text.strip() for name, text in expected.items()})
        self.assertGreater(len(set(expected.values())), 1)
        self.assertEqual({name: answer.finished.usage.image_tokens for name, answer in answers.items()}, TOKENS)

        # Features on disk know the size of their picture.
        self.stack.restart("vision")
        self.stack.restart("llm")
        name = "tall_37x200.png"
        again = eventually(lambda: self.says(name))
        self.assertEqual(again.text, answers[name].text)
        self.assertEqual(again.finished.usage.image_tokens, TOKENS[name])

    def test_a_conversation_about_pictures_of_several_sizes(self):
        session = self.session(sampling={"temperature": 0, "max_new_tokens": 4})
        first = self.ask(session, QUESTION, [self.data("plain.png"), self.data("tall_37x200.png")])
        self.assertEqual(first.finished.usage.image_tokens, 70 + 52)
        new = self.chat.new
        counted = self.chat.CountTokens(new("ChatServiceCountTokensRequest", session_id=session, text="And this?",
                                            images=[self.data("gray.png")]))
        self.assertEqual(counted.image_tokens, 70 + 52 + 88)
        second = self.ask(session, "And this?", [self.data("gray.png")])
        self.assertEqual(second.finished.usage.image_tokens, 70 + 52 + 88)
        self.assertEqual(second.finished.usage.text_tokens, counted.text_tokens)
        self.assertGreaterEqual(second.finished.usage.cached_tokens, 70 + 52, "the pictures of the first question stay computed")

    def test_the_size_is_that_of_the_upright_picture(self):
        answer = self.says("exif_rotated.jpg")
        self.assertEqual(answer.finished.usage.image_tokens, self.tokens_of(*self.upright("exif_rotated.jpg")))
        self.assertNotEqual(answer.finished.usage.image_tokens, self.tokens_of(*reversed(self.upright("exif_rotated.jpg"))))

    @staticmethod
    def upright(name):
        from PIL import Image, ImageOps
        return ImageOps.exif_transpose(Image.open(PICTURES / name)).size

    @staticmethod
    def tokens_of(width, height):
        """Of a picture that is laid on 2 x 2 tiles of 4 x 4 patches."""
        if width > height:
            high = height * 8 // width
            return 16 + (8 - (8 - high) // 2 * 2) * 9
        wide = width * 8 // height
        return 16 + 8 * (8 - (8 - wide) // 2 * 2 + 1)

    def test_the_oldest_turns_go_when_pictures_fill_the_context(self):
        session = self.session(sampling={"temperature": 0, "max_new_tokens": 4}, context_overflow="CONTEXT_OVERFLOW_DROP_OLDEST_TURNS")
        of_a_hundred = self.chat.CountTokens(self.chat.new("ChatServiceCountTokensRequest", session_id=session, text=" word" * 100)).text_tokens
        words = 100 * 700 // of_a_hundred  # four such turns and their pictures are more than the 2048 tokens of the context
        for _ in range(4):
            answer = self.ask(session, QUESTION + " word" * words, [self.data("gray.png")])
            self.assertGreater(answer.finished.usage.image_tokens, 0)
        self.assertTrue(self.turns(session)[0].dropped_from_context)
        self.assertLess(answer.finished.usage.image_tokens, 4 * TOKENS["gray.png"])

    def test_features_without_a_size_are_refused(self):
        vision, llm = self.stack.client("vision", "llava.v1.VisionService"), self.stack.client("llm", "llava.v1.LlmService")
        models = self.stack.client("llm", "llava.v1.ModelService")
        model = models.ListModels(models.new("ListModelsRequest")).models[0]
        self.assertEqual(len(model.vision_spec.grid), 5)

        def copy(client, name, message):  # each client has classes of its own
            copied = client.new(name)
            copied.ParseFromString(message.SerializeToString())
            return copied

        spec = copy(vision, "VisionSpec", model.vision_spec)
        parts = list(vision.Encode(vision.new("EncodeRequest", image=self.data("rgba.png")["data"], spec=spec)))
        header = parts[0].header
        key, tensor = copy(llm, "FeatureKey", header.key), copy(llm, "TensorHeader", header.tensor)
        self.assertEqual((header.image_width, header.image_height), (80, 64))

        def put(**size):
            messages = [llm.new("PutFeaturesRequest", header={"key": key, "tensor": tensor, **size})]
            messages += [llm.new("PutFeaturesRequest", chunk=part.chunk) for part in parts[1:]]
            return llm.PutFeatures(iter(messages))

        self.assert_fails(grpc.StatusCode.INVALID_ARGUMENT, "image_width", put)
        self.assert_fails(grpc.StatusCode.INVALID_ARGUMENT, "of a picture of 56 x 112", lambda: put(image_width=56, image_height=112))
        self.assertFalse(put(image_width=80, image_height=64).already_present)


if __name__ == "__main__":
    unittest.main()
