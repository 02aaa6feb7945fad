"""Maps of a user's own model, for grounding."""

import json

import numpy as np
import pytest
import torch
from eval_command import PHANTOM, fails, run

from evaluation_tier.analyses.grounding.maps import PatchMaps
from evaluation_tier.analyses.grounding.regions import read_cases
from evaluation_tier.models.adapters import AdapterName
from evaluation_tier.models.loading import load_model
from evaluation_tier.models.single_pass import Fed, asked_rows, feed
from processing_tier.prompts.loader import Prompts

OPTIONS = ["--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5]

MAPS = """
    map_geometry = {"geometry": "pad", "image_size": 64, "patch_size": 16}
    def preprocess(self, image):
        return torch.zeros(1)
    def embed_patches(self, pixels):
        angle = torch.arange(16.0).repeat(len(pixels), 1) / 16
        return torch.ones(len(pixels), 2), torch.stack([angle.cos(), angle.sin()], dim=-1)
"""


def test_grounding_measures_the_maps_of_a_file(write, tmp_path, phantom, capsys):
    """The cosine of patch i with the positive side is cos(i / 16); padding of the picture is cut off."""
    adapter = write(MAPS)
    model, _ = load_model(AdapterName(adapter))
    cases = [case for case in read_cases(phantom) if case.finding == "Cardiomegaly"][:2]
    maps = PatchMaps(model, None, len(phantom), cases, {"Cardiomegaly": Prompts(["It."], ["No."])})
    feed([Fed(model, None, [maps])], phantom, asked_rows(phantom, [maps]), 16)
    expected = torch.cos(torch.arange(16.0) / 16).reshape(4, 4).numpy()
    for case in cases:
        np.testing.assert_allclose(maps.grids()[case]["positive"], expected, rtol=0, atol=1e-6)
    rows = torch.arange(4.0)[:, None].expand(4, 4)  # of a picture twice as wide as high, which fills rows 1 and 2
    over_picture = model.map_processor.post_process_similarity_map(rows[None], [(100, 200)], model.patch_centers)[0]
    assert (
        over_picture.min() >= 0.5
        and over_picture.max() <= 2.5
        and over_picture[50].mean() == pytest.approx(1.5, abs=0.02)
    )
    run("--adapter", adapter, *OPTIONS, "--analyses", "grounding", "--output_dir", tmp_path / "o", capsys=capsys)
    measured = json.loads((tmp_path / "o" / "metrics.json").read_text())["grounding"]["all_regions"]["maps"]
    assert set(measured) == {"positive", "difference", "above_average"}


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"pad"', '"fit"', "the geometry 'fit' is none of pad, crop, squash."),
        (
            '"patch_size": 16',
            '"patch_size": 15',
            "map_geometry has the image_size 64 and the patch_size 15; give whole",
        ),
        (
            '"patch_size": 16',
            '"patch": 16',
            "map_geometry is {'geometry': 'pad', 'image_size': 64, 'patch': 16}; give",
        ),
        ("embed_patches", "embed_regions", "map_geometry has no effect without the method embed_patches."),
        ('"image_size": 64', '"image_size": 48', "embed_patches returned 16 patches; return the 9 of map_geometry."),
    ],
)
def test_wrong_maps_are_refused(write, tmp_path, capsys, old, new, message):
    adapter = write(MAPS.replace(old, new))
    arguments = ["--adapter", adapter, *OPTIONS, "--analyses", "grounding", "--output_dir", tmp_path / "o"]
    assert fails(*arguments, capsys=capsys).startswith(f"--adapter {adapter}: {message}")
