"""Draws docs/show_batch.png, docs/report.png and docs/serve.png from what the tools show.

python docs/screenshots.py

Drawn streets, and the shipped weights camvid_w18_small_v1. Needs playwright and a Chromium browser.
"""

import io
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading

from PIL import Image
from playwright.sync_api import Page, sync_playwright

import hrnet_jax
from hrnet_jax.data.synthetic.write import write_cityscapes
from hrnet_jax.inference import web_demo

DOCS = pathlib.Path(__file__).resolve().parent
ROOT = DOCS.parent
WEIGHTS = "camvid_w18_small_v1"
WIDTH = 1000  # of the browser's window, in pixels


def tool(folder: pathlib.Path, name: str, *flags: str) -> None:
    """Runs a tool in `folder`, so that no path of this machine is in the pictures."""
    command = [sys.executable, "-m", f"hrnet_jax.tools.{name}", *flags]
    subprocess.run(command, check=True, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)})


def save(name: str, image: Image.Image, width: int) -> None:
    """Writes docs/NAME.png with a palette, which is a third of the size."""
    size = (width, round(image.height * width / image.width))
    small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    small.quantize(256, Image.Quantize.FASTOCTREE).save(DOCS / f"{name}.png", optimize=True)


def shoot(page: Page) -> Image.Image:
    return Image.open(io.BytesIO(page.screenshot(full_page=True)))


def main() -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if browser is None:
        raise SystemExit("docs/screenshots.py: error: no Chromium on the PATH")
    with (
        tempfile.TemporaryDirectory() as temporary,
        sync_playwright() as playwright,
        web_demo.listen(0) as server,
    ):
        folder = pathlib.Path(temporary)
        streets = folder / "streets"
        write_cityscapes(str(streets), {"train": 8, "val": 6}, size=(256, 512), progress=False)
        tool(
            folder, "show_batch", "--config=demo", "--config.data.root=streets",
            "--config.batch_size=2", "--output=batch.png",
        )  # fmt: skip
        save("show_batch", Image.open(folder / "batch.png"), 1000)
        shutil.copy(ROOT / "hrnet_jax" / "weights" / f"{WEIGHTS}.safetensors", folder)
        tool(
            folder, "evaluate", f"--checkpoint={WEIGHTS}.safetensors", "--data_name=cityscapes",
            "--data_root=streets", "--output=evaluation",
        )  # fmt: skip
        street = next(streets.glob("leftImg8bit/val/*/*.png"))
        server.predictor = hrnet_jax.load(WEIGHTS)
        server.predictor.predict(street)  # compiles, so that the page shows the usual time
        threading.Thread(target=server.serve_forever, daemon=True).start()

        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": WIDTH, "height": 1000}, color_scheme="light")
        page.goto((folder / "evaluation" / "report.html").as_uri())
        page.wait_for_selector("#stage[data-name]")
        save("report", shoot(page), 640)
        page.goto(server.url)
        page.set_input_files("#file", street)
        page.wait_for_selector("#result:not([hidden])")
        page.wait_for_function("document.getElementById('colors').complete")
        save("serve", shoot(page), 640)
        chromium.close()
        server.shutdown()


if __name__ == "__main__":
    main()
