"""The map that is drawn, shown by the pipeline and measured is one and the same."""

import numpy as np
import pytest
import torch
from transformers import pipeline

from evaluation_tier.analyses.grounding.maps import compute_grids
from evaluation_tier.analyses.grounding.regions import Case
from evaluation_tier.figures import similarity
from evaluation_tier.models.embedding import embed_prompts
from evaluation_tier.models.images import read_batches
from evaluation_tier.scoring.protocols import choose_protocol
from evaluation_tier.scoring.zeroshot import evaluate_zero_shot
from evaluation_tier.statistics.resampling import Resampling
from modeling_tier.maps_tier import cosine_map, mean_direction, similarity_map
from processing_tier.prompts.loader import Prompts

PROMPTS = {
    "Cardiomegaly": Prompts(["Cardiomegaly.", "The heart is enlarged."], ["Heart size normal.", "No cardiomegaly."]),
    "Pleural Effusion": Prompts(["Small effusion.", "Left pleural effusion.", "Effusion."], ["No effusion."]),
}


def test_a_map_is_the_cosine_to_the_mean_direction():
    generator = torch.Generator().manual_seed(0)
    sentences = torch.nn.functional.normalize(torch.randn(3, 8, generator=generator), dim=-1)
    patches = torch.randn(2, 4, 5, 8, generator=generator)
    direction = mean_direction(sentences)
    mean = sentences.double().mean(0)
    expected = torch.nn.functional.cosine_similarity(patches.double(), mean.expand_as(patches), dim=-1)
    torch.testing.assert_close(similarity_map(direction, patches), expected.float(), rtol=0, atol=1e-6)
    # not the mean of the cosines to the sentences, which is shorter where they differ
    raw = similarity_map(sentences, patches).mean(dim=1)
    torch.testing.assert_close(raw, expected.float() * mean.norm().float(), rtol=0, atol=1e-6)
    assert mean.norm() < 0.9


def maps_of(model, pixels, sides, kind):
    """Of one image, positive and negative, each (findings, rows, columns)."""
    if kind == "direct":
        return cosine_map(sides, model.get_direct_map(pixels))[0]
    return similarity_map(sides, model.get_patch_map(pixels), kind)[0]


@pytest.mark.parametrize(
    "image_pooling, kinds", [("cls", ["cosine", "direct"]), ("patch_mean", ["cosine", "contribution"])]
)
def test_pipeline_figures_and_grounding_have_the_same_map(make_tier_model, phantom, image_pooling, kinds):
    names = {"cosine": "difference", "contribution": "difference_contribution"}
    names["direct"] = "difference_direct_contribution"
    model, processor = make_tier_model(0)
    model.config.image_pooling = image_pooling
    few = phantom.select(range(6)).with_format(None)
    cases = [Case(row, finding, "") for row in range(len(few)) for finding in PROMPTS]
    grids, _ = compute_grids(model, processor, few, cases, PROMPTS, batch_size=1)

    sides = torch.from_numpy(np.stack(embed_prompts(model, processor, PROMPTS)))  # (2, findings, dim)
    with torch.no_grad():
        for row, batch in enumerate(read_batches(model, processor, few, 1)):
            for kind in kinds:
                positive, negative = maps_of(model, batch.pixels, sides, kind)
                for i, finding in enumerate(PROMPTS):
                    measured = grids[Case(row, finding, "")][names[kind]]
                    np.testing.assert_array_equal(measured, (positive - negative)[i].numpy())

    pipe = pipeline("cxr-zero-shot-classification", model=model, processor=processor, device="cpu")
    findings = {name: {"positive": p.positive, "negative": p.negative} for name, p in PROMPTS.items()}
    post_process = processor.image_processor.post_process_similarity_map
    for row, results in enumerate(pipe(few["image"], findings=findings, return_heatmaps=True)):
        pixels = processor(images=[processor.image_processor.read(few[row]["image"])], return_tensors="pt")
        with torch.no_grad():
            positive, negative = maps_of(model, pixels["pixel_values"], sides, kinds[-1])
        maps = post_process((positive - negative)[None], [(64, 64)], model.patch_centers)[0]
        for i, (finding, result) in enumerate(zip(PROMPTS, results, strict=True)):
            rounding = 1e-7 if kinds[-1] == "direct" else 0  # of the difference of the sides
            np.testing.assert_allclose(result["heatmap"], maps[i].numpy(), rtol=0, atol=rounding)
            # evaluations may normalise 8-bit pixels in the model, which rounds otherwise
            measured = torch.from_numpy(grids[Case(row, finding, "")][names[kinds[-1]]])
            measured = post_process(measured[None], [(64, 64)], model.patch_centers)[0].numpy()
            np.testing.assert_allclose(result["heatmap"], measured, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_figure_draws_what_grounding_measures(tier_model, phantom, tmp_path, monkeypatch):
    options = {
        "findings": list(PROMPTS),
        "protocol": choose_protocol(prompts=PROMPTS),
        "min_positives": 1,
        "resampling": Resampling(10),
    }
    metrics, predictions = evaluate_zero_shot({"m": tier_model}, phantom, **options)
    drawn = []

    def spy(columns, label):
        drawn.append(columns)
        return draw(columns, label)

    draw = similarity.draw_similarity
    monkeypatch.setattr("evaluation_tier.figures.similarity.draw_similarity", spy)
    similarity.plot_similarity_maps(*tier_model, phantom, PROMPTS, metrics, predictions, tmp_path)

    to_pixels = tier_model[1].image_processor.post_process_similarity_map
    for finding, columns in zip(PROMPTS, drawn, strict=True):
        rows = similarity.choose_images(predictions, finding, metrics["findings"][finding]["threshold"])
        cases = [Case(row, finding, "") for row in rows.values()]
        measured, _ = compute_grids(*tier_model, phantom, cases, PROMPTS)
        for case, column in zip(cases, columns, strict=True):
            grid = torch.from_numpy(measured[case]["above_average_contribution"])[None]
            expected = to_pixels(grid, [(64, 64)], tier_model[0].patch_centers)[0]
            # other batches, which some processors round otherwise
            np.testing.assert_allclose(column.similarity, expected.numpy(), rtol=0, atol=1e-6)
