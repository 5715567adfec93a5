"""Draw any window of a planned scene: ground and land use, lines, bare ground, landslides, trees, light, houses, camera."""

from __future__ import annotations

import cv2
import numpy as np

from data.noise import Window, crowns
from data.scene import CROPS, House, Line, Patch, Scene, Slide, filled

# The widest reach of any blur below, so that a block drawn alone equals its part of the whole scene.
MARGIN = 16
SHIFT = 4  # fractional bits of drawn coordinates


def render(scene: Scene, window: Window | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Image (h, w, 3) uint8 RGB and landslide mask (h, w) uint8 (0 or 255) of `window` (left, top, width, height; default: all)."""
    left, top, width, height = window or (0, 0, scene.width, scene.height)
    wide = (left - MARGIN, top - MARGIN, width + 2 * MARGIN, height + 2 * MARGIN)
    fine = scene.noise.fractal(wide, 8, 4, 41, gain=0.7)
    broad = scene.noise.fractal(wide, 64, 4, 31, gain=0.6)
    relief = _relief(scene, wide, fine)
    ground, open_ground = _ground(scene, wide, relief, fine, broad)
    level = np.zeros(open_ground.shape, np.uint8)  # how far the ground is made flat: water wholly, roads half
    for line in scene.lines:
        if _meets(line.points, line.width * 3 + 8, wide):
            _draw_line(ground, open_ground, level, line, wide)
    for patch in scene.patches:
        if _meets(patch.outline, 8, wide):
            _draw_patch(scene, ground, open_ground, patch, wide)
    mask = np.zeros(ground.shape[:2], np.uint8)
    for slide in scene.slides:
        if _meets(slide.outline, 12, wide):
            _draw_slide(scene, ground, open_ground, relief, level, mask, slide, wide)
    for house in scene.houses:
        if _meets(house.corners, house.height * 3 + 8, wide):
            cv2.fillConvexPoly(open_ground, _fixed(house.corners * 1.6 - house.corners.mean(0) * 0.6, wide), 255, shift=SHIFT)
    image = _trees_and_light(scene, wide, ground, open_ground, relief, level, broad)
    for house in scene.houses:
        if _meets(house.corners, house.height * 3 + 8, wide):
            _draw_house(scene, image, house, wide)
    image = _camera(scene, image, wide)
    inner = (slice(MARGIN, MARGIN + height), slice(MARGIN, MARGIN + width))
    return image[inner], mask[inner]


def _meets(points: np.ndarray, reach: float, window: Window) -> bool:
    low, high = points.min(0) - reach, points.max(0) + reach
    return bool(low[0] < window[0] + window[2] and high[0] > window[0] and low[1] < window[1] + window[3] and high[1] > window[1])


def _near(points: np.ndarray, window: Window, reach: float) -> list[np.ndarray]:
    """The runs of a polyline that come within `reach` of the window: far coordinates would overflow the drawing's fixed point."""
    low, high = np.array(window[:2]) - reach, np.array(window[:2]) + window[2:] + reach
    inside = ((points >= low) & (points <= high)).all(1)
    inside[:-1] |= inside[1:]
    inside[1:] |= inside[:-1].copy()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.view(np.int8), [0]])))
    return [points[first:last] for first, last in zip(edges[::2], edges[1::2], strict=True) if last - first > 1]


def _fixed(points: np.ndarray, window: Window) -> np.ndarray:
    return np.round((np.asarray(points, np.float64) - window[:2]) * (1 << SHIFT)).astype(np.int32)


def _relief(scene: Scene, window: Window, fine: np.ndarray) -> np.ndarray:
    """Height (h, w) float32 in pixels: the planned terrain with its finest octaves added."""
    left, top, width, height = window
    step, pad = scene.step, scene.pad
    first_x, first_y = left // step - 4, top // step - 4
    last_x, last_y = (left + width) // step + 5, (top + height) // step + 5
    rows, columns = scene.terrain.shape
    part = scene.terrain[np.clip(np.arange(first_y, last_y) + pad, 0, rows - 1)[:, None], np.clip(np.arange(first_x, last_x) + pad, 0, columns - 1)]
    # Linear and then smoothed: OpenCV's cubic does not keep a plane plane, which shows as ripples on every slope.
    big = cv2.GaussianBlur(cv2.resize(part, (part.shape[1] * step, part.shape[0] * step), interpolation=cv2.INTER_LINEAR), (0, 0), 0.6 * step)
    x, y = left - first_x * step, top - first_y * step
    rough = np.float32(1.3) * scene.noise.octave(window, 16, 21) + np.float32(0.9) * fine
    return big[y : y + height, x : x + width] + rough * np.float32(scene.look.relief)


def _mix(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """a + (b - a) * weight for planes of colour (3, h, w) or (3, 1, 1) and weight (h, w)."""
    return a + (b - a) * weight


def _tint(colour: tuple[float, float, float]) -> np.ndarray:
    """A colour as planes (3, 1, 1) float32; colours are kept as planes because that is twice as fast as pixels of three."""
    return np.array(colour, np.float32)[:, None, None]


def _pixels(planes: np.ndarray) -> np.ndarray:
    """Planes (3, h, w) float32 in [0, 255] -> pixels (h, w, 3) uint8, saturated."""
    return cv2.merge([cv2.convertScaleAbs(np.maximum(plane, 0)) for plane in planes])


def _planes(pixels: np.ndarray) -> np.ndarray:
    """Pixels (h, w, 3) uint8 -> planes (3, h, w) float32."""
    return np.stack(cv2.split(pixels)).astype(np.float32)


def _step(field: np.ndarray, threshold: float, softness: float) -> np.ndarray:
    return np.clip((field - np.float32(threshold)) / np.float32(softness) + np.float32(0.5), 0, 1)


def _share(share: float) -> float:
    """The threshold that about `share` of a fractal field exceeds (its values are near normal with deviation 0.3)."""
    return float(-0.3 * np.log(share / (1 - share)) / 1.702) if 0 < share < 1 else (9.0 if share <= 0 else -9.0)


def _ground(scene: Scene, window: Window, relief: np.ndarray, fine: np.ndarray, broad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colour (h, w, 3) uint8 of the ground without trees, and where no tree may stand (h, w) uint8."""
    look, noise = scene.look, scene.noise
    _, _, _, grass, soil, scar, _ = look.palette
    bare = _step(np.float32(0.6) * fine - broad, _share(0.25 if look.forest > 0.4 else 0.45), 0.35)
    colour = _mix(_tint(grass), _tint(soil), bare) * (1 + np.float32(0.22) * fine + np.float32(0.1) * broad)
    open_ground = np.zeros(relief.shape, np.uint8)
    if look.farmland > 0.05:
        use = noise.fractal(window, 128, 3, 51)
        fields = _step(use + 0.08 * fine, _share(look.farmland), 0.04)
        if fields.max() > 0:
            crop = _terraces(scene, window, relief, use) if look.terraces else _parcels(scene, window, fine)
            colour = _mix(colour, crop * (1 + 0.12 * fine), fields)
            open_ground[fields > 0.5] = 200
    return _pixels(colour), open_ground


def _crop_table(scene: Scene) -> np.ndarray:
    """Colours (256, 3) float32 of fields by number: the scene's own choice of crops, tinted towards its grass and soil."""
    random = (scene.noise.table[:, :4] + 1) / 2
    pool = np.array(CROPS, np.float32)[(scene.noise.table[30, 8:11] * 4 + 4).astype(int).clip(0, len(CROPS) - 1)]
    crop = pool[(random[:, 0] * 3).astype(int).clip(0, 2)]
    own = np.where(random[:, 1:2] < 0.5, np.array(scene.look.palette[3], np.float32), np.array(scene.look.palette[4], np.float32))
    return ((crop + own) / 2 * (0.8 + 0.4 * random[:, 2:3])).astype(np.float32)


def _look_up(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Planes (3, h, w) float32 of the colours (256, 3) that the numbers (h, w) name."""
    number = index.astype(np.uint8)
    return _planes(cv2.LUT(cv2.merge([number, number, number]), table[None].astype(np.uint8)))


def _terraces(scene: Scene, window: Window, relief: np.ndarray, use: np.ndarray) -> np.ndarray:
    """Fields that follow the contour lines, each ending in a dark bank."""
    rise = max(4.5 * scene.look.relief / scene.look.metres * 1.6, 0.8)
    level = cv2.GaussianBlur(relief, (0, 0), 2.5) / np.float32(rise)
    number = np.floor(level)
    bank = level - number
    parcel = np.floor(use * 14).astype(np.int32)
    table = _crop_table(scene)
    index = (number.astype(np.int32) * 37 + parcel * 101) & 255
    light = 1 - 0.45 * np.clip(1 - bank * 5, 0, 1) + 0.12 * np.clip(bank * 4 - 3, 0, 1)
    return _look_up(table, index) * light


def _parcels(scene: Scene, window: Window, fine: np.ndarray) -> np.ndarray:
    """Rectangular fields with crop rows."""
    look = scene.look
    left, top, width, height = window
    x, y = np.arange(left, left + width, dtype=np.float32)[None], np.arange(top, top + height, dtype=np.float32)[:, None]
    cos, sin = np.float32(np.cos(look.field_angle)), np.float32(np.sin(look.field_angle))
    bend = scene.noise.fractal(window, 128, 2, 61) * np.float32(18)
    u, v = x * cos + y * sin + bend, y * cos - x * sin - bend
    long, wide = np.float32(48 / look.metres), np.float32(17 / look.metres)
    strip = np.floor(v / wide)
    u = u + np.float32(13.7) * (strip % 7)
    plot = np.floor(u / long)
    colour = _look_up(_crop_table(scene), (strip.astype(np.int32) * 59 + plot.astype(np.int32) * 113) & 255)
    edge = np.minimum(np.minimum(u / long - plot, 1 - u / long + plot) * long, np.minimum(v / wide - strip, 1 - v / wide + strip) * wide)
    row = v / np.float32(max(2.6 / look.metres, 2.7))
    rows = np.abs(row - np.floor(row) - np.float32(0.5))
    return colour * (np.float32(0.94) + np.float32(0.24) * rows - np.float32(0.35) * np.clip(np.float32(1.3) - edge, 0, 1))


def _draw_line(ground: np.ndarray, open_ground: np.ndarray, level: np.ndarray, line: Line, window: Window) -> None:
    pieces = [_fixed(piece, window) for piece in _near(line.points, window, line.width * 2 + 24)]

    def stroke(image: np.ndarray, colour: tuple[float, ...] | int, width: float) -> None:
        cv2.polylines(image, pieces, False, colour, max(int(round(width)), 1), cv2.LINE_AA, SHIFT)

    shoulder = tuple(0.55 * c + 0.45 * g for c, g in zip(line.colour, (118, 108, 84), strict=True))
    stroke(open_ground, 255, line.width + (4 if line.kind != "path" else 2))
    if line.kind == "river":
        stroke(ground, (142, 136, 120), line.width * 1.35)
        stroke(ground, line.colour, line.width)
        stroke(level, 235, line.width)
        return
    stroke(level, 150, line.width)
    stroke(ground, shoulder, line.width + (3 if line.kind != "path" else 1))
    stroke(ground, line.colour, line.width)
    if line.kind == "motorway":
        along = np.gradient(line.points, axis=0)
        normal = np.stack([-along[:, 1], along[:, 0]], -1) / (np.hypot(*along.T)[:, None] + 1e-9)
        for offset in (-0.46, -0.02, 0.02, 0.46):
            side = _near(line.points + normal * line.width * offset, window, 24)
            colour = (214, 214, 208) if abs(offset) > 0.1 else (70, 92, 62)
            cv2.polylines(ground, [_fixed(piece, window) for piece in side], False, colour, 1, cv2.LINE_AA, SHIFT)
    elif line.kind == "road" and line.width >= 5:
        stroke(ground, tuple(min(c * 1.08, 255) for c in line.colour), line.width * 0.3)


def _local(outline: np.ndarray, reach: int, window: Window) -> tuple[slice, slice, Window]:
    """The part of the window that a feature may touch: its slices, and the same as a window of the plane."""
    low = np.maximum(outline.min(0) - reach, window[:2]).astype(int)
    high = np.minimum(outline.max(0) + reach + 1, np.add(window[:2], window[2:])).astype(int)
    x, y = int(low[0]) - window[0], int(low[1]) - window[1]
    width, height = int(high[0] - low[0]), int(high[1] - low[1])
    return slice(y, y + height), slice(x, x + width), (int(low[0]), int(low[1]), width, height)


def _draw_patch(scene: Scene, ground: np.ndarray, open_ground: np.ndarray, patch: Patch, window: Window) -> None:
    rows, columns, local = _local(patch.outline, 8, window)
    if local[2] <= 0 or local[3] <= 0:
        return
    shape = filled(patch.outline, local)
    alpha = cv2.GaussianBlur(shape, (0, 0), 1.2).astype(np.float32) / 255
    texture = 1 + 0.25 * scene.noise.fractal(local, 16, 5, 71, gain=0.7)
    if patch.benches:
        x, y = np.arange(local[2], dtype=np.float32) + local[0], np.arange(local[3], dtype=np.float32)[:, None] + local[1]
        across = x * np.float32(np.cos(patch.angle)) + y * np.float32(np.sin(patch.angle))
        wave = (across + 3 * scene.noise.fractal(local, 32, 2, 75)) / np.float32(patch.benches)
        texture += np.float32(0.14) * (np.floor(wave) % 2 - 0.5) - 0.2 * np.clip(1 - 6 * (wave - np.floor(wave)), 0, 1)
    ground[rows, columns] = _pixels(_mix(_planes(ground[rows, columns]), _tint(patch.colour) * texture, alpha))
    np.maximum(open_ground[rows, columns], shape, out=open_ground[rows, columns])


def _draw_slide(
    scene: Scene, ground: np.ndarray, open_ground: np.ndarray, relief: np.ndarray, level: np.ndarray, mask: np.ndarray, slide: Slide, window: Window
) -> None:
    """Scar, debris and streaks into `ground`, the drop of the scarp and the rise of the fan into `relief`, the exact outline into `mask`."""
    rows, columns, local = _local(slide.outline, 12, window)
    if local[2] <= 0 or local[3] <= 0:
        return
    shape = filled(slide.outline, local)
    np.maximum(mask[rows, columns], shape, out=mask[rows, columns])
    level[rows, columns] &= ~shape
    edge = cv2.GaussianBlur(shape, (0, 0), 0.8).astype(np.float32) / 255
    body = cv2.GaussianBlur(shape, (0, 0), 3.0).astype(np.float32) / 255
    streaks = np.full(shape.shape, 128, np.uint8)
    for points, tone, width in slide.streaks:
        cv2.polylines(streaks, [_fixed(points, local)], False, 128 + 110 * tone, width, cv2.LINE_AA, SHIFT)
    flow = (cv2.GaussianBlur(streaks, (0, 0), 1.0).astype(np.float32) - 128) / 127
    coarse, fine = scene.noise.fractal(local, 32, 4, 81), scene.noise.fractal(local, 4, 3, 91, gain=0.8)
    # Place along the way from head (0) to toe (1).
    run = np.subtract(slide.toe, slide.head)
    x, y = np.arange(local[2], dtype=np.float32)[None] + local[0] - slide.head[0], np.arange(local[3], dtype=np.float32)[:, None] + local[1] - slide.head[1]
    place = np.clip((x * np.float32(run[0]) + y * np.float32(run[1])) / np.float32(max(run @ run, 1)), -0.2, 1.2)
    scar = _mix(_tint(slide.colour), _tint(scene.look.palette[4]), _step(coarse, 0.25 - 0.3 * slide.age, 0.5) * 0.55)
    washed = _washed(scene, slide, local)
    scar = scar * (1.02 + 0.26 * flow + 0.3 * washed + 0.16 * coarse + 0.14 * fine)
    grown = _step(coarse + 0.8 * fine, 0.75 - 1.3 * slide.age, 0.35)
    colour = _mix(scar, _tint(scene.look.palette[3]) * (1 + 0.2 * fine), grown * 0.85)
    ground[rows, columns] = _pixels(_mix(_planes(ground[rows, columns]), colour, edge))
    relief[rows, columns] += slide.depth * (np.clip(place, 0, 1) - np.float32(0.6)) * body + (0.4 * fine + 0.5 * flow + 1.2 * washed) * edge * np.float32(0.7)
    # Trees come back where the ground is grown over; elsewhere none.
    cleared = np.where(grown * slide.age > 0.42, 0, shape).astype(np.uint8)
    np.copyto(open_ground[rows, columns], cleared, where=shape > 0)


def _washed(scene: Scene, slide: Slide, window: Window) -> np.ndarray:
    """Noise (h, w) in about [-1, 1], drawn out along the slide like debris washed down it."""
    run = np.subtract(slide.toe, slide.head)
    cos, sin = run / max(float(np.hypot(*run)), 1.0)
    long, reach = 6.0, int(np.hypot(window[2], window[3]) + np.hypot(window[0] - slide.head[0], window[1] - slide.head[1])) + 4
    wide = int(reach / long) + 4
    # Noise around its origin, moved to where the slide begins: the same for every window.
    own_x, own_y = int(slide.head[0]) * 3, int(slide.head[1]) * 5
    flat = scene.noise.fractal((own_x - wide, own_y - reach, 2 * wide, 2 * reach), 8, 4, 121, gain=0.7)
    # Window pixel -> column along the run (squeezed), row across it; the head lies in the middle of `flat`.
    x, y = window[0] - slide.head[0], window[1] - slide.head[1]
    matrix = np.array([
        [cos / long, sin / long, (cos * x + sin * y) / long + wide],
        [-sin, cos, -sin * x + cos * y + reach],
    ])
    return cv2.warpAffine(flat, matrix, (window[2], window[3]), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT)


def _trees_and_light(
    scene: Scene, window: Window, ground: np.ndarray, open_ground: np.ndarray, relief: np.ndarray, level: np.ndarray, broad: np.ndarray
) -> np.ndarray:
    """Image (h, w, 3) uint8: trees over the ground, lit by the sun."""
    look, noise = scene.look, scene.noise
    _, dark, light, *_ = look.palette
    shift = (int(noise.table[0, 0] * 5000) % 512, int(noise.table[0, 1] * 5000) % 512)
    height, number = crowns(window, look.crown, shift)
    # A tree stands where its own number falls below the density of the place.
    stands = (number < broad * np.float32(2.2) + np.float32(0.5 - 2.2 * _share(look.forest))) & (open_ground < 128)
    canopy = height * stands  # a product: np.where takes ten times as long
    surface = relief + canopy * np.float32(0.42 * look.crown)
    slope_x, slope_y = cv2.Sobel(surface, cv2.CV_32F, 1, 0, scale=0.125), cv2.Sobel(surface, cv2.CV_32F, 0, 1, scale=0.125)
    sun_x, sun_y, sun_z = (np.float32(value) for value in look.sun)
    lit = np.maximum(sun_z - sun_x * slope_x - sun_y * slope_y, 0) / cv2.magnitude(cv2.magnitude(slope_x, slope_y), np.ones_like(slope_x))
    shade = np.minimum(np.float32(look.ambient) + np.float32((1 - look.ambient) / look.sun[2]) * lit, np.float32(1.7))
    # Leaves: from dark to light by the tree's own number and the place, darker towards the rim of a crown.
    tone = cv2.convertScaleAbs(np.maximum(np.float32(0.63) * number + np.float32(0.7) * broad + np.float32(0.185), 0), alpha=255)
    ramp = np.linspace(dark, light, 256)[None].round().astype(np.uint8)
    colour = ground.copy()
    cv2.copyTo(cv2.LUT(cv2.merge([tone] * 3), ramp), stands.view(np.uint8), colour)
    shade *= np.float32(0.55) * canopy + (np.float32(1) - np.float32(0.4) * stands)
    # Water is level: it mirrors the sky instead of the slope.
    if level.any():
        shade += (np.float32(0.95) - shade) * (level.astype(np.float32) / 255)
    return _pixels(_planes(colour) * shade)


def _draw_house(scene: Scene, image: np.ndarray, house: House, window: Window) -> None:
    sun = np.array(scene.look.sun)
    cast = -sun[:2] / sun[2] * house.height
    shadow = cv2.convexHull(np.concatenate([house.corners, house.corners + cast]).astype(np.float32))[:, 0]
    cv2.fillConvexPoly(image, _fixed(shadow, window), (28, 32, 34), cv2.LINE_AA, SHIFT)
    a, b, c, d = house.corners
    cv2.fillConvexPoly(image, _fixed(house.corners, window), house.roof, cv2.LINE_AA, SHIFT)
    # The two sides of a ridge roof catch different light.
    ridge = [(a + d) / 2, (b + c) / 2]
    facing = float(np.dot((a + b) / 2 - (c + d) / 2, sun[:2]))
    bright, dull = tuple(min(v * 1.1, 255) for v in house.roof), tuple(v * 0.78 for v in house.roof)
    half = np.array([a, b, ridge[1], ridge[0]]) if facing < 0 else np.array([ridge[0], ridge[1], c, d])
    cv2.fillConvexPoly(image, _fixed(np.array([a, b, c, d]), window), bright, cv2.LINE_AA, SHIFT)
    cv2.fillConvexPoly(image, _fixed(half, window), dull, cv2.LINE_AA, SHIFT)


def _camera(scene: Scene, image: np.ndarray, window: Window) -> np.ndarray:
    """Optics, sensor noise, colour cast, haze and tone curve."""
    look = scene.look
    soft = cv2.GaussianBlur(image, (0, 0), look.blur) if look.blur > 0.3 else image
    level = np.arange(256, dtype=np.float32) / 255
    curves = np.stack([level**look.gamma * 255 * gain * (1 - haze / 255) + haze for gain, haze in zip(look.gain, look.haze, strict=True)], -1)
    return cv2.LUT(soft, np.clip(curves, 0, 255).astype(np.uint8)[None])
