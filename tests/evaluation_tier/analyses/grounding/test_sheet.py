import json

import numpy as np
import pytest
import torch
from marked_scenes import ASK, box, make_dataset, many_scenes, scene
from PIL import Image

from evaluation_tier.analyses.grounding.evaluation import evaluate_grounding
from evaluation_tier.analyses.grounding.maps import compute_grids
from evaluation_tier.analyses.grounding.regions import read_cases, read_region
from evaluation_tier.figures import grounding
from evaluation_tier.figures.grounding import plot_grounding
from evaluation_tier.statistics.resampling import Resampling


def test_a_sheet_shows_the_best_the_median_and_the_worst(bright, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    images, marks, patients = many_scenes(9, 7)
    dataset = make_dataset(images, masks=marks, patients=patients)
    model, processor = bright()
    results = evaluate_grounding(model, processor, dataset, ASK, resampling=Resampling(2))
    shown = []
    monkeypatch.setattr(
        grounding, "draw_grounding", lambda *args, draw=grounding.draw_grounding: shown.append(args) or draw(*args)
    )
    monkeypatch.setattr(grounding, "REGIONS_PER_ROW", 2)
    path = plot_grounding(model, processor, dataset, ASK, results, tmp_path / "sheet.png")
    with Image.open(path) as sheet:
        assert sheet.format == "PNG" and sheet.width > sheet.height
    order = sorted(
        results["regions"],
        key=lambda region: (region["maps"]["above_average_contribution"]["iou_best_optimistic"],),
        reverse=True,
    )
    expected = [order[i]["row"] for i in (0, 1, 2, 3, 5, 6)]
    cases = {case.row: case for case in read_cases(dataset)}
    for row, (*_, sketch) in zip(expected, shown, strict=True):
        np.testing.assert_array_equal(sketch.mask, read_region(dataset[row], cases[row], 64, 64).mask)
        assert "image" not in sketch.title and " IoU 0." in sketch.title
    best = shown[0][-1]
    assert best.mask.shape == best.similarity.shape == (64, 64) and best.hit is True
    grids, _ = compute_grids(model, processor, dataset, read_cases(dataset), ASK)
    grid = torch.from_numpy(grids[read_cases(dataset)[order[0]["case"]]]["above_average_contribution"])[None]
    np.testing.assert_allclose(
        best.similarity, processor.image_processor.post_process_similarity_map(grid, [(64, 64)])[0], atol=1e-6
    )
    assert list(tmp_path.iterdir()) == [path]


def test_a_sheet_of_fewer_regions_than_places(bright, tmp_path):
    pytest.importorskip("matplotlib")
    image, mask = scene(48, 80, 4, 40, 20)
    dataset = make_dataset([image], boxes=[[box("A", 40, 4, 20, 20)]])
    results = json.loads(json.dumps(evaluate_grounding(*bright("crop"), dataset, ASK, resampling=Resampling(2))))
    path = plot_grounding(*bright("crop"), dataset, ASK, results, tmp_path / "one.png", map_name="positive")
    assert path.stat().st_size > 1000
    with pytest.raises(
        ValueError, match="^A sheet shows one of the maps positive, .*, above_average_contribution, not 'x'"
    ):
        plot_grounding(*bright(), dataset, ASK, results, tmp_path / "x.png", map_name="x")
    with pytest.raises(ValueError, match="^The results belong to other data"):
        plot_grounding(
            *bright(), make_dataset([image], boxes=[[box("B", 40, 4, 20, 20)]]), ASK, results, tmp_path / "x"
        )
    assert not (tmp_path / "x.png").exists()
