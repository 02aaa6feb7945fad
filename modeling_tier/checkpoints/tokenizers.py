"""The tokenizer of a converted model. Its name or folder is checked by the caller."""

from collections.abc import Mapping

from tokenizers import Regex, normalizers
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    CLIPConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from .biomedclip import tower_settings
from .chexficient import CHEXFICIENT_MAX_LENGTH
from .source import Source

CLIP_TOKENIZER = "openai/clip-vit-base-patch32"
CXR_BERT = "microsoft/BiomedVLP-CXR-BERT-specialized"
TOKENIZERS = {  # of each kind with a text tower other than CLIP's, on the Hub
    "tier": CXR_BERT,
    "biovil": CXR_BERT,
    "biovil_t": "microsoft/BiomedVLP-BioViL-T",
    "chexficient": "emilyalsentzer/Bio_ClinicalBERT",
}
IN_ITS_FOLDER = ("biovil_t", "biomedclip", "chexficient")  # kinds whose files lie beside their tokenizer
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.txt")
TIER_MAX_LENGTH = 128  # tokens (authors' code, Modeling/CLIP_Embedding.py:79-82)
OPENCLIP_MAX_LENGTH = 77  # of a model without context_length (open_clip/tokenizer.py)
# What the original code does to a text before its tokenizer: patterns and their replacements.
BIOVIL_TEXTS = {r"[!?.]+\z": ""}  # hi-ml-multimodal, text/data/io.py:42
OPENCLIP_TEXTS = {  # the part of ftfy.fix_text and html.unescape (open_clip/tokenizer.py:66-69) that reports meet
    "[\u02bc\u2018-\u201b]": "'",
    "[\u201c-\u201f]": '"',
    "&quot;": '"',
    "&#39;": "'",
    "&lt;": "<",
    "&gt;": ">",
    "&amp;": "&",
}
TEXTS = {"biovil": BIOVIL_TEXTS, "biovil_t": BIOVIL_TEXTS, "biomedclip": OPENCLIP_TEXTS}


def find_tokenizer(source: Source, is_clip: bool) -> str:
    """The folder or name of a checkpoint's own tokenizer."""
    if source.path.is_dir() or source.kind in IN_ITS_FOLDER:
        if any((source.folder / name).is_file() for name in TOKENIZER_FILES):
            return str(source.folder)
    if source.kind == "biomedclip":
        return tower_settings(source.settings)[1]["hf_tokenizer_name"]
    return CLIP_TOKENIZER if is_clip else TOKENIZERS[source.kind]


def load_checkpoint_tokenizer(name: str, config: PreTrainedConfig, source: Source) -> PreTrainedTokenizerBase:
    """
    Loads a tokenizer that truncates texts to the length the model was trained on, with their begin and end tokens, and
    that does to a text what the original code does.

    Args:
        name (`str`): A folder, or a name on the Hub.
        config ([`TierCLIPConfig`] or [`TierDualEncoderConfig`]):
            Of the model. A CLIP text configuration gets the tokenizer's special tokens.
        source ([`Source`]): The checkpoint.

    Raises:
        ValueError: The tokenizer cannot be loaded, or its tokens are not the model's.
    """
    is_clip, text_config = isinstance(config, CLIPConfig), config.text_config
    try:
        if is_clip:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        elif source.kind in ("biomedclip", "chexficient"):
            tokenizer = AutoTokenizer.from_pretrained(name, config=text_config, trust_remote_code=False)
        else:  # CXR-BERT's own class is remote code, and equals BERT's in all that matters here
            tokenizer = BertTokenizer.from_pretrained(name)
    except Exception as error:  # transformers raises many kinds for damaged files
        files = "tokenizer.json, or vocab.json and merges.txt" if is_clip else "vocab.txt"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(
            f"the tokenizer {name!r} cannot be loaded ({reason}). Pass --tokenizer with a folder that holds {files}."
        ) from None
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):  # BERT's class then knows no word
        raise ValueError(
            f"the tokenizer {name!r} has only special tokens: its vocabulary is missing. Put its vocab.txt or "
            "tokenizer.json into the folder, or name the model's own with --tokenizer."
        )
    if len(tokenizer) > text_config.vocab_size:
        raise ValueError(
            f"the tokenizer {name!r} has {len(tokenizer)} tokens, the model {text_config.vocab_size}. Pass the "
            "model's own with --tokenizer."
        )
    if not is_clip:
        tokenizer = with_replacements(tokenizer, TEXTS.get(source.kind, {}))
        tokenizer.model_max_length = min(longest_text(source), text_config.max_position_embeddings)
        return tokenizer
    # 2 marks an old configuration, which pools the text at its highest token id.
    end = text_config.vocab_size - 1 if text_config.eos_token_id == 2 else text_config.eos_token_id
    if tokenizer.eos_token_id != end:
        raise ValueError(
            f"the tokenizer {name!r} ends a text with the token {tokenizer.eos_token_id}, the model with {end}. Pass "
            "the model's own with --tokenizer."
        )
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(text_config, token, getattr(tokenizer, token))
    tokenizer.model_max_length = text_config.max_position_embeddings
    return tokenizer


def longest_text(source: Source) -> int:
    """In tokens, as the original code cuts its texts."""
    if source.kind == "biomedclip":
        return tower_settings(source.settings)[1].get("context_length") or OPENCLIP_MAX_LENGTH
    lengths = {"tier": TIER_MAX_LENGTH, "chexficient": CHEXFICIENT_MAX_LENGTH}
    return lengths.get(source.kind, 2**30)  # BioViL reads as much as its positions


def with_replacements(tokenizer: PreTrainedTokenizerFast, replacements: Mapping[str, str]) -> PreTrainedTokenizerBase:
    """The tokenizer, with replacements in the text before all else. BERT's own class would forget them when saved."""
    if not replacements:
        return tokenizer
    steps: list[normalizers.Normalizer] = [
        normalizers.Replace(Regex(pattern), new) for pattern, new in replacements.items()
    ]
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([*steps, backend.normalizer])
    names = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=tokenizer.model_input_names,
        **{name: getattr(tokenizer, name) for name in names},
    )
