"""The gateway's flags about pictures named by URL, for flags_test.py."""
import http.server
import threading
import time

import grpc
from stack import SCENES, SLOWDOWN, Answer


class PictureHost:
    """Serves the lion, at /slow as soon as so many have asked for it at a time and a moment has passed, in which more
    might; counts how many that were."""

    def __init__(self, crowd):
        host = self
        self.most = self.now = 0
        self.lock = threading.Lock()
        self.crowded = threading.Event()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                with host.lock:
                    host.now += 1
                    host.most = max(host.most, host.now)
                    if host.now >= crowd:
                        host.crowded.set()
                if self.path == "/slow":
                    host.crowded.wait()
                    time.sleep(0.3)
                with host.lock:
                    host.now -= 1
                body = (SCENES / "lion.png").read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                try:
                    self.wfile.write(body)
                except ConnectionError:
                    pass  # who asked has given up

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def name(self):
        return f"127.0.0.1:{self.server.server_port}"

    def picture(self, path="/"):
        return {"url": f"http://{self.name}{path}"}

    def close(self):
        self.crowded.set()
        self.server.shutdown()
        self.server.server_close()


class PictureUrlChecks:
    """For a FlagsCase with chat() and fails()."""

    def picture_host(self, crowd=1):
        host = PictureHost(crowd)
        self.addCleanup(host.close)
        return host

    def ask_url(self, client, session, picture):
        return Answer(client.Chat(client.new("ChatRequest", session_id=session, text="What is this?", images=[picture])))

    def check_picture_url_hosts(self):
        host = self.picture_host()
        client, session, _ = self.chat()
        self.fails(grpc.StatusCode.UNIMPLEMENTED, "--picture-url-hosts", client, session_id=session, text="What is this?",
                   images=[host.picture()])
        client, session, _ = self.chat("--picture-url-hosts", host.name, "--picture-url-private", "--data-dir",
                                       self.folder / "other")
        self.assertIn("lion", self.ask_url(client, session, host.picture()).text)

    def check_picture_url_private(self):
        host = self.picture_host()
        client, session, _ = self.chat("--picture-url-hosts", host.name)
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "no public address", client, session_id=session,
                   text="What is this?", images=[host.picture()])

    def check_picture_url_timeout(self):
        host = self.picture_host(crowd=1000)  # never
        client, session, _ = self.chat("--picture-url-hosts", host.name, "--picture-url-private",
                                       "--picture-url-timeout", "300ms")
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "within 300 ms", client, session_id=session, text="What is this?",
                   images=[host.picture("/slow")])

    def check_picture_url_transfers(self):
        for transfers in (1, 4):
            host = self.picture_host(crowd=transfers)
            client, session, _ = self.chat("--picture-url-hosts", host.name, "--picture-url-private",
                                           "--picture-url-timeout", f"{240 * SLOWDOWN}s", "--picture-url-transfers",
                                           str(transfers), "--data-dir", self.folder / f"data{transfers}")
            Answer(client.Chat(client.new("ChatRequest", session_id=session, text="What are these?",
                                          images=[host.picture("/slow")] * 4)))
            self.assertEqual(host.most, transfers)
