"""A small procedural world: shapes moving over textured backgrounds, and exact edits of it.

A scene is a description; `render` turns it into pixels at any size and length. An edit changes the
description and names the change, so source and target agree everywhere the instruction is silent.
Everything follows from one seed; nothing reads the clock or global random state.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 52, 46),
    "green": (60, 168, 74),
    "blue": (52, 92, 206),
    "yellow": (236, 202, 62),
    "purple": (140, 66, 178),
    "orange": (236, 132, 40),
    "white": (238, 238, 232),
    "black": (26, 26, 30),
    "cyan": (62, 188, 200),
    "pink": (236, 130, 170),
}
SHAPES = ("circle", "square", "triangle", "ring", "cross")
BACKGROUNDS = ("clouds", "stripes", "checks", "hills", "gradient")
STYLES: dict[str, str] = {
    "sepia": "an old sepia photograph",
    "grey": "a black and white film",
    "night": "a scene at night",
    "poster": "a flat poster with few colours",
}
EDITS = ("recolour", "replace", "remove", "add", "background", "style")


@dataclass(frozen=True)
class Thing:
    """One moving shape. Lengths are shares of the frame's shorter side, speeds per second."""

    shape: str
    colour: str
    size: float
    start: tuple[float, float]
    velocity: tuple[float, float]
    spin: float


@dataclass(frozen=True)
class Background:
    kind: str
    colours: tuple[tuple[int, int, int], tuple[int, int, int]]
    drift: tuple[float, float]
    seed: int


@dataclass(frozen=True)
class Scene:
    background: Background
    things: tuple[Thing, ...]
    style: str | None = None


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(list(key)))


def _rgb(values: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(v) for v in values)
    return red, green, blue


def _random_background(rng: np.random.Generator) -> Background:
    base = rng.integers(40, 216, size=3)
    other = np.clip(base + rng.integers(-80, 81, size=3), 10, 245)
    return Background(
        kind=str(rng.choice(BACKGROUNDS)),
        colours=(_rgb(base), _rgb(other)),
        drift=(float(rng.uniform(-0.06, 0.06)), float(rng.uniform(-0.06, 0.06))),
        seed=int(rng.integers(0, 2**31)),
    )


def _random_thing(rng: np.random.Generator, taken: tuple[Thing, ...] = ()) -> Thing:
    """A thing whose shape and colour no other one has, so that an instruction names it uniquely."""
    shapes = [s for s in SHAPES if s not in {t.shape for t in taken}]
    colours = [c for c in COLOURS if c not in {t.colour for t in taken}]
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.12, 0.45)
    return Thing(
        shape=str(rng.choice(shapes)),
        colour=str(rng.choice(colours)),
        size=float(rng.uniform(0.14, 0.24)),
        start=(float(rng.uniform(0.2, 0.8)), float(rng.uniform(0.2, 0.8))),
        velocity=(float(np.cos(angle) * speed), float(np.sin(angle) * speed)),
        spin=float(rng.uniform(-1.5, 1.5)),
    )


def random_scene(seed: int, things: int | None = None) -> Scene:
    """Scene number `seed`; one to three things unless told."""
    rng = _rng(seed, 1)
    made: tuple[Thing, ...] = ()
    for _ in range(things if things is not None else int(rng.integers(1, 4))):
        made += (_random_thing(rng, made),)
    return Scene(_random_background(rng), made)


def _named(thing: Thing) -> str:
    article = "an" if thing.colour[0] in "aeiou" else "a"
    return f"{article} {thing.colour} {thing.shape}"


def describe(scene: Scene) -> str:
    """A caption of the scene, as a captioner would write one."""
    named = [_named(t) for t in scene.things] or ["nothing"]
    moving = " and ".join(named)
    look = f", in the look of {STYLES[scene.style]}" if scene.style else ""
    return f"{moving} moving over a background of {scene.background.kind}{look}".capitalize() + "."


def edit_scene(scene: Scene, edit: str, seed: int) -> tuple[Scene, str]:
    """Apply one edit of `EDITS`: the edited scene and its instruction."""
    rng = _rng(seed, 2)
    first, rest = scene.things[0], scene.things[1:]
    if edit == "recolour":
        colour = str(rng.choice([c for c in COLOURS if c not in {t.colour for t in scene.things}]))
        changed = dataclasses.replace(first, colour=colour)
        text = f"Make the {first.colour} {first.shape} {colour}."
        return dataclasses.replace(scene, things=(changed, *rest)), text
    if edit == "replace":
        shape = str(rng.choice([s for s in SHAPES if s not in {t.shape for t in scene.things}]))
        changed = dataclasses.replace(first, shape=shape)
        text = f"Replace the {first.colour} {first.shape} with {_named(changed)}."
        return dataclasses.replace(scene, things=(changed, *rest)), text
    if edit == "remove":
        text = f"Remove the {first.colour} {first.shape}."
        return dataclasses.replace(scene, things=rest), text
    if edit == "add":
        new = _random_thing(rng, scene.things)
        text = f"Add {_named(new)} that moves."
        return dataclasses.replace(scene, things=(*scene.things, new)), text
    if edit == "background":
        kinds = [k for k in BACKGROUNDS if k != scene.background.kind]
        other = dataclasses.replace(_random_background(rng), kind=str(rng.choice(kinds)))
        return dataclasses.replace(scene, background=other), f"Replace the background with {other.kind}."
    if edit == "style":
        style = str(rng.choice(list(STYLES)))
        return dataclasses.replace(scene, style=style), f"Turn the video into {STYLES[style]}."
    raise ValueError(f"{edit!r} is not an edit of the procedural world; there are {', '.join(EDITS)}")


def _fractal_noise(rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """Tileable 1/f noise, (size, size), between 0 and 1."""
    fy = np.fft.fftfreq(size)[:, None] * size
    fx = np.fft.rfftfreq(size)[None, :] * size
    radius = np.maximum(np.hypot(fy, fx), 1.0)
    spectrum = np.exp(2j * np.pi * rng.random(radius.shape)) / radius**1.9
    spectrum[0, 0] = 0.0
    noise = np.fft.irfft2(spectrum, s=(size, size))
    low, high = np.percentile(noise, [2, 98])
    return np.clip((noise - low) / (high - low), 0.0, 1.0)


def _sample_tile(tile: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Bilinear look-up in a tile that repeats; y and x in tiles."""
    n = tile.shape[0]
    y, x = (y * n) % n, (x * n) % n
    y0, x0 = np.floor(y).astype(np.int64) % n, np.floor(x).astype(np.int64) % n
    fy, fx = y - np.floor(y), x - np.floor(x)
    y1, x1 = (y0 + 1) % n, (x0 + 1) % n
    top = tile[y0, x0] * (1 - fx) + tile[y0, x1] * fx
    bottom = tile[y1, x0] * (1 - fx) + tile[y1, x1] * fx
    return top * (1 - fy) + bottom * fy


def _smooth_wave(phase: np.ndarray, sharpness: float) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(sharpness * np.sin(phase))


def _background_mix(bg: Background, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """How much of the second colour each point has, 0..1; y and x in shorter sides."""
    rng = _rng(bg.seed, 3)
    if bg.kind == "clouds":
        return _sample_tile(_fractal_noise(rng), y * 0.7, x * 0.7)
    if bg.kind == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        return 0.5 + 0.5 * np.sin(1.4 * (np.cos(angle) * x + np.sin(angle) * y) + rng.uniform(0, 6.3))
    turns = rng.uniform(5.0, 11.0)
    if bg.kind == "stripes":
        angle = rng.uniform(0, np.pi)
        return _smooth_wave(turns * (np.cos(angle) * x + np.sin(angle) * y), 1.2)
    if bg.kind == "checks":
        return 0.5 + 0.5 * np.tanh(1.6 * np.sin(turns * x) * np.sin(turns * y))
    ridge = 0.55 + 0.12 * np.sin(3.1 * x + rng.uniform(0, 6.3)) + 0.06 * np.sin(7.3 * x + rng.uniform(0, 6.3))
    ground = 0.5 + 0.5 * np.tanh((y - ridge) * 18.0)
    return np.clip(ground * 0.8 + 0.25 * _sample_tile(_fractal_noise(rng), y * 0.5, x * 0.5), 0.0, 1.0)


def _distance(shape: str, y: np.ndarray, x: np.ndarray, size: float) -> np.ndarray:
    """Signed distance to the outline, negative inside."""
    if shape == "circle":
        return np.hypot(y, x) - size
    if shape == "ring":
        return np.abs(np.hypot(y, x) - size * 0.8) - size * 0.28
    if shape == "square":
        return np.maximum(np.abs(y), np.abs(x)) - size * 0.85
    if shape == "triangle":
        return np.maximum(np.abs(x) * 0.866 + y * 0.5, -y) - size * 0.6
    if shape == "cross":
        arm_y = np.maximum(np.abs(y) - size, np.abs(x) - size * 0.36)
        arm_x = np.maximum(np.abs(x) - size, np.abs(y) - size * 0.36)
        return np.minimum(arm_y, arm_x)
    raise ValueError(f"{shape!r} is not a shape of the procedural world")


def _bounce(position: np.ndarray, low: float, high: float) -> np.ndarray:
    span = high - low
    offset = np.mod(position - low, 2 * span)
    return low + np.where(offset < span, offset, 2 * span - offset)


def _apply_style(frames: np.ndarray, style: str) -> np.ndarray:
    grey = frames @ np.array([0.299, 0.587, 0.114], dtype=frames.dtype)
    if style == "grey":
        return np.repeat(grey[..., None], 3, axis=-1)
    if style == "sepia":
        return np.clip(grey[..., None] * np.array([1.07, 0.86, 0.62], dtype=frames.dtype) + 8, 0, 255)
    if style == "night":
        return np.clip(frames * np.array([0.28, 0.34, 0.58], dtype=frames.dtype), 0, 255)
    if style == "poster":
        return np.clip(np.round(frames / 85.0) * 85.0, 0, 255)
    raise ValueError(f"{style!r} is not a style of the procedural world")


def render(scene: Scene, frames: int, height: int, width: int, fps: float = 16.0) -> np.ndarray:
    """Draw the scene: (frames, height, width, 3) uint8."""
    short = min(height, width)
    t = (np.arange(frames, dtype=np.float32) / fps)[:, None, None]
    y = ((np.arange(height, dtype=np.float32) + 0.5) / short)[None, :, None]
    x = ((np.arange(width, dtype=np.float32) + 0.5) / short)[None, None, :]
    bg = scene.background
    mix = _background_mix(bg, y + bg.drift[0] * t + 0 * x, x + bg.drift[1] * t + 0 * y)[..., None]
    one, two = (np.array(c, dtype=np.float32) for c in bg.colours)
    out = (one * (1 - mix) + two * mix).astype(np.float32)
    tall, wide = height / short, width / short
    for thing in scene.things:
        cy = _bounce(thing.start[0] * tall + thing.velocity[0] * t, thing.size, tall - thing.size)
        cx = _bounce(thing.start[1] * wide + thing.velocity[1] * t, thing.size, wide - thing.size)
        dy, dx, angle = y - cy, x - cx, thing.spin * t
        ry = np.cos(angle) * dy - np.sin(angle) * dx
        rx = np.sin(angle) * dy + np.cos(angle) * dx
        cover = np.clip(0.5 - _distance(thing.shape, ry, rx, thing.size) * short / 1.5, 0.0, 1.0)[..., None]
        shade = 1.0 - 0.18 * np.clip((ry + rx) / (2 * thing.size), -1, 1)[..., None]
        colour = np.array(COLOURS[thing.colour], dtype=np.float32) * shade
        out = (out * (1 - cover) + colour * cover).astype(np.float32)
    if scene.style:
        out = _apply_style(out, scene.style)
    return np.clip(out + 0.5, 0, 255).astype(np.uint8)
