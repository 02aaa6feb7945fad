"""The normal chest of a patient of the phantom. Findings are drawn in `findings`."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDES = {"right": -1.0, "left": 1.0}  # the patient's right is on the image's left

AIR = 0.42  # density that aerated lung takes away from the chest

HEART = 0.85  # share of that air which the mediastinum displaces

THICKNESS = 0.5  # density of the heart per unit of its thickness

VESSELS = 0.13  # density of the largest vessels


@dataclass(frozen=True)
class Patient:
    """The features that stay the same in every image of one synthetic patient."""

    sex: str
    age: int
    width: float  # half-width of the rib cage
    apex: float  # y of the lung apices
    body: float  # 0 slim .. 1 large
    heart: float  # cardiothoracic ratio without cardiomegaly
    tilt: float  # radians, long axis of the heart
    aorta: float  # how far the aortic knob bulges
    rib_spacing: float
    rib_contrast: float
    vessels: int  # seed of the vascular tree


def draw_patient(rng: np.random.Generator) -> Patient:
    return Patient(
        sex=str(rng.choice(["F", "M"])),
        age=int(rng.integers(22, 90)),
        width=rng.uniform(0.67, 0.76),
        apex=rng.uniform(-0.84, -0.76),
        body=rng.uniform(0, 1),
        heart=rng.uniform(0.40, 0.47),
        tilt=rng.uniform(0.45, 0.75),
        aorta=rng.uniform(0.04, 0.10),
        rib_spacing=rng.uniform(0.155, 0.19),
        rib_contrast=rng.uniform(0.03, 0.06),
        vessels=int(rng.integers(2**31)),
    )


def smooth(distance: np.ndarray, edge: float) -> np.ndarray:
    """Step from 0 (distance <= -edge) to 1 (distance >= edge)."""
    t = np.clip(distance * (0.5 / edge) + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Smooth noise (size, size) of several scales, standard deviation about 1."""
    field = np.zeros((7, 7), dtype=np.float32)
    for cells in (7, 14, 28, 56):
        field = np.asarray(Image.fromarray(field).resize((cells, cells), Image.Resampling.BICUBIC))
        field = field + 0.55 * rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(Image.fromarray(field).resize((size, size), Image.Resampling.BICUBIC))


def curve(*points: tuple[float, float], steps: int = 24) -> np.ndarray:
    """Bezier curve (steps, 2) from the first to the last control point."""
    t = np.linspace(0, 1, steps)[:, None]
    arrays = [np.asarray(point, dtype=float)[None] for point in points]
    while len(arrays) > 1:
        arrays = [(1 - t) * a + t * b for a, b in zip(arrays[:-1], arrays[1:], strict=True)]
    return arrays[0]


def vascular_tree(rng: np.random.Generator, hila: dict[str, tuple[float, float]]) -> list[tuple]:
    """Strokes of vessels that leave the hila and branch four times, thinner and fainter each time."""
    stems = 8
    start = np.repeat(np.array(list(hila.values())), stems, axis=0)
    fan = np.linspace(-1.45, 1.45, stems)
    angle = np.concatenate([np.pi - fan if side == "right" else fan for side in hila])
    groups = []
    for level in range(5):
        angle = angle + rng.normal(0, 0.2, len(angle))
        bend = angle + rng.normal(0, 0.35, len(angle))
        length = 0.13 * 0.93**level * rng.uniform(0.7, 1.3, (len(angle), 1))
        middle = start + 0.5 * length * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        end = middle + 0.5 * length * np.stack([np.cos(bend), np.sin(bend)], axis=1)
        groups.append((np.stack([start, middle, end], axis=1), 0.026 * 0.72**level, 0.8**level))
        spread = rng.uniform(0.2, 0.5, len(angle))
        keep = rng.random(2 * len(angle)) < 0.8
        start, angle = np.concatenate([end, end])[keep], np.concatenate([bend + spread, bend - spread])[keep]
    return groups[::-1]


class Chest:
    """The geometry of one image: pixels in the patient's coordinates, outlines, and the strokes that draw lines."""

    def __init__(self, patient: Patient, view: str, ratio: float | None, rng: np.random.Generator, size: int):
        self.patient, self.view, self.size = patient, view, size
        portable = view == "AP"
        self.zoom, roll = rng.uniform(0.95, 1.05), rng.normal(0, 0.02)
        self.shift = (rng.normal(0, 0.02), 0.02 + rng.normal(0, 0.02))
        self.cos, self.sin = math.cos(roll), math.sin(roll)
        axis = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
        u, v = (axis[None, :] - self.shift[0]) / self.zoom, (axis[:, None] - self.shift[1]) / self.zoom
        self.x, self.y = self.cos * u + self.sin * v, self.cos * v - self.sin * u
        self.ax = np.abs(self.x)
        self.half = {"right": (self.x < 0).astype(np.float32), "left": (self.x >= 0).astype(np.float32)}
        self.half["bilateral"] = np.ones_like(self.x)
        self.turn = rng.normal(0, 0.018)  # rotated patients: the mediastinum moves against the cage
        self.dome = rng.uniform(0.52, 0.62) - 0.05 * portable  # y of the right dome of the diaphragm: inspiration
        self.domes = {"right": self.dome, "left": self.dome + rng.uniform(0.02, 0.08)}
        self.hila = {"right": (-0.15 + self.turn, -0.06), "left": (0.16 + self.turn, -0.11)}
        # The cage is a superellipse above and straight below; each lung has its own rounded apex.
        t = np.clip((0.4 - self.y) / (0.4 - patient.apex), 0, 1)
        self.cage = patient.width * np.sqrt(1 - t * t * t) + 1e-3
        self.wall = self.cage - self.ax
        self.roof = 0.7 * (self.y - patient.apex - 1.3 * (self.ax - 0.32) ** 2)
        q = np.maximum((self.ax - 0.4 * patient.width) / (0.6 * patient.width), -1)
        self.sag = q * q * (0.17 + 0.12 * (q > 0).astype(np.float32))
        self.lung = self.air()
        self.normal_heart = self.heart(patient.heart + 0.02 * portable)
        self.drawn_heart = self.normal_heart if ratio is None else self.heart(ratio)
        self.aerated = self.lung * (1 - HEART * self.drawn_heart[0])  # where findings can replace air
        self.grain = texture(rng, size)
        self.tree = self.lung * self.strokes(vascular_tree(np.random.default_rng(patient.vessels), self.hila), 0.006)

    def air(self, raised: float = 0.0, side: str = "bilateral") -> np.ndarray:
        """Coverage (0..1) by lung, with the diaphragm raised on one side."""
        up = {name: dome - raised * (side in (name, "bilateral")) for name, dome in self.domes.items()}
        floor = up["right"] + (up["left"] - up["right"]) * self.half["left"] + self.sag
        return smooth(np.minimum(np.minimum(self.wall, self.roof), floor - self.y), 0.02) * smooth(
            self.ax - 0.06, 0.05
        )

    def place(self, side: str, across: float, down: float) -> tuple[float, float]:
        """Point of a lung: `across` 0 (midline) .. 1 (chest wall), `down` 0 (apex) .. 1 (dome)."""
        y = self.patient.apex + down * (self.dome - self.patient.apex)
        t = min(max((0.4 - y) / (0.4 - self.patient.apex), 0), 1)
        return SIDES[side] * across * self.patient.width * math.sqrt(1 - t**3), y

    def ellipse(self, centre: tuple[float, float], radii: tuple[float, float], tilt: float = 0.0) -> np.ndarray:
        """1 in the centre, 0 on the ellipse, negative outside; its root is the thickness of an ellipsoid."""
        c, s = math.cos(tilt), math.sin(tilt)
        dx, dy = self.x - centre[0], self.y - centre[1]
        along, across = dx * (c / radii[0]) + dy * (s / radii[0]), dy * (c / radii[1]) - dx * (s / radii[1])
        return 1 - along * along - across * across

    def strokes(self, groups: list[tuple], blur: float = 0.0) -> np.ndarray:
        """Coverage (0..1) by polylines, drawn at twice the resolution and averaged.

        Each group holds points (points, 2) or (lines, points, 2), a width, and the coverage to draw with; where two
        groups meet, the later one counts.
        """
        image = Image.new("L", (2 * self.size, 2 * self.size))
        pen = ImageDraw.Draw(image)
        turn = np.array([[self.cos, self.sin], [-self.sin, self.cos]])
        for points, width, ink in groups:
            points = np.asarray(points)
            pixels = ((points @ turn * self.zoom + self.shift) + 1) * self.size
            thick = max(1, round(width * self.zoom * self.size))
            for line in pixels.reshape(-1, 2 * points.shape[-2]).tolist():
                pen.line(line, fill=round(255 * ink), width=thick)
        image = image.reduce(2)
        if blur:
            image = image.filter(ImageFilter.BoxBlur(blur * self.size / 2))
        return np.asarray(image, dtype=np.float32) * np.float32(1 / 255)

    def heart(self, ratio: float) -> tuple[np.ndarray, np.ndarray]:
        """Coverage (0..1) and thickness of the mediastinum with a heart of this cardiothoracic ratio."""
        half, tilt, middle, y = ratio * self.patient.width, self.patient.tilt, self.x - self.turn, self.y
        long = half / math.hypot(math.cos(tilt), 0.76 * math.sin(tilt))  # so that it is 2 * half wide in the image
        ventricles = self.ellipse((0.27 * half + self.turn, self.dome + 0.03 - 0.68 * half), (long, 0.76 * long), tilt)
        knob, trunk = np.exp(-(((y + 0.36) / 0.09) ** 2)), np.exp(-(((y - self.dome + 0.52) / 0.2) ** 2))
        left = (self.patient.aorta * knob + 0.085 * trunk) * self.half["left"] + 0.02 * trunk
        strip = smooth(0.085 + 0.02 * (self.view == "AP") + left - np.abs(middle), 0.03)
        cover = 1 - (1 - smooth(ventricles, 0.14)) * (1 - strip)
        return cover, half * np.maximum(ventricles, 0) + 0.06 * strip


def draw_normal(chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """Density of the chest without findings."""
    patient, y, ax, lung = chest.patient, chest.y, chest.ax, chest.lung
    portable = chest.view == "AP"
    # Trunk, arms, neck and shoulders; the abdomen is denser; breasts; gas in the stomach.
    flank = patient.width + 0.15 + 0.15 * patient.body
    arm = np.abs(ax - flank - 0.22 - 0.35 * np.maximum(y + 0.4, 0))
    skin = np.maximum(flank + 0.5 * np.maximum(-0.1 - y, 0) - ax, 0.15 - arm)
    shoulder = y + 0.74 + 0.45 * np.exp((0.21 - ax) * 8) - 0.9 * np.maximum(ax - 0.7, 0) ** 2
    body = smooth(np.minimum(skin, 0.7 * shoulder), 0.04)
    density = body * (0.60 + 0.06 * patient.body - 0.4 * np.maximum(ax - patient.width - 0.05, 0) + 0.02 * chest.grain)
    density += 0.14 * smooth(y - chest.dome - 0.1, 0.25) * body
    if patient.sex == "F":
        half, level, radius = rng.uniform(0.36, 0.46), rng.uniform(0.26, 0.4), rng.uniform(0.26, 0.36)
        for side in SIDES.values():
            density += 0.10 * np.sqrt(np.maximum(chest.ellipse((side * half, level), (radius, radius * 0.9)), 0))
    gas = chest.ellipse((0.42, chest.domes["left"] + 0.14), (rng.uniform(0.08, 0.16), rng.uniform(0.04, 0.07)), 0.15)
    density -= rng.uniform(0.1, 0.3) * smooth(gas, 0.3)
    # Air, mediastinum, hila, spine, windpipe.
    cover, thickness = chest.normal_heart
    density -= AIR * lung * (1 - HEART * cover) - THICKNESS * thickness * smooth(chest.dome + 0.1 - y, 0.12)
    for centre in chest.hila.values():
        density += 0.11 * smooth(chest.ellipse(centre, (0.075, 0.15), 0.0), 0.9) * lung
    disc = np.abs(((y + 0.9) / 0.14) % 1 - 0.5)
    density += smooth(0.08 - ax, 0.02) * (0.07 + 0.06 * smooth(0.38 - disc, 0.06))
    middle = chest.turn - 0.01
    airway = [
        (np.array([(middle, -1.1), (middle, -0.24)]), 0.075, 1.0),
        (np.array([(middle, -0.26), (middle - 0.12, -0.09)]), 0.05, 0.8),
        (np.array([(middle, -0.26), (middle + 0.14, -0.12)]), 0.05, 0.8),
    ]
    density -= 0.16 * chest.strokes(airway, 0.016)
    # Bones: posterior ribs fall slowly outwards, anterior ones steeply inwards; clavicles, scapulae, humeri.
    inside = smooth(chest.wall + 0.035, 0.03) * smooth(chest.roof + 0.03, 0.03) * smooth(chest.dome + 0.22 - y, 0.12)
    lateral = ax / chest.cage
    lateral *= lateral
    posterior = np.abs(((y - 0.06 - 0.07 * lateral - 0.2 * lateral * lateral) / patient.rib_spacing) % 1 - 0.5)
    anterior = np.abs(((y + 0.5 * ax) / (patient.rib_spacing * 1.2)) % 1 - 0.5)
    rib = smooth(0.21 - posterior, 0.05) + 0.6 * smooth(0.06 - np.abs(posterior - 0.19), 0.05)
    rib += 0.6 * smooth(0.19 - anterior, 0.06) * smooth(ax - 0.28, 0.1) * smooth(y - patient.apex - 0.25, 0.1)
    density += patient.rib_contrast * rib * inside * smooth(ax - 0.08, 0.03)
    drop = rng.normal(0, 0.02) + 0.04 * portable
    bones = []
    for side in SIDES.values():
        inner, outer = side * 0.07 + chest.turn, side * (patient.width + 0.1)
        collar = curve((inner, -0.52 - drop), (side * 0.3, -0.56 - drop), (side * 0.45, -0.80 - drop), (outer, -0.74))
        blade = side * (patient.width - 0.12 * portable - rng.uniform(0.0, 0.06))
        scapula = curve((blade + side * 0.1, -0.62), (blade - side * 0.1, -0.45), (blade + side * 0.08, -0.05))
        humerus = np.array([(side * (flank + 0.2), -0.58), (side * (flank + 0.22), -0.4), (side * (flank + 0.7), 1.0)])
        bones += [(scapula, 0.035, 0.12), (humerus, 0.12, 0.15), (collar, 0.062, 0.25), (collar, 0.032, 0.18)]
    if rng.random() < 0.7:  # the letter L on the patient's left
        bones.append((np.array([(0.86, -0.94), (0.86, -0.84), (0.92, -0.84)]) / chest.zoom, 0.016, 1.0))
    return density + 0.6 * chest.strokes(bones, 0.006) + VESSELS * chest.tree * (1 - 0.7 * cover)


def film(density: np.ndarray, contrast: float, middle: float) -> np.ndarray:
    """Grey level (0..255, float) of a density: the S-shaped response of a detector and its display."""
    return 255 / (1 + np.exp(contrast * (middle - density)))
