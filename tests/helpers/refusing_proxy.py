"""A proxy before a real `mlflow server` that refuses some requests, as older, restricted or read-only servers do."""

from __future__ import annotations

import http.client
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_OWN = {"host", "transfer-encoding", "content-length"}  # headers that the forwarded request has of its own


class RefusingProxy:
    """Forwards to a port of this machine.

    Args:
        port: of the server.
        refused: pattern of "METHOD path" → HTTP status of the refusal.
        version: what ``/version`` says instead of the server's.
    """

    def __init__(self, port: int, refused: dict[str, int] | None = None, version: str | None = None):
        self.refused, self.version, self.seen = dict(refused or {}), version, []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self):
                body = self._body()
                proxy.seen.append(request := f"{self.command} {self.path}")
                status = next((code for pattern, code in proxy.refused.items() if re.search(pattern, request)), None)
                if status is not None:
                    return self._answer(status, b"refused", {"Content-Type": "text/plain"})
                if self.path == "/version" and proxy.version:
                    return self._answer(200, proxy.version.encode(), {"Content-Type": "text/plain"})
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _OWN}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                kept = {"Content-Type": answer.getheader("Content-Type") or "application/json"}
                self._answer(answer.status, answer.read(), kept)
                connection.close()

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _handle

            def _answer(self, status: int, body: bytes, headers: dict[str, str]):
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> RefusingProxy:
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()
