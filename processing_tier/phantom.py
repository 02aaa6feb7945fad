"""Synthetic frontal chest radiographs with reports, labels and exact masks: the embedded data set.

Nothing here comes from a patient. A drawing is a sum of densities (soft tissue, air, heart, bones, vessels), and every finding
adds one density of its own, so that "the same image without this finding" is known and the mask of a finding is exact: the
pixels that it changed visibly. Lengths are in half images: x runs from -1 (image left, the patient's right) to 1, y from -1 (top)
to 1; one half image is about 20 cm.
"""

import io
from dataclasses import dataclass

import datasets
import numpy as np
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

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
CM_PER_UNIT = 20.0
AIR = 0.46  # density that aerated lung takes away from the chest
VISIBLE = 4.0  # grey levels (of 255) by which a pixel must differ to belong to a finding's mask; the noise has about 3
SIDES = {"right": -1.0, "left": 1.0}  # the patient's right is on the image's left


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
    rib_spacing: float
    rib_contrast: float
    aorta: float
    vessels: int  # seed of the vascular tree


def draw_patient(rng: np.random.Generator) -> Patient:
    uniform = rng.uniform
    return Patient(
        sex=str(rng.choice(["F", "M"])),
        age=int(rng.integers(22, 90)),
        width=uniform(0.66, 0.78),
        apex=uniform(-0.84, -0.76),
        body=uniform(0, 1),
        heart=uniform(0.40, 0.47),
        tilt=uniform(0.45, 0.75),
        rib_spacing=uniform(0.155, 0.19),
        rib_contrast=uniform(0.06, 0.11),
        aorta=uniform(0.09, 0.12),
        vessels=int(rng.integers(2**31)),
    )


def draw_findings(rng: np.random.Generator) -> dict[str, dict]:
    """Findings of one image with severity and place. A finding that finds its place taken is left out."""
    if rng.random() < 0.32:
        return {}
    wanted = set(rng.choice(PHANTOM_FINDINGS, size=rng.choice([1, 2, 3], p=[0.4, 0.35, 0.25]), replace=False))
    free = {(side, zone) for side in SIDES for zone in ("upper", "lower")}
    found: dict[str, dict] = {}

    def take(*zones: str) -> str | None:
        """A side on which all these zones are free, now taken."""
        sides = [side for side in SIDES if all((side, zone) in free for zone in zones)]
        if not sides:
            return None
        side = str(rng.choice(sides))
        free.difference_update((side, zone) for zone in zones)
        return side

    for name in PHANTOM_FINDINGS:
        if name not in wanted:
            continue
        grade = int(rng.integers(3))
        detail: dict = {"grade": grade, "amount": (grade + rng.random()) / 3}
        if name == "Pneumothorax":
            detail["side"] = take("upper", "lower")
        elif name == "Pleural Effusion":
            detail["side"] = take("upper", "lower") if grade == 2 else take("lower")
            if grade < 2 and rng.random() < 0.2 and take("lower"):
                detail["side"] = "bilateral"
        elif name == "Atelectasis":
            detail["side"] = take("lower")
        elif name in ("Consolidation", "Nodule"):
            zones = [zone for zone in ("upper", "lower") if any((side, zone) in free for side in SIDES)]
            detail["zone"] = str(rng.choice(zones)) if zones else "upper"
            detail["side"] = take(detail["zone"])
            detail["lobe"] = f"{detail['zone']} lobe"
            if detail["zone"] == "lower" and detail["side"] == "right" and rng.random() < 0.4:
                detail["lobe"] = "middle lobe"
        elif name == "Support Devices":
            detail["kind"] = str(rng.choice(["pacemaker", "central line", "port"], p=[0.5, 0.3, 0.2]))
            likely = "left" if detail["kind"] == "pacemaker" else "right"
            detail["side"] = likely if rng.random() < 0.8 else ("right" if likely == "left" else "left")
        elif name == "Edema" and "Pneumothorax" in found:
            continue
        if detail.get("side", "") is not None:
            found[name] = detail
    return found


def smooth(distance: np.ndarray, edge: float) -> np.ndarray:
    """Step from 0 (distance <= -edge) to 1 (distance >= edge)."""
    t = np.clip(distance * (0.5 / edge) + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def dome(x: np.ndarray, y: np.ndarray, centre: tuple[float, float], radii: tuple[float, float], tilt: float = 0.0):
    """Thickness (0..1) of an ellipsoid seen from the front."""
    c, s = np.cos(tilt), np.sin(tilt)
    dx, dy = x - centre[0], y - centre[1]
    return np.sqrt(np.maximum(1 - ((c * dx + s * dy) / radii[0]) ** 2 - ((c * dy - s * dx) / radii[1]) ** 2, 0))


class Canvas:
    """Pixel grid in the patient's coordinates, and strokes along paths of them."""

    def __init__(self, size: int, zoom: float, roll: float, shift: tuple[float, float]):
        self.size, self.zoom, self.shift = size, zoom, shift
        self.cos, self.sin = np.cos(roll), np.sin(roll)
        axis = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
        u, v = (axis[None, :] - shift[0]) / zoom, (axis[:, None] - shift[1]) / zoom
        self.x = np.float32(self.cos) * u + np.float32(self.sin) * v
        self.y = np.float32(self.cos) * v - np.float32(self.sin) * u

    def strokes(self, paths: list[tuple[np.ndarray, float]]) -> np.ndarray:
        """Coverage (0..1) of polylines of a given width; drawn at twice the resolution, then averaged."""
        image = Image.new("L", (2 * self.size, 2 * self.size))
        pen = ImageDraw.Draw(image)
        for points, width in paths:
            px, py = np.asarray(points, dtype=float).T
            u = (self.cos * px - self.sin * py) * self.zoom + self.shift[0]
            v = (self.sin * px + self.cos * py) * self.zoom + self.shift[1]
            pixels = np.stack([u + 1, v + 1], axis=1) * self.size
            pen.line(
                pixels.ravel().tolist(), fill=255, width=max(1, round(width * self.zoom * self.size)), joint="curve"
            )
        return np.asarray(image.reduce(2), dtype=np.float32) / 255


def texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Smooth noise of several scales, standard deviation about 1."""
    field = np.zeros((7, 7), dtype=np.float32)
    for cells in (7, 14, 28, 56):
        field = np.asarray(Image.fromarray(field).resize((cells, cells), Image.Resampling.BICUBIC))
        field = field + 0.55 * rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(Image.fromarray(field).resize((size, size), Image.Resampling.BICUBIC))


def curve(*points: tuple[float, float], steps: int = 24) -> np.ndarray:
    """Bezier curve through its first and last control point."""
    t = np.linspace(0, 1, steps)[:, None]
    points = [np.asarray(point, dtype=float)[None] for point in points]
    while len(points) > 1:
        points = [(1 - t) * a + t * b for a, b in zip(points[:-1], points[1:], strict=True)]
    return points[0]


def vascular_tree(rng: np.random.Generator, hila: list[tuple[float, float]]) -> list[tuple[np.ndarray, float]]:
    """Branching vessels from each hilum outwards."""
    paths = []
    for hx, hy in hila:
        outwards = 0.0 if hx > 0 else np.pi
        stack = [
            ((hx, hy), outwards + angle + rng.normal(0, 0.12), 0.028, 0.16) for angle in np.linspace(-1.35, 1.35, 7)
        ]
        while stack:
            (x, y), angle, width, length = stack.pop()
            length *= rng.uniform(0.8, 1.2)
            bend = angle + rng.normal(0, 0.15)
            middle = (x + 0.5 * length * np.cos(angle), y + 0.5 * length * np.sin(angle))
            end = (middle[0] + 0.5 * length * np.cos(bend), middle[1] + 0.5 * length * np.sin(bend))
            paths.append((np.array([(x, y), middle, end]), width))
            if width > 0.010:
                spread = rng.uniform(0.25, 0.5)
                stack += [
                    (end, bend + spread, width * 0.68, length * 0.9),
                    (end, bend - spread, width * 0.68, length * 0.9),
                ]
    return paths


def draw_densities(patient: Patient, found: dict[str, dict], rng: np.random.Generator, size: int, view: str):
    """Density of the normal chest (size, size) and the density that each finding adds to it."""
    supine = view == "AP"
    canvas = Canvas(
        size, rng.uniform(0.94, 1.08), rng.normal(0, 0.025), (rng.normal(0, 0.025), 0.02 + rng.normal(0, 0.025))
    )
    x, y = canvas.x, canvas.y
    turn = rng.normal(0, 0.018)  # rotated patients: the mediastinum moves against the cage
    depth = rng.uniform(0.46, 0.62) - 0.08 * supine  # y of the right dome of the diaphragm: inspiration
    levels = {"right": depth, "left": depth + rng.uniform(0.02, 0.07)}
    ax, left = np.abs(x), x > 0
    width, apex = patient.width, patient.apex

    # Cage and lungs: an ellipse above, straight below, a rounded apex on each side, and the diaphragm.
    t = np.clip((0.45 - y) / (0.45 - apex), 0, 1)
    cage = width * np.sqrt(1 - t * t) + 1e-3
    inset = np.minimum(cage - ax, 0.6 * (y - apex - 1.5 * (ax - 0.3) ** 2))  # distance from the pleura, inwards
    q = (ax - 0.36 * width) / (0.64 * width)
    sag = np.where(q > 0, 0.25, 0.16) * q * q

    def air(raised: float = 0.0, side: str | None = None) -> np.ndarray:
        up = {name: level - (raised if name == side else 0) for name, level in levels.items()}
        floor = np.where(left, np.float32(up["left"]), np.float32(up["right"])) + sag
        return smooth(np.minimum(inset, floor - y), 0.02) * smooth(ax - 0.07, 0.05)

    lung = air()
    height = (y - apex) / (depth - apex)  # 0 at the apex, 1 at the dome
    lateral = ax / cage

    def on(side: str) -> np.ndarray:
        return left if side == "left" else ~left

    def place(side: str, across: float, down: float) -> tuple[float, float]:
        """Point of a lung: `across` 0 (middle) .. 1 (chest wall), `down` 0 (apex) .. 1 (dome)."""
        py = apex + down * (depth - apex)
        up = min(max((0.45 - py) / (0.45 - apex), 0), 1)
        return SIDES[side] * across * width * np.sqrt(1 - up * up), py

    # Soft tissue: trunk, neck, shoulders, abdomen, breasts.
    trunk = width + 0.16 + 0.16 * patient.body
    shoulder = y + 0.80 - 0.42 * np.maximum(ax - 0.22, 0) ** 1.5 + 0.55 * (ax < 0.22)
    body = smooth(np.minimum(trunk + 0.25 * np.maximum(0.1 - y, 0) - ax, shoulder), 0.05)
    density = body * (0.60 + 0.06 * patient.body - 0.14 * np.clip(ax - width, 0, 1) / 0.3)
    density += 0.14 * smooth(y - depth - 0.1, 0.25) * body
    if patient.sex == "F":
        bx, by, size_ = rng.uniform(0.38, 0.46), rng.uniform(0.28, 0.42), rng.uniform(0.26, 0.34)
        density += 0.09 * dome(ax, y, (bx, by), (size_, size_ * 0.9))
    density -= AIR * rng.uniform(0.92, 1.05) * lung
    bubble = dome(x, y, (0.42 * width / 0.7, levels["left"] + 0.13), (rng.uniform(0.08, 0.15), 0.06), 0.2)
    density -= rng.uniform(0.1, 0.3) * bubble

    # Mediastinum, spine, trachea.
    mx = x - turn
    strip = 0.11 + 0.05 * smooth(y - 0.05, 0.4) + 0.03 * (view == "AP")
    density += 0.30 * smooth(strip - np.abs(mx), 0.04) * smooth(y + 0.75, 0.3)
    vertebra = np.abs(((y + 0.9) / 0.135) % 1 - 0.5)
    density += smooth(0.085 - np.abs(x), 0.02) * (0.10 + 0.06 * smooth(0.40 - vertebra, 0.06))
    density += 0.30 * dome(mx, y, (0.10, -0.32), (patient.aorta, patient.aorta * 1.15))
    windpipe = np.abs(mx + 0.01) - 0.042
    density -= 0.16 * smooth(-windpipe, 0.02) * smooth(-0.22 - y, 0.06)
    hila = [(-0.17 + turn, -0.06), (0.17 + turn, -0.10)]
    for hx, hy in hila:
        density += 0.16 * dome(x, y, (hx, hy), (0.09, 0.14))

    # Heart: an ellipsoid whose apex points to the image's right; its width follows the cardiothoracic ratio.
    def heart(ratio: float) -> np.ndarray:
        half = ratio * width
        centre = (0.27 * half + turn, depth - 0.02 - 0.62 * half)
        return np.float32(0.40) * (np.sqrt(dome(x, y, centre, (half * 1.04, half * 0.80), patient.tilt)))

    ratio = patient.heart + 0.02 * supine
    silhouette = heart(ratio)
    density += silhouette * (1 - smooth(y - depth - sag - 0.05, 0.1))

    # Bones: posterior ribs fall slowly outwards, anterior ones steeply inwards; clavicles.
    inside = smooth(cage + 0.03 - ax, 0.03) * smooth(y - apex, 0.05) * smooth(depth + 0.28 - y, 0.1)
    posterior = np.abs(((y - 0.10 * lateral - 0.16 * lateral**4) / patient.rib_spacing) % 1 - 0.5)
    anterior = np.abs(((y + 0.45 * ax) / (patient.rib_spacing * 1.15)) % 1 - 0.5)
    rib = smooth(0.20 - posterior, 0.05) + 0.5 * smooth(0.05 - np.abs(posterior - 0.19), 0.05)
    rib += 0.55 * smooth(0.17 - anterior, 0.06) * smooth(ax - 0.30, 0.08)
    density += patient.rib_contrast * rib * inside * smooth(ax - 0.08, 0.03)
    drop = rng.normal(0, 0.02) + 0.03 * supine
    clavicles = [
        (
            curve(
                (s * 0.07 + turn, -0.56 - drop), (s * 0.3, -0.56 - drop), (s * 0.5, -0.78 - drop), (s * 0.86, -0.76)
            ),
            0.055,
        )
        for s in (-1, 1)
    ]
    density += 0.12 * canvas.strokes(clavicles)

    # Vessels and texture.
    branches = vascular_tree(np.random.default_rng(patient.vessels), hila)
    tree = canvas.strokes(branches) * lung * rng.uniform(0.11, 0.15)
    grain = texture(rng, size)
    density += tree + 0.012 * grain * body

    # Findings: each adds its own density.
    added: dict[str, np.ndarray] = {}
    for name, detail in found.items():
        amount, side = detail["amount"], detail.get("side")
        if name == "Cardiomegaly":
            detail["ratio"] = 0.56 + 0.13 * amount
            change = (heart(detail["ratio"]) - silhouette) * (1 - smooth(y - depth - sag - 0.05, 0.1))
        elif name == "Pleural Effusion":
            fluid = 0.16 + 0.50 * amount
            level = depth + 0.27 - fluid * (0.5 + 0.5 * lateral**3)
            where = True if side == "bilateral" else on(side)
            change = 0.95 * AIR * lung * smooth(y - level, 0.04) * where
        elif name == "Consolidation":
            across, down = {
                "upper lobe": (rng.uniform(0.45, 0.65), rng.uniform(0.22, 0.36)),
                "middle lobe": (rng.uniform(0.4, 0.5), rng.uniform(0.68, 0.76)),
                "lower lobe": (rng.uniform(0.5, 0.7), rng.uniform(0.78, 0.9)),
            }[detail["lobe"]]
            radius = 0.19 + 0.12 * amount
            blob = dome(x, y, place(side, across, down), (radius * 1.1, radius), rng.uniform(-0.5, 0.5))
            patchy = np.clip(1.25 * blob + 0.16 * grain * (blob > 0), 0, 1)
            change = 0.85 * AIR * lung * patchy * on(side) - 0.5 * tree * patchy
        elif name == "Pneumothorax":
            gap = (0.07 + 0.22 * amount) * (1.25 - 0.7 * np.clip(height, 0, 1))
            outside = smooth(gap - inset, 0.008) * lung * on(side)
            line = smooth(0.010 - np.abs(inset - gap), 0.008) * lung * on(side)
            change = 0.16 * line - (0.13 + tree) * outside + (0.05 + 0.08 * amount) * lung * on(side) * (1 - outside)
        elif name == "Nodule":
            radius = rng.uniform(0.055, 0.12)
            detail["centimetres"] = 2 * radius * CM_PER_UNIT
            down = rng.uniform(0.2, 0.42) if detail["zone"] == "upper" else rng.uniform(0.6, 0.82)
            spot = place(side, rng.uniform(0.5, 0.8), down)
            change = rng.uniform(0.28, 0.36) * np.sqrt(
                dome(x, y, spot, (radius, radius * rng.uniform(0.85, 1.0)), rng.uniform(0, 3))
            )
        elif name == "Atelectasis":
            bands = []
            for _ in range(2 + detail["grade"]):
                cx, cy = place(side, rng.uniform(0.5, 0.65), rng.uniform(0.72, 0.93))
                slope, half = rng.normal(0, 0.25), rng.uniform(0.12, 0.2)
                bands.append(
                    (curve((cx - half, cy - slope * half), (cx, cy - 0.03), (cx + half, cy + slope * half)), 0.034)
                )
            loss = lung - air(0.05 + 0.08 * amount, side)
            change = 0.30 * canvas.strokes(bands) * lung * on(side) + 0.9 * AIR * loss
        elif name == "Edema":
            haze = sum(np.exp(-(((x - hx) / 0.30) ** 2 + ((y - hy - 0.08) / 0.42) ** 2)) for hx, hy in hila)
            lines = [
                (np.array([place(s, 0.97, d), place(s, rng.uniform(0.82, 0.88), d + 0.01)]), 0.012)
                for s in SIDES
                for d in np.linspace(0.66, 0.98, 7)
            ]
            fluffy = np.clip(haze * (1 + 0.25 * grain), 0, 1)
            change = (0.16 + 0.18 * amount) * fluffy * lung + 0.5 * tree + 0.14 * canvas.strokes(lines) * lung
        else:
            change = 0.45 * draw_device(detail, canvas, rng, place, turn, depth)
        added[name] = change.astype(np.float32)
    return density, added


def draw_device(
    detail: dict, canvas: Canvas, rng: np.random.Generator, place, turn: float, depth: float
) -> np.ndarray:
    """Coverage (0..1) of a pacemaker with its lead, a central venous line, or a port with its catheter."""
    s = SIDES[detail["side"]]
    cava = (-0.09 + turn, rng.uniform(-0.16, 0.0))
    if detail["kind"] == "central line" and detail["side"] == "right" and rng.random() < 0.6:
        return canvas.strokes([(curve((-0.17, -1.0), (-0.14, -0.6), (-0.08, -0.5), cava), 0.024)])
    pocket = (s * rng.uniform(0.5, 0.6), rng.uniform(-0.5, -0.4))
    vein = (s * 0.42, -0.66)
    if detail["kind"] == "central line":
        return canvas.strokes([(curve((s * 0.75, -0.62), vein, (-0.02, -0.62), (-0.11, -0.4), cava), 0.024)])
    if detail["kind"] == "port":
        device = smooth(0.055 - np.hypot(canvas.x - pocket[0], canvas.y - pocket[1]), 0.012)
        return np.maximum(device, canvas.strokes([(curve(pocket, vein, (-0.02, -0.66), (-0.11, -0.4), cava), 0.022)]))
    can = np.maximum(np.abs(canvas.x - pocket[0]) - 0.10, np.abs(canvas.y - pocket[1]) - 0.08)
    tip = (0.26 + turn, depth - 0.06)
    lead = curve(pocket, vein, (-0.02, -0.72), (-0.14, -0.3), (-0.16, 0.3), (0.0, depth), tip, steps=40)
    return np.maximum(smooth(-can, 0.015), canvas.strokes([(lead, 0.022)]))


def film(density: np.ndarray, contrast: float, middle: float) -> np.ndarray:
    """Grey level (0..255, float) of a density: the S-shaped response of a detector and its display."""
    return 255 / (1 + np.exp(contrast * (middle - density)))


def encode(pixels: np.ndarray, path: str | None = None) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": path}


# Wording: noun phrases (used by both parts of a report) and whole sentences (findings only), in the patient's sides.
NOUNS = {
    "Cardiomegaly": [
        "{degree} cardiomegaly",
        "{degree} enlargement of the cardiac silhouette",
        "{degree}ly enlarged heart",
    ],
    "Pleural Effusion": [
        "{amount} {side} pleural effusion{s}",
        "{amount} {side} effusion{s}",
        "{side} pleural effusion{s}",
    ],
    "Consolidation": [
        "{side} {lobe} consolidation",
        "consolidation in the {side} {lobe}",
        "{degree} {side} {lobe} airspace consolidation",
        "focal consolidation of the {side} {lobe}",
    ],
    "Pneumothorax": ["{amount} {side} pneumothorax", "{side} pneumothorax", "{amount} {side}-sided pneumothorax"],
    "Nodule": ["{size} cm {mass} in the {side} {zone} lung", "{side} {zone} lung {mass}", "{side} pulmonary {mass}"],
    "Atelectasis": [
        "{side} basilar atelectasis",
        "{degree} {side} lower lung atelectasis",
        "linear atelectasis at the {side} base",
    ],
    "Edema": ["{degree} pulmonary edema", "{degree} interstitial edema", "{degree} bilateral perihilar edema"],
    "Support Devices": {
        "pacemaker": ["{side} chest wall pacemaker", "{side}-sided pacemaker with lead in the right ventricle"],
        "central line": ["{side} central venous catheter", "{side} central line with tip in the superior vena cava"],
        "port": ["{side} chest port", "{side} port catheter with tip in the superior vena cava"],
    },
}
SENTENCES = {
    "Cardiomegaly": [
        "The heart is {degree}ly enlarged.",
        "The cardiac silhouette is enlarged, with a cardiothoracic ratio of {ratio}.",
    ],
    "Pleural Effusion": ["There is blunting of the {side} costophrenic angle{s} by {amount} pleural effusion{s}."],
    "Consolidation": ["Airspace opacity in the {side} {lobe} is consistent with consolidation."],
    "Pneumothorax": ["A visceral pleural line is seen on the {side}, with a {amount} pneumothorax."],
    "Nodule": ["A rounded {mass} projects over the {side} {zone} lung, measuring {size} cm."],
    "Atelectasis": ["Linear opacities at the {side} lung base with volume loss, compatible with atelectasis."],
    "Edema": ["Bilateral perihilar haze and Kerley lines are consistent with {degree} edema."],
    "Support Devices": {
        "pacemaker": ["A pacemaker projects over the {side} chest with its lead in the right ventricle."],
        "central line": ["A {side} central line ends in the superior vena cava."],
        "port": ["A {side} chest port ends in the superior vena cava."],
    },
}
NEGATIVES = {
    ("Cardiomegaly",): [
        "The heart is normal in size.",
        "Heart size is within normal limits.",
        "No cardiomegaly.",
        "The cardiomediastinal silhouette is normal.",
    ],
    ("Pleural Effusion",): [
        "No pleural effusion.",
        "There is no pleural effusion.",
        "The costophrenic angles are sharp.",
    ],
    ("Pneumothorax",): ["No pneumothorax.", "There is no pneumothorax.", "No evidence of pneumothorax."],
    ("Pleural Effusion", "Pneumothorax"): ["No pleural effusion or pneumothorax.", "No pneumothorax or effusion."],
    ("Consolidation",): ["No focal consolidation.", "There is no consolidation.", "No airspace consolidation."],
    ("Consolidation", "Pleural Effusion", "Pneumothorax"): [
        "No focal consolidation, pleural effusion, or pneumothorax.",
    ],
    ("Nodule",): ["No pulmonary nodule.", "No suspicious nodule or mass."],
    ("Atelectasis",): ["No atelectasis.", "No evidence of atelectasis."],
    ("Edema",): ["No pulmonary edema.", "There is no edema.", "Pulmonary vascularity is normal."],
    ("Support Devices",): ["No support devices.", "No pacemaker or central line."],
    ("Consolidation", "Nodule", "Atelectasis", "Edema"): ["The lungs are clear.", "Lungs are clear bilaterally."],
}
NEUTRAL = [
    "The bones are intact.",
    "No acute osseous abnormality.",
    "The trachea is midline.",
    "Visualized upper abdomen is unremarkable.",
]
NORMAL = [
    "No acute cardiopulmonary abnormality.",
    "No acute cardiopulmonary process.",
    "Normal chest radiograph.",
    "No acute disease.",
    "Normal chest.",
    "No radiographic evidence of acute cardiopulmonary disease.",
]


def wording(name: str, detail: dict, rng: np.random.Generator, table: dict) -> str:
    choices = table[name]
    text = str(rng.choice(choices[detail["kind"]] if isinstance(choices, dict) else choices))
    grade, centimetres = detail["grade"], detail.get("centimetres", 0.0)
    return text.format(
        degree=("mild", "moderate", "severe")[grade],
        amount=("small", "moderate", "large")[grade],
        side=detail.get("side"),
        s="s" if detail.get("side") == "bilateral" else "",
        lobe=detail.get("lobe"),
        zone=detail.get("zone"),
        size=f"{centimetres:.1f}",
        mass="mass" if centimetres > 3 else "nodule",
        ratio=f"{detail.get('ratio', 0):.2f}",
    )


def sentence(text: str) -> str:
    return text[0].upper() + text[1:].rstrip(".") + "."


def write_report(found: dict[str, dict], rng: np.random.Generator) -> tuple[str, str]:
    """Findings and impression. The findings name every positive; the impression nearly always does."""
    names = list(found)
    rng.shuffle(names)
    positives = []
    for name in names:
        if rng.random() < 0.4:
            positives.append(wording(name, found[name], rng, SENTENCES))
        else:
            noun = wording(name, found[name], rng, NOUNS)
            positives.append(
                sentence(str(rng.choice(["{}", "there is {}", "{} is present", "{} is seen"])).format(noun))
            )
    negatives = [str(rng.choice(texts)) for group, texts in NEGATIVES.items() if not set(group) & set(found)]
    count = min(len(negatives), int(rng.integers(2, 5)))
    body = (
        positives + list(rng.choice(negatives, size=count, replace=False)) + list(rng.choice(NEUTRAL, rng.integers(2)))
    )
    if rng.random() < 0.5:
        rng.shuffle(body)
    if not found:
        impression = str(rng.choice(NORMAL))
    else:
        named = names[1:] if len(names) > 1 and rng.random() < 0.08 else names
        nouns = [wording(name, found[name], rng, NOUNS) for name in named]
        if rng.random() < 0.05:
            nouns[0] = f"probable {nouns[0]}"
        style = rng.random()
        if len(nouns) > 1 and style < 0.3:
            impression = " ".join(f"{number}. {sentence(noun)}" for number, noun in enumerate(nouns, 1))
        elif len(nouns) > 1 and style < 0.6:
            impression = sentence(", ".join(nouns[:-1]) + " and " + nouns[-1])
        else:
            impression = " ".join(sentence(noun) for noun in nouns)
        if negatives and rng.random() < 0.35:
            impression += " " + str(rng.choice(negatives))
    return " ".join(map(str, body)), impression


def make_record(index: int, seed: int, image_size: int, split: str) -> dict:
    """One record. Every fourth image (counted from 1) is a second one of the patient before."""
    number = index // 4 * 3 + min(index % 4, 2)
    patient = draw_patient(np.random.default_rng([seed, SPLITS.index(split), 0, number]))
    rng = np.random.default_rng([seed, SPLITS.index(split), 1, index])
    view = "AP" if rng.random() < 0.3 else "PA"
    found = draw_findings(rng)
    density, added = draw_densities(patient, found, rng, image_size, view)
    contrast, middle = rng.uniform(4.6, 5.6), rng.uniform(0.42, 0.52)
    total = density + sum(added.values())
    clean = film(total, contrast, middle)
    noisy = clean + rng.uniform(2.0, 3.5) * rng.standard_normal(clean.shape, dtype=np.float32)
    image_id = f"synthetic-{split}-{index + 1:06d}"
    record = {
        "image": encode(np.clip(noisy + 0.5, 0, 255).astype(np.uint8), f"{image_id}.png"),
        "image_id": image_id,
        "patient_id": f"synthetic-{split}-p{number + 1:06d}",
        "study_id": f"synthetic-{split}-s{index + 1:06d}",
        "view": view,
        "split": split,
        "sex": patient.sex,
        "age": patient.age,
        "source": "synthetic",
    }
    record["findings"], record["impression"] = write_report(found, rng)
    record["report"] = f"FINDINGS: {record['findings']} IMPRESSION: {record['impression']}"
    for name in PHANTOM_FINDINGS:
        record[name] = float(name in found)
        record[f"mask_{name}"] = None
        if name in found:
            changed = np.abs(clean - film(total - added[name], contrast, middle)) > VISIBLE
            record[f"mask_{name}"] = encode(changed.astype(np.uint8) * np.uint8(255))
    return record


def make_phantom(num_images: int, seed: int = 0, image_size: int = 224, split: str = "train") -> datasets.Dataset:
    """Draw synthetic frontal chest radiographs with reports, labels and masks.

    Args:
        num_images (`int`):
            Number of images, at least 1. Image `i` is the same however many are drawn.
        seed (`int`, *optional*, defaults to 0):
            Seed of the whole set, at least 0.
        image_size (`int`, *optional*, defaults to 224):
            Height and width in pixels, at least 64.
        split (`str`, *optional*, defaults to `"train"`):
            `"train"`, `"validation"` or `"test"`: three sets without a common patient.

    Returns:
        `datasets.Dataset`: the columns of a record (`image` holds PNG bytes, 8-bit grey), one float column per finding of
        `PHANTOM_FINDINGS` (1 present, 0 absent) and `mask_<finding>` (PNG bytes, 255 where the finding changed the image; `None`
        when it is absent).

    Raises:
        ValueError: for a number of images, a seed, a size or a split out of range.
    """
    if num_images <= 0:
        raise ValueError(f"num_images is {num_images}, but a phantom needs at least 1 image.")
    if seed < 0:
        raise ValueError(f"seed is {seed}, but it must be 0 or more.")
    if image_size < MINIMUM_SIZE:
        raise ValueError(
            f"image_size is {image_size}, but the findings need at least {MINIMUM_SIZE} pixels to be visible."
        )
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, but a phantom has only the splits {', '.join(SPLITS)}.")
    text = datasets.Value("string")
    columns = {
        name: text for name in ("image_id", "patient_id", "study_id", "view", "findings", "impression", "report")
    }
    features = datasets.Features(
        {"image": datasets.Image(decode=False)}
        | columns
        | {"split": text}
        | {name: datasets.Value("float32") for name in PHANTOM_FINDINGS}
        | {"sex": text, "age": datasets.Value("int32"), "source": text}
        | {f"mask_{name}": datasets.Image(decode=False) for name in PHANTOM_FINDINGS}
    )
    indices = tqdm(range(num_images), desc="Drawing synthetic radiographs", unit="image", disable=num_images < 400)
    records = [make_record(index, seed, image_size, split) for index in indices]
    return datasets.Dataset.from_dict({name: [r[name] for r in records] for name in features}, features=features)
