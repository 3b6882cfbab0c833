"""What the end-to-end tests share: running services, and a client that chats."""
import unittest

import grpc
from stack import SCENES, SLOWDOWN, Answer, Stack, answer_held


class ChatCase(unittest.TestCase):
    """Three services per test class; `self.chat` is a stub of the gateway's ChatService."""

    @classmethod
    def setUpClass(cls):
        cls.stack = Stack()
        cls.stack.__enter__()
        cls.chat = cls.stack.chat()

    @classmethod
    def tearDownClass(cls):
        cls.stack.__exit__()

    def session(self, **fields):
        fields.setdefault("sampling", {"temperature": 0})
        return self.chat.CreateSession(self.chat.new("CreateSessionRequest", **fields)).session.id

    def upload(self, session, name):
        data = (SCENES / name).read_bytes()
        new = self.chat.new
        messages = [new("UploadImageRequest", header={"session_id": session, "size_bytes": len(data)})]
        messages += [new("UploadImageRequest", chunk=data[i:i + 1000]) for i in range(0, len(data), 1000)]
        return self.chat.UploadImage(iter(messages)).image

    def turns(self, session):
        return self.chat.ListTurns(self.chat.new("ListTurnsRequest", session_id=session)).turns

    def answer_held(self, **fields):
        """See stack.py."""
        return answer_held(self.stack.llm, self.chat, self.session, **fields)

    def ask(self, session, text, images=(), **fields):
        request = self.chat.new("ChatRequest", session_id=session, text=text, images=list(images), **fields)
        return Answer(self.chat.Chat(request, timeout=240 * SLOWDOWN))

    def assert_fails(self, code, hint, call):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        self.assertIn(hint, caught.exception.details())
