import json
import math

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import CLIPConfig, GenerationConfig

from modeling_tier import TierCLIPConfig, TierDualEncoderConfig


def test_defaults_are_plain_clip():
    config = TierCLIPConfig()
    assert (config.token_entropy_weight, config.patch_entropy_weight) == (0.0, 0.0)
    assert (config.entropy_temperature, config.entropy_normalization) == (1.0, False)
    assert (config.entropy_tokens, config.image_pooling) == ("words", "cls")
    assert config.pixel_mean == [0.48145466, 0.4578275, 0.40821073]
    assert config.pixel_std == [0.26862954, 0.26130258, 0.27577711]
    assert config.vision_config.to_dict() == CLIPConfig().vision_config.to_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"token_entropy_weight": -0.1},
            "token_entropy_weight must be a finite number of at least 0 (0 switches the term off), not -0.1.",
        ),
        (
            {"patch_entropy_weight": math.nan},
            "patch_entropy_weight must be a finite number of at least 0 (0 switches the term off), not nan.",
        ),
        (
            {"entropy_temperature": 0},
            "entropy_temperature must be a finite number above 0 (1.0 is the paper's), not 0.",
        ),
        ({"entropy_tokens": "word"}, "entropy_tokens must be one of words, attended, all, not 'word'."),
        ({"image_pooling": "mean"}, "image_pooling must be one of cls, patch_mean, not 'mean'."),
        ({"pixel_mean": [0.5]}, "pixel_mean must have 3 numbers, one per channel, not 1."),
        ({"pixel_std": [0.2, 0.2, 0.0]}, "pixel_std must have numbers above 0 only, not [0.2, 0.2, 0.0]."),
    ],
)
def test_bad_values_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError) as error:
        TierCLIPConfig(**options)
    assert str(error.value) == message

    # the same in a file
    TierCLIPConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(saved | options))
    with pytest.raises(ValueError) as error:
        TierCLIPConfig.from_pretrained(tmp_path)
    assert str(error.value) == message


NOTES = {"my_note": "x", "transformers.js_config": {"dtype": "q8"}, "unsloth_version": "2026.1", "torchscript": True}


@pytest.mark.parametrize("config_class", [TierCLIPConfig, TierDualEncoderConfig])
def test_what_others_write_into_a_stored_configuration_is_kept(config_class, tmp_path, caplog):
    config = config_class()
    config.my_note = "x"
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(saved | NOTES))
    loaded = config_class.from_pretrained(tmp_path)
    assert {key: getattr(loaded, key) for key in NOTES} == NOTES
    loaded.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again == saved | NOTES
    assert config_class.from_pretrained(tmp_path / "again").to_dict() == loaded.to_dict()
    assert "has no option" not in caplog.text


def test_a_stored_key_that_resembles_an_option_is_kept_and_told(tmp_path, caplog):
    TierCLIPConfig(token_entropy_weight=0.5).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(saved | {"tokn_entropy_weight": 0.1}))
    loaded = TierCLIPConfig.from_pretrained(tmp_path)
    assert (loaded.token_entropy_weight, loaded.tokn_entropy_weight) == (0.5, 0.1)
    assert caplog.messages == [
        "TierCLIPConfig has no option 'tokn_entropy_weight' (did you mean 'token_entropy_weight'?); it is kept "
        "but has no effect."
    ]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("tokn_entropy_weight", "token_entropy_weight"),
        ("image_pool", "image_pooling"),
        ("temperature", "entropy_temperature"),
        ("entropy_weight", "token_entropy_weight"),
        ("logit_scale_init", "logit_scale_init_value"),
    ],
)
def test_a_misspelt_option_that_a_person_typed_is_refused(typed, meant, tmp_path):
    message = f"TierCLIPConfig has no option '{typed}'; the nearest one is '{meant}'."
    TierCLIPConfig().save_pretrained(tmp_path)
    for build in (TierCLIPConfig, lambda **options: TierCLIPConfig.from_pretrained(tmp_path, **options)):
        with pytest.raises(ValueError) as error:
            build(**{typed: 0.1})
        assert str(error.value) == message


def test_a_keyword_that_resembles_no_option_has_no_effect_and_that_is_told(caplog):
    assert TierCLIPConfig(my_note="x").my_note == "x"
    assert caplog.messages == ["TierCLIPConfig has no option 'my_note'; it is kept but has no effect."]
    caplog.clear()
    assert TierCLIPConfig(**TierCLIPConfig().to_dict()).to_dict() == TierCLIPConfig().to_dict()
    assert not caplog.messages


def test_one_number_stands_for_all_channels(tmp_path):
    config = TierCLIPConfig(pixel_mean=0.5, pixel_std=0.25)
    assert (config.pixel_mean, config.pixel_std) == ([0.5] * 3, [0.25] * 3)
    config.pixel_std = 0.5  # set afterwards, as the library's tests do
    config.save_pretrained(tmp_path)
    assert TierCLIPConfig.from_pretrained(tmp_path).pixel_std == [0.5] * 3


def test_a_value_of_the_wrong_type_is_refused():
    with pytest.raises(StrictDataclassFieldValidationError, match="'token_entropy_weight'"):
        TierCLIPConfig(token_entropy_weight="high")


def test_a_bad_override_of_a_saved_value_is_refused(tmp_path):
    TierCLIPConfig(patch_entropy_weight=1).save_pretrained(tmp_path)
    assert TierCLIPConfig.from_pretrained(tmp_path, token_entropy_weight=0.5).token_entropy_weight == 0.5
    with pytest.raises(ValueError, match="token_entropy_weight must be a finite number of at least 0"):
        TierCLIPConfig.from_pretrained(tmp_path, token_entropy_weight=-1)


def test_a_value_made_bad_afterwards_is_not_saved(tmp_path):
    config = TierCLIPConfig()
    config.patch_entropy_weight = -1.0
    with pytest.raises(Exception, match="patch_entropy_weight must be a finite number of at least 0"):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_round_trip(tmp_path):
    config = TierCLIPConfig(
        token_entropy_weight=0.25,
        patch_entropy_weight=1,
        entropy_temperature=0.07,
        entropy_normalization=True,
        entropy_tokens="all",
        image_pooling="patch_mean",
        pixel_mean=(0.5, 0.5, 0.5),
        pixel_std=[0.25, 0.25, 0.25],
        zero_shot_findings={
            "Pleural Effusion": {"positive": ["Effusion."], "negative": ["No effusion."], "threshold": 0.4},
            "Edema": {"positive": ["Edema.", "Fluid."], "negative": ["Dry."], "scale": 9, "bias": -2.5},
        },
    )
    config.save_pretrained(tmp_path)
    loaded = TierCLIPConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()
    assert TierCLIPConfig(**config.to_dict()).to_dict() == config.to_dict()


PROMPTS = {"positive": ["Edema."], "negative": ["No edema."]}


@pytest.mark.parametrize(
    ("findings", "message"),
    [
        ({"": PROMPTS}, "The name of a finding must be text, not ''."),
        (
            {"Edema": {**PROMPTS, "treshold": 1}},
            "The finding 'Edema' must have the keys positive, negative, threshold, scale, bias, score_level, "
            "measured_on, not {'positive': ['Edema.'], 'negative': ['No edema.'], 'treshold': 1}.",
        ),
        (
            {"Edema": ["Edema."]},
            "The finding 'Edema' must have the keys positive, negative, threshold, scale, bias, score_level, "
            "measured_on, not ['Edema.'].",
        ),
        (
            {"Edema": {"positive": ["Edema."]}},
            "The finding 'Edema' has no negative prompts: give a list of at least one sentence.",
        ),
        (
            {"Edema": {**PROMPTS, "positive": []}},
            "The finding 'Edema' has no positive prompts: give a list of at least one sentence.",
        ),
        (
            {"Edema": {**PROMPTS, "positive": ["Edema.", " "]}},
            "The positive prompts of the finding 'Edema' must be sentences, not ['Edema.', ' '].",
        ),
        (
            {"Edema": {**PROMPTS, "threshold": 1.5}},
            "The threshold of the finding 'Edema' must be a number between 0 and 1, not 1.5.",
        ),
        (
            {"Edema": {**PROMPTS, "threshold": "0.5"}},
            "The threshold of the finding 'Edema' must be a number between 0 and 1, not '0.5'.",
        ),
        ({"Edema": {**PROMPTS, "scale": 0}}, "The scale of the finding 'Edema' must be a number above 0, not 0."),
        (
            {"Edema": {**PROMPTS, "measured_on": ["padchest"]}},
            "measured_on of the finding 'Edema' must hold names and numbers, not ['padchest'].",
        ),
        (
            {"Edema": {**PROMPTS, "bias": None}},
            "The bias of the finding 'Edema' must be a number that is finite, not None.",
        ),
    ],
)
def test_bad_zero_shot_findings_are_refused(tmp_path, findings, message):
    for config_class in (TierCLIPConfig, TierDualEncoderConfig):
        with pytest.raises(ValueError) as error:
            config_class(zero_shot_findings=findings)
        assert str(error.value) == message
    TierCLIPConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(saved | {"zero_shot_findings": findings}))
    with pytest.raises(ValueError) as error:
        TierCLIPConfig.from_pretrained(tmp_path)
    assert str(error.value) == message


def test_what_the_library_adds_is_accepted(tmp_path):
    """Attributes that transformers sets on configurations and finds again in their files."""
    config = TierCLIPConfig()
    config.use_cache = False  # the Trainer
    config.custom_pipelines = {"cxr-zero-shot-classification": {"impl": "x.Y", "pt": ["AutoModel"]}}
    config.auto_map = {"AutoModel": "modeling_tier.TierCLIPModel"}
    config.name_or_path = "somewhere"
    config.save_pretrained(tmp_path)
    loaded = TierCLIPConfig.from_pretrained(tmp_path, attn_implementation="eager", torch_dtype="float32")
    assert loaded.custom_pipelines == config.custom_pipelines
    assert loaded._attn_implementation == "eager"


def test_a_plain_clip_configuration_becomes_a_tier_one(tmp_path, caplog):
    old = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 256,
        "text_config": {"eos_token_id": 2, "bos_token_id": 0, "model_type": "clip_text_model"},
        "text_config_dict": None,
        "vision_config": {"patch_size": 16, "model_type": "clip_vision_model"},
        "torch_dtype": "float32",
        "transformers_version": None,
        "_commit_hash": None,
        "some_option_of_its_own": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = TierCLIPConfig.from_pretrained(tmp_path, token_entropy_weight=0.1)
    assert (config.model_type, config.projection_dim, config.token_entropy_weight) == ("tier_clip", 256, 0.1)
    assert (config.text_config.eos_token_id, config.vision_config.patch_size) == (2, 16)
    assert config.some_option_of_its_own == 1
    assert "model of type" not in caplog.text and "has no option" not in caplog.text

    config.save_pretrained(tmp_path / "tier")
    assert TierCLIPConfig.from_pretrained(tmp_path / "tier").projection_dim == 256


def test_no_option_hides_a_generation_parameter():
    assert not set(GenerationConfig().to_dict()) & {"entropy_temperature", "entropy_tokens", "image_pooling"}


@pytest.mark.parametrize("config_class", [TierCLIPConfig, TierDualEncoderConfig])
def test_special_tokens_that_an_older_trainer_noted_are_read(config_class, tmp_path):
    config = config_class()
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 3  # align_special_tokens, transformers 5.17
    config.save_pretrained(tmp_path)
    assert config_class.from_pretrained(tmp_path).eos_token_id == 2
