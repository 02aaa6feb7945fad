"""The tokenizers of checkpoints."""

from typing import Any

from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from modeling_tier.configuration_tier import located
from processing_tier.hub_names import check_hub_name


def load_tokenizer(name: str, **options: Any) -> PreTrainedTokenizerBase:
    """
    Args:
        name (`str`): folder or name on the Hub.
        options: instead of those in the checkpoint's files, such as `do_lower_case`.

    Raises:
        `ValueError`: it does not exist, or a file is damaged.
    """
    check_hub_name(name, "tokenizer")
    try:
        place = located(name)
        if get_tokenizer_config(**place).get("tokenizer_class") == "CXRBertTokenizer":  # BERT's, as remote code
            return BertTokenizer.from_pretrained(**place, **options)
        return AutoTokenizer.from_pretrained(**place, trust_remote_code=False, **options)
    except Exception as error:  # transformers raises many kinds for damaged files
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"The tokenizer of {name!r} cannot be loaded: {reason}") from error
