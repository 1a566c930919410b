"""Draws a street scene with exact labels: sky, ground, and where the objects stand.

Enough for a network to learn from and for a person to recognize; no substitute for real streets.
Each scene is a function of (seed, split, number) alone.
"""

import itertools

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from hrnet_jax.data.synthetic.canvas import FACADES, FAR, LABEL_IDS, NEAR, Scene, rgb
from hrnet_jax.data.synthetic.objects import (
    add_front,
    add_garden,
    add_house,
    add_lamp,
    add_person,
    add_sign,
    add_traffic_light,
    add_tree,
    paint_bush,
)
from hrnet_jax.data.synthetic.vehicles import add_bicycle, add_car, add_truck_or_bus

SPLITS = ("train", "val", "test")
MIN_SIDE = 32
_EGO_VEHICLE = 1

# How strongly the surfaces are mottled, in gray levels.
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


def draw_scene(
    seed: int, split: str, number: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """One street.

    Args:
        seed: of the dataset.
        split: "train", "val" or "test"; their scenes differ.
        number: of the scene in its split.
        height: of the image, at least MIN_SIDE = 32.
        width: of the image, likewise.

    Returns:
        uint8 RGB [height, width, 3] and Cityscapes label ids uint8 [height, width].

    Raises:
        ValueError: for an unknown split or a size below MIN_SIDE.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {SPLITS}")
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"size {height}x{width}: need at least {MIN_SIDE} pixels each way")
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    scene = Scene(rng, height, width)
    _paint_sky(scene)
    _paint_ground(scene)
    _add_street_end(scene)
    for side in (-1, 1):
        _add_roadside(scene, side)
        _add_pavement(scene, side)
    _add_traffic(scene)
    for _, _, paint in sorted(scene.parts, key=lambda part: (part[0], -part[1])):
        paint()
    if rng.uniform() < 0.3:
        _paint_hood(scene)
    return _finish(scene)


def _paint_sky(scene: Scene) -> None:
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
    canvas.image.paste(Image.new("RGB", (width, height), rgb(style.cloud)), mask=mask)
    box = [(0, 0), (canvas.width, 0), (canvas.width, canvas.height), (0, canvas.height)]
    canvas.mark.polygon(box, fill=LABEL_IDS["sky"])


def _paint_ground(scene: Scene) -> None:
    canvas, rng, road = scene.canvas, scene.rng, scene.road
    asphalt = scene.pick([(92, 92, 96), (110, 108, 106), (80, 82, 88)], 8)
    paving = scene.pick([(168, 162, 154), (150, 148, 148), (178, 166, 150)], 10)
    grass = scene.pick([(104, 128, 62), (126, 134, 76), (92, 112, 60)], 10)
    outer = road + scene.pavement
    verge = {side: rng.uniform() < 0.35 for side in (-1, 1)}  # a strip of grass by the curb

    def strip(left, right, near, far, color, name, y=0.0):
        corners = ((left, near), (left, far), (right, far), (right, near))
        canvas.polygon([scene.at(x, y, z) for x, z in corners], color, name)

    # In slices, so that the ground fades into the haze.
    edges = [FAR * 3, 110, 75, 50, 34, 23, 15, 10, 6.5, 4, NEAR]
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
    # The buildings on the sun's side cast their shadow on the road.
    reach = rng.uniform(0.2, 0.9) * road
    side = scene.sun_side
    for far, near in itertools.pairwise(edges):
        color = scene.shade(asphalt, (far + near) / 2, scene.style.shadow)
        strip(side * road, side * (road - reach), near, far, color, None)
    # Joints of the paving, curbs, and the lines on the road.
    z = 3.0
    while z < 45:
        for side in (-1, 1):
            color = scene.shade(paving, z, 0.8)
            inner = road + (1.3 if verge[side] else 0)
            strip(side * inner, side * outer, z, z + 0.06 + z / 300, color, None)
        z += 1.6 + z / 20
    for side in (-1, 1):
        strip(side * road, side * (road + 0.18), NEAR, FAR, scene.shade(paving, 12, 1.16), None)
        strip(side * (road - 0.3), side * road, NEAR, FAR, scene.shade(asphalt, 12, 0.86), None)
        if rng.uniform() < 0.5:
            inner = road - 2.2
            paint = scene.shade((214, 214, 208), 10)
            strip(side * inner, side * (inner - 0.12), NEAR, 90, paint, None)
    dash, gap = rng.choice([3.0, 4.0]), rng.choice([3.0, 5.0])
    z = rng.uniform(0, dash + gap) - dash
    while z < 110:
        strip(-0.08, 0.08, z, z + dash, scene.shade((224, 224, 216), z), None)
        z += dash + gap
    if rng.uniform() < 0.35:  # a zebra crossing
        z = rng.uniform(9, 24)
        for x in np.arange(-road + 0.5, road - 0.5, 1.0):
            strip(x, x + 0.5, z, z + 3, scene.shade((226, 226, 220), z), None)


def _add_street_end(scene: Scene) -> None:
    """The end of the street: trees and houses far away."""
    rng = scene.rng
    green = scene.pick([(74, 100, 58), (92, 108, 64)], 10)
    x = -90.0
    while x < 90:
        w = rng.uniform(7, 16)
        if rng.uniform() < 0.45:
            color = scene.pick(FACADES)
            add_front(scene, x, x + w, FAR - 4, rng.uniform(7, 17), color)
        else:
            h = rng.uniform(4, 9)
            paint = lambda x=x, w=w, h=h: paint_bush(  # noqa: E731
                scene, x + w / 2, FAR, w, h, green
            )
            scene.add(FAR - 2, paint, layer=0)
        x += w * 0.8


def _add_roadside(scene: Scene, side: int) -> None:
    """Houses along one side, with gardens, walls and fences between them."""
    rng = scene.rng
    line = side * (scene.road + scene.pavement)
    z = rng.uniform(-12, 2)
    while z < FAR - 10:
        if rng.uniform() < 0.72:
            depth = rng.uniform(8, 20)
            add_house(scene, side, line, z, z + depth)
        else:
            depth = rng.uniform(6, 16)
            add_garden(scene, side, line, z, z + depth)
        z += depth


def _add_pavement(scene: Scene, side: int) -> None:
    """Trees, lamps, signs, lights, people and parked bicycles on one pavement."""
    rng, road, width = scene.rng, scene.road, scene.pavement
    curb = side * (road + 0.5)
    green = scene.pick([(84, 122, 54), (106, 132, 58), (70, 104, 56), (134, 128, 58)], 14)
    if rng.uniform() < 0.62:
        z, step = rng.uniform(7, 16), rng.uniform(8, 16)
        while z < 120:
            add_tree(scene, curb + side * rng.uniform(0, 0.5), z, rng.uniform(5, 9), green)
            z += step * rng.uniform(0.8, 1.3)
    z, step = rng.uniform(8, 22), rng.uniform(18, 30)
    while z < 130:
        add_lamp(scene, curb, z, side)
        z += step
    for _ in range(rng.integers(1, 4)):
        add_sign(scene, curb + side * rng.uniform(0, 0.3), rng.uniform(8, 45))
    if rng.uniform() < 0.5:
        add_traffic_light(scene, curb, rng.uniform(8, 34), side)
    for _ in range(rng.integers(1, 7)):
        x = side * (road + rng.uniform(0.9, width - 0.3))
        add_person(scene, x, rng.uniform(5, 12) + rng.exponential(11))
    if rng.uniform() < 0.45:
        z = rng.uniform(6, 20)
        for k in range(rng.integers(1, 4)):
            add_bicycle(scene, side * (road + width - 0.7), z + 0.9 * k, rider=False)


def _add_traffic(scene: Scene) -> None:
    rng, road = scene.rng, scene.road
    taken: list[tuple[float, float, float]] = []  # (x, from, to)

    def free(x, near, far):
        clear = all(abs(x - a) > 1.95 or far < b - 1.2 or near > c + 1.2 for a, b, c in taken)
        if clear:
            taken.append((x, near, far))
        return clear

    for side in (-1, 1):  # parked at the curb
        x = side * (road - 1.1)
        z, density = rng.uniform(5, 14), rng.uniform(0.15, 0.9)
        while z < 80:
            if rng.uniform() < density and free(x, z, z + 4.4):
                add_car(scene, x, z, rear=side > 0)
            z += rng.uniform(5.2, 7.5)
    for _ in range(rng.integers(2, 6)):  # moving
        side = rng.choice([-1, 1])
        x = side * (road - 2.2) * 0.5
        z = rng.uniform(8, 16) + rng.exponential(16)
        kind = rng.choice(["car", "truck", "bus", "motorcycle"], p=[0.44, 0.2, 0.2, 0.16])
        length = {"car": 4.4, "truck": 7.5, "bus": 11.0, "motorcycle": 2.0}[kind]
        if not free(x, z, z + length):
            continue
        if kind == "car":
            add_car(scene, x, z, rear=side > 0)
        elif kind == "motorcycle":
            add_bicycle(scene, x, z, rider=True, motor=True)
        else:
            add_truck_or_bus(scene, x, z, length, str(kind), rear=side > 0)
    for _ in range(rng.integers(0, 4)):
        x, z = rng.choice([-1, 1]) * (road - 2.6) * rng.uniform(0.7, 1), rng.uniform(7, 28)
        if free(x, z, z + 1):
            add_bicycle(scene, x, z, rider=True)
    if rng.uniform() < 0.35:
        x, z = rng.uniform(-0.8, 0.8) * road, rng.uniform(10, 26)
        if free(x, z, z + 0.5):
            add_person(scene, x, z)


def _paint_hood(scene: Scene) -> None:
    """The engine hood of the car with the camera; Cityscapes labels it "ego vehicle"."""
    canvas = scene.canvas
    color = scene.shade(scene.pick([(54, 58, 64), (120, 124, 130), (84, 30, 34)], 6), 0)
    x, y = canvas.width * 0.5, canvas.height * 1.10
    rx, ry = canvas.width * 0.56, canvas.height * scene.rng.uniform(0.15, 0.2)
    for k in range(6):
        t = k / 5
        tint = tuple(c * (0.62 + 0.5 * t) for c in color)
        canvas.ellipse(x, y + 0.1 * ry * t, rx, ry * (1 - 0.14 * t), tint)
    box = (x - rx - 0.5, y - ry - 0.5, x + rx - 0.5, y + ry - 0.5)
    canvas.mark.ellipse(box, fill=_EGO_VEHICLE)


def _finish(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Reduces the image to single size and adds the grain of surfaces and the camera's noise."""
    rng, height, width = scene.rng, scene.canvas.height, scene.canvas.width
    label = np.asarray(scene.canvas.label)
    pixels = np.asarray(scene.canvas.image.reduce(2)).astype(np.float32)
    rough = np.full(256, 3.0, np.float32)
    for name, value in _ROUGHNESS.items():
        rough[LABEL_IDS[name]] = value
    grain = 0.5 * rng.standard_normal((height, width), np.float32)
    for size, weight in ((2, 0.45), (6, 0.40), (24, 0.30)):
        shape = (height // size + 2, width // size + 2)
        coarse = Image.fromarray(rng.standard_normal(shape, np.float32))
        grain += weight * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    brightness = pixels.mean(-1) / 160
    pixels += (grain * rough[label] * (0.35 + 0.65 * brightness))[..., None]
    pixels += rng.standard_normal((height, width, 3), np.float32) * rng.uniform(0.6, 2.4)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    pixels *= (1 - 0.09 * (x * x + y * y))[..., None]
    return np.clip(pixels + 0.5, 0, 255).astype(np.uint8), label
