"""Draws street scenes with exact labels and writes them in the Cityscapes folder layout.

    python -m hrnet_jax.data.synthetic --output=DIR --train=200 --val=40 --height=256 --width=512

A street is laid out in metres (x to the right, y up, z ahead), seen through a pinhole camera and
painted from far to near, on a picture of twice the size and, without smoothing, on the label map.
Enough for a network to learn from and for a person to recognise; no substitute for real streets.
Each scene is a function of (seed, split, number) alone.
"""

import itertools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from hrnet_jax.data.sources.cityscapes import CLASSES
from hrnet_jax.runtime import storage

Color = tuple[float, float, float]
Point = tuple[float, float]

_ID = dict(zip(CLASSES.names, CLASSES.label_ids, strict=True))
_EGO_VEHICLE = 1
_SPLITS = ("train", "val", "test")
_NEAR = 1.2  # metres; nothing closer is drawn
_FAR = 160.0
_MIN_SIDE = 32

# How strongly the surfaces are mottled, in grey levels.
_ROUGHNESS = {
    "road": 6.0,
    "sidewalk": 6.0,
    "building": 5.0,
    "wall": 8.0,
    "fence": 4.0,
    "vegetation": 18.0,
    "terrain": 15.0,
    "sky": 1.5,
}


@dataclass(frozen=True)
class Style:
    """Weather and light. Colours are RGB in 0..255; `sun` scales the sunlit side of things."""

    zenith: Color
    horizon: Color
    cloud: Color
    light: Color  # multiplies every surface
    sun: float
    shadow: float  # multiplies what lies in the shade
    visibility: float  # metres after which 63 % of a colour is haze
    lit_windows: float  # share


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
_FACADES = (
    (196, 178, 146), (172, 108, 84), (206, 196, 180), (150, 148, 146), (190, 156, 112),
    (204, 168, 150), (134, 146, 158), (178, 132, 100), (222, 212, 190), (118, 98, 90),
)  # fmt: skip
_PAINTS = (
    (178, 30, 34), (32, 62, 128), (226, 228, 230), (36, 38, 42), (146, 150, 156), (90, 96, 104),
    (24, 98, 84), (214, 170, 40), (112, 40, 48), (70, 122, 170), (196, 92, 36),
)  # fmt: skip
_CLOTHES = (
    (190, 40, 48), (36, 60, 110), (52, 54, 60), (228, 226, 220), (60, 120, 84), (214, 160, 60),
    (122, 66, 128), (96, 130, 170), (150, 104, 72), (226, 120, 140),
)  # fmt: skip
_SKINS = ((236, 196, 166), (204, 152, 116), (146, 98, 70), (98, 66, 50))


class _Canvas:
    """Image at twice the size, label map at the true size; coordinates are in true pixels."""

    def __init__(self, height: int, width: int):
        self.height, self.width = height, width
        self.image = Image.new("RGB", (2 * width, 2 * height))
        self.label = Image.new("L", (width, height))
        self._paint = ImageDraw.Draw(self.image)
        self._mark = ImageDraw.Draw(self.label)

    def polygon(self, points: Sequence[Point], color: Color, name: str | None = None) -> None:
        """Fills a polygon; with a class name also in the label map."""
        self._paint.polygon([(2 * x - 0.5, 2 * y - 0.5) for x, y in points], fill=_rgb(color))
        if name:
            self._mark.polygon([(x - 0.5, y - 0.5) for x, y in points], fill=_ID[name])

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, color: Color, name: str | None = None
    ) -> None:
        box = (2 * (x - rx) - 0.5, 2 * (y - ry) - 0.5, 2 * (x + rx) - 0.5, 2 * (y + ry) - 0.5)
        self._paint.ellipse(box, fill=_rgb(color))
        if name:
            box = (x - rx - 0.5, y - ry - 0.5, x + rx - 0.5, y + ry - 0.5)
            self._mark.ellipse(box, fill=_ID[name])

    def ring(self, x: float, y: float, rx: float, ry: float, color: Color, width: float) -> None:
        """An ellipse's outline; image only."""
        box = (2 * (x - rx) - 0.5, 2 * (y - ry) - 0.5, 2 * (x + rx) - 0.5, 2 * (y + ry) - 0.5)
        self._paint.ellipse(box, outline=_rgb(color), width=max(1, round(2 * width)))

    def line(
        self, points: Sequence[Point], width: float, color: Color, name: str | None = None
    ) -> None:
        doubled = [(2 * x - 0.5, 2 * y - 0.5) for x, y in points]
        self._paint.line(doubled, fill=_rgb(color), width=max(1, round(2 * width)), joint="curve")
        if name:
            points = [(x - 0.5, y - 0.5) for x, y in points]
            self._mark.line(points, fill=_ID[name], width=max(1, round(width)))


class _Scene:
    """One street: camera, light and the random numbers it is made of."""

    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self.rng = rng
        self.style = STYLES[str(rng.choice(list(STYLES), p=[0.36, 0.22, 0.16, 0.16, 0.10]))]
        self.canvas = _Canvas(height, width)
        self.focal = 0.5 * (width + 2 * height) / 2 * rng.uniform(1.25, 1.6)
        self.vanishing_x = width * rng.uniform(0.40, 0.60)
        self.horizon = height * rng.uniform(0.40, 0.50)
        self.road = rng.uniform(4.2, 6.6)  # half its width
        self.pavement = rng.uniform(2.4, 4.5)  # width of one
        self.camera_x = self.road * rng.uniform(0.25, 0.5)
        self.camera_y = rng.uniform(1.5, 2.0)
        self.sun_side = rng.choice([-1, 1])  # which side of the street it shines on
        # (layer, depth, paint). Nothing in the street is hidden by the houses along it, however
        # near they begin: first layer 0, the roadside, then layer 1, each from far to near.
        self.parts: list[tuple[int, float, Callable[[], None]]] = []

    def at(self, x: float, y: float, z: float) -> Point:
        """A point in metres -> pixels."""
        z = max(z, _NEAR)
        return (
            self.vanishing_x + self.focal * (x - self.camera_x) / z,
            self.horizon + self.focal * (self.camera_y - y) / z,
        )

    def scale(self, z: float) -> float:
        """Pixels per metre at depth z."""
        return self.focal / max(z, _NEAR)

    def shade(self, color: Color, z: float, factor: float = 1.0) -> Color:
        """A surface's colour in this light, fading into the haze with distance."""
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


def draw_scene(
    seed: int, split: str, number: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """One street.

    Args:
        seed: of the set.
        split: "train", "val" or "test"; their scenes differ.
        number: of the scene in its split.
        height: of the picture, at least 32 (_MIN_SIDE).
        width: of the picture, likewise.

    Returns:
        uint8 RGB [height, width, 3] and Cityscapes label ids uint8 [height, width].

    Raises:
        ValueError: for an unknown split or a size too small to show anything.
    """
    if split not in _SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {_SPLITS}")
    if min(height, width) < _MIN_SIDE:
        raise ValueError(f"size {height}x{width}: need at least {_MIN_SIDE} pixels each way")
    rng = np.random.default_rng([seed, _SPLITS.index(split), number])
    scene = _Scene(rng, height, width)
    _paint_sky(scene)
    _paint_ground(scene)
    _plan_street_end(scene)
    for side in (-1, 1):
        _plan_roadside(scene, side)
        _plan_pavement(scene, side)
    _plan_traffic(scene)
    for _, _, paint in sorted(scene.parts, key=lambda part: (part[0], -part[1])):
        paint()
    if rng.uniform() < 0.3:
        _paint_hood(scene)
    return _finish(scene)


def _paint_sky(scene: _Scene) -> None:
    canvas, style, rng = scene.canvas, scene.style, scene.rng
    height, width = 2 * canvas.height, 2 * canvas.width
    horizon = max(2, int(2 * scene.horizon) + 2)
    t = np.clip(np.arange(height) / horizon, 0, 1)[:, None] ** 1.3
    column = (1 - t) * np.array(style.zenith) + t * np.array(style.horizon)
    sky = np.repeat(column[:, None], 8, 1).astype(np.uint8)
    canvas.image.paste(Image.fromarray(sky).resize((width, height), Image.Resampling.NEAREST))
    # Clouds: blurred ellipses on an eighth of the size.
    small = Image.new("L", (max(8, width // 8), max(8, height // 8)))
    draw = ImageDraw.Draw(small)
    for _ in range(rng.integers(3, 9)):
        x, y = rng.uniform(0, small.width), rng.uniform(0, 0.36) * small.height
        for _ in range(rng.integers(4, 9)):
            r = rng.uniform(0.02, 0.07) * small.width
            cx, cy = x + rng.normal(0, 1.5 * r), y + rng.normal(0, 0.35 * r)
            alpha = int(rng.uniform(70, 170))
            draw.ellipse((cx - 1.6 * r, cy - 0.5 * r, cx + 1.6 * r, cy + 0.5 * r), fill=alpha)
    mask = small.filter(ImageFilter.GaussianBlur(small.width / 70)).resize((width, height))
    canvas.image.paste(Image.new("RGB", (width, height), _rgb(style.cloud)), mask=mask)
    box = [(0, 0), (canvas.width, 0), (canvas.width, canvas.height), (0, canvas.height)]
    canvas._mark.polygon(box, fill=_ID["sky"])


def _paint_ground(scene: _Scene) -> None:
    canvas, rng, road = scene.canvas, scene.rng, scene.road
    asphalt = scene.pick([(92, 92, 96), (110, 108, 106), (80, 82, 88)], 8)
    paving = scene.pick([(168, 162, 154), (150, 148, 148), (178, 166, 150)], 10)
    grass = scene.pick([(104, 128, 62), (126, 134, 76), (92, 112, 60)], 10)
    outer = road + scene.pavement
    verge = {side: rng.uniform() < 0.35 for side in (-1, 1)}  # a strip of grass by the kerb

    def strip(left, right, near, far, color, name, y=0.0):
        corners = ((left, near), (left, far), (right, far), (right, near))
        canvas.polygon([scene.at(x, y, z) for x, z in corners], color, name)

    # In slices, so that the ground fades into the haze.
    edges = [_FAR * 3, 110, 75, 50, 34, 23, 15, 10, 6.5, 4, _NEAR]
    for far, near in itertools.pairwise(edges):
        z = (far + near) / 2
        strip(-300, 300, near, far, scene.shade(grass, z), "terrain")
        for side in (-1, 1):
            light = 1.0 if scene.sun_side != side else scene.style.shadow
            color = scene.shade(paving, z, light)
            strip(side * road, side * outer, near, far, color, "sidewalk")
            if verge[side]:
                color = scene.shade(grass, z, light)
                strip(side * (road + 0.3), side * (road + 1.3), near, far, color, "terrain")
        strip(-road, road, near, far, scene.shade(asphalt, z), "road")
    # The buildings on the sun's side throw their shade onto the road.
    reach = rng.uniform(0.2, 0.9) * road
    side = scene.sun_side
    for far, near in itertools.pairwise(edges):
        color = scene.shade(asphalt, (far + near) / 2, scene.style.shadow)
        strip(side * road, side * (road - reach), near, far, color, None)
    # Joints of the paving, kerbs, and the lines on the road.
    z = 3.0
    while z < 45:
        for side in (-1, 1):
            color = scene.shade(paving, z, 0.8)
            inner = road + (1.3 if verge[side] else 0)
            strip(side * inner, side * outer, z, z + 0.06 + z / 300, color, None)
        z += 1.6 + z / 20
    for side in (-1, 1):
        strip(side * road, side * (road + 0.18), _NEAR, _FAR, scene.shade(paving, 12, 1.16), None)
        strip(side * (road - 0.3), side * road, _NEAR, _FAR, scene.shade(asphalt, 12, 0.86), None)
        if rng.uniform() < 0.5:
            inner = road - 2.2
            paint = scene.shade((214, 214, 208), 10)
            strip(side * inner, side * (inner - 0.12), _NEAR, 90, paint, None)
    dash, gap = rng.choice([3.0, 4.0]), rng.choice([3.0, 5.0])
    z = rng.uniform(0, dash + gap) - dash
    while z < 110:
        strip(-0.08, 0.08, z, z + dash, scene.shade((224, 224, 216), z), None)
        z += dash + gap
    if rng.uniform() < 0.35:  # a zebra crossing
        z = rng.uniform(9, 24)
        for x in np.arange(-road + 0.5, road - 0.5, 1.0):
            strip(x, x + 0.5, z, z + 3, scene.shade((226, 226, 220), z), None)


def _plan_street_end(scene: _Scene) -> None:
    """What closes the view: trees and houses far away."""
    rng = scene.rng
    green = scene.pick([(74, 100, 58), (92, 108, 64)], 10)
    x = -90.0
    while x < 90:
        w = rng.uniform(7, 16)
        if rng.uniform() < 0.45:
            color = scene.pick(_FACADES)
            _plan_front(scene, x, x + w, _FAR - 4, rng.uniform(7, 17), color)
        else:
            h = rng.uniform(4, 9)
            paint = lambda x=x, w=w, h=h: _paint_bush(  # noqa: E731
                scene, x + w / 2, _FAR, w, h, green
            )
            scene.add(_FAR - 2, paint, layer=0)
        x += w * 0.8


def _plan_front(
    scene: _Scene, left: float, right: float, z: float, top: float, color: Color
) -> None:
    """A house wall that faces the camera."""

    def paint():
        corners = ((left, 0), (left, top), (right, top), (right, 0))
        points = [scene.at(x, y, z) for x, y in corners]
        scene.canvas.polygon(points, scene.shade(color, z, 0.9), "building")

    scene.add(z, paint, layer=0)


def _plan_roadside(scene: _Scene, side: int) -> None:
    """Houses along one side, with gardens, walls and fences between them."""
    rng = scene.rng
    line = side * (scene.road + scene.pavement)
    z = rng.uniform(-12, 2)
    while z < _FAR - 10:
        if rng.uniform() < 0.72:
            depth = rng.uniform(8, 20)
            _plan_house(scene, side, line, z, z + depth)
        else:
            depth = rng.uniform(6, 16)
            _plan_garden(scene, side, line, z, z + depth)
        z += depth


def _plan_house(scene: _Scene, side: int, line: float, near: float, far: float) -> None:
    rng = scene.rng
    color = scene.pick(_FACADES)
    floors = int(rng.integers(2, 6))
    floor = rng.uniform(2.9, 3.5)
    top = floors * floor + 0.8
    light = scene.side_light(side)
    glass = (62, 74, 90) if scene.style.lit_windows < 0.3 else (44, 50, 66)
    frame = tuple(min(255, c * 1.18 + 8) for c in color)
    columns = max(2, round((far - near) / rng.uniform(2.2, 3.2)))
    shop = rng.uniform() < 0.45
    awning = scene.pick(_CLOTHES)
    gable = scene.pick([(120, 70, 56), (86, 84, 88), (98, 76, 66)], 10)
    lit = rng.uniform(size=(floors, columns)) < scene.style.lit_windows
    tone = rng.uniform(0.75, 1.35, size=(floors, columns))
    balcony = rng.uniform(size=(floors, columns)) < rng.choice([0, 0, 0.3])
    door = int(rng.integers(columns))

    def quad(z0, z1, y0, y1, c, name=None, x=line):
        corners = ((y0, z0), (y1, z0), (y1, z1), (y0, z1))
        scene.canvas.polygon([scene.at(x, y, z) for y, z in corners], c, name)

    def paint():
        # The wall that faces the camera first; the next house hides it unless there is a gap.
        if near > _NEAR:
            corners = ((line, 0), (line, top), (line + side * 14, top), (line + side * 14, 0))
            points = [scene.at(x, y, near) for x, y in corners]
            scene.canvas.polygon(points, scene.shade(color, near, 0.82), "building")
        if far < _NEAR:
            return
        # In strips, so that the haze grows along the wall.
        cuts = np.linspace(near, far, 4)
        for z0, z1 in itertools.pairwise(cuts):
            quad(z0, z1, 0, top, scene.shade(color, (z0 + z1) / 2, light), "building")
        quad(near, far, 0, 0.6, scene.shade(color, far, light * 0.78))
        quad(near, far, top - 0.5, top, scene.shade(gable, (near + far) / 2, light))
        for f in range(1, floors):
            y = f * floor
            quad(near, far, y, y + 0.12, scene.shade(frame, (near + far) / 2, light))
        width = (far - near) / columns
        for k in range(columns):
            z0 = near + k * width
            if z0 + width < _NEAR or z0 > 95:
                continue
            for f in range(floors):
                pane = (248, 214, 140) if lit[f, k] else tuple(c * tone[f, k] for c in glass)
                shine = 1.0 if lit[f, k] else light
                y = f * floor
                if f == 0 and shop:
                    quad(z0 + 0.1 * width, z0 + 0.9 * width, 0.5, 2.5, scene.shade(pane, z0, shine))
                    quad(z0, z0 + width, 2.5, 3.0, scene.shade(awning, z0, light))
                    continue
                a, b = z0 + 0.24 * width, z0 + 0.76 * width
                low, high = (0.0, 2.3) if f == 0 and k == door else (y + 0.9, y + 2.4)
                if z0 < 50:
                    c = scene.shade(frame, z0, light * 1.05)
                    quad(a - 0.14, b + 0.14, low - 0.12, high + 0.12, c)
                if f == 0 and k == door:
                    pane, shine = (94, 62, 46), light
                quad(a, b, low, high, scene.shade(pane, z0, shine))
                if z0 < 30:
                    c = scene.shade(frame, z0, light)
                    m = (a + b) / 2
                    quad(m - 0.04, m + 0.04, low, high, c)
                if balcony[f, k] and f:
                    c = scene.shade((70, 70, 76), z0, light)
                    quad(a - 0.3, b + 0.3, y + 0.2, y + 1.0, c)

    scene.add(max(near, _NEAR), paint, layer=0)


def _plan_garden(scene: _Scene, side: int, line: float, near: float, far: float) -> None:
    rng = scene.rng
    name = "fence" if rng.uniform() < 0.55 else "wall"
    high = rng.uniform(1.0, 1.8)
    light = scene.side_light(side)
    if name == "wall":
        color = scene.pick([(176, 150, 126), (158, 108, 86), (170, 168, 162)], 10)
    else:
        color = scene.pick([(128, 98, 66), (84, 88, 90), (206, 204, 196)], 10)

    def quad(z0, z1, y0, y1, c, label=None):
        corners = ((y0, z0), (y1, z0), (y1, z1), (y0, z1))
        scene.canvas.polygon([scene.at(line, y, z) for y, z in corners], c, label)

    def paint():
        if far < _NEAR:
            return
        start, middle = max(near, _NEAR), (max(near, _NEAR) + far) / 2
        quad(near, far, 0, high, scene.shade(color, middle, light), name)
        if name == "fence":
            z = start
            while z < far:
                quad(z, z + 0.06, 0.1, high, scene.shade(color, z, light * 0.62))
                z += 0.28 + z / 60
        else:
            y = 0.3
            while y < high and middle < 45:
                quad(near, far, y, y + 0.03, scene.shade(color, middle, light * 0.8))
                y += 0.3
        quad(near, far, high - 0.12, high, scene.shade(color, middle, light * 1.15))

    scene.add(max(near, _NEAR) * 0.999, paint, layer=0)
    green = scene.pick([(78, 112, 52), (98, 120, 58), (66, 96, 54)], 14)
    for _ in range(rng.integers(2, 5)):
        z = rng.uniform(near, far)
        x = line + side * rng.uniform(2, 9)
        if z <= 3:
            continue
        if rng.uniform() < 0.6:
            _plan_tree(scene, x, z, rng.uniform(5, 11), green, layer=0)
        else:
            w, h = rng.uniform(1.5, 4), rng.uniform(1.2, 3)
            scene.add(z, lambda x=x, z=z, w=w, h=h: _paint_bush(scene, x, z, w, h, green), layer=0)


def _paint_leaves(
    scene: _Scene, x: float, y: float, rx: float, ry: float, z: float, color: Color, count: int
) -> None:
    """A crown: dark blobs behind, light ones towards the sun; x, y in pixels."""
    rng = np.random.default_rng([int(abs(x) * 64), int(abs(y) * 64), count])
    scene.canvas.ellipse(x, y, rx * 0.86, ry * 0.86, scene.shade(color, z, 0.62), "vegetation")
    for k in range(count):
        angle, r = rng.uniform(0, 2 * math.pi), math.sqrt(rng.uniform(0, 1))
        dx, dy = r * math.cos(angle), r * math.sin(angle)
        size = rng.uniform(0.16, 0.36)
        towards = -0.5 * dy - 0.3 * scene.sun_side * dx
        bright = 0.64 + 0.34 * k / count + 0.34 * towards * (scene.style.sun - 0.5)
        tint = scene.shade(color, z, bright + rng.normal(0, 0.05))
        scene.canvas.ellipse(
            x + dx * rx * 0.8, y + dy * ry * 0.8, size * rx, size * ry, tint, "vegetation"
        )


def _paint_bush(scene: _Scene, x: float, z: float, w: float, h: float, color: Color) -> None:
    px, py = scene.at(x, h / 2, z)
    s = scene.scale(z)
    _paint_leaves(scene, px, py, s * w / 2, s * h / 2, z, color, 14 if s * h > 12 else 7)


def _plan_tree(
    scene: _Scene, x: float, z: float, height: float, color: Color, layer: int = 1
) -> None:
    wide = scene.rng.uniform(0.5, 0.72)
    trunk_share = scene.rng.uniform(0.3, 0.42)
    bark = scene.pick([(92, 74, 58), (104, 92, 78)], 8)

    def paint():
        s = scene.scale(z)
        trunk = 0.016 * height + 0.06
        x0, y0 = scene.at(x, 0, z)
        _, y1 = scene.at(x, height * trunk_share * 1.4, z)
        points = [(x0 - 1.3 * s * trunk, y0), (x0 - s * trunk, y1), (x0 + s * trunk, y1)]
        points.append((x0 + 1.3 * s * trunk, y0))
        scene.canvas.polygon(points, scene.shade(bark, z, 0.9), "vegetation")
        scene.canvas.polygon(
            [(x0, y0), (x0, y1), (x0 + s * trunk, y1), (x0 + 1.3 * s * trunk, y0)],
            scene.shade(bark, z, 0.7),
        )
        crown = height * (1 - trunk_share)
        _, yc = scene.at(x, height - crown / 2, z)
        count = int(np.clip(s * height / 5, 10, 46))
        _paint_leaves(scene, x0, yc, s * crown * wide, s * crown / 2, z, color, count)

    scene.add(z, paint, layer)


def _plan_pavement(scene: _Scene, side: int) -> None:
    """Trees, lamps, signs, lights, people and parked bicycles on one pavement."""
    rng, road, width = scene.rng, scene.road, scene.pavement
    kerb = side * (road + 0.5)
    green = scene.pick([(84, 122, 54), (106, 132, 58), (70, 104, 56), (134, 128, 58)], 14)
    if rng.uniform() < 0.62:
        z, step = rng.uniform(7, 16), rng.uniform(8, 16)
        while z < 120:
            _plan_tree(scene, kerb + side * rng.uniform(0, 0.5), z, rng.uniform(5, 9), green)
            z += step * rng.uniform(0.8, 1.3)
    z, step = rng.uniform(8, 22), rng.uniform(18, 30)
    while z < 130:
        _plan_lamp(scene, kerb, z, side)
        z += step
    for _ in range(rng.integers(1, 4)):
        _plan_sign(scene, kerb + side * rng.uniform(0, 0.3), rng.uniform(8, 45))
    if rng.uniform() < 0.5:
        _plan_traffic_light(scene, kerb, rng.uniform(8, 34), side)
    for _ in range(rng.integers(1, 7)):
        x = side * (road + rng.uniform(0.9, width - 0.3))
        _plan_person(scene, x, rng.uniform(5, 12) + rng.exponential(11))
    if rng.uniform() < 0.45:
        z = rng.uniform(6, 20)
        for k in range(rng.integers(1, 4)):
            _plan_bicycle(scene, side * (road + width - 0.7), z + 0.9 * k, rider=False)


def _plan_lamp(scene: _Scene, x: float, z: float, side: int) -> None:
    high, reach = scene.rng.uniform(5.5, 8), scene.rng.uniform(0.9, 1.8)
    gray = scene.pick([(96, 100, 104), (66, 72, 74), (136, 140, 142)], 6)
    lit = scene.style.lit_windows > 0.3

    def paint():
        s = scene.scale(z)
        color = scene.shade(gray, z)
        foot, top = scene.at(x, 0, z), scene.at(x, high, z)
        head = scene.at(x - side * reach, high + 0.15, z)
        scene.canvas.line([foot, top], max(1.1, 0.15 * s), color, "pole")
        scene.canvas.line([top, head], max(0.9, 0.1 * s), color, "pole")
        glow = (255, 232, 170) if lit else (214, 216, 214)
        scene.canvas.ellipse(*head, 0.34 * s, 0.13 * s, scene.shade(glow, z), "pole")
        scene.canvas.line([(foot[0], foot[1] - 1.0 * s), foot], max(1.2, 0.22 * s), color, "pole")

    scene.add(z, paint)


def _plan_sign(scene: _Scene, x: float, z: float) -> None:
    rng = scene.rng
    kind = str(rng.choice(["warning", "stop", "limit", "blue", "yield", "direction"]))
    high = rng.uniform(2.3, 3.0)
    r = rng.uniform(0.36, 0.5)

    def paint():
        s, c = scene.scale(z), scene.canvas
        foot, top = scene.at(x, 0, z), scene.at(x, high + 0.1, z)
        c.line([foot, top], max(1.0, 0.085 * s), scene.shade((132, 136, 138), z), "pole")
        cx, cy = scene.at(x, high, z)
        white, red, blue = ((238, 238, 234), (202, 30, 38), (28, 84, 170))

        def plate(points, color, grow=1.0, label=None):
            shape = [(cx + grow * u * r * s, cy + grow * v * r * s) for u, v in points]
            c.polygon(shape, scene.shade(color, z), label)

        around = lambda n, turn: [  # noqa: E731
            (math.cos(2 * math.pi * (k + turn) / n), math.sin(2 * math.pi * (k + turn) / n))
            for k in range(n)
        ]
        if kind in ("warning", "yield"):
            shape = around(3, 0.75 if kind == "warning" else 0.25)
            plate(shape, red, 1.15, "traffic sign")
            plate(shape, white, 0.72)
        elif kind == "stop":
            plate(around(8, 0.5), red, 1.0, "traffic sign")
            plate([(-0.6, -0.14), (0.6, -0.14), (0.6, 0.14), (-0.6, 0.14)], white)
        elif kind == "limit":
            plate(around(20, 0), red, 1.0, "traffic sign")
            plate(around(20, 0), white, 0.72)
            plate([(-0.3, -0.3), (-0.1, -0.3), (-0.1, 0.3), (-0.3, 0.3)], (40, 40, 44))
            plate([(0.05, -0.3), (0.35, -0.3), (0.35, 0.3), (0.05, 0.3)], (40, 40, 44))
        elif kind == "blue":
            plate(around(20, 0), blue, 1.0, "traffic sign")
            plate([(-0.1, 0.5), (-0.1, -0.1), (-0.4, -0.1), (0, -0.6), (0.4, -0.1), (0.1, -0.1),
                   (0.1, 0.5)], white)  # fmt: skip
        else:
            plate([(-1.9, -0.5), (1.6, -0.5), (2.1, 0), (1.6, 0.5), (-1.9, 0.5)], (226, 190, 50),
                  1.0, "traffic sign")  # fmt: skip
            plate([(-1.5, -0.1), (1.2, -0.1), (1.2, 0.1), (-1.5, 0.1)], (40, 40, 44))

    scene.add(z - 0.05, paint)


def _plan_traffic_light(scene: _Scene, x: float, z: float, side: int) -> None:
    phase = int(scene.rng.integers(3))
    over_road = scene.rng.uniform() < 0.5

    def box(px, py, s):
        c = scene.canvas
        w, h = 0.24 * s, 0.52 * s
        corners = [(px - w, py - h), (px + w, py - h), (px + w, py + h), (px - w, py + h)]
        c.polygon(corners, scene.shade((34, 38, 36), z), "traffic light")
        lamps = ((236, 40, 36), (246, 180, 40), (50, 214, 96))
        for k, lamp in enumerate(lamps):
            dim = 1.0 if k == phase else 0.25
            color = tuple(v * dim for v in lamp) if k != phase else lamp
            c.ellipse(px, py + (k - 1) * 0.33 * s, 0.14 * s, 0.14 * s, color)

    def paint():
        s = scene.scale(z)
        gray = scene.shade((92, 96, 98), z)
        foot = scene.at(x, 0, z)
        if over_road:
            top, end = scene.at(x, 5.2, z), scene.at(x - side * 2.6, 5.3, z)
            scene.canvas.line([foot, top, end], max(1.1, 0.13 * s), gray, "pole")
            box(end[0], end[1] + 0.3 * s, s)
        else:
            scene.canvas.line([foot, scene.at(x, 2.6, z)], max(1.1, 0.13 * s), gray, "pole")
        box(*scene.at(x, 2.9, z), s)

    scene.add(z - 0.1, paint)


def _plan_person(scene: _Scene, x: float, z: float) -> None:
    rng = scene.rng
    tall = rng.uniform(1.5, 1.9) if rng.uniform() < 0.85 else rng.uniform(1.0, 1.35)
    stride = rng.uniform(-0.9, 0.9)
    coat, trousers = scene.pick(_CLOTHES), scene.pick([(44, 52, 76), (60, 58, 56), (120, 106, 86)])
    skin, hair = scene.pick(_SKINS, 6), scene.pick([(42, 32, 26), (96, 66, 38), (150, 140, 130)], 8)
    bag = rng.uniform() < 0.3

    def paint():
        s = scene.scale(z) * tall
        px, py = scene.at(x, 0, z)

        def at(u, v):
            return px + u * s, py - v * s

        def limb(points, width, color):
            scene.canvas.line([at(*p) for p in points], max(1.0, width * s),
                              scene.shade(color, z), "person")  # fmt: skip

        c = scene.canvas
        c.ellipse(px, py, 0.2 * s, 0.04 * s, scene.shade((58, 58, 60), z, 0.8))
        limb(
            [(0.03, 0.5), (0.03 + 0.10 * stride, 0.26), (0.02 + 0.16 * stride, 0.02)],
            0.085,
            trousers,
        )
        limb([(-0.03, 0.5), (-0.02 - 0.06 * stride, 0.27), (-0.03 - 0.18 * stride, 0.02)], 0.085,
             tuple(0.8 * v for v in trousers))  # fmt: skip
        limb([(-0.11, 0.79), (-0.14 + 0.08 * stride, 0.62), (-0.12 + 0.15 * stride, 0.47)], 0.06,
             tuple(0.82 * v for v in coat))  # fmt: skip
        torso = [(-0.13, 0.80), (-0.07, 0.845), (0.07, 0.845), (0.13, 0.80), (0.105, 0.45),
                 (-0.105, 0.45)]  # fmt: skip
        c.polygon([at(*p) for p in torso], scene.shade(coat, z), "person")
        limb([(0.11, 0.79), (0.14 - 0.08 * stride, 0.62), (0.13 - 0.14 * stride, 0.47)], 0.06,
             tuple(0.9 * v for v in coat))  # fmt: skip
        c.ellipse(*at(0, 0.925), 0.062 * s, 0.075 * s, scene.shade(skin, z), "person")
        c.ellipse(*at(-0.005, 0.955), 0.064 * s, 0.055 * s, scene.shade(hair, z), "person")
        if bag:
            corners = [at(0.1, 0.52), at(0.22, 0.52), at(0.21, 0.38), at(0.11, 0.38)]
            c.polygon(corners, scene.shade((122, 72, 44), z), "person")

    scene.add(z, paint)


def _plan_bicycle(scene: _Scene, x: float, z: float, *, rider: bool, motor: bool = False) -> None:
    """A two-wheeler seen at an angle, with or without its rider."""
    rng = scene.rng
    turn = rng.uniform(0.55, 0.95) * rng.choice([-1, 1])  # how much of its side is seen
    frame, coat = scene.pick(_PAINTS), scene.pick(_CLOTHES)
    skin, helmet = scene.pick(_SKINS, 6), scene.pick(_PAINTS)
    name = "motorcycle" if motor else "bicycle"

    def paint():
        s = scene.scale(z)
        px, py = scene.at(x, 0, z)
        c = scene.canvas
        thick = 0.16 if motor else 0.05

        def at(u, v):
            return px + turn * u * s, py - v * s

        def bar(points, width, color, label):
            shade = scene.shade(color, z)
            c.line([at(*p) for p in points], max(1.0, width * s), shade, label)

        c.ellipse(px, py, 0.8 * s * abs(turn), 0.06 * s, scene.shade((58, 58, 60), z, 0.85))
        for u in (-0.55, 0.55):
            wx, wy = at(u, 0.34)
            c._mark.ellipse(
                (
                    wx - abs(turn) * 0.34 * s,
                    wy - 0.34 * s,
                    wx + abs(turn) * 0.34 * s,
                    wy + 0.34 * s,
                ),
                fill=_ID[name],
            )
            tyre = scene.shade((26, 26, 28), z)
            c.ring(wx, wy, abs(turn) * 0.34 * s, 0.34 * s, tyre, max(0.8, (thick + 0.02) * s))
        bar([(-0.55, 0.34), (-0.12, 0.36), (0.42, 0.72), (-0.2, 0.78), (-0.55, 0.34)], thick, frame,
            name)  # fmt: skip
        bar([(-0.12, 0.36), (-0.24, 0.9)], thick, frame, name)
        bar([(0.55, 0.34), (0.4, 0.95), (0.28, 1.02)], thick, frame, name)
        bar([(-0.36, 0.92), (-0.12, 0.92)], 0.08, (36, 34, 34), name)
        if motor:
            body = [(-0.7, 0.62), (-0.2, 0.86), (0.35, 0.9), (0.5, 0.6), (0.2, 0.34), (-0.3, 0.34)]
            c.polygon([at(*p) for p in body], scene.shade(frame, z), name)
        if rider:
            dark = tuple(0.45 * v + 20 for v in coat)
            bar([(-0.22, 0.95), (0.1, 0.72), (-0.06, 0.36)], 0.15, dark, "rider")
            bar([(-0.22, 0.95), (0.16, 0.84), (0.02, 0.46)], 0.13, (52, 56, 76), "rider")
            bar([(-0.22, 0.98), (0.04, 1.5)], 0.3, coat, "rider")
            bar([(0.06, 1.46), (0.2, 1.2), (0.32, 1.06)], 0.1, coat, "rider")
            c.ellipse(*at(0.1, 1.68), 0.11 * s, 0.13 * s, scene.shade(skin, z), "rider")
            c.ellipse(*at(0.09, 1.74), 0.125 * s, 0.1 * s, scene.shade(helmet, z), "rider")

    scene.add(z, paint)


def _plan_traffic(scene: _Scene) -> None:
    rng, road = scene.rng, scene.road
    taken: list[tuple[float, float, float]] = []  # (x, from, to)

    def free(x, near, far):
        clear = all(abs(x - a) > 1.95 or far < b - 1.2 or near > c + 1.2 for a, b, c in taken)
        if clear:
            taken.append((x, near, far))
        return clear

    for side in (-1, 1):  # parked at the kerb
        x = side * (road - 1.1)
        z, share = rng.uniform(5, 14), rng.uniform(0.15, 0.9)
        while z < 80:
            if rng.uniform() < share and free(x, z, z + 4.4):
                _plan_car(scene, x, z, rear=side > 0)
            z += rng.uniform(5.2, 7.5)
    for _ in range(rng.integers(2, 6)):  # under way
        side = rng.choice([-1, 1])
        x = side * (road - 2.2) * 0.5
        z = rng.uniform(8, 16) + rng.exponential(16)
        kind = rng.choice(["car", "truck", "bus", "motorcycle"], p=[0.44, 0.2, 0.2, 0.16])
        length = {"car": 4.4, "truck": 7.5, "bus": 11.0, "motorcycle": 2.0}[kind]
        if not free(x, z, z + length):
            continue
        if kind == "car":
            _plan_car(scene, x, z, rear=side > 0)
        elif kind == "motorcycle":
            _plan_bicycle(scene, x, z, rider=True, motor=True)
        else:
            _plan_box(scene, x, z, length, str(kind), rear=side > 0)
    for _ in range(rng.integers(0, 4)):
        x, z = rng.choice([-1, 1]) * (road - 2.6) * rng.uniform(0.7, 1), rng.uniform(7, 28)
        if free(x, z, z + 1):
            _plan_bicycle(scene, x, z, rider=True)
    if rng.uniform() < 0.35:
        x, z = rng.uniform(-0.8, 0.8) * road, rng.uniform(10, 26)
        if free(x, z, z + 0.5):
            _plan_person(scene, x, z)


def _wheel(scene: _Scene, x: float, z: float, name: str, r: float = 0.33) -> None:
    for share, color in ((1.0, (24, 24, 26)), (0.58, (150, 152, 156)), (0.2, (60, 60, 64))):
        angles = [2 * math.pi * k / 14 for k in range(14)]
        points = [
            scene.at(x, r + share * r * math.sin(a), z + share * r * math.cos(a)) for a in angles
        ]
        scene.canvas.polygon(points, scene.shade(color, z), name if share == 1.0 else None)


def _plan_car(scene: _Scene, x: float, z: float, *, rear: bool) -> None:
    """A car from behind (`rear`) or from the front, with the side that the camera sees."""
    rng = scene.rng
    color = scene.pick(_PAINTS, 10)
    high = rng.uniform(1.38, 1.72)
    half = rng.uniform(0.84, 0.92)
    length = rng.uniform(3.8, 4.5)
    estate = rng.uniform() < 0.4

    def paint():
        c = scene.canvas
        inner = -1 if x > scene.camera_x else 1  # the side that is seen
        light = scene.style.sun if inner == scene.sun_side else 0.86
        glass = scene.shade((46, 56, 70), z)
        # (z, y) along the side, from the near end: bumper, boot or bonnet, screen, roof, screen.
        boot = 0.25 if estate and rear else (0.75 if rear else 1.15)
        bonnet = 1.15 if rear else (0.25 if estate else 0.75)
        roof_near, roof_far = boot + 0.5, length - bonnet - 0.65
        belt = 0.56 * high

        def side_at(dz, y):
            w = half if y <= belt + 0.05 else half - 0.17 * (y - belt) / (high - belt)
            return scene.at(x + inner * w, y, z + dz)

        def face(points, tint, name=None):
            c.polygon([scene.at(x + u, y, z + dz) for u, y, dz in points], tint, name)

        shadow = [(-half - 0.1, 0, -0.15), (half + 0.1, 0, -0.15), (half + 0.1, 0, length),
                  (-half - 0.1, 0, length)]  # fmt: skip
        face(shadow, scene.shade((40, 40, 44), z, 0.9))
        profile = [(0, 0.22), (0, belt - 0.04), (boot, belt + 0.02), (roof_near, high - 0.02),
                   (roof_far, high), (length - bonnet, belt + 0.04), (length, belt - 0.12),
                   (length, 0.22)]  # fmt: skip
        c.polygon([side_at(*p) for p in profile], scene.shade(color, z, light), "car")
        panes = [(boot + 0.22, belt + 0.06), (roof_near + 0.1, high - 0.12),
                 (roof_far - 0.05, high - 0.1), (length - bonnet - 0.2, belt + 0.07)]  # fmt: skip
        c.polygon([side_at(*p) for p in panes], glass)
        middle = (roof_near + roof_far) / 2
        pillar = [(middle - 0.06, belt), (middle - 0.06, high - 0.08), (middle + 0.06, high - 0.08),
                  (middle + 0.06, belt)]  # fmt: skip
        c.polygon([side_at(*p) for p in pillar], scene.shade(color, z, light * 0.8))
        sill = [(0.1, 0.22), (0.1, 0.32), (length - 0.1, 0.32), (length - 0.1, 0.22)]
        c.polygon([side_at(*p) for p in sill], scene.shade(color, z, light * 0.5))
        for dz in (0.75, length - 0.8):
            _wheel(scene, x + inner * (half + 0.01), z + dz, "car")
        # Roof, near screen, boot or bonnet, and the end itself.
        slim = half - 0.17
        face([(-slim, high - 0.02, roof_near), (slim, high - 0.02, roof_near),
              (slim, high, roof_far), (-slim, high, roof_far)],
             scene.shade(color, z, 1.08), "car")  # fmt: skip
        face([(-half, belt + 0.02, boot), (half, belt + 0.02, boot), (slim, high - 0.02, roof_near),
              (-slim, high - 0.02, roof_near)], scene.shade(color, z, 0.98), "car")  # fmt: skip
        face([(-half + 0.1, belt + 0.07, boot + 0.05), (half - 0.1, belt + 0.07, boot + 0.05),
              (slim - 0.06, high - 0.1, roof_near - 0.06),
              (-slim + 0.06, high - 0.1, roof_near - 0.06)], glass)  # fmt: skip
        face([(-half, belt - 0.04, 0), (half, belt - 0.04, 0), (half, belt + 0.02, boot),
              (-half, belt + 0.02, boot)], scene.shade(color, z, 1.12), "car")  # fmt: skip
        for u in (-half + 0.2, half - 0.2):  # tyres under the bumper
            face([(u - 0.13, 0, 0.1), (u + 0.13, 0, 0.1), (u + 0.13, 0.3, 0.1),
                  (u - 0.13, 0.3, 0.1)], scene.shade((24, 24, 26), z), "car")  # fmt: skip
        end = [(-half, 0.26), (-half, belt - 0.1), (-half + 0.08, belt - 0.03),
               (half - 0.08, belt - 0.03), (half, belt - 0.1), (half, 0.26),
               (half - 0.1, 0.2), (-half + 0.1, 0.2)]  # fmt: skip
        face([(u, y, 0) for u, y in end], scene.shade(color, z, 0.9), "car")
        face([(-half + 0.04, 0.24, 0), (half - 0.04, 0.24, 0), (half, 0.42, 0), (-half, 0.42, 0)],
             scene.shade(color, z, 0.58))  # fmt: skip
        lamp = (206, 26, 30) if rear else (250, 246, 226)
        if rear and scene.style.lit_windows > 0.3:
            lamp = (255, 60, 50)
        for u in (-1, 1):
            face([(u * half, belt - 0.26, 0), (u * (half - 0.3), belt - 0.26, 0),
                  (u * (half - 0.3), belt - 0.1, 0), (u * half, belt - 0.1, 0)],
                 scene.shade(lamp, z))  # fmt: skip
        face([(-0.26, 0.46, 0), (0.26, 0.46, 0), (0.26, 0.57, 0), (-0.26, 0.57, 0)],
             scene.shade((236, 236, 226), z))  # fmt: skip
        if not rear:
            face([(-0.45, belt - 0.24, 0), (0.45, belt - 0.24, 0), (0.45, belt - 0.12, 0),
                  (-0.45, belt - 0.12, 0)], scene.shade((40, 42, 46), z))  # fmt: skip

    scene.add(z, paint)


def _plan_box(scene: _Scene, x: float, z: float, length: float, name: str, *, rear: bool) -> None:
    """A truck or a bus, from behind (`rear`) or from the front."""
    rng = scene.rng
    bus = name == "bus"
    color = scene.pick([(206, 52, 40), (236, 190, 50), (60, 110, 170)] if bus else _PAINTS, 8)
    box = color if bus else scene.pick([(226, 226, 222), (190, 194, 198), (72, 104, 140)], 8)
    lamp = (206, 30, 32) if rear else (250, 246, 226)
    half, high = 1.22, rng.uniform(2.9, 3.4)
    low = 0.42

    def paint():
        c = scene.canvas
        inner = -1 if x > scene.camera_x else 1
        light = scene.style.sun if inner == scene.sun_side else 0.86
        glass = scene.shade((44, 54, 66), z)

        def side(z0, z1, y0, y1, tint, label=None):
            corners = ((y0, z0), (y1, z0), (y1, z1), (y0, z1))
            c.polygon([scene.at(x + inner * half, y, z + dz) for y, dz in corners], tint, label)

        def face(u0, u1, y0, y1, tint, label=None):
            corners = ((u0, y0), (u0, y1), (u1, y1), (u1, y0))
            c.polygon([scene.at(x + u, y, z) for u, y in corners], tint, label)

        ground = [
            (-half - 0.15, -0.2),
            (half + 0.15, -0.2),
            (half + 0.15, length),
            (-half - 0.15, length),
        ]
        c.polygon([scene.at(x + u, 0, z + d) for u, d in ground], scene.shade((40, 40, 44), z, 0.9))
        cab = 0 if bus else 1.9
        side(0, length - cab - (0 if bus else 0.3), low, high, scene.shade(box, z, light), name)
        if cab:
            side(length - cab, length, low, 2.4, scene.shade(color, z, light), name)
            side(length - 1.2, length - 0.4, 1.4, 2.2, glass)
            side(0, length, low, 0.7, scene.shade((50, 52, 56), z), name)
        else:
            for k in range(6):
                d = length / 6
                side(k * d + 0.12, (k + 1) * d - 0.12, 1.5, 2.5, glass)
            side(0, length, 1.0, 1.2, scene.shade((240, 240, 236), z, light))
        for dz in (1.5, length - 1.4):
            _wheel(scene, x + inner * (half + 0.01), z + dz, name, 0.46)
        for u in (-half + 0.28, half - 0.28):
            face(u - 0.18, u + 0.18, 0, low, scene.shade((24, 24, 26), z), name)
        face(-half, half, low, high, scene.shade(box, z, 0.92), name)
        if bus or not rear:
            face(-half + 0.15, half - 0.15, 1.5, high - 0.55, glass)
            face(-half + 0.3, half - 0.3, high - 0.4, high - 0.15, scene.shade((240, 170, 50), z))
        else:
            face(-0.03, 0.03, low + 0.2, high - 0.1, scene.shade(box, z, 0.6))
            face(-half, half, low, low + 0.18, scene.shade((52, 54, 58), z))
        for u in (-1, 1):
            face(u * half, u * (half - 0.2), 0.75, 0.98, scene.shade(lamp, z))

    scene.add(z, paint)


def _paint_hood(scene: _Scene) -> None:
    """The bonnet of the car that carries the camera; Cityscapes labels it "ego vehicle"."""
    canvas = scene.canvas
    color = scene.shade(scene.pick([(54, 58, 64), (120, 124, 130), (84, 30, 34)], 6), 0)
    x, y = canvas.width * 0.5, canvas.height * 1.10
    rx, ry = canvas.width * 0.56, canvas.height * scene.rng.uniform(0.15, 0.2)
    for k in range(6):
        t = k / 5
        tint = tuple(c * (0.62 + 0.5 * t) for c in color)
        canvas.ellipse(x, y + 0.1 * ry * t, rx, ry * (1 - 0.14 * t), tint)
    box = (x - rx - 0.5, y - ry - 0.5, x + rx - 0.5, y + ry - 0.5)
    canvas._mark.ellipse(box, fill=_EGO_VEHICLE)


def _finish(scene: _Scene) -> tuple[np.ndarray, np.ndarray]:
    """Halves the picture and gives the surfaces grain and the camera its noise."""
    rng, height, width = scene.rng, scene.canvas.height, scene.canvas.width
    label = np.asarray(scene.canvas.label)
    pixels = np.asarray(scene.canvas.image.reduce(2)).astype(np.float32)
    rough = np.full(256, 3.0, np.float32)
    for name, value in _ROUGHNESS.items():
        rough[_ID[name]] = value
    grain = 0.5 * rng.standard_normal((height, width), np.float32)
    for size, share in ((2, 0.45), (6, 0.40), (24, 0.30)):
        shape = (height // size + 2, width // size + 2)
        coarse = Image.fromarray(rng.standard_normal(shape, np.float32))
        grain += share * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    brightness = pixels.mean(-1) / 160
    pixels += (grain * rough[label] * (0.35 + 0.65 * brightness))[..., None]
    pixels += rng.standard_normal((height, width, 3), np.float32) * rng.uniform(0.6, 2.4)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    pixels *= (1 - 0.09 * (x * x + y * y))[..., None]
    return np.clip(pixels + 0.5, 0, 255).astype(np.uint8), label


def _rgb(color: Color) -> tuple[int, int, int]:
    return tuple(min(255, max(0, int(c + 0.5))) for c in color)


def write_cityscapes(
    root: str | os.PathLike,
    counts: dict[str, int],
    *,
    size: tuple[int, int] = (256, 512),
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Writes a synthetic set in the Cityscapes layout.

    Args:
        root: folder to write to, made if needed; files of the same names are replaced.
        counts: images per split, e.g. {"train": 200, "val": 40}.
        size: (height, width) of the images.
        seed: the same seed gives the same files.
        progress: show a bar with rate and time left.

    Raises:
        ValueError: for an unknown split, a negative count or a size too small.
    """
    for split, count in counts.items():
        if split not in _SPLITS or count < 0:
            raise ValueError(f"{count} images for split {split!r}; known splits: {_SPLITS}")
    jobs = [(split, number) for split, count in counts.items() for number in range(count)]

    def write(job: tuple[str, int]) -> None:
        split, number = job
        image, label = draw_scene(seed, split, number, *size)
        for kind, suffix, pixels in (
            ("leftImg8bit", "leftImg8bit", image),
            ("gtFine", "gtFine_labelIds", label),
        ):
            folder = storage.path(root) / kind / split / "synthetic"
            name = f"synthetic_{seed:06d}_{number:06d}_{suffix}.png"
            with storage.written(folder / name) as file:
                Image.fromarray(pixels).save(file, compress_level=4)

    with ThreadPoolExecutor(2) as pool:
        done = tqdm(
            pool.map(write, jobs), "drawing", len(jobs), unit=" images", disable=not progress
        )
        for _ in done:
            pass
