"""Findings of the phantom: which ones a patient has, and how they change the density of the chest."""

from dataclasses import dataclass

import numpy as np

from processing_tier.phantom.anatomy import AIR, HEART, SIDES, THICKNESS, VESSELS, Chest, curve, smooth

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


def draw_findings(rng: np.random.Generator) -> dict[str, Finding]:
    """Findings of one image; about a third have none. A finding is left out where another one takes its place."""
    if rng.random() < 0.32:
        return {}
    wanted = set(rng.choice(PHANTOM_FINDINGS, size=rng.choice([1, 2, 3], p=[0.4, 0.35, 0.25]), replace=False))
    if {"Pneumothorax", "Edema"} <= wanted:  # a lung without markings shows no edema
        wanted.remove(str(rng.choice(["Pneumothorax", "Edema"])))
    free = {side: {"upper", "lower"} for side in SIDES}

    def take(*zones: str) -> str | None:
        """Take all these zones on one side where they are free; which side."""
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
