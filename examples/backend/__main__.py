"""The backend over HTTP: python -m examples.backend --server HOST:PORT [--listen HOST:PORT]."""

from __future__ import annotations

import argparse
import json
import re
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from coldframe import Client, ColdframeError, DeadlineExceeded, InvalidArgument, NotFound, Overloaded, Unavailable
from examples.backend.backend import Backend

if TYPE_CHECKING:
    from collections.abc import Callable

STATUSES: dict[type[ColdframeError], HTTPStatus] = {
    InvalidArgument: HTTPStatus.BAD_REQUEST,
    NotFound: HTTPStatus.NOT_FOUND,
    Overloaded: HTTPStatus.TOO_MANY_REQUESTS,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
}


def routes(backend: Backend) -> dict[str, Callable[..., Any]]:
    """Method and path, and what answers: each group of the path is an argument, the body's JSON the last one."""
    return {
        r"GET /readers/([^/]+)": lambda reader, _: backend.front_page(reader),
        r"POST /readers/([^/]+)/interests": lambda reader, body: backend.interested(reader, _text(body["words"])),
        r"POST /readers/([^/]+)/read": lambda reader, body: backend.read(reader, _text(body["id"])),
        r"POST /readers/([^/]+)/disliked": lambda reader, body: backend.disliked(reader, _text(body["id"])),
        r"POST /articles": backend.publish,
        r"GET /articles/([^/]+)/related": lambda article_id, _: backend.related(article_id),
        r"DELETE /articles/([^/]+)": lambda article_id, _: backend.take_down([article_id]),
    }


def _text(value: object) -> str:
    """What is kept of a reader must be fit to be sent: one number among it, and no call for the reader would be."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def serving(backend: Backend, host: str, port: int) -> ThreadingHTTPServer:
    """A server that is ready to `serve_forever`; port 0 takes a free one."""
    known = routes(backend)

    class Handler(BaseHTTPRequestHandler):
        """Finds the route, and writes what it returns or raises as JSON."""

        def _answer(self) -> None:
            for route, answer in known.items():
                match = re.fullmatch(route, f"{self.command} {self.path}")
                if match is not None:
                    self._write(*self._asked(answer, [unquote(part) for part in match.groups()]))
                    return
            self._write(HTTPStatus.NOT_FOUND, {"error": f"no route is {self.command} {self.path}"})

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815

        def _asked(self, answer: Callable[..., Any], parts: list[str]) -> tuple[HTTPStatus, Any]:
            try:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}")
                return HTTPStatus.OK, answer(*parts, body)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                return HTTPStatus.BAD_REQUEST, {"error": f"the body is not what this route takes: {error}"}
            except ColdframeError as error:
                status = next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), None)
                return status or HTTPStatus.BAD_GATEWAY, {"error": error.message}

        def _write(self, status: HTTPStatus, content: Any) -> None:
            raw = json.dumps(content, ensure_ascii=False).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            """Keep standard error for errors."""

    return ThreadingHTTPServer((host, port), Handler)


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m examples.backend", description=__doc__)
    parser.add_argument("--server", default="localhost:50051", help="where Coldframe listens")
    parser.add_argument("--listen", default="127.0.0.1:8080", help="where this backend shall listen")
    args = parser.parse_args()
    host, _, port = args.listen.rpartition(":")
    with Client(args.server, timeout=5) as client, serving(Backend(client), host, int(port)) as server:
        print(f"listening on http://{host}:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
