"""The canvas, the camera and the light of a street scene.

A street is laid out in meters (x to the right, y up, z ahead), seen through a pinhole camera and
painted from far to near, on an image of twice the size and, without smoothing, on the label map.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from hrnet_jax.data.sources.cityscapes import CLASSES

Color = tuple[float, float, float]
Point = tuple[float, float]

LABEL_IDS = dict(zip(CLASSES.names, CLASSES.label_ids, strict=True))
NEAR = 1.2  # meters; nothing closer is drawn
FAR = 160.0


@dataclass(frozen=True)
class Style:
    """Weather and light. Colors are RGB in 0..255; `sun` scales sunlit surfaces."""

    zenith: Color
    horizon: Color
    cloud: Color
    light: Color  # multiplies every surface
    sun: float
    shadow: float  # multiplies surfaces in the shade
    visibility: float  # meters after which 63 % of a color is haze
    lit_windows: float  # fraction


STYLES = {
    "clear": Style(
        (74, 128, 204), (190, 214, 236), (246, 248, 252), (1.14, 1.12, 1.06), 1.12, 0.72, 220, 0.0
    ),
    "overcast": Style(
        (150, 160, 172), (206, 211, 216), (226, 228, 232), (1.0, 1.01, 1.03), 1.0, 0.92, 150, 0.05
    ),
    "hazy": Style(
        (160, 178, 196), (226, 226, 220), (236, 236, 234), (1.06, 1.04, 1.0), 1.04, 0.86, 70, 0.0
    ),
    "evening": Style(
        (70, 88, 140), (250, 184, 128), (250, 204, 170), (0.88, 0.78, 0.74), 1.18, 0.72, 140, 0.35
    ),
    "dusk": Style(
        (38, 46, 82), (142, 122, 142), (120, 112, 140), (0.56, 0.58, 0.70), 1.0, 0.90, 110, 0.6
    ),
}


FACADES = (
    (196, 178, 146), (172, 108, 84), (206, 196, 180), (150, 148, 146), (190, 156, 112),
    (204, 168, 150), (134, 146, 158), (178, 132, 100), (222, 212, 190), (118, 98, 90),
)  # fmt: skip
PAINTS = (
    (178, 30, 34), (32, 62, 128), (226, 228, 230), (36, 38, 42), (146, 150, 156), (90, 96, 104),
    (24, 98, 84), (214, 170, 40), (112, 40, 48), (70, 122, 170), (196, 92, 36),
)  # fmt: skip
CLOTHES = (
    (190, 40, 48), (36, 60, 110), (52, 54, 60), (228, 226, 220), (60, 120, 84), (214, 160, 60),
    (122, 66, 128), (96, 130, 170), (150, 104, 72), (226, 120, 140),
)  # fmt: skip
SKINS = ((236, 196, 166), (204, 152, 116), (146, 98, 70), (98, 66, 50))


class Canvas:
    """An image at twice the size and a label map; coordinates are in pixels of the label map."""

    def __init__(self, height: int, width: int):
        self.height, self.width = height, width
        self.image = Image.new("RGB", (2 * width, 2 * height))
        self.label = Image.new("L", (width, height))
        self._paint = ImageDraw.Draw(self.image)
        self.mark = ImageDraw.Draw(self.label)

    def polygon(self, points: Sequence[Point], color: Color, name: str | None = None) -> None:
        """Fills a polygon; with a class name also in the label map."""
        self._paint.polygon([(2 * x - 0.5, 2 * y - 0.5) for x, y in points], fill=rgb(color))
        if name:
            self.mark.polygon([(x - 0.5, y - 0.5) for x, y in points], fill=LABEL_IDS[name])

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, color: Color, name: str | None = None
    ) -> None:
        box = (2 * (x - rx) - 0.5, 2 * (y - ry) - 0.5, 2 * (x + rx) - 0.5, 2 * (y + ry) - 0.5)
        self._paint.ellipse(box, fill=rgb(color))
        if name:
            box = (x - rx - 0.5, y - ry - 0.5, x + rx - 0.5, y + ry - 0.5)
            self.mark.ellipse(box, fill=LABEL_IDS[name])

    def ring(self, x: float, y: float, rx: float, ry: float, color: Color, width: float) -> None:
        """An ellipse's outline; image only."""
        box = (2 * (x - rx) - 0.5, 2 * (y - ry) - 0.5, 2 * (x + rx) - 0.5, 2 * (y + ry) - 0.5)
        self._paint.ellipse(box, outline=rgb(color), width=max(1, round(2 * width)))

    def line(
        self, points: Sequence[Point], width: float, color: Color, name: str | None = None
    ) -> None:
        doubled = [(2 * x - 0.5, 2 * y - 0.5) for x, y in points]
        self._paint.line(doubled, fill=rgb(color), width=max(1, round(2 * width)), joint="curve")
        if name:
            points = [(x - 0.5, y - 0.5) for x, y in points]
            self.mark.line(points, fill=LABEL_IDS[name], width=max(1, round(width)))


class Scene:
    """One street: camera, light and the random numbers it is made of."""

    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self.rng = rng
        self.style = STYLES[str(rng.choice(list(STYLES), p=[0.36, 0.22, 0.16, 0.16, 0.10]))]
        self.canvas = Canvas(height, width)
        self.focal = 0.5 * (width + 2 * height) / 2 * rng.uniform(1.25, 1.6)
        self.vanishing_x = width * rng.uniform(0.40, 0.60)
        self.horizon = height * rng.uniform(0.40, 0.50)
        self.road = rng.uniform(4.2, 6.6)  # half its width
        self.pavement = rng.uniform(2.4, 4.5)  # width of one
        self.camera_x = self.road * rng.uniform(0.25, 0.5)
        self.camera_y = rng.uniform(1.5, 2.0)
        self.sun_side = rng.choice([-1, 1])  # which side of the street it shines on
        # (layer, depth, paint): first layer 0, the roadside, then layer 1, the street, each from
        # far to near. So houses never hide what is in the street.
        self.parts: list[tuple[int, float, Callable[[], None]]] = []

    def at(self, x: float, y: float, z: float) -> Point:
        """A point in meters -> pixels."""
        z = max(z, NEAR)
        return (
            self.vanishing_x + self.focal * (x - self.camera_x) / z,
            self.horizon + self.focal * (self.camera_y - y) / z,
        )

    def scale(self, z: float) -> float:
        """Pixels per metre at depth z."""
        return self.focal / max(z, NEAR)

    def shade(self, color: Color, z: float, factor: float = 1.0) -> Color:
        """A surface's color in this light, fading into the haze with distance."""
        clear = math.exp(-max(z, 0) / self.style.visibility)
        return tuple(
            clear * c * light * factor + (1 - clear) * h
            for c, light, h in zip(color, self.style.light, self.style.horizon, strict=True)
        )

    def side_light(self, side: float) -> float:
        """The facades on the left (-1) face right and the other way round."""
        return self.style.sun if side != self.sun_side else self.style.shadow

    def pick(self, colors: Sequence[Color], spread: float = 14.0) -> Color:
        color = np.array(colors[self.rng.integers(len(colors))], float)
        return tuple(color + self.rng.normal(0, spread / 2) + self.rng.normal(0, spread / 4, 3))

    def add(self, depth: float, paint: Callable[[], None], layer: int = 1) -> None:
        self.parts.append((layer, depth, paint))


def rgb(color: Color) -> tuple[int, int, int]:
    return tuple(min(255, max(0, int(c + 0.5))) for c in color)
