"""Bicycles, motorcycles, cars, trucks and buses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hrnet_jax.data.synthetic.canvas import CLOTHES, LABEL_IDS, PAINTS, SKINS, Color, Point, Scene


def add_bicycle(scene: Scene, x: float, z: float, *, rider: bool, motor: bool = False) -> None:
    """A bicycle or motorcycle seen at an angle, with or without its rider."""
    rng = scene.rng
    turn = rng.uniform(0.55, 0.95) * rng.choice([-1, 1])  # how much of its side is seen
    frame, coat = scene.pick(PAINTS), scene.pick(CLOTHES)
    skin, helmet = scene.pick(SKINS, 6), scene.pick(PAINTS)
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
            c.mark.ellipse(
                (
                    wx - abs(turn) * 0.34 * s,
                    wy - 0.34 * s,
                    wx + abs(turn) * 0.34 * s,
                    wy + 0.34 * s,
                ),
                fill=LABEL_IDS[name],
            )
            tire = scene.shade((26, 26, 28), z)
            c.ring(wx, wy, abs(turn) * 0.34 * s, 0.34 * s, tire, max(0.8, (thick + 0.02) * s))
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


def _wheel(scene: Scene, x: float, z: float, name: str, r: float = 0.33) -> None:
    for part, color in ((1.0, (24, 24, 26)), (0.58, (150, 152, 156)), (0.2, (60, 60, 64))):
        angles = [2 * math.pi * k / 14 for k in range(14)]
        points = [
            scene.at(x, r + part * r * math.sin(a), z + part * r * math.cos(a)) for a in angles
        ]
        scene.canvas.polygon(points, scene.shade(color, z), name if part == 1.0 else None)


@dataclass(frozen=True)
class _Car:
    """A car from behind (`rear`) or from the front, with the side that the camera sees.

    Attributes:
        x: of its middle.
        z: of its near end.
        rear: whether the near end is its back.
        color: of the body.
        high: height.
        half: half the width.
        length: length.
        estate: whether the roof reaches to the back.
    """

    scene: Scene
    x: float
    z: float
    rear: bool
    color: Color
    high: float
    half: float
    length: float
    estate: bool

    @property
    def inner(self) -> int:
        """The side that the camera sees: -1 left, 1 right."""
        return -1 if self.x > self.scene.camera_x else 1

    @property
    def belt(self) -> float:
        """Height of the lower edge of the windows."""
        return 0.56 * self.high

    @property
    def slim(self) -> float:
        """Half the width of the roof."""
        return self.half - 0.17

    @property
    def near_deck(self) -> float:
        """Length of the trunk or engine hood at the near end."""
        return 0.25 if self.estate and self.rear else (0.75 if self.rear else 1.15)

    @property
    def far_deck(self) -> float:
        """The same at the far end."""
        return 1.15 if self.rear else (0.25 if self.estate else 0.75)

    @property
    def roof(self) -> tuple[float, float]:
        """Where the roof begins and ends, from the near end."""
        return self.near_deck + 0.5, self.length - self.far_deck - 0.65

    def paint(self) -> None:
        half, length = self.half, self.length
        shadow = [(-half - 0.1, 0, -0.15), (half + 0.1, 0, -0.15), (half + 0.1, 0, length),
                  (-half - 0.1, 0, length)]  # fmt: skip
        self._face(shadow, self._shade((40, 40, 44), 0.9))
        self._paint_side()
        self._paint_top()
        self._paint_end()

    def _shade(self, color: Color, factor: float = 1.0) -> Color:
        return self.scene.shade(color, self.z, factor)

    @property
    def _glass(self) -> Color:
        return self._shade((46, 56, 70))

    def _side(self, points: Sequence[Point], tint: Color, name: str | None = None) -> None:
        """A polygon on the side, of (distance from the near end, height)."""
        corners = []
        for dz, y in points:
            w = self.half
            if y > self.belt + 0.05:
                w = self.half - 0.17 * (y - self.belt) / (self.high - self.belt)
            corners.append(self.scene.at(self.x + self.inner * w, y, self.z + dz))
        self.scene.canvas.polygon(corners, tint, name)

    def _face(self, points: Sequence[tuple], tint: Color, name: str | None = None) -> None:
        """A polygon of (distance from the middle, height, distance from the near end)."""
        corners = [self.scene.at(self.x + u, y, self.z + dz) for u, y, dz in points]
        self.scene.canvas.polygon(corners, tint, name)

    def _paint_side(self) -> None:
        scene, length, high, belt = self.scene, self.length, self.high, self.belt
        near_deck, far_deck, (roof_near, roof_far) = self.near_deck, self.far_deck, self.roof
        light = scene.style.sun if self.inner == scene.sun_side else 0.86
        # Bumper, deck, window, roof, window, deck.
        profile = [(0, 0.22), (0, belt - 0.04), (near_deck, belt + 0.02), (roof_near, high - 0.02),
                   (roof_far, high), (length - far_deck, belt + 0.04), (length, belt - 0.12),
                   (length, 0.22)]  # fmt: skip
        self._side(profile, self._shade(self.color, light), "car")
        panes = [(near_deck + 0.22, belt + 0.06), (roof_near + 0.1, high - 0.12),
                 (roof_far - 0.05, high - 0.1), (length - far_deck - 0.2, belt + 0.07)]  # fmt: skip
        self._side(panes, self._glass)
        middle = (roof_near + roof_far) / 2
        pillar = [(middle - 0.06, belt), (middle - 0.06, high - 0.08), (middle + 0.06, high - 0.08),
                  (middle + 0.06, belt)]  # fmt: skip
        self._side(pillar, self._shade(self.color, light * 0.8))
        sill = [(0.1, 0.22), (0.1, 0.32), (length - 0.1, 0.32), (length - 0.1, 0.22)]
        self._side(sill, self._shade(self.color, light * 0.5))
        for dz in (0.75, length - 0.8):
            _wheel(scene, self.x + self.inner * (self.half + 0.01), self.z + dz, "car")

    def _paint_top(self) -> None:
        """Roof, near window, and the trunk or engine hood."""
        half, slim, high, belt, deck = self.half, self.slim, self.high, self.belt, self.near_deck
        roof_near, roof_far = self.roof
        self._face([(-slim, high - 0.02, roof_near), (slim, high - 0.02, roof_near),
                    (slim, high, roof_far), (-slim, high, roof_far)],
                   self._shade(self.color, 1.08), "car")  # fmt: skip
        self._face([(-half, belt + 0.02, deck), (half, belt + 0.02, deck),
                    (slim, high - 0.02, roof_near), (-slim, high - 0.02, roof_near)],
                   self._shade(self.color, 0.98), "car")  # fmt: skip
        self._face([(-half + 0.1, belt + 0.07, deck + 0.05), (half - 0.1, belt + 0.07, deck + 0.05),
                    (slim - 0.06, high - 0.1, roof_near - 0.06),
                    (-slim + 0.06, high - 0.1, roof_near - 0.06)], self._glass)  # fmt: skip
        self._face([(-half, belt - 0.04, 0), (half, belt - 0.04, 0), (half, belt + 0.02, deck),
                    (-half, belt + 0.02, deck)], self._shade(self.color, 1.12), "car")  # fmt: skip

    def _paint_end(self) -> None:
        """The end that faces the camera, with tires, lamps and number plate."""
        half, belt = self.half, self.belt
        for u in (-half + 0.2, half - 0.2):  # tires under the bumper
            self._face([(u - 0.13, 0, 0.1), (u + 0.13, 0, 0.1), (u + 0.13, 0.3, 0.1),
                        (u - 0.13, 0.3, 0.1)], self._shade((24, 24, 26)), "car")  # fmt: skip
        end = [(-half, 0.26), (-half, belt - 0.1), (-half + 0.08, belt - 0.03),
               (half - 0.08, belt - 0.03), (half, belt - 0.1), (half, 0.26),
               (half - 0.1, 0.2), (-half + 0.1, 0.2)]  # fmt: skip
        self._face([(u, y, 0) for u, y in end], self._shade(self.color, 0.9), "car")
        self._face([(-half + 0.04, 0.24, 0), (half - 0.04, 0.24, 0), (half, 0.42, 0),
                    (-half, 0.42, 0)], self._shade(self.color, 0.58))  # fmt: skip
        lamp = (206, 26, 30) if self.rear else (250, 246, 226)
        if self.rear and self.scene.style.lit_windows > 0.3:
            lamp = (255, 60, 50)
        for u in (-1, 1):
            self._face([(u * half, belt - 0.26, 0), (u * (half - 0.3), belt - 0.26, 0),
                        (u * (half - 0.3), belt - 0.1, 0), (u * half, belt - 0.1, 0)],
                       self._shade(lamp))  # fmt: skip
        self._face([(-0.26, 0.46, 0), (0.26, 0.46, 0), (0.26, 0.57, 0), (-0.26, 0.57, 0)],
                   self._shade((236, 236, 226)))  # fmt: skip
        if not self.rear:
            self._face([(-0.45, belt - 0.24, 0), (0.45, belt - 0.24, 0), (0.45, belt - 0.12, 0),
                        (-0.45, belt - 0.12, 0)], self._shade((40, 42, 46)))  # fmt: skip


def add_car(scene: Scene, x: float, z: float, *, rear: bool) -> None:
    """A car from behind (`rear`) or from the front."""
    rng = scene.rng
    color = scene.pick(PAINTS, 10)
    high = rng.uniform(1.38, 1.72)
    half = rng.uniform(0.84, 0.92)
    length = rng.uniform(3.8, 4.5)
    estate = rng.uniform() < 0.4
    scene.add(z, _Car(scene, x, z, rear, color, high, half, length, estate).paint)


def add_truck_or_bus(
    scene: Scene, x: float, z: float, length: float, name: str, *, rear: bool
) -> None:
    """A truck or a bus, from behind (`rear`) or from the front."""
    rng = scene.rng
    bus = name == "bus"
    color = scene.pick([(206, 52, 40), (236, 190, 50), (60, 110, 170)] if bus else PAINTS, 8)
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
