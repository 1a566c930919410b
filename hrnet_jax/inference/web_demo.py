"""A local web page that predicts an image; it works offline, with the standard library alone.

Gradio would add about a hundred packages and load fonts from the network, for one form.
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

from hrnet_jax.data.images.decode import decode_image
from hrnet_jax.inference import visualize
from hrnet_jax.inference.predictor import Predictor

# Only this computer can connect, since there is no login.
HOST = "127.0.0.1"
MAX_BYTES = 100_000_000


class Server(ThreadingHTTPServer):
    """Serves one predictor; `run` serves until Ctrl+C. Created by `listen`."""

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
    """Opens a server on `port` of this computer (0: a free one); its predictor is set later.

    Raises:
        ValueError: if the port is in use or not allowed.
    """
    try:
        return Server(port)
    except OSError as error:
        reasons = {errno.EADDRINUSE: "is in use", errno.EACCES: "is not permitted"}
        reason = reasons.get(error.errno, f"cannot be opened: {error}")
        raise ValueError(f"port {port} {reason}; choose another with --port=NUMBER") from error


def answer(predictor: Predictor, data: bytes) -> dict[str, Any]:
    """Predicts an image file; returns what the page shows, as JSON values with images as data URLs.

    Raises:
        ValueError: if the bytes cannot be read as an image.
    """
    image = decode_image(data, "the image", image_range=predictor.classes.image_range)
    start = time.perf_counter()
    labels = predictor.predict(image)
    seconds = time.perf_counter() - start
    classes = predictor.classes
    fractions = np.bincount(labels.ravel(), minlength=classes.num_classes) / labels.size
    present = sorted(range(classes.num_classes), key=lambda k: -fractions[k])
    colors = visualize.color_labels(labels, classes)
    return {
        "width": image.shape[1],
        "height": image.shape[0],
        "seconds": round(seconds, 2),
        "classes": [
            {
                "name": classes.names[k],
                "color": list(classes.colors[k]),
                "fraction": float(fractions[k]),
            }
            for k in present
            if fractions[k] > 0
        ],
        "image": _data_url(image, "jpeg"),
        "colors": _data_url(colors, "png"),
        "label_ids": _data_url(visualize.to_label_ids(labels, classes), "png"),
    }


def _data_url(image: np.ndarray, kind: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, quality=92)
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
            message = f"need an image of at most {MAX_BYTES // 10**6} MB"
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": message})
            return
        data = self.rfile.read(length)
        try:
            with self.server.lock:
                result = answer(self.server.predictor, data)
        except Exception as error:  # shown on the page; the server continues
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
        """Requests are not logged."""
