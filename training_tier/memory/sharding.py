"""FSDP2 for models with scalar parameters and two towers, and how to get their whole weights back."""

import os
from collections.abc import Mapping
from itertools import chain

import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.fsdp.api import StateDictType
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from training_tier.loop.integrity import FSDP_WEIGHTS


def check_sharding(plugin: FullyShardedDataParallelPlugin | None) -> None:
    """
    Args:
        plugin ([`FullyShardedDataParallelPlugin`], *optional*): of accelerate; `None` if it does not shard.

    Raises:
        `ValueError`: FSDP was asked for but is not used, or its options do not work with these models.
    """
    if plugin is None:
        if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            raise ValueError(
                "FSDP needs at least two processes with a GPU each; otherwise accelerate ignores it silently. Leave "
                "it out (on CPUs, torchrun --nproc_per_node 2 trains on two processes)."
            )
        return
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"fsdp_version={plugin.fsdp_version} cannot shard scalars such as logit_scale; use fsdp_version: 2, as in "
            "configs/accelerate/fsdp.yaml."
        )
    if plugin.state_dict_type != StateDictType.FULL_STATE_DICT:
        raise ValueError(
            f"fsdp_state_dict_type={plugin.state_dict_type.name} does not save the model, and saves pickles in "
            "checkpoints; use fsdp_state_dict_type: FULL_STATE_DICT, as in configs/accelerate/fsdp.yaml."
        )


def check_sharded_checkpoint(checkpoint: str | os.PathLike | None) -> None:
    """
    Raises:
        `ValueError`: a run with FSDP cannot resume from a checkpoint that was saved without it.
    """
    if checkpoint is not None and not os.path.isfile(os.path.join(checkpoint, FSDP_WEIGHTS)):
        raise ValueError(
            f"{checkpoint} was saved without FSDP; resume without it, or start a new run with --model {checkpoint}."
        )


def prepare_for_sharding(model: PreTrainedModel, plugin: FullyShardedDataParallelPlugin) -> set[str]:
    """
    Changes a model in place so that FSDP2, as accelerate (1.15) calls it, can shard it, and sets the layers that are
    sharded as units.

    Args:
        model ([`PreTrainedModel`]): with whole weights.
        plugin ([`FullyShardedDataParallelPlugin`]): changed too. Unless it names the layers, it gets those of the
            model's `_no_split_modules`. Weights are gathered and gradients reduced in float32, and autocast computes
            in 16 bits, so that the numbers equal those of DistributedDataParallel. The plugin's own policy would round
            `logit_scale`, the gradients and the loss to bfloat16.

    Returns:
        `set[str]`: the names of the scalar parameters, which now have the shape (1,), because FSDP2 cannot shard
            scalars.
    """
    model.get_input_embeddings = lambda: None  # CLIP's raises NotImplementedError, and there are two towers
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    if plugin.transformer_cls_names_to_wrap is None:
        classes = {type(module).__name__ for module in model.modules()}
        plugin.transformer_cls_names_to_wrap = sorted(classes & set(model._no_split_modules or ()))
    scalars = {name for name, parameter in model.named_parameters() if not parameter.ndim}
    for name in scalars:
        parent, _, last = name.rpartition(".")
        scalar = getattr(model.get_submodule(parent), last)
        vector = torch.nn.Parameter(scalar.detach().reshape(1), requires_grad=scalar.requires_grad)
        setattr(model.get_submodule(parent), last, vector)
    return scalars


def broadcast_weights(model: PreTrainedModel, device: torch.device) -> None:
    """
    Gives all processes the weights of the main process, which DistributedDataParallel does but FSDP2 does not. After
    `warm_up_text`, they may differ in the last bit. A model that is already sharded does not change.

    Args:
        model ([`PreTrainedModel`]): changed in place.
        device (`torch.device`): the processes send from here.
    """
    if isinstance(model, FSDPModule):
        return
    for tensor in chain(model.parameters(), model.buffers()):
        sent = tensor.detach().to(device)
        dist.broadcast(sent, src=0)
        tensor.detach().copy_(sent)


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a sharded tensor, for which every process has to call this. Other tensors do not change."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_model(
    model_class: type[PreTrainedModel], model: PreTrainedModel, state_dict: Mapping, scalars: set[str]
) -> PreTrainedModel:
    """
    An unsharded copy of a sharded model, on the CPU, in the same mode.

    Args:
        model_class (`type`): the class of the model before it was sharded, which changed it.
        model ([`PreTrainedModel`]): the sharded one.
        state_dict (`Mapping`): its whole weights.
        scalars (`set[str]`): see [`prepare_for_sharding`].
    """
    with torch.random.fork_rng(devices=[]):  # must not use the training's random numbers
        whole = model_class(model.config)
    whole.load_state_dict(
        {name: tensor.squeeze() if name in scalars else tensor for name, tensor in state_dict.items()}
    )
    return whole.train(model.training)
