"""Models of a user's own file: evaluated like any other, and one sentence for whatever is wrong with them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from eval_command import PHANTOM, fails, run

from evaluation_tier.models.adapters import AdapterName, load_adapter
from evaluation_tier.models.contract import meets_contract
from evaluation_tier.models.embedding import embed_batches, embed_images, embed_prompts
from evaluation_tier.models.families import family_of, has_patches
from evaluation_tier.models.loading import load_model, short_names
from evaluation_tier.scoring.protocols import choose_protocol
from evaluation_tier.scoring.zeroshot import evaluate_zero_shot
from evaluation_tier.statistics.resampling import Resampling
from processing_tier.prompts.loader import Prompts
from processing_tier.radiograph_tier import read_radiograph

OPTIONS = ["--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5]


def test_the_model_of_a_file_is_evaluated(write, tmp_path, capsys):
    adapter = write("")
    text = run("--adapter", adapter, *OPTIONS, "--output_dir", tmp_path / "output", capsys=capsys).out
    metrics = json.loads((tmp_path / "output" / "metrics.json").read_text())
    digest = hashlib.sha256((tmp_path / "mine.py").read_bytes()).hexdigest()
    assert metrics["models"] == ["mine.py:make"] and list(metrics["weights"]) == ["mine.py:make"]
    assert metrics["adapters"] == {"mine.py:make": {"file": "mine.py", "sha256": digest, "function": "make"}}
    assert metrics["protocol"]["training_overlap"].startswith("not known")
    assert metrics["protocol"]["score_level"] == "global" and "score_levels" not in metrics
    assert adapter in text and metrics["mean"]["auroc_ci95"][0] < metrics["mean"]["auroc"]
    assert (tmp_path / "output" / "report.html").is_file()


def test_scores_are_cosines_of_what_the_methods_return(write, phantom):
    few = phantom.select(range(12))
    model, processor = load_model(AdapterName(write("")))
    assert processor is None
    brightness = [float(read_radiograph(image).resize((1, 1)).getpixel((0, 0))) for image in few["image"]]
    expected = np.array([[level, 100.0] for level in brightness])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embed_images(model, None, few, batch_size=5), expected, rtol=0, atol=1e-6)
    prompts = {"Edema": Prompts(["Edema."], ["No edema."])}
    assert [side.tolist() for side in embed_prompts(model, None, prompts)] == [[[1, 0]], [[0, 1]]]
    options = {"findings": ["Edema"], "min_positives": 1, "resampling": Resampling(5)}
    options["protocol"] = choose_protocol(prompts=prompts)
    _, predictions = evaluate_zero_shot({"m": (model, None)}, few, **options)
    np.testing.assert_allclose(predictions["score_Edema"], expected[:, 0] - expected[:, 1], rtol=0, atol=1e-6)


def test_patches_and_a_score_of_its_own(write, phantom, tmp_path):
    """The score of the file replaces the cosine of the whole image; the patches keep theirs."""
    patches = """
    def embed_patches(self, pixels):
        whole = self.embed_images(pixels)
        return whole, torch.stack([whole, whole.flip(-1)], dim=1)
"""
    score = """
    def score(self, images, patches, texts):
        assert patches.shape[1] == 2
        return 3 * images @ texts.T
"""
    few = phantom.select(range(12))
    options = {"findings": ["Edema"], "min_positives": 1, "resampling": Resampling(5)}
    results = {}
    for name, code in (("cosine", patches), ("own", patches + score)):
        model = load_model(AdapterName(write(code, name=f"{name}.py")))
        results[name] = evaluate_zero_shot({name: model}, few, **options)
    metrics, predictions = results["own"]
    expected = 3 * results["cosine"][1]["score_Edema"]
    np.testing.assert_allclose(predictions["score_Edema"], expected, rtol=0, atol=1e-5)
    unit = f"the score of Model in own.py ({hashlib.sha256((tmp_path / 'own.py').read_bytes()).hexdigest()[:8]})"
    assert metrics["protocol"]["similarities"] == {"own": unit}
    assert "similarities" not in results["cosine"][0]["protocol"]
    for level in ("patches-max", "patches-lse"):
        assert metrics["score_levels"][level] == results["cosine"][0]["score_levels"][level]
    assert list(metrics["score_levels"]) == [
        "global",
        "patches-max",
        "patches-topk",
        "patches-lse",
    ]  # of one unit each
    with pytest.raises(ValueError) as error:
        evaluate_zero_shot({"own": model}, few, **options, protocol=choose_protocol(score_level="both-lse"))
    assert str(error.value) == (
        f"The score level 'both-lse' of own is the mean of cosines of patches and of {unit}, which has no unit: use "
        "'global' or 'patches-lse'."
    )
    both = {
        name: load_model(AdapterName(write(code, name=f"{name}.py")))
        for name, code in (("cosine", patches), ("own", patches + score))
    }
    with pytest.raises(ValueError) as error:
        evaluate_zero_shot(both, few, **options)
    assert str(error.value) == (
        f"cosine scores by cosine and own by {unit}, and the mean of the two has no unit: evaluate them one by one "
        "with --each."
    )


def test_two_checkpoints_of_one_score_are_an_ensemble(write, tmp_path, phantom):
    """Of one class of one file; another class, or a file of other content, has another unit."""
    code = """
    weight = 1.0
    def embed_texts(self, texts):
        return torch.tensor([[0.0, self.weight] if text.startswith("No") else [1.0, 0.5] for text in texts])
    def score(self, images, patches, texts):
        return 3 * self.weight * images @ texts.T
class Other(Model):
    pass
"""
    make = """
def make(name):
    model = Other() if name == "other" else Model()
    model.weight = {"a": 1.0, "b": -2.0}.get(name, 5.0)
    return model
"""
    write(code, make)
    path = tmp_path / "mine.py"
    models = {name: load_model(AdapterName(f"{path}:make={name}")) for name in ("a", "b", "other")}
    options = {"findings": ["Edema"], "min_positives": 1, "resampling": Resampling(5)}
    few = phantom.select(range(12))
    alone = [evaluate_zero_shot({name: models[name]}, few, **options)[1]["score_Edema"] for name in "ab"]
    metrics, together = evaluate_zero_shot({name: models[name] for name in "ab"}, few, **options)
    np.testing.assert_allclose(together["score_Edema"], (alone[0] + alone[1]) / 2, rtol=0, atol=1e-12)
    assert alone[0].std() > 0 and len(set(metrics["protocol"]["similarities"].values())) == 1
    changed = tmp_path / "changed" / "mine.py"
    changed.parent.mkdir()
    changed.write_text(path.read_text() + "\n")
    models["changed"] = load_model(AdapterName(f"{changed}:make=b"))
    for other in ("other", "changed"):
        with pytest.raises(
            ValueError, match=f"a scores by the score of Model .* and {other} by the score of .* no unit"
        ):
            evaluate_zero_shot({"a": models["a"], other: models[other]}, few, **options)


def test_an_ensemble_with_a_model_of_another_family(write, tier_model, phantom):
    """All score by cosines, whose mean is the ensemble's, as of two models of one family."""
    models = {"tier": tier_model, "mine": load_model(AdapterName(write("")))}
    options = {"findings": ["Edema"], "min_positives": 1, "resampling": Resampling(5), "protocol": "tier"}
    alone = [evaluate_zero_shot({name: member}, phantom, **options)[1] for name, member in models.items()]
    _, together = evaluate_zero_shot(models, phantom, **options)
    mean = (alone[0]["score_Edema"] + alone[1]["score_Edema"]) / 2
    np.testing.assert_allclose(together["score_Edema"], mean, rtol=0, atol=1e-12)


def test_the_function_gets_name_and_device(write, tmp_path):
    write("", "def make(name, device):\n    model = Model()\n    model.got = name, device\n    return model\n")
    name = AdapterName(f"{tmp_path / 'mine.py'}:make=hf-hub:owner/model")
    assert load_adapter(name, "cpu").made.got == ("hf-hub:owner/model", torch.device("cpu"))
    assert list(short_names([name]).values()) == ["mine.py:make=model"]


def test_a_model_that_stays_on_the_cpu_is_told(write, caplog):
    adapter = AdapterName(write(""))
    assert load_adapter(adapter, "cpu").device == torch.device("cpu") and not caplog.records
    assert load_adapter(adapter, "cuda").device == torch.device("cpu")
    assert caplog.messages == [f"--adapter {adapter} stays on the CPU: give make() a parameter `device` to use cuda."]


def test_names_in_results_are_as_long_as_they_must_be(write, tmp_path, monkeypatch):
    names = [AdapterName(f"mine.py:make={path}") for path in ("/runs/a/model", "/runs/b/model")]
    assert list(short_names(names).values()) == ["mine.py:make=a/model", "mine.py:make=b/model"]
    names = [AdapterName(f"/code/{folder}/mine.py:make") for folder in "ab"]
    assert list(short_names(names).values()) == ["a/mine.py:make", "b/mine.py:make"]
    write("", "1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"division by zero, line 12\)"):  # of a file named from here, too
        load_adapter(AdapterName("mine.py:make"), "cpu")


def test_a_score_is_not_asked_about_a_side_without_sentences(write, phantom):
    """The zeros that stand for it have no direction."""
    score = """
    def score(self, images, patches, texts):
        return images @ (texts / texts.norm(dim=-1, keepdim=True)).T
"""
    few = phantom.select(range(12))
    prompts = {"Edema": Prompts(["Edema."], []), "Nodule": Prompts(["Nodule."], ["No nodule."])}
    options = {"findings": list(prompts), "min_positives": 1, "resampling": Resampling(5)}
    scores = [
        evaluate_zero_shot(
            {"m": load_model(AdapterName(write(code)))}, few, protocol=choose_protocol(prompts=prompts), **options
        )[1]
        for code in ("", score)
    ]
    columns = ["score_Edema", "score_Nodule"]
    np.testing.assert_allclose(scores[1][columns], scores[0][columns], rtol=0, atol=1e-6)


def test_knowing_a_model_does_not_compute_its_identity(write):
    """It may be a hash of all weights, and is asked for with every batch."""
    identity = """
    @property
    def identity(self):
        raise AssertionError("computed")
"""
    model, _ = load_model(AdapterName(write(identity)))
    assert meets_contract(model) and family_of(model) is model and not has_patches(model)
    assert not meets_contract(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    "code, end, spec, message",
    [
        ("", "", ":make", "mine.py has no function 'make'; it has none."),
        ("", "def makes(): pass\n", ":make", "mine.py has no function 'make'; it has makes."),
        ("", "1 / 0\n", ":make", "the file failed (ZeroDivisionError: division by zero, line 12)."),
        (
            "",
            "def make():\n    return open('x')\n",
            ":make",
            "make() failed (FileNotFoundError: [Errno 2] No such file",
        ),
        ("", "def make(name): pass\n", ":make", "make() takes a name; pass it as {spec}=NAME."),
        ("", "def make(): pass\n", ":make=a", "make() does not take a name; leave out '=a'."),
        (
            "",
            "def make():\n    return 3\n",
            ":make",
            "make() returned a int without the method 'preprocess'; a model has preprocess, embed_images,",
        ),
    ],
)
def test_a_wrong_file_is_refused(write, tmp_path, capsys, code, end, spec, message):
    write(code, end)
    spec = f"{tmp_path / 'mine.py'}{spec}"
    output = ["--output_dir", tmp_path / "output"]
    found = fails("--adapter", spec, *OPTIONS, *output, capsys=capsys)
    assert found.startswith(f"--adapter {spec}: " + message.replace("{spec}", spec))
    assert not (tmp_path / "output").exists()


def test_wrong_names_are_refused(capsys):
    assert fails("--adapter", "mine.py", *OPTIONS, capsys=capsys) == (
        "--adapter takes FILE.py:FUNCTION or FILE.py:FUNCTION=NAME, but is 'mine.py'."
    )
    assert fails("--adapter", "no/mine.py:make", *OPTIONS, capsys=capsys) == (
        "--adapter no/mine.py:make: the file no/mine.py does not exist."
    )
    assert fails("mine.py:make", *OPTIONS, capsys=capsys) == (
        "mine.py:make looks like a Python file that makes a model: pass it as --adapter mine.py:make."
    )


WRONG = {
    "preprocess(self, image): return 3": "preprocess returned a int; return a tensor, the pixels of one image.",
    "preprocess(self, image): return torch.zeros(image.size[0] // 64, int(image.getpixel((5, 5))[0]) % 7)": (
        "preprocess returned the shape (1, "
    ),
    "embed_images(self, pixels): return [1]": "embed_images returned a list; return a tensor (32, dim).",
    "embed_images(self, pixels): return torch.ones(3, 2)": (
        "embed_images returned the shape (3, 2); return (32, dim)."
    ),
    "embed_images(self, pixels): return torch.ones(len(pixels), 3)": (
        "embed_images returned 3 dimensions after 2; return one space for all."
    ),
    "embed_images(self, pixels): return pixels.new_full((len(pixels), 2), float('nan'))": (
        "embed_images returned embeddings that are zero or not finite; return finite ones."
    ),
    "preprocess(self, image): 1 / 0": "preprocess failed (ZeroDivisionError: division by zero, line 12).",
    "embed_images(self, pixels): 1 / 0": "embed_images failed (ZeroDivisionError: division by zero, line 12).",
    "embed_texts(self, texts): return {}[texts[0]]": "embed_texts failed (KeyError: ",
    "embed_patches(self, pixels): 1 / 0": "embed_patches failed (ZeroDivisionError: division by zero, line 12).",
    "score(self, images, patches, texts): 1 / 0": "score failed (ZeroDivisionError: division by zero, line 12).",
    "embed_texts(self, texts): return torch.zeros(len(texts), 2)": (
        "embed_texts returned embeddings that are zero or not finite; return finite ones."
    ),
    "embed_patches(self, pixels): return torch.ones(len(pixels), 4, 2)": (
        "embed_patches returned a Tensor; return two tensors, of images and of their patches."
    ),
    "embed_patches(self, pixels): return torch.ones(len(pixels), 2), torch.ones(len(pixels), 2)": (
        "embed_patches returned the shape (32, 2); return (32, 1, dim)."
    ),
    "score(self, images, patches, texts): return images[:, 0]": (
        "score returned the shape (32,); return (images, texts), here (32, 5)."
    ),
    "score(self, images, patches, texts): return float('nan') * images @ texts.T": (
        "score returned NaN or infinity; return finite numbers."
    ),
}


@pytest.mark.parametrize("method", WRONG)
def test_wrong_results_are_refused(write, tmp_path, capsys, method):
    adapter = write(f"    def {method}\n")
    found = fails("--adapter", adapter, *OPTIONS, "--output_dir", tmp_path / "output", capsys=capsys)
    assert found.startswith(f"--adapter {adapter}: {WRONG[method]}")
    assert not (tmp_path / "output").exists()


def test_analyses_that_need_more_than_the_contract_are_refused(write, tmp_path, capsys):
    adapter = write("    def score(self, images, patches, texts): return images @ texts.T\n")
    for analysis, message in {
        "robustness": "Robustness needs to change the pixels after preprocessing, which UserModel does not offer",
        "sparsity": "Sparsity needs embeddings of words and patches, which UserModel does not offer",
        "deletion": "UserModel does not give similarity maps of sentences",
        "grounding": f"The model of --adapter {adapter} does not say where its patches lie in the picture: give it",
        "retrieval": "A UserModel scores by more than one embedding of each image",
    }.items():
        assert fails("--adapter", adapter, *OPTIONS, "--analyses", analysis, capsys=capsys).startswith(message)
    assert fails("--adapter", adapter, *OPTIONS, "--score_level", "patches-lse", capsys=capsys) == (
        "The score level 'patches-lse' of mine.py:make needs embeddings of patches, which UserModel does not give: "
        "use 'global'."
    )


def test_retrieval_takes_any_model_of_images_and_texts(write, tmp_path, capsys):
    adapter = write("")
    run("--adapter", adapter, *OPTIONS, "--analyses", "retrieval", "--output_dir", tmp_path / "o", capsys=capsys)
    assert "image_to_text" in json.loads((tmp_path / "o" / "metrics.json").read_text())["retrieval"]


def test_the_cache_needs_an_identity(write, phantom, tmp_path, caplog):
    few, cache = phantom.select(range(6)), tmp_path / "cache"
    model = load_adapter(AdapterName(write("")), "cpu")
    list(embed_batches(model, None, few, cache_dir=cache))
    assert not cache.exists() and "are not kept in --cache_dir: give the adapter's model an attribute" in caplog.text

    def count(identity: str, code: str = "") -> int:
        """How many images a model of this identity embeds."""
        model = load_adapter(AdapterName(write(code + f"    identity = {identity!r}\n")), "cpu")
        embedded, embed = [], model.made.embed_images
        model.made.embed_images = lambda pixels: embedded.append(len(pixels)) or embed(pixels)
        ((_, outputs),) = embed_batches(model, None, few, cache_dir=cache)
        assert outputs["image"].shape == (6, 2)
        return sum(embedded)

    assert [count("a"), count("a"), count("b"), count("a", "    other = 1\n"), count("b")] == [6, 0, 6, 6, 0]


def test_the_example_works(tmp_path, capsys):
    example = Path(__file__).parents[3] / "examples" / "own_model.py"
    for folder in ("first", "second"):
        arguments = ["--adapter", f"{example}:make", *OPTIONS, "--cache_dir", tmp_path / "cache"]
        run(*arguments, "--output_dir", tmp_path / folder, capsys=capsys)
    first, second = (json.loads((tmp_path / folder / "metrics.json").read_text()) for folder in ("first", "second"))
    assert first == second and first["models"] == ["own_model.py:make"]
    assert set(first["score_levels"]) > {"global", "patches-lse"}
    scores = [pd.read_parquet(tmp_path / folder / "predictions.parquet") for folder in ("first", "second")]
    pd.testing.assert_frame_equal(*scores)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 40
