"""Draw any window of a planned scene: ground and land use, lines, bare ground, landslides, trees, light, houses, camera."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from data.noise import Window, crowns, noise_tile
from data.scene import BENCHES, BEND, BROAD, CROPS, DEBRIS, FINE, GRAVEL, QUARRY, ROUGH, SHIFT, USE, Colour, House, Line, Patch, Scene, Slide, filled

# The widest reach of what is smoothed at the end, so that a block drawn alone equals its part of the whole scene.
MARGIN = 8
# Shades are bytes and UNIT is 1: planes of bytes are several times as fast as floats, and finer than a step of the image's own levels.
UNIT = 128
REACH = 8  # how far a landslide moves the ground around it, in pixels
UP = np.linspace(0, 1, 256)  # what the bytes stand for in a table over [0, 1]


@dataclass
class Canvas:
    """The planes of a window, which the parts of a scene are drawn into one after the other."""

    window: Window
    relief: np.ndarray  # (h, w) float32 height in pixels
    broad: np.ndarray  # (h, w) uint8 noise of tens of pixels: 128 + 100 * (about [-1, 1]); forest stands where it is high
    colour: np.ndarray  # (h, w, 3) uint8 RGB in full light
    shade: np.ndarray  # (h, w) uint8 texture that the colour is multiplied by, in UNITs
    closed: np.ndarray  # (h, w) uint8, 255 where no tree may stand
    level: np.ndarray  # (h, w) uint8 how far the ground is flat: 255 wholly
    mask: np.ndarray  # (h, w) uint8, 255 on landslides

    def part(self, local: Window) -> tuple[slice, slice]:
        """Rows and columns of a window that lies inside this one."""
        x, y = local[0] - self.window[0], local[1] - self.window[1]
        return slice(y, y + local[3]), slice(x, x + local[2])


def render(scene: Scene, window: Window | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Image (h, w, 3) uint8 RGB and landslide mask (h, w) uint8 (0 or 255) of `window` (left, top, width, height) in the scene; default: all."""
    left, top, width, height = window or (0, 0, scene.width, scene.height)
    wide = (left - MARGIN, top - MARGIN, width + 2 * MARGIN, height + 2 * MARGIN)
    canvas = _ground(scene, wide)
    for line in scene.lines:
        if _meets(line.points, line.width * 3 + 8, wide):
            _draw_line(canvas, line)
    for patch in scene.patches:
        if _meets(patch.outline, 8, wide):
            _draw_patch(scene, canvas, patch)
    for slide in scene.slides:
        if _meets(slide.outline, REACH, wide):
            _draw_slide(scene, canvas, slide)
    houses = [house for house in scene.houses if _meets(house.corners, house.height * 3 + 8, wide)]
    for house in houses:
        cv2.fillConvexPoly(canvas.closed, _fixed(house.corners * 1.6 - house.corners.mean(0) * 0.6, wide), 255, shift=SHIFT)
    _grow_trees(scene, canvas)
    _shine(scene, canvas)
    for house in houses:
        _draw_house(scene, canvas, house)
    image = _camera(scene, canvas)
    inner = (slice(MARGIN, MARGIN + height), slice(MARGIN, MARGIN + width))
    return image[inner], canvas.mask[inner]


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


def _bytes(a: np.ndarray, scale_a: float, b: np.ndarray, scale_b: float, offset: float) -> np.ndarray:
    """a * scale_a + b * scale_b + offset, rounded and saturated to uint8; a and b are of one shape and type."""
    return cv2.addWeighted(a, scale_a, b, scale_b, offset, dtype=cv2.CV_8U)


def _coloured(index: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Pixels (h, w, 3) uint8 of the colours (256, 3) that the bytes (h, w) name."""
    return cv2.applyColorMap(index, np.clip(np.round(colours), 0, 255).astype(np.uint8)[:, None])


def _shades(part: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Shades (h, w) uint8 in UNITs of fractions (h, w) in [0, 1], by a table (256,) of the shade over that range."""
    return cv2.LUT(cv2.convertScaleAbs(part, alpha=255), np.round(table * UNIT).astype(np.uint8)[None])


def _ramp(first: Colour, last: Colour) -> np.ndarray:
    """Colours (256, 3) from one to the other."""
    return np.array(first) + np.subtract(last, first) * UP[:, None]


def _share(share: float) -> float:
    """The threshold that about `share` of a fractal field exceeds (its values are near normal with deviation 0.3)."""
    return float(-0.3 * np.log(share / (1 - share)) / 1.702) if 0 < share < 1 else (9.0 if share <= 0 else -9.0)


# ---------------------------------------------------------------------------------------------- ground and fields


def _ground(scene: Scene, window: Window) -> Canvas:
    """The ground without anything on it but fields."""
    look, noise = scene.look, scene.noise
    _, _, _, grass, soil, _, _ = look.palette
    fine, broad = noise.fractal(window, 8, 4, FINE, gain=0.7), noise.fractal(window, 64, 4, BROAD, gain=0.7)
    smooth = _terrain(scene, window)
    relief = cv2.scaleAdd(noise.fractal(window, 16, 5, ROUGH), 2.4 * look.relief, smooth)
    # Soil shows through the grass where the noise exceeds a threshold, over a soft step of 0.35.
    threshold = _share(0.25 if look.forest > 0.4 else 0.45)
    bare = _bytes(fine, 0.6 / 0.35 * 255, broad, -1 / 0.35 * 255, (0.5 - threshold / 0.35) * 255)
    colour = _coloured(bare, _ramp(grass, soil))
    shade = _bytes(fine, 0.22 * UNIT, broad, 0.1 * UNIT, UNIT)
    height, width = shade.shape
    closed, level, mask = np.zeros((3, height, width), np.uint8)
    if look.farmland > 0.05:
        use = noise.fractal(window, 128, 3, USE)
        fields = (cv2.scaleAdd(fine, 0.08, use) > _share(look.farmland)).view(np.uint8) * np.uint8(255)
        if cv2.countNonZero(fields):
            index, texture = _terraces(scene, smooth, use) if look.terraces else _parcels(scene, window)
            cv2.copyTo(_coloured(index, _crop_table(scene)), fields, colour)
            cv2.copyTo(cv2.multiply(texture, cv2.convertScaleAbs(fine, alpha=0.12 * UNIT, beta=UNIT), scale=1 / UNIT), fields, shade)
            closed[:] = fields
    return Canvas(window, relief, cv2.convertScaleAbs(broad, alpha=100, beta=128), colour, shade, closed, level, mask)


def _terrain(scene: Scene, window: Window) -> np.ndarray:
    """Height (h, w) float32 in pixels of the planned terrain."""
    left, top, width, height = window
    step, pad = scene.step, scene.pad
    first_x, first_y = left // step - 4, top // step - 4
    last_x, last_y = (left + width) // step + 5, (top + height) // step + 5
    big = scene.terrain[first_y + pad : last_y + pad, first_x + pad : last_x + pad]
    # Doubling makes a B-spline of it, which keeps a plane plane: OpenCV's cubic does not, and shows as ripples on every slope.
    for _ in range(step.bit_length() - 1):
        big = cv2.pyrUp(big)
    x, y = left - first_x * step, top - first_y * step
    return big[y : y + height, x : x + width]


def _crop_table(scene: Scene) -> np.ndarray:
    """Colours (256, 3) float32 of fields by number: the scene's own choice of crops, tinted towards its grass and soil."""
    random = scene.noise.numbers
    pool = np.array(CROPS, np.float32)[(random[:3, 3] * len(CROPS)).astype(int)]
    crop = pool[(random[:, 0] * 3).astype(int)]
    own = np.where(random[:, 1:2] < 0.5, np.array(scene.look.palette[3], np.float32), np.array(scene.look.palette[4], np.float32))
    return ((crop + own) / 2 * (0.8 + 0.4 * random[:, 2:3])).astype(np.float32)


def _terraces(scene: Scene, smooth: np.ndarray, use: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number and shade of fields that follow the contour lines, each ending in a dark bank; both (h, w) uint8."""
    rise = max(4.5 * scene.look.relief / scene.look.metres * 1.6, 0.8)
    level = smooth * np.float32(1 / rise)
    number = np.floor(level)
    parcel = np.floor(use * np.float32(14))
    index = (number * np.float32(37) + parcel * np.float32(101)).astype(np.int32).astype(np.uint8)  # modulo 256
    light = 1 - 0.45 * np.clip(1 - UP * 5, 0, 1) + 0.12 * np.clip(UP * 4 - 3, 0, 1)
    return index, _shades(level - number, light)


def _parcels(scene: Scene, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Number and shade of rectangular fields with crop rows; both (h, w) uint8."""
    look = scene.look
    left, top, width, height = window
    x, y = np.arange(left, left + width, dtype=np.float32)[None], np.arange(top, top + height, dtype=np.float32)[:, None]
    cos, sin = np.float32(np.cos(look.field_angle)), np.float32(np.sin(look.field_angle))
    bend = scene.noise.fractal(window, 128, 2, BEND) * np.float32(18)
    long, wide = np.float32(48 / look.metres), np.float32(17 / look.metres)
    # Places along and across the fields, in fields; each strip begins elsewhere.
    v = ((y * cos - x * sin) - bend) * (1 / wide)
    strip = np.floor(v)
    u = ((x * cos + y * sin) + bend) * (1 / long) + strip * np.float32(0.29)
    plot = np.floor(u)
    index = (strip * np.float32(59) + plot * np.float32(113)).astype(np.int32).astype(np.uint8)  # modulo 256
    # A dark edge of about a pixel, and light and dark crop rows.
    aside = np.abs(UP - 0.5)
    edges = [1 - 0.35 * np.clip(1.3 - (0.5 - aside) * length, 0, 1) for length in (long, wide)]
    across, along = (_shades(part, edge) for part, edge in zip((u - plot, v - strip), edges, strict=True))
    row = v * (wide / np.float32(max(2.6 / look.metres, 2.7)))
    rows = _shades(row - np.floor(row), 0.94 + 0.24 * aside)
    return index, cv2.multiply(rows, cv2.min(across, along), scale=1 / UNIT)


# ---------------------------------------------------------------------------------------------- lines, bare ground, landslides


def _draw_line(canvas: Canvas, line: Line) -> None:
    pieces = [_fixed(piece, canvas.window) for piece in _near(line.points, canvas.window, line.width * 2 + 24)]

    def stroke(plane: np.ndarray, colour: tuple[float, ...] | int, width: float, edge: int = cv2.LINE_AA) -> None:
        cv2.polylines(plane, pieces, False, colour, max(int(round(width)), 1), edge, SHIFT)

    shoulder = tuple(0.55 * c + 0.45 * g for c, g in zip(line.colour, (118, 108, 84), strict=True))
    stroke(canvas.closed, 255, line.width + (4 if line.kind != "path" else 2), cv2.LINE_8)
    if line.kind == "river":
        stroke(canvas.colour, (142, 136, 120), line.width * 1.35)
        stroke(canvas.colour, line.colour, line.width)
        stroke(canvas.level, 235, line.width, cv2.LINE_8)
        return
    stroke(canvas.level, 170, line.width, cv2.LINE_8)
    stroke(canvas.colour, shoulder, line.width + (3 if line.kind != "path" else 1))
    stroke(canvas.colour, line.colour, line.width)
    if line.kind == "motorway":
        along = np.gradient(line.points, axis=0)
        normal = np.stack([-along[:, 1], along[:, 0]], -1) / (np.hypot(*along.T)[:, None] + 1e-9)
        for offset in (-0.46, -0.02, 0.02, 0.46):
            side = _near(line.points + normal * line.width * offset, canvas.window, 24)
            colour = (214, 214, 208) if abs(offset) > 0.1 else (70, 92, 62)
            cv2.polylines(canvas.colour, [_fixed(piece, canvas.window) for piece in side], False, colour, 1, cv2.LINE_AA, SHIFT)
    elif line.kind == "road" and line.width >= 5:
        stroke(canvas.colour, tuple(min(c * 1.08, 255) for c in line.colour), line.width * 0.3)


def _local(outline: np.ndarray, reach: int, window: Window) -> Window | None:
    """The part of the window that a feature may touch; None where it touches nothing."""
    low = np.maximum(outline.min(0) - reach, window[:2]).astype(int)
    high = np.minimum(outline.max(0) + reach + 1, np.add(window[:2], window[2:])).astype(int)
    return (int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1])) if (high > low).all() else None


def _draw_patch(scene: Scene, canvas: Canvas, patch: Patch) -> None:
    local = _local(patch.outline, 0, canvas.window)
    if local is None:
        return
    part = canvas.part(local)
    shape = filled(patch.outline, local)
    shade = cv2.convertScaleAbs(scene.noise.fractal(local, 16, 5, QUARRY, gain=0.7), alpha=0.25 * UNIT, beta=UNIT)
    if patch.benches:
        x, y = np.arange(local[2], dtype=np.float32) + local[0], np.arange(local[3], dtype=np.float32)[:, None] + local[1]
        across = x * np.float32(np.cos(patch.angle)) + y * np.float32(np.sin(patch.angle))
        wave = (across + 3 * scene.noise.fractal(local, 32, 2, BENCHES)) / np.float32(2 * patch.benches)
        # Two benches a wave, one lighter than the other, each with a dark foot.
        light = 1 + 0.14 * ((UP >= 0.5) - 0.5) - 0.2 * np.clip(1 - 12 * (UP % 0.5), 0, 1)
        shade = cv2.multiply(shade, _shades(wave - np.floor(wave), light), scale=1 / UNIT)
    cv2.fillPoly(canvas.colour, [patch.outline - canvas.window[:2]], patch.colour, cv2.LINE_AA)
    cv2.copyTo(shade, shape, canvas.shade[part])
    cv2.copyTo(shape, shape, canvas.closed[part])


def _draw_slide(scene: Scene, canvas: Canvas, slide: Slide) -> None:
    """Scar, debris and streaks into colour and shade, the drop of the scarp and the rise of the fan into the relief, the exact outline into the mask."""
    # As much of it as the scene shows, whatever the window, so that all windows fit together.
    local = _local(slide.outline, REACH, (-MARGIN, -MARGIN, scene.width + 2 * MARGIN, scene.height + 2 * MARGIN))
    seen = _local(slide.outline, REACH, canvas.window)
    if local is None or seen is None:
        return
    part = canvas.part(seen)
    cut = (slice(seen[1] - local[1], seen[1] - local[1] + seen[3]), slice(seen[0] - local[0], seen[0] - local[0] + seen[2]))
    shape = filled(slide.outline, local)
    streaks = np.full(shape.shape, 128, np.uint8)
    corner = np.array(local[:2], np.int32) << SHIFT
    for points, tone, width in slide.streaks:
        cv2.polylines(streaks, [points - corner], False, 128 + 110 * tone, width, cv2.LINE_8, SHIFT)
    flow = cv2.GaussianBlur(streaks, (5, 5), 1.0)
    coarse, fine = scene.noise.fractal(local, 32, 4, DEBRIS), scene.noise.fractal(local, 4, 3, GRAVEL, gain=0.7)
    washed = _washed(scene, slide, local)
    # Scar with patches of soil, grown over with grass: 8 steps of the one and 32 of the other make a table of colours.
    soil = _bytes(coarse, 2 * 255, fine, 0, (0.5 - 2 * (0.25 - 0.3 * slide.age)) * 255)
    grown = _bytes(coarse, 255 / 0.35, fine, 0.8 * 255 / 0.35, (0.5 - (0.75 - 1.3 * slide.age) / 0.35) * 255)
    _, _, _, green, brown, _, _ = scene.look.palette
    scar = np.linspace(slide.colour, np.add(np.multiply(slide.colour, 0.45), np.multiply(brown, 0.55)), 8)
    table = scar[:, None] + (np.array(green) - scar[:, None]) * np.linspace(0, 0.85, 32)[:, None]
    colour = _coloured((soil & 0xE0) | (grown >> 3), table.reshape(256, 3))
    shade = cv2.addWeighted(_bytes(coarse, 0.16 * UNIT, fine, 0.14 * UNIT, 1.02 * UNIT), 1, flow, 0.26 * UNIT / 127, -128 * 0.26 * UNIT / 127)
    shade = cv2.addWeighted(shade, 1, washed, 0.3 * UNIT / 100, -128 * 0.3 * UNIT / 100)
    cv2.copyTo(colour[cut], shape[cut], canvas.colour[part])
    cv2.copyTo(shade[cut], shape[cut], canvas.shade[part])
    canvas.relief[part] += _displacement(slide, local, shape, fine, flow, washed)[cut]
    canvas.mask[part] |= shape[cut]
    canvas.level[part] &= ~shape[cut]
    # Trees come back where the ground is grown over; elsewhere none.
    cleared = cv2.threshold(grown, min(0.42 / max(slide.age, 1e-3), 1) * 255, 255, cv2.THRESH_BINARY_INV)[1]
    cv2.copyTo(cleared[cut], shape[cut], canvas.closed[part])


def _displacement(slide: Slide, window: Window, shape: np.ndarray, fine: np.ndarray, flow: np.ndarray, washed: np.ndarray) -> np.ndarray:
    """How far the ground rose (h, w) float32 in pixels: down at the scarp, up at the fan, rough between them."""
    # Place along the way from head (0) to toe (1).
    run = np.subtract(slide.toe, slide.head)
    along_x, along_y = (run / max(run @ run, 1)).tolist()
    x = (np.arange(window[2], dtype=np.float32) + np.float32(window[0] - slide.head[0])) * np.float32(along_x)
    y = (np.arange(window[3], dtype=np.float32) + np.float32(window[1] - slide.head[1])) * np.float32(along_y)
    place = np.clip(x + y[:, None], np.float32(0), np.float32(1))
    rough = cv2.addWeighted(flow, 0.5 / 127, washed, 1.2 / 100, -128 * (0.5 / 127 + 1.2 / 100), dtype=cv2.CV_32F)
    moved = cv2.addWeighted(cv2.scaleAdd(fine, 0.4, rough), 0.7, place, slide.depth, -0.6 * slide.depth)
    return cv2.multiply(moved, cv2.blur(cv2.blur(shape, (7, 7)), (7, 7)), scale=1 / 255, dtype=cv2.CV_32F)


def _washed(scene: Scene, slide: Slide, window: Window) -> np.ndarray:
    """Noise (h, w) uint8, 128 + 100 * (about [-1, 1]), drawn out along the slide like debris washed down it."""
    run = np.subtract(slide.toe, slide.head)
    cos, sin = run / max(float(np.hypot(*run)), 1.0)
    long = 6.0
    # Window pixel -> column along the run (squeezed), row across it, from a place on the tile that is the slide's own.
    x, y = window[0] - slide.head[0], window[1] - slide.head[1]
    own_x, own_y = 700 + int(slide.head[0] * 3) % 200, 700 + int(slide.head[1] * 5) % 200
    matrix = np.array([[cos / long, sin / long, (cos * x + sin * y) / long + own_x], [-sin, cos, -sin * x + cos * y + own_y]])
    tile = noise_tile(4, 0.7, False)
    flat = cv2.warpAffine(tile, matrix, (window[2], window[3]), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT)
    return cv2.convertScaleAbs(flat, alpha=100, beta=128)


# ---------------------------------------------------------------------------------------------- trees, light, houses, camera


def _grow_trees(scene: Scene, canvas: Canvas) -> None:
    """Tree crowns over the ground."""
    look, numbers, broad = scene.look, scene.noise.numbers, canvas.broad
    _, dark, light, *_ = look.palette
    height, number = crowns(canvas.window, look.crown, (int(numbers[0, 0] * 512), int(numbers[0, 1] * 512)))
    # A tree stands where its own number falls below the density of the place.
    density = cv2.addWeighted(broad, 2.2 * 2.55, broad, 0, (0.5 - 2.2 * _share(look.forest)) * 255 - 128 * 2.2 * 2.55)
    stands = cv2.bitwise_and(cv2.compare(density, number, cv2.CMP_GT), cv2.threshold(canvas.closed, 127, 255, cv2.THRESH_BINARY_INV)[1])
    canopy = cv2.bitwise_and(height, stands)
    canvas.relief = cv2.scaleAdd(canopy.astype(np.float32), 0.42 * look.crown / 255, canvas.relief)
    # Leaves: from dark to light by the tree's own number and the place, darker towards the rim of a crown.
    leaf = cv2.addWeighted(number, 0.63, broad, 0.7 * 2.55, 0.185 * 255 - 128 * 0.7 * 2.55)
    cv2.copyTo(_coloured(leaf, _ramp(dark, light)), stands, canvas.colour)
    cv2.copyTo(cv2.convertScaleAbs(canopy, alpha=0.55 * UNIT / 255, beta=0.6 * UNIT), stands, canvas.shade)


def _shine(scene: Scene, canvas: Canvas) -> None:
    """The light of the sun on the relief, into the shade."""
    look = scene.look
    sun_x, sun_y, sun_z = look.sun
    # How steeply the ground falls away from the sun, by Sobel's differences in both directions at once.
    x, y = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8, np.array([[-1, -2, -1], [0, 0, 0], [1, 2, 1]]) / 8
    away = cv2.filter2D(canvas.relief, cv2.CV_32F, sun_x * x + sun_y * y)
    scale = 50
    fall = (np.arange(256) - 128) / scale
    # Lambert's law; of the slope across the sun's direction only the usual size is known.
    lit = np.maximum(sun_z - fall, 0) / np.sqrt(1 + (fall / np.hypot(sun_x, sun_y)) ** 2 + 0.5 * look.relief**2 + 0.1)
    light = np.minimum(look.ambient + (1 - look.ambient) / sun_z * lit, 1.7) ** look.contrast
    shade = cv2.multiply(canvas.shade, cv2.LUT(_bytes(away, scale, away, 0, 128), np.round(light * UNIT).astype(np.uint8)[None]), scale=1 / UNIT)
    # Water is level: it mirrors the sky instead of the slope.
    if cv2.countNonZero(canvas.level):
        shade = cv2.multiply(shade, ~canvas.level, scale=1 / 255) + cv2.convertScaleAbs(canvas.level, alpha=0.95 * UNIT / 255)
    canvas.shade = shade


def _draw_house(scene: Scene, canvas: Canvas, house: House) -> None:
    sun = np.array(scene.look.sun)
    cast = -sun[:2] / sun[2] * house.height
    a, b, c, d = house.corners
    # The two sides of a ridge roof catch different light.
    ridge = [(a + d) / 2, (b + c) / 2]
    facing = float(np.dot((a + b) / 2 - (c + d) / 2, sun[:2]))
    turned = [a, b, ridge[1], ridge[0]] if facing < 0 else [ridge[0], ridge[1], c, d]
    points = _fixed(np.array([a, b, c, d, *(house.corners + cast), *turned]), canvas.window)
    cv2.fillConvexPoly(canvas.shade, cv2.convexHull(points[:8]), UNIT // 3, cv2.LINE_AA, SHIFT)
    cv2.fillConvexPoly(canvas.shade, points[:4], UNIT, cv2.LINE_8, SHIFT)
    cv2.fillConvexPoly(canvas.shade, points[8:], int(0.72 * UNIT), cv2.LINE_8, SHIFT)
    cv2.fillConvexPoly(canvas.colour, points[:4], tuple(min(v * 1.1, 255) for v in house.roof), cv2.LINE_AA, SHIFT)


def _camera(scene: Scene, canvas: Canvas) -> np.ndarray:
    """Image (h, w, 3) uint8: colours in their light, with the camera's colour cast, haze and optics."""
    look = scene.look
    planes = [cv2.convertScaleAbs(canvas.shade, alpha=gain * (1 - haze / 255)) for gain, haze in zip(look.gain, look.haze, strict=True)]
    image = cv2.multiply(canvas.colour, cv2.merge(planes), scale=1 / UNIT)
    side = 3 if look.blur < 0.65 else 5 if look.blur < 1.1 else 7
    return cv2.add(cv2.GaussianBlur(image, (side, side), look.blur), np.array([*look.haze, 0]))
