"""LoRA in a frozen text tower: small matrices train in its attention, and are merged into the model in the end."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import is_peft_available

from training_tier.options.compatibility import Launch
from training_tier.options.parsing import Options

if is_peft_available():
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

# Queries and values of BERT and RoBERTa, DistilBERT, CLIP and SigLIP, MPNet, and ModernBERT's joint matrix (Hu et al.
# 2022, "LoRA", section 7.1)
TARGETS = ["query", "value", "q_lin", "v_lin", "q_proj", "v_proj", "q", "v", "Wqkv"]
BASE = ".base_layer"  # what peft puts into the name of an adapted layer's own weight


def rules_on_text_lora(options: Options) -> Iterator[str]:
    task, model, _, training, search = options
    if model.text_lora_rank is None or task.task == "classification":
        return
    given, launch = f"text_lora_rank={model.text_lora_rank}", Launch.of(training)
    if not task.freeze_text_tower:
        yield f"{given} adapts a frozen text tower, and here it is trained whole; add --freeze_text_tower."
    if not is_peft_available():
        yield f"{given} needs the package peft; install it: pip install 'tier-clip[lora]'."
    if launch.fsdp or launch.deepspeed:
        yield f"{given} does not work with FSDP or DeepSpeed; leave one of them out."
    if training.save_top_k is not None:
        yield f"{given} does not work with save_top_k: checkpoints hold the matrices beside the tower; leave one out."
    if search.search_trials is not None:
        yield f"{given} does not work with --search_trials; pass it to the training that follows the search."


def add_text_lora(model: PreTrainedModel, rank: int) -> None:
    """
    Adds LoRA of a rank to the attention of the text tower, in place. At the start it changes nothing.

    Raises:
        `ValueError`: the tower does not have such layers.
    """
    trained = {parameter for parameter in model.text_model.parameters() if parameter.requires_grad}
    if not any(name.rpartition(".")[2] in TARGETS for name, _ in model.text_model.named_modules()):
        raise ValueError(
            f"text_lora_rank={rank}: {type(model.text_model).__name__} does not have layers that LoRA adapts here; "
            "leave it out."
        )
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS), model.text_model)
    for parameter in trained:  # peft has frozen them: the head of SigLIP's tower
        parameter.requires_grad_(True)


def has_text_lora(model: nn.Module) -> bool:
    return is_peft_available() and any(isinstance(module, LoraLayer) for module in model.modules())


@torch.no_grad()
def merge_text_lora(model: nn.Module) -> None:
    """Adds what LoRA has learnt to the weights of the text tower, in place; the model is then a plain one."""
    for name, module in list(model.named_modules()):
        if is_peft_available() and isinstance(module, LoraLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())


def read_with_lora(model: PreTrainedModel, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The weights of a checkpoint with LoRA, under the names that they have in memory. Those of the file may differ, as
    for ViT and DINOv2; transformers translates them for the plain model only.
    """
    plain_weights = {name.replace(BASE, ""): tensor for name, tensor in state_dict.items() if ".lora_" not in name}
    options: dict[str, Any] = {"config": copy.deepcopy(model.config), "state_dict": plain_weights}
    plain = type(model).from_pretrained(None, **options).state_dict()
    return {
        name: state_dict[name] if ".lora_" in name else plain[name.replace(BASE, "")] for name in model.state_dict()
    }
