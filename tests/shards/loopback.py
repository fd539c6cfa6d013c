"""An HTTP server on loopback that counts what is asked for, answers ranges, and can be made to misbehave."""

import re
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Served(SimpleHTTPRequestHandler):
    """Serves a folder and counts what is asked for; `cut` names get half of their bytes, once each.

    trouble: name → what answers instead; it gives False to have the file served after all.
    """

    def __init__(self, *arguments, server: "Server", **options) -> None:
        self.counts, self.asked, self.cut, self.trouble = server, server.asked, server.cut, server.trouble
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.asked[name] += 1
        if name in self.trouble and self.trouble[name](self) is not False:
            return None
        path = Path(self.translate_path(self.path))
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        ranged = wanted is not None and self.counts.ranges
        if not path.is_file() or not (name in self.cut or ranged):
            return super().do_GET()
        content, status = path.read_bytes(), 200
        if ranged:
            content, status = content[int(wanted[1]) : int(wanted[2]) + 1], 206
        if name in self.cut:
            self.cut.discard(name)
            content = content[: len(content) // 2]
        self.counts.sent[name] += len(content)
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return None

    def log_message(self, *_: object) -> None:
        pass


def stalling(over: threading.Event, begun: threading.Event | None = None) -> Callable[[Served], None]:
    """An answer of one byte, of a million that never come. begun: set when it was sent. over: ends it."""

    def answer(request: Served) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000000")
        request.end_headers()
        request.wfile.write(b"x")
        request.wfile.flush()
        if begun:
            begun.set()
        over.wait(120)

    return answer


class Server:
    """A folder behind http://127.0.0.1:PORT.

    asked: requests of each file. sent: bytes of each in answers to requests for a range. ranges: whether it knows these.
    """

    def __init__(self, folder: Path) -> None:
        self.asked: Counter = Counter()
        self.sent: Counter = Counter()
        self.ranges = True
        self.cut: set[str] = set()
        self.trouble: dict[str, Callable[[Served], bool | None]] = {}
        handler = partial(Served, server=self, directory=str(folder))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def tars(self) -> dict[str, int]:
        return {name: count for name, count in self.asked.items() if name.endswith(".tar")}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
