"""FSDP2 with models that have scalar parameters and two towers, and their whole weights out of it."""

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
        plugin ([`FullyShardedDataParallelPlugin`], *optional*): what accelerate uses; `None` where it does not shard.

    Raises:
        `ValueError`: FSDP was asked for and is not there, or in a way in which a run does not end as it should.
    """
    if plugin is None:
        if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            raise ValueError(
                "FSDP needs at least two processes with a GPU each, and accelerate leaves it out without a word where "
                "they are not there; leave it out too (on CPUs, torchrun --nproc_per_node 2 trains on two processes)."
            )
        return
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"fsdp_version={plugin.fsdp_version} cannot shard scalars such as logit_scale; use fsdp_version: 2, as in "
            "configs/accelerate/fsdp.yaml."
        )
    if plugin.state_dict_type != StateDictType.FULL_STATE_DICT:
        raise ValueError(
            f"fsdp_state_dict_type={plugin.state_dict_type.name} saves no model, and pickles in checkpoints; "
            "use fsdp_state_dict_type: FULL_STATE_DICT, as in configs/accelerate/fsdp.yaml."
        )


def check_sharded_checkpoint(checkpoint: str | os.PathLike | None) -> None:
    """
    Raises:
        `ValueError`: a checkpoint to resume with FSDP from was saved without it.
    """
    if checkpoint is not None and not os.path.isfile(os.path.join(checkpoint, FSDP_WEIGHTS)):
        raise ValueError(
            f"{checkpoint} was saved without FSDP; go on as the run began, or start a new one with "
            f"--model {checkpoint}."
        )


def prepare_for_sharding(model: PreTrainedModel, plugin: FullyShardedDataParallelPlugin) -> set[str]:
    """
    Makes a model, in place, one that FSDP2 as accelerate (1.15) calls it can shard, and sets what is sharded together.

    Args:
        model ([`PreTrainedModel`]): with whole weights.
        plugin ([`FullyShardedDataParallelPlugin`]): changed too, unless it names the layers itself: those that the
            model has of its `_no_split_modules`. Weights are gathered and gradients reduced in float32, and it is
            autocast that computes in 16 bits, so that the numbers are those of DistributedDataParallel; the plugin's
            own policy would round `logit_scale`, the gradients and the loss to bfloat16.

    Returns:
        `set[str]`: the names of the scalar parameters, which FSDP2 does not shard and which now have the shape (1,).
    """
    model.get_input_embeddings = lambda: None  # CLIP's raises NotImplementedError, and one of two is no help
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
    Gives all the processes the weights of the main one, as DistributedDataParallel does, but FSDP2 does not: what was
    trained before (`warm_up_text`) need not be equal to the last bit. A model that is sharded already stays as it is.

    Args:
        model ([`PreTrainedModel`]): changed in place.
        device (`torch.device`): from which the processes send.
    """
    if isinstance(model, FSDPModule):
        return
    for tensor in chain(model.parameters(), model.buffers()):
        sent = tensor.detach().to(device)
        dist.broadcast(sent, src=0)
        tensor.detach().copy_(sent)


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor whole, for which all the processes have to call this; any other one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_model(
    model_class: type[PreTrainedModel], model: PreTrainedModel, state_dict: Mapping, scalars: set[str]
) -> PreTrainedModel:
    """
    A model that is not sharded, on the CPU, in the mode of another one.

    Args:
        model_class (`type`): what the model was before it was sharded, which changes its class.
        model ([`PreTrainedModel`]): the sharded one.
        state_dict (`Mapping`): its whole weights.
        scalars (`set[str]`): see [`prepare_for_sharding`].
    """
    with torch.random.fork_rng(devices=[]):  # its random weights are none of the training's draws
        whole = model_class(model.config)
    whole.load_state_dict(
        {name: tensor.squeeze() if name in scalars else tensor for name, tensor in state_dict.items()}
    )
    return whole.train(model.training)
