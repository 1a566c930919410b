"""A local web page to drop a picture on; nothing but the standard library, and works offline.

(Gradio would be a hundred packages and a page that loads fonts from the network, for one form.)
"""

import base64
import errno
import importlib.resources
import io
import json
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from hrnet_jax.data.images.read import decode_image
from hrnet_jax.inference import visualize
from hrnet_jax.inference.predictor import Predictor, to_label_ids

# Only this computer can connect: there is no login.
HOST = "127.0.0.1"
MAX_BYTES = 100_000_000


class Server(ThreadingHTTPServer):
    """Answers for one predictor; `run` until Ctrl+C. See `listen`."""

    daemon_threads = True
    predictor: Predictor

    def __init__(self, port: int):
        super().__init__((HOST, port), _Handler)
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}"

    def run(self) -> None:
        try:
            self.serve_forever()
        except KeyboardInterrupt:
            print()


def listen(port: int) -> Server:
    """A server on this computer's `port` (0: a free one), without its predictor yet.

    Raises:
        ValueError: if the port is in use or not allowed.
    """
    try:
        return Server(port)
    except OSError as error:
        reasons = {errno.EADDRINUSE: "is in use", errno.EACCES: "needs more rights"}
        reason = reasons.get(error.errno, f"cannot be opened: {error}")
        raise ValueError(f"port {port} {reason}; choose another with --port=NUMBER") from error


def answer(predictor: Predictor, data: bytes) -> dict[str, Any]:
    """What the page shows of an image file's prediction, as plain JSON; pictures are data URLs.

    Raises:
        ValueError: if the bytes are no image.
    """
    image = decode_image(io.BytesIO(data), "the picture")
    start = time.perf_counter()
    labels = predictor.predict(image)
    seconds = time.perf_counter() - start
    classes = predictor.classes
    shares = np.bincount(labels.ravel(), minlength=classes.num_classes) / labels.size
    present = sorted(range(classes.num_classes), key=lambda k: -shares[k])
    colors = visualize.color_labels(labels, classes)
    return {
        "width": image.shape[1],
        "height": image.shape[0],
        "seconds": round(seconds, 2),
        "classes": [
            {"name": classes.names[k], "color": list(classes.colors[k]), "share": float(shares[k])}
            for k in present
            if shares[k] > 0
        ],
        "image": _data_url(image, "jpeg"),
        "colors": _data_url(colors, "png"),
        "label_ids": _data_url(to_label_ids(labels, classes), "png"),
    }


def _data_url(picture: np.ndarray, kind: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, quality=92)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.path != "/":
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"not found")
            return
        page = importlib.resources.files(__package__).joinpath("web_demo.html").read_bytes()
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", page)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.path != "/predict" or not 0 < length <= MAX_BYTES:
            self.close_connection = True  # the body stays unread
            message = f"need a picture of at most {MAX_BYTES // 10**6} MB"
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": message})
            return
        data = self.rfile.read(length)
        try:
            with self.server.lock:
                result = answer(self.server.predictor, data)
        except Exception as error:  # said to whoever dropped the picture; the server goes on
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
            return
        self._send_json(HTTPStatus.OK, result)

    def _send_json(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not worth a line each."""
