"""The local page, by HTTP and in a browser."""

import base64
import io
import json
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from headless import new_page
from networks import CLASSES, Pointwise
from PIL import Image

from hrnet_jax.inference import web_demo
from hrnet_jax.inference.predictor import Predictor


@pytest.fixture(scope="module")
def server():
    with web_demo.listen(0) as server:
        server.predictor = Predictor(Pointwise(), {"gain": np.float32(1)}, CLASSES)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "street.png"
    pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def post(server, data, path="/predict"):
    request = urllib.request.Request(server.url + path, data=data)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_answers_with_labels_and_fractions(server, picture):
    status, answer = post(server, picture.read_bytes())
    assert status == 200
    assert (answer["width"], answer["height"]) == (40, 32)
    data = base64.b64decode(answer["label_ids"].partition(",")[2])
    expected = server.predictor.predict(picture)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(image), np.array(CLASSES.label_ids)[expected])
    fractions = {c["name"]: c["fraction"] for c in answer["classes"]}
    assert fractions["b"] == pytest.approx((expected == 1).mean())
    assert list(fractions.values()) == sorted(fractions.values(), reverse=True)


def test_says_what_it_cannot_do_and_goes_on(server, picture):
    status, answer = post(server, b"no image")
    assert status == 400
    assert "the image is no PNG, JPEG" in answer["error"]
    assert post(server, b"")[0] == 400
    assert post(server, b"x", "/other")[0] == 400
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(server.url + "/other")
    assert post(server, picture.read_bytes())[0] == 200


def test_a_port_in_use_is_said(server):
    port = server.server_address[1]
    with pytest.raises(ValueError, match=f"port {port} is in use; choose another with --port"):
        web_demo.listen(port)


def test_a_visitor_drops_a_picture(server, picture, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with new_page(viewport={"width": 900, "height": 800}) as (page, messages):
        page.goto(server.url)
        page.set_input_files("#file", picture)
        page.wait_for_selector("#result:not([hidden])")
        assert "street.png: 40 x 32" in page.inner_text("#message")
        assert page.locator("#classes i").count() == 3
        assert page.evaluate("document.getElementById('colors').naturalWidth") == 40
        page.locator("#slider").fill("20")
        assert page.evaluate("stage.style.getPropertyValue('--cut')") == "20%"
        with page.expect_download() as download:
            page.click("#save-ids")
        assert download.value.suggested_filename == "labelIds.png"
        assert messages == []
        page.set_input_files("#file", tmp_path / "notes.txt")
        page.wait_for_selector("#message.bad")
        assert "the image is no PNG, JPEG" in page.inner_text("#message")
