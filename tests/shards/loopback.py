"""An HTTP server on loopback that counts what is asked for, and can be made to misbehave."""

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

    def __init__(self, *arguments, asked: Counter, cut: set[str], trouble: dict, **options) -> None:
        self.asked, self.cut, self.trouble = asked, cut, trouble
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.asked[name] += 1
        if name in self.trouble and self.trouble[name](self) is not False:
            return None
        path = Path(self.translate_path(self.path))
        if name not in self.cut or not path.is_file():
            return super().do_GET()
        self.cut.discard(name)
        half = path.read_bytes()[: path.stat().st_size // 2]
        self.send_response(200)
        self.send_header("Content-Length", str(len(half)))
        self.end_headers()
        self.wfile.write(half)
        return None

    def log_message(self, *_: object) -> None:
        pass


class Server:
    """A folder behind http://127.0.0.1:PORT."""

    def __init__(self, folder: Path) -> None:
        self.asked: Counter = Counter()
        self.cut: set[str] = set()
        self.trouble: dict[str, Callable[[Served], bool | None]] = {}
        handler = partial(Served, asked=self.asked, cut=self.cut, trouble=self.trouble, directory=str(folder))
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
