"""Clients of a gateway that note all they see, and go on whatever breaks."""
import hashlib
import pathlib
import sys
import threading
import time

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from stack import SCENES, SLOWDOWN, eventually  # noqa: E402

TOKENS = 250
QUESTIONS = ["What is on the left?", "Describe the picture.", "Which things do you see, and where are they?"]
PICTURES = ["train_and_helicopter.png", "lion.png"]
PATIENCE = 240 * SLOWDOWN
KEYS = ("ann", "bob")


def secret_of(key):
    return f"the secret of {key}"


def write_keys(path):
    path.write_text("".join(f"- {{name: {key}, sha256: {hashlib.sha256(secret_of(key).encode()).hexdigest()}}}\n"
                            for key in KEYS))
    return path


class Recorder:
    """The history, shared by all clients."""

    def __init__(self):
        self.events, self.lock, self.streams = [], threading.Lock(), 0

    def add(self, **event):
        with self.lock:
            self.events.append(event)

    def stream(self):
        with self.lock:
            self.streams += 1
            return self.streams


REASONS = ["UNSPECIFIED", "STOP", "LENGTH", "CONTEXT", "CANCELLED", "DEADLINE", "ERROR", "INTERRUPTED"]


def version_of(model):
    return [model.name, model.version, model.digest.hex()]


class Chatter:
    """One client with one session, its own or that of another: asks, and gets every answer whatever breaks."""

    def __init__(self, chat, name, recorder, key="", session=None, **sampling):
        self.chat, self.name, self.recorder, self.key = chat, name, recorder, key
        sampling = {"temperature": 1, "max_new_tokens": TOKENS, "ignore_eos": True, **sampling}
        self.session = session or self.patiently(lambda: chat.CreateSession(chat.new(
            "CreateSessionRequest", sampling=sampling), timeout=PATIENCE)).session.id
        self.turn = None  # the last that began

    @staticmethod
    def patiently(call):
        return eventually(call, seconds=240)

    def note(self, kind, **fields):
        self.recorder.add(kind=kind, key=self.key, client=self.name, session=self.session, **fields)

    def ask(self, text, seed, picture=None, on_byte=lambda count: None):
        """The answer's text. `on_byte` is told how many bytes have come."""
        request = f"{self.session}/{text}"
        new = self.chat.new
        question = new("ChatRequest", session_id=self.session, text=text, sampling={"seed": seed},
                       idempotency_key=request,
                       images=[{"data": (SCENES / picture).read_bytes()}] if picture else [])
        turn, restarts, answer = None, 0, b""
        deadline = time.monotonic() + PATIENCE
        while True:
            stream = self.recorder.stream()
            if turn is None:
                self.note("asked", request=request, text=text, picture=picture)
                call = self.chat.Chat(question, timeout=PATIENCE)
            else:
                call = self.chat.ResumeTurn(new("ResumeTurnRequest", session_id=self.session, turn_id=turn,
                                                after_offset=len(answer), restarts=restarts), timeout=PATIENCE)
            try:
                for response in call:
                    event = response.event
                    kind = event.WhichOneof("event")
                    if kind == "turn_started":
                        started = event.turn_started
                        turn, restarts = started.turn_id, started.restarts
                        self.turn = turn
                        self.note("started", stream=stream, request=request, turn=turn, number=started.turn_number,
                                  version=version_of(started.model), seed=started.seed, restarts=restarts)
                    elif kind == "text":
                        self.note("text", stream=stream, turn=turn, offset=event.text.offset, text=event.text.text)
                        answer = answer[:event.text.offset] + event.text.text.encode()
                        deadline = time.monotonic() + PATIENCE
                        on_byte(len(answer))
                    elif kind == "turn_finished":
                        finished = event.turn_finished
                        self.note("finished", stream=stream, turn=turn, version=version_of(finished.model),
                                  text_bytes=finished.text_bytes, reason=REASONS[finished.reason])
                        return answer.decode()
            except grpc.RpcError as error:
                busy = turn is None and error.code() == grpc.StatusCode.ABORTED  # with another client's turn
                if not (busy or error.code() == grpc.StatusCode.UNAVAILABLE) or time.monotonic() > deadline:
                    if turn:
                        self.note("failed", stream=stream, turn=turn, code=error.code().name)
                    raise
                self.note("broken", stream=stream)
                time.sleep(0.05)

    def note_stored(self):
        turns = self.patiently(lambda: self.chat.ListTurns(
            self.chat.new("ListTurnsRequest", session_id=self.session, page_size=1000), timeout=PATIENCE)).turns
        self.note("stored", turns=[
            {"turn": t.id, "number": t.number, "text": t.user_text, "answer": t.answer_text,
             "version": version_of(t.model), "seed": t.seed, "ended": t.state != 1,
             "reason": REASONS[t.finish_reason]} for t in turns])
