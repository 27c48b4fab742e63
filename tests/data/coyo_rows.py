"""Provide COYO-shaped metadata, and a web server with the usual faults of url lists."""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def row(number: int, text: str | None, **changes: Any) -> dict[str, Any]:
    """Return a row with all of COYO-700M's columns that passes the default filters."""
    return {
        "id": 10**12 + number,
        "url": f"http://images.invalid/{number}.jpg",
        "text": text,
        "width": 640,
        "height": 480,
        "image_phash": f"{number * 2654435761 % 2**64:016x}",
        "text_length": len(text or ""),
        "word_count": len((text or "").split()),
        "num_tokens_bert": 9,
        "num_tokens_gpt": 9,
        "num_faces": 0,
        "clip_similarity_vitb32": 0.31,
        "clip_similarity_vitl14": 0.25,
        "nsfw_score_opennsfw2": 0.01,
        "nsfw_score_gantman": 0.01,
        "watermark_score": 0.1,
        "aesthetic_score_laion_v2": 5.2,
    } | changes


def write(folder: Path, *files: Sequence[dict[str, Any]]) -> Path:
    """Write one parquet file per list of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(files):
        pq.write_table(pa.Table.from_pylist(list(rows)), folder / f"part-{number:05}.parquet")
    return folder


def picture(seed: int, size: tuple[int, int] = (300, 280)) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (7, 8, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize(size).save(stream, "JPEG")
    return stream.getvalue()


class Web:
    """Paths: /ok/N.jpg, /missing/N, /broken/N, /slow/N, /small/N, /moved/N (to /ok/N.jpg), /optout/N, /gate/N.jpg."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.gate = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.path = self.path.removeprefix(web.address)  # proxies receive whole urls
                web.requests[self.path] += 1
                with suppress(OSError):  # The client may go away.
                    web.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = "http://pictures.invalid"  # a public name, which the server answers for as a proxy
        self.proxy = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        kind, _, number = request.path.strip("/").partition("/")
        seed = int(number.removesuffix(".jpg"))
        headers: dict[str, str] = {"X-Robots-Tag": "noai"} if kind == "optout" else {}
        code, body = 200, picture(seed, (90, 80) if kind == "small" else (300, 280))
        if kind == "missing":
            code, body = 404, b"gone"
        elif kind == "moved":
            code, body, headers = 302, b"", {"Location": f"/ok/{number}.jpg"}
        elif kind == "broken":
            body = b"\xff\xd8\xff\xe0 this is no picture"
        elif kind == "slow":
            time.sleep(4)
        elif kind == "gate":
            self.gate.wait(60)
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving() -> Iterator[Web]:
    web = Web()
    try:
        yield web
    finally:
        web.close()
