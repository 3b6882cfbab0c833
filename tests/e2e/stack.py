"""Starts the real services on free ports and talks to them as a stranger would: the Python client is
built from gRPC reflection alone.

    with Stack() as stack:
        chat = stack.chat()                  # ChatService of the gateway
        session = chat.CreateSession(chat.new("CreateSessionRequest"))

Environment: see service.py."""
import json
import pathlib
import re
import signal
import tempfile
import time
from contextlib import contextmanager

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from service import BIN, FREE_PORTS, ROOT, SLOWDOWN, Service, run, until  # noqa: F401 (for those who import this file)

import ports  # a neighbour that service.py finds

SCENES = ROOT / "deploy/scenes"
LLM_MODEL = ROOT / "deploy/models/emoji"
TOWER_MODEL = ROOT / "deploy/models/emoji-tower"
RUNNING = 1  # llava.v1.TurnState


class WithKey(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor,
              grpc.StreamUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Sends an API key with every call."""

    def __init__(self, key):
        self.metadata = [("authorization", f"Bearer {key}")]

    def call(self, continuation, details, request):
        return continuation(details._replace(metadata=[*(details.metadata or ()), *self.metadata]), request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = intercept_stream_stream = call


class Client:
    """Stub of one gRPC service, made from the server's reflection; `key`: an API key."""

    def __init__(self, address, service, key=None):
        self.channel = grpc.insecure_channel(
            address, options=[("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)])
        if key:
            self.channel = grpc.intercept_channel(self.channel, WithKey(key))
        self.pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))
        self.service = self.pool.FindServiceByName(service)
        for method in self.service.methods:
            kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
            call = getattr(self.channel, kind)(
                f"/{service}/{method.name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=message_factory.GetMessageClass(method.output_type).FromString)
            setattr(self, method.name, call)

    def new(self, name, /, **fields):
        """A message of llava.v1 by name; nested messages as dictionaries."""
        return message_factory.GetMessageClass(self.pool.FindMessageTypeByName(f"llava.v1.{name}"))(**fields)

    def close(self):
        self.channel.close()


class Stack:
    """The three services; arguments per service are added to the defaults."""

    def __init__(self, gateway=(), vision=(), llm=(), folder=None, llm_model=LLM_MODEL, tower_model=TOWER_MODEL):
        self.temporary = None if folder else tempfile.TemporaryDirectory(prefix="llava-e2e-")
        self.folder = pathlib.Path(folder or self.temporary.name)
        self.extra = {"gateway": list(gateway), "vision": list(vision), "llm": list(llm)}
        self.models = {"llm": llm_model, "vision": tower_model}
        self.services = {}
        self.ports = {}  # of each service, kept over restarts
        self.clients = []

    def start(self, which, environment=None):
        if which not in self.ports:
            self.ports[which] = ports.hold(), ports.hold()
        port, metrics_port = self.ports[which]
        arguments = ["--port", port, "--metrics-port", metrics_port, "--log-format", "json"]
        if which == "gateway":
            # On a busy machine a service may need minutes to come back.
            arguments += ["--http-port", 0, "--data-dir", self.folder / "data", "--vision", self.vision.grpc, "--llm", self.llm.grpc,
                          "--continue-timeout", f"{600 * SLOWDOWN}s"]
        else:
            arguments += ["--model", self.models[which]]
        self.services[which] = Service(f"llava-{which}", arguments + self.extra[which], self.folder, environment)
        return self.services[which].wait_listening()

    def restart(self, which, number=signal.SIGTERM):
        """Stops a service and starts it again on the same ports. Returns the exit code."""
        code = self.services[which].stop(number)
        self.start(which).wait_ready()
        return code

    vision = property(lambda self: self.services["vision"])
    llm = property(lambda self: self.services["llm"])
    gateway = property(lambda self: self.services["gateway"])

    def client(self, which, service, key=None):
        client = Client(self.services[which].grpc, service, key)
        self.clients.append(client)
        return client

    def chat(self, key=None):
        return self.client("gateway", "llava.v1.ChatService", key)

    def __enter__(self):
        try:
            for which in ("vision", "llm", "gateway"):
                self.start(which)
            for which in ("vision", "llm", "gateway"):
                self.services[which].wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for client in self.clients:
            client.close()
        for which in ("gateway", "llm", "vision"):
            if which in self.services and self.services[which].process.poll() is None:
                self.services[which].stop()
        if self.temporary:
            self.temporary.cleanup()


def eventually(call, seconds=120):
    """Repeats a call while a service that came back is not noticed yet."""
    deadline = time.monotonic() + seconds * SLOWDOWN
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if time.monotonic() > deadline or error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            time.sleep(0.1)


@contextmanager
def answer_held(llm, chat, new_session, **fields):
    """(session, stream) of an answer under way, which cannot end within the block: `llm`, the language service of the gateway
    of `chat`, stands still. Two events of it are read."""
    for _ in range(20):
        session = new_session()
        stream = chat.Chat(chat.new("ChatRequest", session_id=session, text="Describe the picture.", **fields), timeout=240 * SLOWDOWN)
        kind = next(stream).event.WhichOneof("event")
        assert kind == "turn_started", kind
        next(stream)
        with llm.standing_still():
            # All of it may have been sent while the gateway, for which it still runs, had no time to read it.
            sent = any(line.get("session_id") == session and line.get("msg") == "answered" for line in llm.log_lines())
            if not sent and chat.ListTurns(chat.new("ListTurnsRequest", session_id=session)).turns[0].state == RUNNING:
                yield session, stream
                return
        list(stream)  # over before the service stood still
    raise AssertionError("answers are too quick to be held")


class Answer:
    """Reads the stream of Chat to its end and checks what every stream must hold."""

    def __init__(self, stream):
        self.started = self.finished = None
        self.text = ""
        self.deltas = []
        for response in stream:
            event = response.event
            kind = event.WhichOneof("event")
            if kind == "turn_started":
                assert not self.deltas, "once more only if another version was chosen before the first text"
                self.started = event.turn_started
            elif kind == "text":
                assert self.started is not None and self.finished is None
                assert event.text.offset == len(self.text.encode()), "offsets must join"
                self.text += event.text.text
                self.deltas.append((time.monotonic(), event.text.text))
            elif kind == "turn_finished":
                assert self.finished is None
                self.finished = event.turn_finished
        assert self.finished is not None and self.finished.text_bytes == len(self.text.encode())


def words(text):
    """Lower-case words of an answer."""
    return re.findall(r"[a-z]+", text.lower())


def scenes():
    """Ground truth of the bundled pictures: see deploy/scenes/README.md."""
    return json.loads((SCENES / "scenes.json").read_text())
