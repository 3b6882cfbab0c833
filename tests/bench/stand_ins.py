"""A gateway between llava_stand_ins, for measurements: nothing behind it does work."""
import pathlib
import signal
import ssl
import subprocess
import sys
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))

from certificates import Certificates
from service import BIN, FREE_PORTS, Service, run


class StandIn:
    """One process of llava_stand_ins; `address` is where it listens."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen([BIN / "llava_stand_ins", *map(str, arguments)], stdout=subprocess.PIPE, text=True)
        self.address = self.process.stdout.readline().strip()
        assert self.address, arguments

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)


class Gateway(Service):
    """llava-gateway in front of two stand-ins. `keys`: it asks for an API key and knows so many; `certificates`: it
    speaks TLS. `client_flags` is what llava-bench needs to come in."""

    def __init__(self, folder, name, llm, vision, keys=0, certificates=None, more=()):
        folder = pathlib.Path(folder)
        arguments = [*FREE_PORTS, "--http-port", "0", "--data-dir", folder / f"data-{name}", "--vision", vision.address, "--llm", llm.address, *more]
        self.client_flags = []
        if keys:
            file = folder / f"keys-{name}.yaml"
            key = run("llava-gateway", "keys", "add", "client", "--keys-file", file).stdout.split()[-1]
            # The client's stands last: whoever looks through all finds it last.
            others = "".join(f"- {{name: other{n}, sha256: {n:064x}}}\n" for n in range(1, keys))
            file.write_text(others + file.read_text())
            secret = folder / f"key-{name}"
            secret.write_text(key + "\n")
            arguments += ["--keys-file", file]
            self.client_flags += ["--api-key-file", secret]
        if certificates:
            arguments += certificates.listener("server")
            self.client_flags += ["--tls-ca", certificates.pem("ca")]
        self.ssl = ssl.create_default_context(cafile=certificates.pem("ca")) if certificates else None
        super().__init__("llava-gateway", arguments, folder)
        self.wait_listening().wait_ready()

    def get(self, path):
        if not self.ssl:
            return super().get(path)
        try:
            with urllib.request.urlopen(f"https://{self.http}{path}", timeout=10, context=self.ssl) as answer:
                return answer.status, answer.read().decode()
        except OSError as error:  # an HTTPError is one
            return getattr(error, "code", 0), str(error)


__all__ = ["BIN", "Certificates", "Gateway", "StandIn"]
