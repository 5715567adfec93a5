"""What stands in a synthetic landslide scene: terrain, land use, rivers, roads, houses, bare ground and landslides, as plain data.

`plan_scene` decides everything from a generator; `data/scene_render.py` draws any window of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np

from data.noise import Noise, Window

Kind = Literal["bijie", "southwest", "negative"]
Colour = tuple[float, float, float]  # RGB in [0, 255]

# Land covers of real sources, looked up on the images: forest in shade and light, grass, soil, landslide scar, and how much forest there is.
PALETTES: tuple[tuple[str, Colour, Colour, Colour, Colour, Colour, float], ...] = (
    # name        forest dark    forest light   grass           soil             scar            forest share
    ("lush", (34, 54, 32), (66, 92, 52), (88, 108, 64), (146, 122, 88), (186, 162, 128), 0.75),
    ("bijie", (38, 56, 40), (70, 84, 56), (90, 98, 68), (128, 112, 84), (172, 146, 108), 0.6),
    ("teal", (30, 62, 58), (62, 100, 84), (86, 122, 98), (140, 138, 118), (196, 196, 180), 0.85),
    ("autumn", (52, 52, 36), (94, 86, 52), (112, 104, 66), (140, 118, 82), (184, 158, 118), 0.5),
    ("dry", (62, 54, 42), (96, 82, 60), (124, 104, 76), (142, 116, 86), (186, 164, 134), 0.2),
    ("alpine", (50, 52, 44), (78, 80, 64), (104, 100, 82), (120, 112, 98), (172, 166, 154), 0.25),
    ("red soil", (40, 62, 40), (72, 98, 56), (94, 112, 70), (132, 104, 84), (158, 122, 98), 0.55),
    ("loess", (66, 64, 40), (104, 98, 58), (142, 126, 78), (168, 142, 92), (206, 180, 124), 0.25),
)
# The fields of noise of a scene: of its terrain, its ground, its land use, its bare patches and its landslides.
HILLS, CRESTS, ROUGH, FINE, BROAD, USE, BEND, QUARRY, BENCHES, RAGGED, DEBRIS, GRAVEL = range(12)
SHIFT = 4  # fractional bits of drawn coordinates

ROOFS: tuple[Colour, ...] = ((188, 186, 180), (150, 148, 146), (212, 210, 204), (92, 116, 176), (136, 92, 78), (104, 100, 98), (170, 160, 150))
CROPS: tuple[Colour, ...] = ((92, 116, 62), (112, 126, 72), (74, 100, 58), (132, 122, 84), (120, 104, 80), (146, 132, 100), (96, 92, 70), (108, 138, 78))


@dataclass(frozen=True)
class Look:
    """Light, season and camera of one scene."""

    palette: tuple[str, Colour, Colour, Colour, Colour, Colour, float]
    sun: tuple[float, float, float]  # unit vector to the sun; x right, y down, z up
    ambient: float  # light in full shade, in shares of full light
    relief: float  # root mean square slope of the terrain
    metres: float  # ground size of a pixel
    crown: float  # tree crown diameter in pixels
    forest: float  # share of ground under trees
    farmland: float  # share of gentle ground used as fields
    terraces: bool  # fields follow the contour lines; otherwise they are parcels
    field_angle: float  # radians
    gain: tuple[float, float, float]  # per channel RGB
    haze: tuple[float, float, float]  # added light per channel RGB, in grey levels
    contrast: float  # exponent of the light
    blur: float  # sigma of the optics in pixels


@dataclass(frozen=True)
class Line:
    """A road, path or river."""

    points: np.ndarray  # (n, 2) float32, scene pixels
    width: float
    colour: Colour
    kind: Literal["road", "motorway", "path", "river"]


@dataclass(frozen=True)
class House:
    """A building."""

    corners: np.ndarray  # (4, 2) float32, scene pixels
    roof: Colour
    height: float  # pixels


@dataclass(frozen=True)
class Patch:
    """Bare ground that is no landslide: a quarry, a building site, a clearing."""

    outline: np.ndarray  # (n, 2) int32, scene pixels
    colour: Colour
    benches: float  # spacing of quarry benches in pixels, 0 = none
    angle: float


@dataclass(frozen=True)
class Slide:
    """One landslide."""

    outline: np.ndarray  # (n, 2) int32, scene pixels: the exact mask is this polygon, border included
    head: tuple[float, float]
    toe: tuple[float, float]
    streaks: tuple[tuple[np.ndarray, float, int], ...]  # flow lines: points (n, 2) int32 in 2^-SHIFT pixels, brightness in [-1, 1], width in pixels
    colour: Colour
    age: float  # 0 = fresh, 1 = grown over
    depth: float  # how far the scarp drops and the fan rises, in pixels

    @property
    def box(self) -> tuple[int, int, int, int]:
        """xyxy in scene pixels, right and bottom exclusive."""
        return _box(self.outline)


@dataclass(frozen=True)
class Scene:
    """Everything needed to draw any window of a scene."""

    width: int
    height: int
    look: Look
    noise: Noise
    terrain: np.ndarray  # height in pixels on a grid of `step` pixels that begins `pad` cells outside the scene
    step: int
    pad: int
    lines: list[Line] = field(default_factory=list)
    houses: list[House] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)
    slides: list[Slide] = field(default_factory=list)

    def cell(self, x: float, y: float) -> tuple[int, int]:
        """Row and column of the terrain cell that holds a scene point."""
        rows, columns = self.terrain.shape
        return min(max(int(y / self.step) + self.pad, 0), rows - 1), min(max(int(x / self.step) + self.pad, 0), columns - 1)


def plan_scene(rng: np.random.Generator, width: int, height: int, kind: Kind, slides: int | None = None) -> Scene:
    """Decide a scene of width x height pixels (at least 64 each); `slides` asks for a number of landslides, None draws it by kind.

    A positive kind always gets at least one landslide, at least half inside the scene.
    """
    look = _draw_look(rng, kind)
    noise = Noise(rng)
    step = 4 if max(width, height) <= 2048 else 8
    pad = 12
    grid = (-pad, -pad, -(-width // step) + 2 * pad, -(-height // step) + 2 * pad)
    area = width * height / 160_000  # how many 400 x 400 crops it would make
    rivers = [_river(rng, width, height, look) for _ in range(rng.poisson(0.25 * np.sqrt(area)))]
    terrain = _terrain(rng, noise, grid, step, look, rivers)
    scene = Scene(width, height, look, noise, terrain, step, pad)
    scene.lines.extend(rivers)
    slope_y, slope_x = np.gradient(cv2.GaussianBlur(terrain, (0, 0), 2.5), step)
    gradient = np.stack([slope_x, slope_y], -1).astype(np.float32)
    built = 0.75 if kind == "bijie" else 0.3 if kind == "southwest" else 0.6
    for _ in range(min(rng.poisson(built * np.sqrt(area) * 1.2), 60)):
        scene.lines.append(_road(rng, scene, gradient))
    _add_houses(rng, scene, int(rng.poisson(built * area * (4 if kind != "negative" else 16) * (rng.random() < 0.6))))
    for _ in range(rng.poisson((0.35 if kind == "negative" else 0.15) * area)):
        scene.patches.append(_bare_patch(rng, scene))
    if kind != "negative":
        _add_slides(rng, scene, gradient, kind, slides)
    return scene


def _within(value: float, low: float, high: float) -> float:
    """The value, or the limit that it exceeds; of a single number ten times as fast as numpy's clip."""
    return float(min(max(value, low), high))


def _draw_look(rng: np.random.Generator, kind: Kind) -> Look:
    weights = {"bijie": (3, 5, 1, 2, 0.5, 0.5, 2, 1), "negative": (3, 5, 1, 2, 0.7, 0.7, 2, 1), "southwest": (3, 1, 2, 1, 2.5, 2, 0.7, 1)}[kind]
    palette = PALETTES[rng.choice(len(PALETTES), p=np.array(weights) / sum(weights))]
    azimuth, elevation = rng.uniform(0, 2 * np.pi) if rng.random() < 0.3 else rng.normal(-2.2, 0.5), rng.uniform(0.6, 1.1)
    metres = float(rng.uniform(0.5, 1.1) if kind != "southwest" else rng.uniform(1.0, 3.2))
    dark = rng.uniform(0.5, 0.8) if rng.random() < 0.3 else rng.uniform(0.8, 1.12)
    hazy = rng.uniform(10, 34) if rng.random() < 0.25 else rng.uniform(0, 8)
    cast = np.exp(rng.normal(0, 0.04, 3)) * dark
    return Look(
        palette=palette,
        sun=(float(np.cos(azimuth) * np.cos(elevation)), float(np.sin(azimuth) * np.cos(elevation)), float(np.sin(elevation))),
        ambient=float(rng.uniform(0.22, 0.5)),
        relief=float(rng.uniform(0.2, 0.5) if kind != "southwest" else rng.uniform(0.45, 1.0)),
        metres=metres,
        crown=_within(rng.uniform(4.0, 7.0) / metres, 2.6, 11),
        forest=_within(palette[6] + rng.normal(0, 0.2), 0.02, 0.98),
        farmland=_within(rng.normal(0.35 if kind == "negative" else 0.15 if kind == "bijie" else 0.0, 0.25), 0, 0.9),
        terraces=bool(rng.random() < 0.6),
        field_angle=float(rng.uniform(0, np.pi)),
        gain=(float(cast[0]), float(cast[1]), float(cast[2])),
        haze=(float(hazy * 0.85), float(hazy), float(hazy * 1.1)),
        contrast=float(rng.uniform(0.85, 1.15)),
        blur=float(rng.uniform(0.3, 0.9) if rng.random() < 0.8 else rng.uniform(0.9, 1.5)),
    )


# ---------------------------------------------------------------------------------------------- terrain, lines, houses, bare ground


def _terrain(rng: np.random.Generator, noise: Noise, grid: Window, step: int, look: Look, rivers: list[Line]) -> np.ndarray:
    """Height (rows, columns) float32 in pixels: hills and crests, valleys cut along the rivers, root mean square slope `look.relief`."""
    period = int(rng.choice([32, 64, 64, 64] if look.metres > 1 else [16, 32, 64])) * 4 // step
    hills = noise.fractal(grid, period * 2, 3, HILLS)
    crests = noise.fractal(grid, period, 5, CRESTS, gain=0.47, ridged=True)
    share = np.float32(rng.uniform(0.25, 0.75))
    height = hills * (1 - share) * 1.6 + crests * share
    # A general tilt gives long slopes for long landslides.
    tilt, steep = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.5) / period
    rows, columns = np.mgrid[0 : grid[3], 0 : grid[2]].astype(np.float32)
    height += np.float32(steep * np.cos(tilt)) * columns + np.float32(steep * np.sin(tilt)) * rows
    for river in rivers:
        dry = np.full(height.shape, 255, np.uint8)
        cv2.polylines(dry, [np.round(river.points / step - grid[0]).astype(np.int32)], False, 0, 1)
        away = cv2.distanceTransform(dry, cv2.DIST_L2, 5)
        reach = np.float32(rng.uniform(0.5, 1.0) * period)
        height = height * (1 - np.exp(-away / (0.3 * reach))) - np.float32(1.2) * np.exp(-away / reach)
    slope_y, slope_x = np.gradient(height)
    rms = float(np.sqrt((slope_x**2 + slope_y**2).mean()))
    # Smoothed by a cell: crests are kinks, and enlarging a kink shows the grid.
    return cv2.GaussianBlur(height * np.float32(look.relief * step / max(rms, 1e-6)), (0, 0), 1.0).astype(np.float32)


def _wander(rng: np.random.Generator, count: int, scale: float) -> np.ndarray:
    """A smooth random curve (count,) of about unit height, changing over `scale` of its length."""
    knots = rng.normal(0, 1, max(int(round(1 / scale)) + 3, 4))
    straight = np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(knots)), knots)
    return cv2.GaussianBlur(straight[None], (0, 0), max(0.4 * count * scale, 0.5), borderType=cv2.BORDER_REPLICATE)[0]


def _river(rng: np.random.Generator, width: int, height: int, look: Look) -> Line:
    angle, reach = rng.uniform(0, 2 * np.pi), float(np.hypot(width, height))
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    middle = np.array([width, height]) / 2 + across * rng.uniform(-0.42, 0.42) * min(width, height)
    t = np.linspace(-0.75, 0.75, max(int(reach / 10), 24))
    bends = min(200 / reach, 0.3)  # a bend about every 200 pixels, or three in all
    bend = 0.09 * min(reach, 800) * (_wander(rng, len(t), bends) + 0.3 * _wander(rng, len(t), bends / 3)) + 0.1 * reach * _wander(rng, len(t), 0.3)
    points = middle + along * t[:, None] * reach + across * bend[:, None]
    colour = [(58, 78, 62), (74, 92, 88), (110, 118, 104), (44, 66, 72), (136, 128, 106)][rng.integers(5)]
    return Line(points.astype(np.float32), _within(rng.uniform(6, 28) / look.metres, 3, 40), colour, "river")


def _road(rng: np.random.Generator, scene: Scene, gradient: np.ndarray) -> Line:
    """A road that prefers to run along the contour lines, or a straight motorway."""
    look = scene.look
    kind: Literal["road", "motorway", "path"] = ("road", "path", "motorway")[int(rng.choice(3, p=(0.55, 0.37, 0.08)))]
    metres = {"road": rng.uniform(5, 8), "path": rng.uniform(2.2, 4), "motorway": rng.uniform(18, 24)}[kind]
    if kind == "motorway" and look.metres > 1.2:
        kind, metres = "road", 7.0
    colour = [(196, 190, 174), (208, 204, 196), (168, 146, 114), (150, 148, 142)][rng.integers(4)] if kind != "motorway" else (112, 112, 112)
    start = rng.uniform(0.1, 0.9, 2) * (scene.width, scene.height)
    heading = rng.uniform(0, 2 * np.pi)
    hug = {"road": 0.29, "path": 0.24, "motorway": 0.0}[kind]
    arms = [_follow(rng, scene, gradient, start, heading + turn, hug) for turn in (0.0, np.pi)]
    points = np.concatenate([arms[1][::-1], arms[0][1:]])
    width = _within(metres / look.metres, 1.2, 60)
    return Line(points.astype(np.float32), width, colour, kind)


def _follow(rng: np.random.Generator, scene: Scene, gradient: np.ndarray, start: np.ndarray, heading: float, hug: float) -> np.ndarray:
    stride = 10.0
    (x, y), drift, home = start.tolist(), 0.0, heading
    points = [(x, y)]
    count = int(1.5 * max(scene.width, scene.height) / stride)
    jitter = rng.normal(0, 1, count).tolist()
    for i in range(count):
        gx, gy = gradient[scene.cell(x, y)].tolist()
        steep = math.hypot(gx, gy)
        if steep > 1e-6 and hug:
            turn = (math.atan2(gx, -gy) - heading + math.pi / 2) % math.pi - math.pi / 2
            heading += min(max(turn, -1.0), 1.0) * hug * min(steep * 2, 1)
        drift = 0.84 * drift + (0.058 if hug else 0.004) * jitter[i]
        heading += drift * (1 if hug else 0.3) + 0.09 * (home - heading)  # it wants to get somewhere: no loops
        x, y = x + stride * math.cos(heading), y + stride * math.sin(heading)
        points.append((x, y))
        if not (-40 < x < scene.width + 40 and -40 < y < scene.height + 40):
            break
    return np.array(points)


def _add_houses(rng: np.random.Generator, scene: Scene, count: int) -> None:
    roads = [line for line in scene.lines if line.kind in ("road", "path")]
    centres: list[tuple[float, float]] = []
    metres = scene.look.metres
    while count > 0:
        cluster = min(int(rng.integers(1, 14)), count)
        count -= cluster
        if roads and rng.random() < 0.8:
            road = roads[rng.integers(len(roads))]
            centre = road.points[rng.integers(len(road.points))].astype(float)
        else:
            centre = rng.uniform(0, 1, 2) * (scene.width, scene.height)
        angle = rng.uniform(0, np.pi)
        for _ in range(cluster):
            size = rng.uniform((8, 6), (18, 11)) / metres
            place = centre + rng.normal(0, 9 + 6 * np.sqrt(cluster), 2) / metres * 1.4
            turn = angle + rng.normal(0, 0.15) + (np.pi / 2 if rng.random() < 0.4 else 0)
            across = np.array([np.cos(turn), np.sin(turn)])
            along = np.array([-across[1], across[0]])
            corners = place + np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) @ np.stack([across * size[0], along * size[1]]) / 2
            near = min((np.hypot(*(road.points - place).T).min() - road.width for road in roads), default=1e9)
            (x, y), room = place.tolist(), 0.5 * float(size.max()) + 4 / metres
            if near < size[1] / 2 or any(abs(x - other_x) < room and abs(y - other_y) < room for other_x, other_y in centres[-40:]):
                continue
            centres.append((x, y))
            scene.houses.append(House(corners.astype(np.float32), ROOFS[rng.integers(len(ROOFS))], float(rng.uniform(3, 8) / metres)))


def _bare_patch(rng: np.random.Generator, scene: Scene) -> Patch:
    """A round-edged or angular patch of bare ground that ignores the slope."""
    size = np.exp(rng.uniform(np.log(14), np.log(70))) / scene.look.metres
    count = 48 if rng.random() < 0.6 else int(rng.integers(4, 7))
    angle = np.sort(rng.uniform(0, 2 * np.pi, count)) if count < 8 else np.linspace(0, 2 * np.pi, count, endpoint=False)
    ring = _wander(rng, count, 0.12)
    radius = size * np.clip(1 + 0.45 * (ring + (ring[0] - ring[-1]) * np.linspace(0, 1, count)), 0.3, 2)
    stretch = rng.uniform(0.4, 0.9)
    points = np.stack([np.cos(angle) * radius, np.sin(angle) * radius * stretch], -1)
    turn = rng.uniform(0, np.pi)
    points = points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + rng.uniform(0, 1, 2) * (scene.width, scene.height)
    soil = np.array(scene.look.palette[4 if rng.random() < 0.6 else 5]) * rng.uniform(0.85, 1.2) + rng.normal(0, 3, 3)
    benches = float(rng.uniform(5, 12) / scene.look.metres) if rng.random() < 0.5 else 0.0
    return Patch(np.round(points).astype(np.int32), _colour(soil), benches, float(turn))


def _colour(values: np.ndarray) -> Colour:
    r, g, b = values.tolist()
    return _within(r, 0, 255), _within(g, 0, 255), _within(b, 0, 255)


# ---------------------------------------------------------------------------------------------- landslides


def _add_slides(rng: np.random.Generator, scene: Scene, gradient: np.ndarray, kind: Kind, wanted: int | None) -> None:
    side = min(scene.width, scene.height)
    clustered = wanted is None and kind == "southwest" and rng.random() < 0.2
    if wanted is None:
        wanted = int(rng.integers(5, 15)) if clustered else int(rng.choice([1, 2, 3], p=(0.75, 0.2, 0.05) if kind == "bijie" else (0.55, 0.3, 0.15)))
    low, high = (0.1, 0.25) if clustered else (0.2, 0.75) if kind == "bijie" else (0.4, 0.95)
    if side > 1024:
        low, high = 0.02 * 1024 / side, 0.45 * 1024 / side
    warmth = rng.normal(0, 6)
    geology = np.array(scene.look.palette[5]) * rng.uniform(0.95, 1.2) + np.array([warmth, 0, -warmth])
    for attempt in range(wanted * 8 + 40):
        if len(scene.slides) >= wanted or (attempt >= wanted * 8 and scene.slides):
            break
        length = max(np.exp(rng.uniform(np.log(low), np.log(high))) * side * (0.97**attempt if wanted < 20 else 1), 14.0)
        slide = _slide(rng, scene, gradient, length, geology)
        if slide is not None:
            scene.slides.append(slide)


def _box(outline: np.ndarray) -> tuple[int, int, int, int]:
    """xyxy around a drawn outline, right and bottom exclusive."""
    (left, top), (right, bottom) = outline.min(0), outline.max(0) + 1
    return int(left), int(top), int(right), int(bottom)


def filled(outline: np.ndarray, window: Window) -> np.ndarray:
    """Mask (h, w) uint8, 255 inside the outline (k, 2), of `window`: drawn whole and then cut, since OpenCV rounds what it clips differently."""
    left, top, width, height = window
    low = np.minimum(outline.min(0), (left, top))
    high = np.maximum(outline.max(0) + 1, (left + width, top + height))
    canvas = np.zeros((int(high[1] - low[1]), int(high[0] - low[0])), np.uint8)
    cv2.fillPoly(canvas, [outline - low], 255)
    x, y = left - int(low[0]), top - int(low[1])
    return canvas[y : y + height, x : x + width]


def visible_box(slide: Slide, width: int, height: int) -> tuple[int, int, int, int] | None:
    """Box of the part of a landslide that lies in a width x height scene, right and bottom exclusive; None where nothing does."""
    left, top, right, bottom = slide.box
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if right <= left or bottom <= top:
        return None
    x, y, w, h = cv2.boundingRect(filled(slide.outline, (left, top, right - left, bottom - top)))
    return (left + x, top + y, left + x + w, top + y + h) if w and h else None


def _touch(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    """Whether two boxes come within 3 pixels of each other: neighbours would join into one region of the mask."""
    return a[0] - 3 < b[2] and b[0] - 3 < a[2] and a[1] - 3 < b[3] and b[1] - 3 < a[3]


def _slide(rng: np.random.Generator, scene: Scene, gradient: np.ndarray, length: float, geology: np.ndarray) -> Slide | None:
    """A landslide of about `length` pixels from the steepest of some random heads down the slope; None where that finds no room."""
    size = np.array([scene.width, scene.height], float)
    heads = rng.uniform(0.06, 0.94, (12, 2)) * size
    column, row = (heads / scene.step + scene.pad).astype(int).T
    head = heads[int(np.argmax(np.hypot(*gradient[row, column].T) * rng.uniform(0.5, 1, 12)))]
    path = _descend(gradient, scene, head, length)
    if len(path) < 12 or ((path[-1] < -0.1 * length) | (path[-1] > size + 0.1 * length)).any():
        return None
    around = _box(np.round(path).astype(np.int32))
    if any(_touch(around, other.box) for other in scene.slides):
        return None
    slim = rng.random() < (0.65 if scene.look.metres > 1.1 else 0.4)
    half = length * (rng.uniform(0.06, 0.11) if slim else rng.uniform(0.14, 0.28))
    arms = [(path, half, _profile(rng, len(path), slim))]
    for _ in range(rng.integers(0, 4) if slim else rng.integers(0, 2)):  # further scars that run into the main one
        aside = path[int(rng.uniform(0, 0.35) * len(path))] + rng.normal(0, 1, 2) * half * (2.5 if slim else 1.2)
        branch = _descend(gradient, scene, aside, length * rng.uniform(0.3, 0.6))
        if len(branch) >= 12:
            arms.append((branch, half * rng.uniform(0.4, 0.8), _profile(rng, len(branch), slim)))
    outline = _outline(rng, scene.noise, arms, half)
    if outline is None:
        return None
    inside = ((outline >= 0) & (outline < size)).all(1).mean()
    if inside < 0.7 or len(outline) < 8:
        return None
    box = _box(outline)
    if any(_touch(box, other.box) for other in scene.slides):
        return None
    age = float(rng.uniform(0.0, 0.25) if rng.random() < 0.7 else rng.uniform(0.3, 0.75))
    colour = _colour(geology * rng.uniform(0.93, 1.07))
    reach = path[-1]
    return Slide(outline, (float(path[0][0]), float(path[0][1])), (float(reach[0]), float(reach[1])), _streaks(rng, arms, half), colour, age,
                 float(half * rng.uniform(0.12, 0.3)))


def _descend(gradient: np.ndarray, scene: Scene, head: np.ndarray, length: float) -> np.ndarray:
    """The way (n, 2) of something that starts at `head` and runs down the slope with some inertia, `length` pixels long."""
    stride = max(length / 48, 1.0)
    (x, y), hx, hy = head.tolist(), 0.0, 0.0
    points = [(x, y)]
    for i in range(int(length / stride)):
        gx, gy = gradient[scene.cell(x, y)].tolist()
        steep, fresh = math.hypot(gx, gy) + 1e-6, 0.2 if i else 1.0
        hx, hy = (1 - fresh) * hx - fresh * gx / steep, (1 - fresh) * hy - fresh * gy / steep
        speed = math.hypot(hx, hy)
        if speed < 0.25:  # a hollow: it comes to rest
            break
        x, y = x + stride * hx / speed, y + stride * hy / speed
        points.append((x, y))
    return np.array(points)


def _profile(rng: np.random.Generator, count: int, slim: bool) -> np.ndarray:
    """Half width (count,) along the way, 1 at the widest: scarp, transport zone, fan."""
    s = np.linspace(0, 1, count)
    bowl = np.sqrt(np.clip(1 - ((s - 0.18) / 0.2) ** 2, 0, 1)) * rng.uniform(0.5, 1.0)
    neck = rng.uniform(0.25, 0.5) if slim else rng.uniform(0.6, 0.95)
    fan = rng.uniform(0.5, 1.3) * np.exp(-(((s - 0.85) / 0.16) ** 2))
    body = neck * np.clip(s / 0.08, 0, 1) ** 0.5
    width = np.maximum(np.maximum(bowl, body), fan) * np.sqrt(np.clip((1 - s) / 0.1, 0.02, 1))
    return width * (1 + 0.18 * _wander(rng, count, 0.12))


def _outline(rng: np.random.Generator, noise: Noise, arms: list[tuple[np.ndarray, float, np.ndarray]], half: float) -> np.ndarray | None:
    """The ragged outline (n, 2) int32 of the arms together, without holes; None where it would be a speck."""
    everything = np.concatenate([arm[0] for arm in arms])
    margin = int(3 * half) + 8
    corner = np.floor(everything.min(0)).astype(int) - margin
    shape = (np.ceil(everything.max(0)).astype(int) + margin - corner)[::-1]
    body = np.zeros(shape, np.uint8)
    for path, reach, profile in arms:
        middle = path + _normal(path) * (0.15 * reach * _wander(rng, len(path), 0.1))[:, None] - corner
        ends = np.round(middle * 8).astype(int).tolist()
        breadth = np.maximum(np.round(2 * reach * profile), 1).astype(int).tolist()
        for i in range(len(ends) - 1):
            cv2.line(body, ends[i], ends[i + 1], 255, breadth[i], cv2.LINE_8, 3)
    size = 2 * int(max(half * 0.15, 1)) + 1
    soft = cv2.blur(cv2.blur(body, (size, size)), (size, size))
    period = 1 << int(_within(math.log2(max(half * 0.7, 2)), 1, 6))
    rough = noise.fractal((int(corner[0]), int(corner[1]), int(shape[1]), int(shape[0])), period, 5, RAGGED, gain=0.7)
    # Ground belongs to it where soft (in [0, 255]) and 0.8 of the noise together exceed a half.
    ragged = cv2.addWeighted(rough, 0.8 * 255, rough, 0, 128, dtype=cv2.CV_8U)
    body = cv2.threshold(cv2.addWeighted(soft, 0.5, ragged, 0.5, 0), 128, 1, cv2.THRESH_BINARY)[1]
    contours, _ = cv2.findContours(body, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return None
    largest = max(contours, key=cv2.contourArea)
    return (largest[:, 0] + corner).astype(np.int32) if cv2.contourArea(largest) >= 60 else None


def _normal(path: np.ndarray) -> np.ndarray:
    """Unit vectors (n, 2) across a path (n, 2)."""
    along = np.empty_like(path)
    along[1:-1], along[0], along[-1] = path[2:] - path[:-2], path[1] - path[0], path[-1] - path[-2]
    return np.stack([-along[:, 1], along[:, 0]], -1) / (np.hypot(along[:, 0], along[:, 1])[:, None] + 1e-9)


def _streaks(rng: np.random.Generator, arms: list[tuple[np.ndarray, float, np.ndarray]], half: float) -> tuple[tuple[np.ndarray, float, int], ...]:
    """Flow lines that keep their place across the slide, more or less, while they run down it."""
    lines = []
    for path, reach, profile in arms:
        across = _normal(path) * (reach * profile)[:, None]
        count = int(_within(reach * 1.2, 6, 60))
        first = rng.integers(0, max(len(path) - 6, 1), count)
        last = np.minimum(first + rng.integers(5, max(len(path) // 2, 7), count), len(path))
        aside, drift = rng.uniform(-0.95, 0.95, count), rng.normal(0, 0.15, count)
        tone = np.clip(rng.normal(-0.05, 0.55, count), -1, 1).tolist()
        width = rng.integers(1, max(2, int(half * 0.1) + 2), count).tolist()
        place = aside[:, None] + drift[:, None] * (np.arange(len(path)) - first[:, None]) / (last - first)[:, None]
        points = np.round((path + across * place[..., None]) * (1 << SHIFT)).astype(np.int32)
        lines += [(points[i, a:b], tone[i], width[i]) for i, (a, b) in enumerate(zip(first.tolist(), last.tolist(), strict=True))]
    return tuple(lines)
