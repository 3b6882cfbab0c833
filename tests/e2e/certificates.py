"""Certificates for tests, made by the openssl program: <folder>/<name>.pem and .key."""
import pathlib
import subprocess


class Certificates:
    """An authority "ca" and, signed by it, "server" and "client" for 127.0.0.1."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder) / "certificates"
        self.folder.mkdir(exist_ok=True)
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        self.run("req", "-x509", *new_key, "-days", "2", "-subj", "/CN=ca", "-keyout", self.key("ca"), "-out", self.pem("ca"))
        names = self.folder / "names"
        names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
        for name in ("server", "client"):
            request = self.folder / f"{name}.csr"
            self.run("req", *new_key, "-subj", f"/CN={name}", "-keyout", self.key(name), "-out", request)
            self.run("x509", "-req", "-days", "2", "-in", request, "-CA", self.pem("ca"), "-CAkey", self.key("ca"),
                     "-CAcreateserial", "-extfile", names, "-out", self.pem(name))

    def pem(self, name):
        return self.folder / f"{name}.pem"

    def key(self, name):
        return self.folder / f"{name}.key"

    def listener(self, name, clients=None):
        """Flags of a service with that certificate, for clients signed by `clients`."""
        flags = ["--tls-cert", self.pem(name), "--tls-key", self.key(name)]
        return flags + (["--tls-client-ca", self.pem(clients)] if clients else [])

    @staticmethod
    def run(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
