"""Synthetic frontal chest radiographs with reports, labels and exact masks: the embedded data set.

Nothing here comes from a patient. A drawing is a sum of densities (soft tissue, air, heart, bones, vessels), and every
finding adds a density of its own, so that "the same image without this finding" is known and the mask of a finding is
exact: the pixels that it changed visibly. Findings are drawn without regard to each other as far as anatomy allows, so
that hardly anything about one can be guessed from another. Lengths are in half images: x runs from -1 (image left, the
patient's right) to 1, y from -1 (top) to 1.
"""

import io
import math
from dataclasses import dataclass

import datasets
import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm.auto import tqdm

from .annotations import MASKS
from .masks import encode_mask

PHANTOM_FINDINGS: tuple[str, ...] = (
    "Cardiomegaly",
    "Pleural Effusion",
    "Consolidation",
    "Pneumothorax",
    "Nodule",
    "Atelectasis",
    "Edema",
    "Support Devices",
)
SPLITS = ("train", "validation", "test")
MINIMUM_SIZE = 64
SIDES = {"right": -1.0, "left": 1.0}  # the patient's right is on the image's left
CM_PER_UNIT = 17.5  # a plate 35 cm wide
VISIBLE = 4.0  # grey levels (of 255) by which a pixel must differ to belong to a mask; the noise has 2 to 3.5
AIR = 0.42  # density that aerated lung takes away from the chest
HEART = 0.85  # share of that air which the mediastinum displaces
THICKNESS = 0.5  # density of the heart per unit of its thickness
VESSELS = 0.13  # density of the largest vessels


@dataclass(frozen=True)
class Patient:
    """What stays the same in every image of one synthetic patient."""

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


@dataclass(frozen=True)
class Finding:
    """The truth about one finding of one image."""

    grade: int  # 0, 1, 2: mild, moderate, severe (small, moderate, large)
    amount: float  # 0..1, the same on a continuous scale
    side: str = "bilateral"  # the patient's
    zone: str = "lower"
    lobe: str = ""
    kind: str = ""

    @property
    def heart_ratio(self) -> float:
        return 0.56 + 0.13 * self.amount

    @property
    def radius(self) -> float:
        return 0.062 + 0.023 * self.amount  # at most 3 cm across, or it would be called a mass


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


def draw_findings(rng: np.random.Generator) -> dict[str, Finding]:
    """Findings of one image; none in about a third. One whose place in the lungs is taken is left out."""
    if rng.random() < 0.32:
        return {}
    wanted = set(rng.choice(PHANTOM_FINDINGS, size=rng.choice([1, 2, 3], p=[0.4, 0.35, 0.25]), replace=False))
    if {"Pneumothorax", "Edema"} <= wanted:  # a lung without markings shows no edema
        wanted.remove(str(rng.choice(["Pneumothorax", "Edema"])))
    free = {side: {"upper", "lower"} for side in SIDES}

    def take(*zones: str) -> str | None:
        """A side on which all these zones are free; they no longer are."""
        sides = [side for side in SIDES if free[side] >= set(zones)]
        if not sides:
            return None
        side = str(rng.choice(sides))
        free[side] -= set(zones)
        return side

    found: dict[str, Finding] = {}
    for name in sorted(wanted, key=("Pneumothorax", "Pleural Effusion", "Atelectasis", *PHANTOM_FINDINGS).index):
        grade = int(rng.integers(3))
        side, zone, lobe, kind = "bilateral", "lower", "", ""
        if name == "Pneumothorax":
            side = take("upper", "lower")
        elif name == "Pleural Effusion":
            side = take("upper", "lower") if grade == 2 else take("lower")
            if side and grade < 2 and rng.random() < 0.2 and take("lower"):
                side = "bilateral"
        elif name == "Atelectasis":
            side = take("lower")
        elif name in ("Consolidation", "Nodule"):
            zone = str(rng.choice(sorted(free["right"] | free["left"]) or ["upper"]))
            side = take(zone)
            middle = zone == "lower" and side == "right" and rng.random() < 0.4
            lobe = "middle lobe" if middle else f"{zone} lobe"
        elif name == "Support Devices":
            kind = str(rng.choice(["pacemaker", "central line", "port"], p=[0.5, 0.3, 0.2]))
            usual, other = ("left", "right") if kind == "pacemaker" else ("right", "left")
            side = usual if rng.random() < 0.8 else other
        if side:
            found[name] = Finding(grade, (grade + rng.random()) / 3, side, zone, lobe, kind)
    return {name: found[name] for name in PHANTOM_FINDINGS if name in found}


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


def draw_cardiomegaly(chest: Chest, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    (cover, thickness), (larger, thicker) = chest.normal_heart, chest.drawn_heart
    above = smooth(chest.dome + 0.1 - chest.y, 0.12)
    return AIR * HEART * chest.lung * (larger - cover) + THICKNESS * (thicker - thickness) * above


def draw_effusion(chest: Chest, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Fluid below a meniscus that climbs the chest wall."""
    lateral = chest.ax / chest.cage
    level = chest.dome + 0.29 - (0.30 + 0.45 * finding.amount) * (0.5 + 0.5 * lateral**3)
    return (AIR + 0.06) * chest.aerated * smooth(chest.y - level, 0.04) * chest.half[finding.side]


def draw_consolidation(chest: Chest, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """A patchy opacity of one lobe that stops at the minor fissure on the right; vessels vanish in it."""
    across, down = {
        "upper lobe": (rng.uniform(0.45, 0.65), rng.uniform(0.24, 0.36)),
        "middle lobe": (rng.uniform(0.42, 0.5), rng.uniform(0.68, 0.76)),
        "lower lobe": (rng.uniform(0.5, 0.7), rng.uniform(0.78, 0.9)),
    }[finding.lobe]
    radius = 0.22 + 0.13 * finding.amount
    centre = chest.place(finding.side, across, down)
    patchy = smooth(chest.ellipse(centre, (radius * 1.1, radius), rng.uniform(-0.5, 0.5)) + 0.22 * chest.grain, 0.75)
    fissure = chest.place("right", 0, 0.52)[1] - chest.y
    if finding.side == "right" and finding.lobe != "lower lobe":
        patchy *= smooth(fissure if finding.lobe == "upper lobe" else -fissure, 0.02)
    return patchy * chest.half[finding.side] * (0.9 * AIR * chest.aerated - 0.7 * VESSELS * chest.tree)


def draw_pneumothorax(chest: Chest, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Air without markings between the chest wall and a thin pleural line, wider at the apex."""
    wall, roof = np.maximum(chest.wall, 0), np.maximum(chest.roof, 0)
    inset = wall * roof / np.sqrt(wall * wall + roof * roof + 1e-6)
    down = np.clip((chest.y - chest.patient.apex) / (chest.dome - chest.patient.apex), 0, 1)
    gap = (0.11 + 0.19 * finding.amount) * (1.2 - 0.6 * down)
    side = chest.lung * chest.half[finding.side]
    outside, line = smooth(gap - inset, 0.008), smooth(0.011 - np.abs(inset - gap), 0.008)
    return side * (0.20 * line - 0.16 * outside) - VESSELS * chest.tree * outside * side


def draw_nodule(chest: Chest, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    radius = finding.radius
    lower = finding.zone == "lower"
    across = rng.uniform(0.66 if lower and finding.side == "left" else 0.45, 0.82)
    centre = chest.place(finding.side, across, rng.uniform(0.58, 0.8) if lower else rng.uniform(0.2, 0.42))
    ball = chest.ellipse(centre, (radius, radius * rng.uniform(0.85, 1.0)), rng.uniform(0, 3))
    return rng.uniform(0.42, 0.50) * smooth(ball, 0.5)


def draw_atelectasis(chest: Chest, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Plate-like bands at one base and the raised diaphragm of the lost volume."""
    bands = []
    for _ in range(2 + finding.grade):
        x, y = chest.place(finding.side, rng.uniform(0.58, 0.70), rng.uniform(0.68, 0.92))
        half, slope = rng.uniform(0.13, 0.2), rng.normal(0, 0.15)
        for part, width, ink in ((1.0, 0.024, 0.6), (0.8, 0.045, 1.0)):
            ends = [(x + sign * part * half, y + sign * part * half * slope) for sign in (-1, 1)]
            bands.append((curve(ends[0], (x, y - 0.02), ends[1]), width, ink))
    raised = chest.lung - chest.air(0.08 + 0.08 * finding.amount, finding.side)
    return 0.38 * chest.strokes(bands, 0.006) * chest.lung * chest.half[finding.side] + 0.95 * AIR * raised * (
        1 - HEART * chest.drawn_heart[0]
    )


def draw_edema(chest: Chest, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Haze around both hila, fuller vessels, short septal lines at the walls (Kerley B)."""
    haze = np.zeros_like(chest.x)
    for x, y in chest.hila.values():
        haze += np.exp(-(((chest.x - 1.6 * x) / 0.27) ** 2) - ((chest.y - y - 0.1) / 0.36) ** 2)
    lines = [
        np.array([chest.place(side, 0.97, down), chest.place(side, rng.uniform(0.82, 0.88), down + 0.01)])
        for side in SIDES
        for down in np.linspace(0.66, 0.98, 7)
    ]
    fluffy = np.clip(haze * (1 + 0.3 * chest.grain), 0, 1)
    septa = chest.strokes([(np.stack(lines), 0.012, 1.0)])
    return chest.aerated * ((0.16 + 0.17 * finding.amount) * fluffy + 0.13 * septa) + 0.4 * VESSELS * chest.tree


def draw_device(chest: Chest, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """A pacemaker with its lead, a central venous line, or a port with its catheter."""
    side = SIDES[finding.side]
    pocket, vein = (side * rng.uniform(0.5, 0.6), rng.uniform(-0.5, -0.4)), (side * 0.42, -0.68)
    cava = (-0.10 + chest.turn, rng.uniform(-0.16, 0.0))
    solid = np.zeros_like(chest.x)
    if finding.kind == "central line":
        jugular = (side * 0.17, -1.05), (side * 0.15, -0.7), (-0.09, -0.5), cava
        subclavian = (side * 0.8, -0.62), vein, (-0.02, -0.62), (-0.12, -0.4), cava
        line = curve(*(jugular if rng.random() < 0.5 else subclavian))
    elif finding.kind == "port":
        line = curve(pocket, vein, (-0.02, -0.66), (-0.12, -0.4), cava)
        solid = smooth(0.055 - np.hypot(chest.x - pocket[0], chest.y - pocket[1]), 0.012)
    else:
        atrium, tip = (-0.11 + chest.turn, -0.3), (0.24 + chest.turn, chest.dome - 0.04)
        inflow = curve(pocket, vein, (-0.02, -0.68), (-0.10, -0.6), atrium)
        line = np.concatenate([inflow, curve(atrium, (-0.13, 0.1), (-0.13, chest.dome), tip)])
        corner = np.maximum(np.abs(chest.x - pocket[0]) - 0.06, 0), np.maximum(np.abs(chest.y - pocket[1]) - 0.04, 0)
        solid = smooth(0.04 - np.hypot(*corner), 0.012)
    return 0.5 * np.maximum(solid, chest.strokes([(line, 0.028, 1.0)]))


DRAW = {
    "Cardiomegaly": draw_cardiomegaly,
    "Pleural Effusion": draw_effusion,
    "Consolidation": draw_consolidation,
    "Pneumothorax": draw_pneumothorax,
    "Nodule": draw_nodule,
    "Atelectasis": draw_atelectasis,
    "Edema": draw_edema,
    "Support Devices": draw_device,
}


def film(density: np.ndarray, contrast: float, middle: float) -> np.ndarray:
    """Grey level (0..255, float) of a density: the S-shaped response of a detector and its display."""
    return 255 / (1 + np.exp(contrast * (middle - density)))


def encode(pixels: np.ndarray, path: str | None = None) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": path}


# Wording, in the patient's sides: noun phrases for both parts of a report, and whole sentences for the findings.
NOUNS = {
    "Cardiomegaly": (
        "{degree} cardiomegaly",
        "{degree} enlargement of the cardiac silhouette",
        "{degree}ly enlarged heart",
    ),
    "Pleural Effusion": (
        "{amount} {side} pleural effusion{s}",
        "{side} pleural effusion{s}",
        "{amount} {side} effusion{s}",
    ),
    "Consolidation": (
        "{side} {lobe} consolidation",
        "consolidation in the {side} {lobe}",
        "{degree} {side} {lobe} airspace consolidation",
        "focal consolidation of the {side} {lobe}",
    ),
    "Pneumothorax": ("{amount} {side} pneumothorax", "{side} pneumothorax", "{amount} {side}-sided pneumothorax"),
    "Nodule": ("{size} cm nodule in the {side} {zone} lung", "{side} {zone} lung nodule", "{side} pulmonary nodule"),
    "Atelectasis": (
        "{side} basilar atelectasis",
        "{degree} {side} lower lung atelectasis",
        "linear atelectasis at the {side} base",
    ),
    "Edema": ("{degree} pulmonary edema", "{degree} interstitial edema", "{degree} bilateral perihilar edema"),
    "pacemaker": (
        "{side} chest wall pacemaker",
        "{side}-sided pacemaker with lead in the right ventricle",
        "support device ({side} pacemaker)",
    ),
    "central line": (
        "{side} central venous catheter",
        "{side} central line with tip in the superior vena cava",
        "support device ({side} central line)",
    ),
    "port": ("{side} chest port", "{side} port catheter", "support device ({side} port catheter)"),
}
SENTENCES = {
    "Cardiomegaly": (
        "The heart is {degree}ly enlarged.",
        "The cardiac silhouette is enlarged, with a cardiothoracic ratio of {ratio}.",
    ),
    "Pleural Effusion": ("The {side} costophrenic angle{s} {be} blunted by {article}{amount} pleural effusion{s}.",),
    "Consolidation": ("Airspace opacity in the {side} {lobe} is consistent with consolidation.",),
    "Pneumothorax": ("A visceral pleural line is seen on the {side}, with a {amount} pneumothorax.",),
    "Nodule": ("A rounded nodule projects over the {side} {zone} lung, measuring {size} cm.",),
    "Atelectasis": ("Linear opacities at the {side} lung base with volume loss are compatible with atelectasis.",),
    "Edema": ("Bilateral perihilar haze and Kerley lines are consistent with {degree} edema.",),
    "pacemaker": ("A pacemaker projects over the {side} chest, its lead ending in the right ventricle.",),
    "central line": ("A {side} central line ends in the superior vena cava.",),
    "port": ("A {side} chest port ends in the superior vena cava.",),
}
LUNGS = ("Consolidation", "Nodule", "Atelectasis", "Edema", "Pneumothorax", "Pleural Effusion")
NEGATIVES = {  # what may be said when none of these is present
    ("Cardiomegaly",): (
        "The heart is normal in size.",
        "Heart size is within normal limits.",
        "No cardiomegaly.",
        "The cardiomediastinal silhouette is normal.",
    ),
    ("Pleural Effusion",): (
        "No pleural effusion.",
        "There is no pleural effusion.",
        "The costophrenic angles are sharp.",
    ),
    ("Pneumothorax",): ("No pneumothorax.", "There is no pneumothorax.", "No evidence of pneumothorax."),
    ("Pleural Effusion", "Pneumothorax"): ("No pleural effusion or pneumothorax.", "No pneumothorax or effusion."),
    ("Consolidation",): ("No focal consolidation.", "There is no consolidation.", "No airspace consolidation."),
    ("Consolidation", "Pleural Effusion", "Pneumothorax"): (
        "No focal consolidation, pleural effusion, or pneumothorax.",
        "There is no consolidation, effusion, or pneumothorax.",
    ),
    ("Nodule",): ("No pulmonary nodule.", "No suspicious nodule or mass."),
    ("Atelectasis",): ("No atelectasis.", "No evidence of atelectasis."),
    ("Edema",): ("No pulmonary edema.", "There is no edema.", "Pulmonary vascularity is normal."),
    ("Support Devices",): ("No support devices.", "No pacemaker or central line."),
    LUNGS: ("The lungs are clear.", "Lungs are clear bilaterally.", "Both lungs are clear and well expanded."),
}
NEUTRAL = (
    "The bones are intact.",
    "No acute osseous abnormality.",
    "The trachea is midline.",
    "Visualized upper abdomen is unremarkable.",
)
NORMAL = (
    "No acute cardiopulmonary abnormality.",
    "No acute cardiopulmonary process.",
    "Normal chest radiograph.",
    "No acute disease.",
    "Normal chest.",
    "No radiographic evidence of acute cardiopulmonary disease.",
)


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def word(name: str, finding: Finding, table: dict[str, tuple[str, ...]], rng: np.random.Generator) -> str:
    """One wording of a finding out of a table."""
    both = finding.side == "bilateral"
    return str(rng.choice(table[finding.kind or name])).format(
        degree=("mild", "moderate", "severe")[finding.grade],
        amount=("small", "moderate", "large")[finding.grade],
        side=finding.side,
        zone=finding.zone,
        lobe=finding.lobe,
        size=f"{2 * finding.radius * CM_PER_UNIT:.1f}",
        ratio=f"{finding.heart_ratio:.2f}",
        s="s" if both else "",
        be="are" if both else "is",
        article="" if both else "a ",
    )


def write_findings(found: dict[str, Finding], negatives: list[str], rng: np.random.Generator) -> str:
    """Every positive, some of the negatives, in a varying order."""
    said = []
    for name, finding in found.items():
        if rng.random() < 0.4:
            said.append(word(name, finding, SENTENCES, rng))
        else:
            be = "are" if name == "Pleural Effusion" and finding.side == "bilateral" else "is"
            verb = str(rng.choice(["", f" {be} present", f" {be} seen", f" {be} noted"]))
            said.append(sentence(word(name, finding, NOUNS, rng) + verb))
    rng.shuffle(said)
    said += negatives[: rng.integers(2, 5)]
    said += [str(text) for text in rng.choice(NEUTRAL, size=rng.integers(2))]
    if rng.random() < 0.5:
        rng.shuffle(said)
    return " ".join(said)


def write_impression(found: dict[str, Finding], negatives: list[str], rng: np.random.Generator) -> str:
    """Nearly always every positive, now and then hedged, sometimes with a negative."""
    if not found:
        return str(rng.choice(NORMAL))
    names = [str(name) for name in rng.permutation(list(found))]
    if len(names) > 1 and rng.random() < 0.08:
        names.pop()
    nouns = [word(name, found[name], NOUNS, rng) for name in names]
    if rng.random() < 0.05:
        nouns[0] = f"probable {nouns[0]}"
    style = rng.random()
    if len(nouns) > 1 and style < 0.3:
        text = " ".join(f"{number}. {sentence(noun)}" for number, noun in enumerate(nouns, 1))
    elif len(nouns) > 1 and style < 0.6:
        text = sentence(f"{', '.join(nouns[:-1])} and {nouns[-1]}")
    else:
        text = " ".join(sentence(noun) for noun in nouns)
    return f"{text} {negatives[-1]}" if negatives and rng.random() < 0.35 else text


def draw_negatives(found: dict[str, Finding], rng: np.random.Generator) -> list[str]:
    """True negative statements in random order; no finding is denied twice."""
    groups, denied, texts = list(NEGATIVES), set(found), []
    for number in rng.permutation(len(groups)):
        if denied.isdisjoint(groups[number]):
            denied.update(groups[number])
            texts.append(str(rng.choice(NEGATIVES[groups[number]])))
    return texts


def make_record(index: int, seed: int, image_size: int, split: str) -> dict:
    """One record of the schema; every fourth image is a second one of the patient before."""
    number = index // 4 * 3 + min(index % 4, 2)
    patient = draw_patient(np.random.default_rng([seed, SPLITS.index(split), 0, number]))
    rng = np.random.default_rng([seed, SPLITS.index(split), 1, index])
    view = "AP" if rng.random() < 0.3 else "PA"
    found = draw_findings(rng)
    negatives = draw_negatives(found, rng)
    findings, impression = write_findings(found, negatives, rng), write_impression(found, negatives, rng)
    heart_ratio = found["Cardiomegaly"].heart_ratio if "Cardiomegaly" in found else None
    chest = Chest(patient, view, heart_ratio, rng, image_size)
    added = {name: DRAW[name](chest, finding, rng) for name, finding in found.items()}
    total = sum(added.values(), start=draw_normal(chest, rng))
    contrast, middle = rng.uniform(4.6, 5.6), rng.uniform(0.43, 0.52)
    clean = film(total, contrast, middle)
    noise = rng.uniform(2.0, 3.5) * rng.standard_normal(clean.shape, dtype=np.float32)
    image_id = f"synthetic-{split}-{index + 1:06d}"
    record = {
        "image": encode(np.clip(clean + noise + 0.5, 0, 255).astype(np.uint8), f"{image_id}.png"),
        "image_id": image_id,
        "patient_id": f"synthetic-{split}-patient-{number + 1:06d}",
        "study_id": f"synthetic-{split}-study-{index + 1:06d}",
        "view": view,
        "findings": findings,
        "impression": impression,
        "report": f"FINDINGS: {findings} IMPRESSION: {impression}",
        "split": split,
        "sex": patient.sex,
        "age": patient.age,
        "source": "synthetic",
        "masks": [],
    }
    for name in PHANTOM_FINDINGS:
        record[name] = float(name in found)
        if name in found:
            changed = np.abs(clean - film(total - added[name], contrast, middle)) > VISIBLE
            height, width = changed.shape
            mask = {"finding": name, "height": height, "width": width, "counts": encode_mask(changed)}
            record["masks"].append(mask)
    return record


def make_phantom(num_images: int, seed: int = 0, image_size: int = 224, split: str = "train") -> datasets.Dataset:
    """Draw synthetic frontal chest radiographs with reports, labels and masks.

    Args:
        num_images (`int`):
            Number of images, at least 1. An image is the same however many are drawn.
        seed (`int`, *optional*, defaults to 0):
            Seed of the whole set, at least 0.
        image_size (`int`, *optional*, defaults to 224):
            Height and width in pixels, at least 64.
        split (`str`, *optional*, defaults to `"train"`):
            `"train"`, `"validation"` or `"test"`: three sets without a common patient.

    Returns:
        `datasets.Dataset`: the columns of the record schema. `image` is an 8-bit grey PNG, not decoded; there is one
        float column per finding of `PHANTOM_FINDINGS` (1 present, 0 absent), and `masks` has one mask for each finding
        that is present: where it changed the image by more than 4 grey levels.

    Raises:
        ValueError: for a number of images, a seed, a size or a split out of range.
    """
    if num_images < 1:
        raise ValueError(f"num_images is {num_images}; a phantom needs at least 1 image.")
    if seed < 0:
        raise ValueError(f"seed is {seed}; give 0 or a larger whole number.")
    if image_size < MINIMUM_SIZE:
        raise ValueError(f"image_size is {image_size}; give at least {MINIMUM_SIZE}, or the findings cannot be seen.")
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; a phantom has only {', '.join(SPLITS)}.")
    text = datasets.Value("string")
    texts = ("image_id", "patient_id", "study_id", "view", "findings", "impression", "report", "split")
    features = datasets.Features(
        {"image": datasets.Image(decode=False)}
        | {name: text for name in texts}
        | {name: datasets.Value("float32") for name in PHANTOM_FINDINGS}
        | {"sex": text, "age": datasets.Value("float32"), "source": text, "masks": MASKS}
    )
    indices = tqdm(range(num_images), desc="Drawing synthetic radiographs", unit="image", disable=num_images < 300)
    records = [make_record(index, seed, image_size, split) for index in indices]
    return datasets.Dataset.from_dict({name: [record[name] for record in records] for name in features}, features)
