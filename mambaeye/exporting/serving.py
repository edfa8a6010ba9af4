"""A server of an export's folder, for this machine alone."""

from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mambaeye.errors import InputError

HOST = "127.0.0.1"  # nobody else's
PORT = 8000
TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
}


class Handler(SimpleHTTPRequestHandler):
    """Gives the files of one folder to pages of this machine, and says nothing of each."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | TYPES

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")  # the folder may be exported again
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Leave requests out of the console."""


def server_of(folder: Path, port: int) -> ThreadingHTTPServer:
    """Return a server of a folder, which listens and does not serve yet; port 0 takes a free one.

    Raises:
        InputError: the port cannot be had.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port is {port}: give a number from 0 to 65535")
    try:
        return ThreadingHTTPServer((HOST, port), partial(Handler, directory=str(folder)))
    except OSError as error:
        raise InputError(
            f"port {port} cannot be had ({error.strerror}): give another with --port, or 0 for any that is free"
        ) from None


def serve(folder: Path, port: int) -> None:
    """Serve a folder until Ctrl-C."""
    with suppress(KeyboardInterrupt), server_of(folder, port) as server:
        print(f"http://{HOST}:{server.server_port}/ shows it, on this machine alone; Ctrl-C ends it", flush=True)
        server.serve_forever()
