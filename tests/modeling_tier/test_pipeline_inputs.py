"""What the pipeline takes for images, what it does with those that cannot be read, and where weights may lie."""

import copy
import json
from collections import deque

import datasets
import numpy as np
import pytest
from pipeline_checks import SENTENCES, assert_same, encode, make_dicom, make_image
from transformers import AutoModel, pipeline

from modeling_tier.pipeline_tier import TASK

FINDINGS = {"Edema": {"positive": [SENTENCES[2], "Edema."], "negative": [SENTENCES[3]]}}


def test_several_images_in_whatever_holds_them(clip_pipe):
    images = [make_image(40 + 3 * i, 50, seed=i) for i in range(4)]
    expected = [clip_pipe(image) for image in images]
    features = datasets.Features({"image": datasets.Image(decode=False), "patient_id": datasets.Value("string")})
    records = {"image": [{"bytes": encode(image), "path": None} for image in images], "patient_id": list("abcd")}
    table = datasets.Dataset.from_dict(records, features=features)
    decoded = table.cast_column("image", datasets.Image())
    holders = {
        "tuple": tuple(images),
        "deque": deque(images),
        "values of a dict": dict(enumerate(images)).values(),
        "column": table["image"],
        "column of pictures": decoded["image"],
        "data set": table,
    }
    for name, holder in holders.items():
        for batch_size in (1, 3):
            results = clip_pipe(holder, batch_size=batch_size)
            assert isinstance(results, list) and len(results) == 4, name
            for result, other in zip(results, expected, strict=True):
                assert_same(result, other)
    iterators = {"iterator": iter(images), "map": map(encode, images), "generator": (image for image in images)}
    iterators["streamed data set"] = table.to_iterable_dataset()
    for name, iterator in iterators.items():
        results = clip_pipe(iterator)
        assert not isinstance(results, list), name
        for result, other in zip(results, expected, strict=True):
            assert_same(result, other)
    assert_same(clip_pipe(table[2]), expected[2])
    assert clip_pipe([]) == clip_pipe(()) == clip_pipe(deque()) == clip_pipe(table["image"][:0]) == []


def test_an_iterator_is_read_image_by_image(clip_pipe):
    taken = []

    def images():
        for i in range(100):
            taken.append(i)
            yield make_image(40, 50, seed=i)

    results = iter(clip_pipe(iter(images())))
    assert len(next(results)) == 2 and len(taken) < 5


def test_one_image_that_can_be_iterated_over_is_one_image(clip_pipe, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    array = np.random.default_rng(0).integers(0, 4096, (60, 50))
    (tmp_path / "x.dcm").write_bytes(make_dicom(array))
    expected = clip_pipe(str(tmp_path / "x.dcm"))
    with open(tmp_path / "x.dcm", "rb") as file:
        assert clip_pipe(file) == expected
    assert clip_pipe(pydicom.dcmread(tmp_path / "x.dcm")) == expected
    grey = make_image(40, 50)
    assert clip_pipe(np.asarray(grey)) == clip_pipe(grey) == clip_pipe({"bytes": encode(grey), "path": None})


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_image_that_cannot_be_read_is_skipped_where_asked(pipe, batch_size, tmp_path, caplog):
    (tmp_path / "broken.png").write_bytes(encode(make_image(40, 50))[:100])
    images = [make_image(40, 50, seed=1), tmp_path / "broken.png", make_image(8, 8), make_image(50, 40, seed=2)]
    with pytest.raises(ValueError, match="^image 2 of 4: broken.png"):
        pipe(images, batch_size=batch_size)
    for holder in (images, deque(images), iter(images)):
        caplog.clear()
        results = list(pipe(holder, batch_size=batch_size, on_error="skip", return_heatmaps=True))
        assert_same(results[0], pipe(images[0]))
        assert_same(results[3], pipe(images[3]))
        assert results[0][0]["heatmap"].shape == (50, 40)
        assert [set(result) for result in results[1:3]] == [{"error"}, {"error"}]
        assert "broken.png" in results[1]["error"]
        assert results[2]["error"].endswith("8x8 pixels are too few for a radiograph; 16x16 is the minimum.")
        assert [message.split("image. ")[0] for message in caplog.messages] == ["Skipped an "] * 2
    assert results[1]["error"].startswith("image 2: ")  # of an iterator nobody knows how many there are
    caplog.clear()
    assert set(pipe(images[1], on_error="skip")) == {"error"}
    assert "all pixels of the image are equal" not in caplog.text  # of the picture that takes its place
    with pytest.raises(ValueError, match="^on_error must be one of 'raise', 'skip', not 'ignore'.$"):
        pipe(images, on_error="ignore")


def test_a_folder_with_an_adapter_is_to_be_merged_first(clip_pipe, processor, tmp_path):
    """transformers loads it over its base, whose calibration was measured without it."""
    peft = pytest.importorskip("peft")
    clip_pipe.model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    base = type(clip_pipe.model).from_pretrained(tmp_path / "base")
    peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="^The model has a LoRA adapter, .* Merge the adapter"):
        pipeline(TASK, model=str(tmp_path / "adapter"), pipeline_class=type(clip_pipe), processor=processor)


def test_results_are_what_json_can_hold(clip_pipe, processor):
    image = make_image(40, 60)
    results = clip_pipe(image, findings=FINDINGS)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    arrays = clip_pipe(image, findings=FINDINGS, return_heatmaps=True)
    lists = clip_pipe(image, findings=FINDINGS, return_heatmaps="lists")
    assert json.loads(json.dumps(lists, allow_nan=False)) == lists
    np.testing.assert_array_equal(np.array(lists[0]["heatmap"], dtype=np.float32), arrays[0]["heatmap"])

    cropped = copy.deepcopy(processor)
    cropped.image_processor.geometry = "crop"
    pipe = pipeline(TASK, model=clip_pipe.model, processor=cropped, device="cpu")
    arrays = pipe(image, findings=FINDINGS, return_heatmaps=True)[0]["heatmap"].array
    lists = json.loads(json.dumps(pipe(image, findings=FINDINGS, return_heatmaps="lists"), allow_nan=False))
    rows = lists[0]["heatmap"]
    assert [[value is None for value in row] for row in rows] == np.isnan(arrays).tolist() and np.isnan(arrays).any()
    with pytest.raises(ValueError, match="^return_heatmaps must be one of False, True, 'lists', not 'png'.$"):
        pipe(image, return_heatmaps="png")


@pytest.mark.parametrize("kind", ["clip", "dual"])
@pytest.mark.parametrize("offloaded", ["the text tower", "what has no room", "everything"])
def test_offloaded_towers(kind, offloaded, models, processor, tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    image, model = make_image(40, 50), models[kind]
    whole = pipeline(TASK, model=copy.deepcopy(model), processor=processor, device="cpu")
    expected = whole(image, return_heatmaps=True)
    model.save_pretrained(tmp_path / "model")
    if offloaded == "the text tower":
        names = ["logit_scale", *(name for name, _ in model.named_children())]
        options = {"device_map": {name: "disk" if name == "text_model" else "cpu" for name in names}}
    else:
        share = 0.6 if offloaded == "what has no room" else 0.1
        room = int(share * sum(4 * parameter.numel() for parameter in model.parameters()))
        options = {"device_map": "auto", "max_memory": {"cpu": room}}
    loaded = AutoModel.from_pretrained(tmp_path / "model", offload_folder=tmp_path / "offload", **options)
    assert any(parameter.is_meta for parameter in loaded.text_model.parameters())
    device_map = loaded.hf_device_map
    pipe = pipeline(TASK, model=loaded, processor=processor)
    assert loaded.hf_device_map == device_map and (device_map == {"": "disk"}) == (offloaded == "everything")
    for _ in range(2):
        results = pipe(image, return_heatmaps=True)
        assert_same(results, expected)
        for result, other in zip(results, expected, strict=True):
            np.testing.assert_allclose(result["heatmap"], other["heatmap"], rtol=0, atol=1e-6)
    words, other = pipe.word_maps(image, SENTENCES[0]), whole.word_maps(image, SENTENCES[0])
    for word, same in zip(words, other, strict=True):
        np.testing.assert_allclose(word["heatmap"], same["heatmap"], rtol=0, atol=1e-6)


def test_no_stored_embedding_outlives_weights_that_cannot_be_looked_at(models, processor, tmp_path):
    model = models["clip"]
    model.save_pretrained(tmp_path / "model")
    names = ["logit_scale", *(name for name, _ in model.named_children())]
    device_map = {name: "disk" if name == "text_model" else "cpu" for name in names}
    loaded = AutoModel.from_pretrained(tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload")
    pipe = pipeline(TASK, model=loaded, processor=processor)
    pipe(make_image(40, 50))
    calls = []
    loaded.text_model.register_forward_pre_hook(lambda *_: calls.append(1))
    pipe(make_image(40, 50))
    assert calls == [1]


@pytest.mark.parametrize("kind", ["clip", "dual"])
def test_quantized_weights(kind, models, processor):
    quantization = pytest.importorskip("torchao.quantization")
    image = make_image(40, 50)
    model = copy.deepcopy(models[kind])
    expected = pipeline(TASK, model=model, processor=processor, device="cpu")(image, findings=FINDINGS)
    quantized = copy.deepcopy(model)
    quantization.quantize_(quantized, quantization.Int8WeightOnlyConfig())
    pipe = pipeline(TASK, model=quantized, processor=processor, device="cpu")
    results = pipe(image, findings=FINDINGS)
    assert pipe(image, findings=FINDINGS) == results
    assert results[0]["score"] == pytest.approx(expected[0]["score"], abs=0.02)
    assert results[0]["score"] != expected[0]["score"]
