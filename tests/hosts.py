"""A web server of this machine that knows ranges of bytes, and fails as it is told to."""

import http.server
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path


class Host:
    """A web server with what was asked of it, and with faults.

    A fault gets the handler of a request and its place among all requests; it returns True if that was the answer.
    """

    def __init__(self, folder: Path, ranges: bool) -> None:
        self.folder, self.ranges = folder, ranges
        self.fault: Callable[[Handler, int], bool] = lambda handler, place: False
        self.requests: list[tuple[str, str | None]] = []
        """Paths and ranges that were asked for."""
        self.sent = 0
        """Bytes of bodies."""
        self.connections = self.most_connections = 0
        self.url = ""
        self.lock = threading.Lock()
        self.over = threading.Event()
        """Set when the test has ended; what stalls waits for it."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: object, host: Host) -> None:
        self.host = host
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with self.host.lock:
            self.host.connections += 1
            self.host.most_connections = max(self.host.most_connections, self.host.connections)
        try:
            super().handle()
        except OSError:  # the other side has gone
            pass
        finally:
            with self.host.lock:
                self.host.connections -= 1

    def do_GET(self) -> None:
        asked = self.headers.get("Range") if self.host.ranges else None
        with self.host.lock:
            place = len(self.host.requests)
            self.host.requests.append((self.path, self.headers.get("Range")))
        if not self.host.fault(self, place):
            self.body(asked)

    def status(self, number: int, **headers: str) -> bool:
        """Answer without a body."""
        self.send_response(number)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        return True

    def body(self, asked: str | None, part: Callable[[bytes], Iterator[bytes]] = lambda data: iter([data])) -> bool:
        """Send the file or a range of it, piece by piece."""
        path = self.host.folder / self.path.lstrip("/")
        if not path.is_file():
            return self.status(404)
        data = path.read_bytes()
        length = len(data)
        if asked:
            start, stop = re.fullmatch(r"bytes=(\d+)-(\d*)", asked).groups()
            first, last = int(start), int(stop or length - 1)
            data = data[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{length}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for piece in part(data):
            self.wfile.write(piece)
            self.host.sent += len(piece)
        return True

    def stall(self, after: int) -> bool:
        """Send so many bytes, and then nothing, for as long as the test takes."""

        def pieces(data: bytes) -> Iterator[bytes]:
            yield data[:after]
            self.host.over.wait()

        self.close_connection = True
        return self.body(self.headers.get("Range") if self.host.ranges else None, pieces)

    def drip(self, size: int, seconds: float) -> bool:
        """Send so many bytes at a time, with pauses."""

        def pieces(data: bytes) -> Iterator[bytes]:
            for start in range(0, len(data), size):
                yield data[start : start + size]
                if self.host.over.wait(seconds):
                    return

        self.close_connection = True
        return self.body(self.headers.get("Range") if self.host.ranges else None, pieces)

    def break_off(self, after: int) -> bool:
        """Send so many bytes and close the connection."""
        self.close_connection = True
        return self.body(self.headers.get("Range") if self.host.ranges else None, lambda data: iter([data[:after]]))


@contextmanager
def serving(folder: Path, ranges: bool = True) -> Iterator[Host]:
    """Serve a folder."""
    host = Host(folder, ranges)

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *_: object) -> None:
            pass

    with Server(("127.0.0.1", 0), partial(Handler, host=host)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # ends within 10 ms
        host.url = f"http://127.0.0.1:{server.server_port}"
        yield host
        host.over.set()
        server.shutdown()
