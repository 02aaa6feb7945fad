"""What the files of sentence-transformers say: pooling, length and case, and what is refused."""

import json

import pytest

from modeling_tier.sentence_settings_tier import SentenceSettings, read_sentence_settings, text_pooling

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
FLAGS = dict.fromkeys(("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken"), False)


def write(folder, pooling: dict, modules=MODULES, transformer: dict | None = None) -> str:
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 384} | pooling))
    if transformer is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps(transformer))
    return str(folder)


@pytest.mark.parametrize(
    ("pooling", "mode", "ours"),
    [
        ({f"pooling_mode_{key}": key == "mean_tokens" for key in FLAGS}, "mean", "mean"),  # all-MiniLM-L6-v2
        ({f"pooling_mode_{key}": key == "cls_token" for key in FLAGS}, "cls", "cls"),  # bge-base-en-v1.5
        ({f"pooling_mode_{key}": key == "lasttoken" for key in FLAGS}, "lasttoken", "eos"),
        ({f"pooling_mode_{key}": False for key in FLAGS}, "mean", "mean"),
        ({}, "mean", "mean"),
        ({"pooling_mode": "cls"}, "cls", "cls"),  # from version 5.4
        ({"pooling_mode": ["mean"]}, "mean", "mean"),
    ],
)
def test_pooling(tmp_path, pooling, mode, ours):
    settings = read_sentence_settings(write(tmp_path, pooling))
    assert settings == SentenceSettings(mode, None, False)
    assert text_pooling(settings, tmp_path) == ours


def test_length_and_case(tmp_path):
    folder = write(tmp_path, {}, transformer={"max_seq_length": 256, "do_lower_case": True})
    assert read_sentence_settings(folder) == SentenceSettings("mean", 256, True)


def test_the_names_of_modules_of_version_5(tmp_path):
    modules = [
        {"path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling"},
    ]
    assert read_sentence_settings(write(tmp_path, {"pooling_mode": "cls"}, modules)).pooling == "cls"


def test_another_text_encoder_says_nothing(tmp_path):
    settings = read_sentence_settings(tmp_path)
    assert settings == SentenceSettings() and text_pooling(settings, tmp_path) is None


@pytest.mark.parametrize(
    ("pooling", "mode"),
    [
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
        ({"pooling_mode": ["cls", "mean"]}, "cls+mean"),
    ],
)
def test_another_pooling_is_refused(tmp_path, pooling, mode):
    settings = read_sentence_settings(write(tmp_path, pooling))
    with pytest.raises(
        ValueError, match="^The text model 'name' pools its tokens by .* set text_pooling to one of cls"
    ):
        text_pooling(settings, "name")
    assert settings.pooling == mode


@pytest.mark.parametrize("folder", ["../1_Pooling", "/tmp", "1_Pooling/../..", "..", ""])
def test_a_folder_outside_the_checkpoint_is_refused(tmp_path, folder):
    modules = [{"path": folder, "type": "sentence_transformers.models.Pooling"}]
    with pytest.raises(ValueError, match="^modules.json of .* names the folder .*, which is not inside it.$"):
        read_sentence_settings(write(tmp_path, {}, modules))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "^modules.json of the text model .* cannot be read: Expecting"),
        ("[" * 10**5, "^modules.json of the text model .* cannot be read: "),
        ("[3]", "^modules.json of .* does not list modules with a type and a path; get it again.$"),
        (" " * (2**20 + 1), "^modules.json of the text model .* cannot be read: it has more than 1 MiB.$"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content, message):
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_sentence_settings(tmp_path)
