"""
Cost of the entropy terms: training steps of TierCLIPModel, both weights above 0, against CLIPModel's.

    python speed/entropy_cost.py --repetitions 15

A step is forward and backward in float32 on the CPU. The optimizer's step is left out: it is the same for all, and
would bring the ratio closer to 1. The models take turns within each repetition, so that a slower machine affects them
all. The figure is the median ratio of the two times over the repetitions. Weights are random and the same.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel
from turns import describe_ratios, time_in_turn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages, when they are not installed

from modeling_tier import TierCLIPConfig, TierCLIPModel  # noqa: E402


def make_batch(config: CLIPConfig, batch_size: int, tokens: int) -> dict[str, torch.Tensor]:
    """Random images and texts of 10 tokens to all of them, padded as CLIP's tokenizer pads: with EOS."""
    text, vision = config.text_config, config.vision_config
    lengths = torch.linspace(min(10, tokens), tokens, batch_size).long()
    attention_mask = (torch.arange(tokens) < lengths[:, None]).long()
    input_ids = torch.randint(0, text.bos_token_id, (batch_size, tokens))
    input_ids[:, 0] = text.bos_token_id
    input_ids[torch.arange(tokens) >= lengths[:, None] - 1] = text.eos_token_id
    pixel_values = torch.randn(batch_size, 3, vision.image_size, vision.image_size)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15, help="timed steps of each model (default: 15)")
    parser.add_argument("--batch-size", type=int, default=16, help="pairs in a step (default: 16)")
    parser.add_argument("--tokens", type=int, default=77, help="token positions of a text, 77 at most (default: 77)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the weights and the batch (default: 0)")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    clip = CLIPModel(CLIPConfig()).train()  # the defaults are ViT-B/32
    tier = TierCLIPModel(TierCLIPConfig(token_entropy_weight=0.1, patch_entropy_weight=0.1)).train()
    tier.load_state_dict(clip.state_dict())
    batch = make_batch(clip.config, args.batch_size, args.tokens)

    def step(model: CLIPModel, image_pooling: str) -> None:
        if model is tier:
            tier.config.image_pooling = image_pooling
        model.zero_grad()
        model(**batch, return_loss=True).loss.backward()

    seconds = time_in_turn(
        {
            "CLIPModel": lambda: step(clip, "cls"),
            "TierCLIPModel, cls": lambda: step(tier, "cls"),
            "TierCLIPModel, patch_mean": lambda: step(tier, "patch_mean"),
        },
        args.repetitions,
    )
    print(
        f"ViT-B/32, batch {args.batch_size}, {args.tokens} tokens, float32, CPU, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {args.repetitions} repetitions; forward and backward, without the optimizer"
    )
    for name, values in seconds.items():
        ratio = describe_ratios(values, seconds["CLIPModel"], digits=4)
        print(f"{name:27s} median step {statistics.median(values):7.3f} s   ratio to CLIPModel {ratio}")


if __name__ == "__main__":
    main()
