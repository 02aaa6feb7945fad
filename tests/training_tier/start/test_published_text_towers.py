"""Text encoders by name, as their owners publish them: BERTs and sentence-transformers' MiniLM and MPNet."""

import json

import pytest
import torch
from published_towers import write_tower
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    RobertaTokenizer,
)

from modeling_tier import TierDualEncoderModel
from training_tier.options.model import ModelArguments
from training_tier.start.initialization import make_model

WORDS = ["no", "pleural", "effusion", ".", "clear", "lungs", "CHEST", "chest"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
TEXTS = ["no pleural effusion .", "lungs clear", "no"]


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    write_tower("microsoft/resnet-50", folder)
    return str(folder)


def add_sentence_transformers(folder, max_seq_length: int, do_lower_case: bool = False, pooling: str = "mean_tokens"):
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text(json.dumps(MODULES))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    settings = {"max_seq_length": max_seq_length, "do_lower_case": do_lower_case}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))


def write_bert(folder, model_class=BertModel) -> PreTrainedModel:
    """microsoft/BiomedNLP-BiomedBERT-... (a masked language model) or all-MiniLM-L6-v2 (a bare BERT)."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    torch.manual_seed(0)
    model = model_class(BertConfig(vocab_size=len(words), pad_token_id=0, **SIZES)).eval()
    model.save_pretrained(folder)
    return model


def write_mpnet(folder) -> PreTrainedModel:
    """sentence-transformers/all-mpnet-base-v2: the weights of `MPNetModel` under a configuration of the masked one."""
    words = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words))
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    names |= {"unk_token": "[UNK]", "mask_token": "<mask>", "tokenizer_class": "MPNetTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"model_max_length": 512}))
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "relative_attention_num_buckets": 32}
    model = MPNetModel(MPNetConfig(vocab_size=len(words), max_position_embeddings=514, **ids, **SIZES)).eval()
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["MPNetForMaskedLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    add_sentence_transformers(folder, max_seq_length=384)
    return model


def sentence_embeddings(model: PreTrainedModel, tokens) -> torch.Tensor:
    """The mean of the attended tokens, text by text."""
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state
    return torch.stack([row[mask.bool()].mean(0) for row, mask in zip(hidden, tokens["attention_mask"], strict=True)])


def pooled_states(model: TierDualEncoderModel, tokens) -> torch.Tensor:
    """What the projection head of the texts gets of each text."""
    seen = []
    handle = model.text_projection.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        model.get_text_features(**tokens)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("kind", ["minilm", "mpnet"])
def test_sentence_transformers_are_pooled_by_the_mean(vision, tmp_path, kind):
    if kind == "minilm":
        owner = write_bert(tmp_path)
        add_sentence_transformers(tmp_path, max_seq_length=256)
    else:
        owner = write_mpnet(tmp_path)
    model, processor = make_model(ModelArguments(vision_model=vision, text_model=str(tmp_path)), [])
    assert model.config.text_pooling == "mean"
    assert processor.tokenizer.model_max_length == (256 if kind == "minilm" else 384)
    tokens = processor.tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert tokens["attention_mask"].sum(1).tolist() == [6, 4, 3]
    torch.testing.assert_close(pooled_states(model.eval(), tokens), sentence_embeddings(owner, tokens))

    # a text alone, without padding, gives the same; and so does the model from Python, and a saved one
    alone = processor.tokenizer(TEXTS[1:2], return_tensors="pt")
    embeddings = model.get_text_features(**tokens).pooler_output
    torch.testing.assert_close(model.get_text_features(**alone).pooler_output, embeddings[1:2])
    joined = TierDualEncoderModel.from_vision_text_pretrained(vision, str(tmp_path))
    assert joined.config.text_pooling == "mean"
    model.save_pretrained(tmp_path / "saved")
    saved = TierDualEncoderModel.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(saved.get_text_features(**tokens).pooler_output, embeddings)

    model.train()
    batch = {**tokens, "pixel_values": torch.randn(3, 3, 64, 64)}
    model(**batch, return_loss=True).loss.backward()
    assert all(parameter.grad is not None for parameter in model.text_model.parameters())


@pytest.mark.parametrize("kind", ["biomedbert", "cls of sentence-transformers"])
def test_a_bert_is_pooled_by_its_first_token(vision, tmp_path, kind):
    owner = write_bert(tmp_path, BertForMaskedLM)
    if kind != "biomedbert":
        add_sentence_transformers(tmp_path, max_seq_length=64, pooling="cls_token")
    model, processor = make_model(ModelArguments(vision_model=vision, text_model=str(tmp_path)), [])
    assert model.config.text_pooling == "cls"
    assert processor.tokenizer.model_max_length == (128 if kind == "biomedbert" else 64)
    assert processor.tokenizer.tokenize("Clear LUNGS") == ["clear", "lungs"]
    tokens = processor.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = owner.bert(**tokens).last_hidden_state[:, 0]
    assert torch.equal(pooled_states(model.eval(), tokens), expected)


def test_the_option_comes_before_the_checkpoint(vision, tmp_path):
    write_bert(tmp_path)
    add_sentence_transformers(tmp_path, max_seq_length=256, pooling="max_tokens")
    names = {"vision_model": vision, "text_model": str(tmp_path)}
    with pytest.raises(ValueError, match="pools its tokens by 'max', which is not supported; set text_pooling to one"):
        make_model(ModelArguments(**names), [])
    model, _ = make_model(ModelArguments(**names, text_pooling="eos"), [])
    assert model.config.text_pooling == "eos"


def test_texts_are_read_in_lower_case_where_the_checkpoint_says_so(vision, tmp_path):
    write_bert(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    add_sentence_transformers(tmp_path, max_seq_length=256, do_lower_case=True)
    _, processor = make_model(ModelArguments(vision_model=vision, text_model=str(tmp_path)), [])
    assert processor.tokenizer.tokenize("CHEST") == ["chest"]
    processor.save_pretrained(tmp_path / "saved")
    assert type(processor).from_pretrained(tmp_path / "saved").tokenizer.tokenize("CHEST") == ["chest"]


def test_a_tokenizer_that_keeps_the_case_is_refused(vision, tmp_path):
    write_bert(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"CHESTchest"]
    (tmp_path / "vocab.json").write_text(
        json.dumps({word: number for number, word in enumerate(dict.fromkeys(words))})
    )
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    RobertaTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")).save_pretrained(tmp_path)
    add_sentence_transformers(tmp_path, max_seq_length=256, do_lower_case=True)
    with pytest.raises(
        ValueError, match="in lower case, which a RobertaTokenizer cannot do; choose another text model"
    ):
        make_model(ModelArguments(vision_model=vision, text_model=str(tmp_path)), [])


def test_the_option_is_checked(vision, tmp_path):
    with pytest.raises(ValueError, match="^text_pooling='mean' is for --vision_model and --text_model; leave it"):
        ModelArguments(text_pooling="mean")
    with pytest.raises(ValueError, match="^text_pooling='max' is not known; choose one of cls, eos, mean.$"):
        ModelArguments(vision_model=vision, text_model=str(tmp_path), text_pooling="max")


def test_adapter_layers_are_added_to_pretrained_towers(vision, tmp_path):
    write_bert(tmp_path)
    names = {"vision_model": vision, "text_model": str(tmp_path)}
    model, processor = make_model(ModelArguments(**names, adapter_layers=2), [])
    assert len(model.image_adapter) == model.config.adapter_layers == 2
    pixels = torch.randn(2, 3, 64, 64)
    # and to a saved dual encoder, whose embeddings they do not change at first
    plain, processor = make_model(ModelArguments(**names), [])
    plain.eval().save_pretrained(tmp_path / "plain")
    processor.save_pretrained(tmp_path / "plain")
    added, _ = make_model(ModelArguments(model=str(tmp_path / "plain"), adapter_layers=1), [])
    embeddings = plain.get_image_features(pixels).pooler_output
    assert torch.equal(added.eval().get_image_features(pixels).pooler_output, embeddings)
    with torch.no_grad():
        added.image_adapter[0].mlp_output.bias.add_(1)
    added.save_pretrained(tmp_path / "added")
    processor.save_pretrained(tmp_path / "added")
    again, _ = make_model(ModelArguments(model=str(tmp_path / "added")), [])
    changed = added.get_image_features(pixels).pooler_output
    assert torch.equal(again.eval().get_image_features(pixels).pooler_output, changed)
    assert not torch.allclose(changed, embeddings)


def test_adapter_layers_need_a_pretrained_dual_encoder(tmp_path):
    with pytest.raises(ValueError, match="^adapter_layers=2 is for a pretrained image tower, and the weights of 'nan"):
        make_model(ModelArguments(model="nano", adapter_layers=2), ["clear lungs"])
    model, processor = make_model(ModelArguments(model="nano", image_size=32), ["no acute disease of the chest"] * 4)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="^adapter_layers=2 is for dual encoders, which .* is not; join its towers"):
        make_model(ModelArguments(model=str(tmp_path), adapter_layers=2), [])
    for name in (str(tmp_path), "nano"):
        with pytest.raises(ValueError, match="^image_head_dropout=0.5 is for dual encoders, which .* is not; join"):
            make_model(ModelArguments(model=name, image_head_dropout=0.5), ["clear lungs"])
    with pytest.raises(ValueError, match="^adapter_layers=-1 must be at least 0.$"):
        ModelArguments(adapter_layers=-1)
