"""An S3 server at the loopback address: moto's, which can be told to fail as real ones do."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"


@dataclass
class Fault:
    """What becomes of the next `times` GET requests whose path matches.

    `kind` is a status, "cut" (half of the body, then the connection ends) or "slow".
    """

    path: str
    kind: int | str
    times: int = 10**9


@dataclass
class Store:
    """The server: its address, what it was asked for, and what it is to do wrong."""

    url: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    before: Callable[[str], None] | None = None

    def gets(self, ending: str = "") -> list[str]:
        """The paths of the objects that were read."""
        return [path for method, path, _ in self.asked if method == "GET" and path.endswith(ending)]

    def put(self, key: str, data: bytes, bucket: str = "clips") -> str:
        """Store an object; returns its URL."""
        self._client().put_object(Bucket=bucket, Key=key, Body=data)
        return f"s3://{bucket}/{key}"

    def _client(self) -> Any:
        import boto3

        return boto3.client("s3", endpoint_url=self.url, region_name="us-east-1")

    def make_bucket(self, name: str) -> None:
        self._client().create_bucket(Bucket=name)


class _Faulty:
    """WSGI: the application, but for what the store is told to do wrong."""

    def __init__(self, application: Any, store: Store) -> None:
        self.application, self.store = application, store

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.store.asked.append((method, path, environ.get("QUERY_STRING", "")))
        if method == "GET" and self.store.before is not None:
            self.store.before(path)
        fault = self._fault(path) if method == "GET" else None
        if fault is None:
            return self.application(environ, start)
        if fault.kind == "slow":
            time.sleep(2.5)
            return self.application(environ, start)
        if fault.kind == "cut":
            body = b"".join(self.application(environ, start))
            return _Cut(body[: len(body) // 2])
        text = f"<Error><Code>Trouble</Code><Message>{SECRET}</Message></Error>".encode()
        start(f"{fault.kind} Trouble", [("Content-Length", str(len(text)))])
        return [text]

    def _fault(self, path: str) -> Fault | None:
        for fault in self.store.faults:
            if fault.times > 0 and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None


class _Cut:
    """Part of a body, and then an error, on which the server ends the connection."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def __iter__(self) -> Any:
        yield self.body
        raise ConnectionAbortedError


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


def serve_store(store: Store) -> Callable[[], None]:
    """Start the store in a thread; returns what ends it."""
    application = _Faulty(DomainDispatcherApplication(create_backend_app), store)
    store.url, end = serve(application)
    return end


def serve(application: Any) -> tuple[str, Callable[[], None]]:
    """Start a WSGI application in a thread; returns its address, and what ends it."""
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def end() -> None:
        server.shutdown()
        thread.join()
        server.server_close()

    return f"http://127.0.0.1:{server.server_port}", end


class Hub:
    """A stand-in for the Hugging Face Hub with one data set: what its client asks for, no more."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.ranges: list[str] = []

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] == "POST":  # which of these paths exist
            asked = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return self._json(start, [e for e in self._tree("") if e["path"] in asked.decode()])
        if "/resolve/" in path:
            return self._content(start, path.split("/resolve/main/")[1], environ)
        if "/tree/" in path:
            return self._json(start, self._tree(path.split("/tree/main")[1].strip("/")))
        if path.startswith("/api/datasets/OWNER/NAME"):
            return self._json(start, {"id": "OWNER/NAME", "sha": "c" * 40, "siblings": []})
        start("404 Not Found", [("Content-Length", "0")])
        return [b""]

    def _tree(self, below: str) -> list[dict[str, Any]]:
        folders = {name.rpartition("/")[0] for name in self.files} - {""}
        entries: list[dict[str, Any]] = [
            {"type": "directory", "path": name, "oid": name} for name in sorted(folders)
        ]
        for name, data in self.files.items():
            entries.append({"type": "file", "path": name, "size": len(data), "oid": f"oid {name}"})
        return [entry for entry in entries if entry["path"].startswith(below)]

    def _content(
        self, start: Callable[..., Any], name: str, environ: dict[str, Any]
    ) -> Iterable[bytes]:
        self.ranges.append(environ.get("HTTP_RANGE", ""))
        first, last = map(int, self.ranges[-1].removeprefix("bytes=").split("-"))
        data = self.files[name][first : last + 1]
        start("206 Partial Content", [("Content-Length", str(len(data))), ("ETag", '"x"')])
        return [data]

    def _json(self, start: Callable[..., Any], content: Any) -> Iterable[bytes]:
        data = json.dumps(content).encode()
        heads = [("Content-Length", str(len(data))), ("Content-Type", "application/json")]
        start("200 OK", heads)
        return [data]
