"""What stands along the street: houses, gardens, trees, lamps, signs, traffic lights and persons.

Each function draws its random numbers at once and adds a function to the scene that paints.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from hrnet_jax.data.synthetic.canvas import CLOTHES, FACADES, NEAR, SKINS, Color, Scene


def add_front(scene: Scene, left: float, right: float, z: float, top: float, color: Color) -> None:
    """A house wall that faces the camera."""

    def paint():
        corners = ((left, 0), (left, top), (right, top), (right, 0))
        points = [scene.at(x, y, z) for x, y in corners]
        scene.canvas.polygon(points, scene.shade(color, z, 0.9), "building")

    scene.add(z, paint, layer=0)


@dataclass(frozen=True)
class _House:
    """A house along the street, with one wall on the pavement and one that faces the camera.

    Attributes:
        side: -1 left, 1 right of the street.
        line: x of the wall on the pavement.
        near: z where the house begins.
        far: z where it ends.
        color: color of the walls.
        floors: number of floors.
        floor: height of a floor.
        columns: number of windows in a row.
        shop: whether the ground floor has shop windows.
        awning: color of the awnings of the shop.
        gable: color of the top edge.
        lit: bool [floors, columns], windows with light.
        tone: float [floors, columns], brightness of the panes.
        balcony: bool [floors, columns].
        door: column of the door.
    """

    scene: Scene
    side: int
    line: float
    near: float
    far: float
    color: Color
    floors: int
    floor: float
    columns: int
    shop: bool
    awning: Color
    gable: Color
    lit: np.ndarray
    tone: np.ndarray
    balcony: np.ndarray
    door: int

    @property
    def top(self) -> float:
        return self.floors * self.floor + 0.8

    @property
    def light(self) -> float:
        return self.scene.side_light(self.side)

    @property
    def frame(self) -> Color:
        return tuple(min(255, c * 1.18 + 8) for c in self.color)

    def paint(self) -> None:
        # The wall that faces the camera first; the next house hides it unless there is a gap.
        scene, line, far_x = self.scene, self.line, self.line + self.side * 14
        if self.near > NEAR:
            corners = ((line, 0), (line, self.top), (far_x, self.top), (far_x, 0))
            points = [scene.at(x, y, self.near) for x, y in corners]
            scene.canvas.polygon(points, scene.shade(self.color, self.near, 0.82), "building")
        if self.far < NEAR:
            return
        self._paint_wall()
        width = (self.far - self.near) / self.columns
        for column in range(self.columns):
            z = self.near + column * width
            if z + width < NEAR or z > 95:
                continue
            for floor in range(self.floors):
                self._paint_window(floor, column, z, width)

    def _quad(self, z0, z1, y0, y1, color: Color, name: str | None = None) -> None:
        corners = ((y0, z0), (y1, z0), (y1, z1), (y0, z1))
        points = [self.scene.at(self.line, y, z) for y, z in corners]
        self.scene.canvas.polygon(points, color, name)

    def _paint_wall(self) -> None:
        near, far, top, light, shade = self.near, self.far, self.top, self.light, self.scene.shade
        middle = (near + far) / 2
        # In strips, so that the haze grows along the wall.
        for z0, z1 in itertools.pairwise(np.linspace(near, far, 4)):
            self._quad(z0, z1, 0, top, shade(self.color, (z0 + z1) / 2, light), "building")
        self._quad(near, far, 0, 0.6, shade(self.color, far, light * 0.78))
        self._quad(near, far, top - 0.5, top, shade(self.gable, middle, light))
        for k in range(1, self.floors):
            y = k * self.floor
            self._quad(near, far, y, y + 0.12, shade(self.frame, middle, light))

    def _paint_window(self, floor: int, column: int, z: float, width: float) -> None:
        """A window, shop window or door, in a part of the wall from z to z + width."""
        light, shade = self.light, self.scene.shade
        glass = (62, 74, 90) if self.scene.style.lit_windows < 0.3 else (44, 50, 66)
        lit, tone = self.lit[floor, column], self.tone[floor, column]
        pane = (248, 214, 140) if lit else tuple(c * tone for c in glass)
        shine = 1.0 if lit else light
        y = floor * self.floor
        if floor == 0 and self.shop:
            self._quad(z + 0.1 * width, z + 0.9 * width, 0.5, 2.5, shade(pane, z, shine))
            self._quad(z, z + width, 2.5, 3.0, shade(self.awning, z, light))
            return
        a, b = z + 0.24 * width, z + 0.76 * width
        is_door = floor == 0 and column == self.door
        low, high = (0.0, 2.3) if is_door else (y + 0.9, y + 2.4)
        if z < 50:
            color = shade(self.frame, z, light * 1.05)
            self._quad(a - 0.14, b + 0.14, low - 0.12, high + 0.12, color)
        if is_door:
            pane, shine = (94, 62, 46), light
        self._quad(a, b, low, high, shade(pane, z, shine))
        if z < 30:
            m = (a + b) / 2
            self._quad(m - 0.04, m + 0.04, low, high, shade(self.frame, z, light))
        if self.balcony[floor, column] and floor:
            self._quad(a - 0.3, b + 0.3, y + 0.2, y + 1.0, shade((70, 70, 76), z, light))


def add_house(scene: Scene, side: int, line: float, near: float, far: float) -> None:
    """A house whose wall on the pavement runs along x = line from z = near to far."""
    rng = scene.rng
    color = scene.pick(FACADES)
    floors = int(rng.integers(2, 6))
    floor = rng.uniform(2.9, 3.5)
    columns = max(2, round((far - near) / rng.uniform(2.2, 3.2)))
    shop = rng.uniform() < 0.45
    awning = scene.pick(CLOTHES)
    gable = scene.pick([(120, 70, 56), (86, 84, 88), (98, 76, 66)], 10)
    shape = (floors, columns)
    house = _House(
        scene, side, line, near, far, color, floors, floor, columns, shop, awning, gable,
        lit=rng.uniform(size=shape) < scene.style.lit_windows,
        tone=rng.uniform(0.75, 1.35, size=shape),
        balcony=rng.uniform(size=shape) < rng.choice([0, 0, 0.3]),
        door=int(rng.integers(columns)),
    )  # fmt: skip
    scene.add(max(near, NEAR), house.paint, layer=0)


def add_garden(scene: Scene, side: int, line: float, near: float, far: float) -> None:
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
        if far < NEAR:
            return
        start, middle = max(near, NEAR), (max(near, NEAR) + far) / 2
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

    scene.add(max(near, NEAR) * 0.999, paint, layer=0)
    green = scene.pick([(78, 112, 52), (98, 120, 58), (66, 96, 54)], 14)
    for _ in range(rng.integers(2, 5)):
        z = rng.uniform(near, far)
        x = line + side * rng.uniform(2, 9)
        if z <= 3:
            continue
        if rng.uniform() < 0.6:
            add_tree(scene, x, z, rng.uniform(5, 11), green, layer=0)
        else:
            w, h = rng.uniform(1.5, 4), rng.uniform(1.2, 3)
            scene.add(z, lambda x=x, z=z, w=w, h=h: paint_bush(scene, x, z, w, h, green), layer=0)


def _paint_leaves(
    scene: Scene, x: float, y: float, rx: float, ry: float, z: float, color: Color, count: int
) -> None:
    """Leaves: dark blobs behind, light ones towards the sun; x, y in pixels."""
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


def paint_bush(scene: Scene, x: float, z: float, w: float, h: float, color: Color) -> None:
    px, py = scene.at(x, h / 2, z)
    s = scene.scale(z)
    _paint_leaves(scene, px, py, s * w / 2, s * h / 2, z, color, 14 if s * h > 12 else 7)


def add_tree(scene: Scene, x: float, z: float, height: float, color: Color, layer: int = 1) -> None:
    wide = scene.rng.uniform(0.5, 0.72)
    trunk_fraction = scene.rng.uniform(0.3, 0.42)
    bark = scene.pick([(92, 74, 58), (104, 92, 78)], 8)

    def paint():
        s = scene.scale(z)
        trunk = 0.016 * height + 0.06
        x0, y0 = scene.at(x, 0, z)
        _, y1 = scene.at(x, height * trunk_fraction * 1.4, z)
        points = [(x0 - 1.3 * s * trunk, y0), (x0 - s * trunk, y1), (x0 + s * trunk, y1)]
        points.append((x0 + 1.3 * s * trunk, y0))
        scene.canvas.polygon(points, scene.shade(bark, z, 0.9), "vegetation")
        scene.canvas.polygon(
            [(x0, y0), (x0, y1), (x0 + s * trunk, y1), (x0 + 1.3 * s * trunk, y0)],
            scene.shade(bark, z, 0.7),
        )
        crown = height * (1 - trunk_fraction)
        _, yc = scene.at(x, height - crown / 2, z)
        count = int(np.clip(s * height / 5, 10, 46))
        _paint_leaves(scene, x0, yc, s * crown * wide, s * crown / 2, z, color, count)

    scene.add(z, paint, layer)


def add_lamp(scene: Scene, x: float, z: float, side: int) -> None:
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


def add_sign(scene: Scene, x: float, z: float) -> None:
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


def add_traffic_light(scene: Scene, x: float, z: float, side: int) -> None:
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


def add_person(scene: Scene, x: float, z: float) -> None:
    rng = scene.rng
    tall = rng.uniform(1.5, 1.9) if rng.uniform() < 0.85 else rng.uniform(1.0, 1.35)
    stride = rng.uniform(-0.9, 0.9)
    coat, trousers = scene.pick(CLOTHES), scene.pick([(44, 52, 76), (60, 58, 56), (120, 106, 86)])
    skin, hair = scene.pick(SKINS, 6), scene.pick([(42, 32, 26), (96, 66, 38), (150, 140, 130)], 8)
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
