"""
FSDP2 on two processes is one process with the whole batch, with the options of configs/accelerate/fsdp.yaml.

accelerate (1.15) leaves FSDP out on CPUs; so the processes here set the one field by which it knows. All else, from
the environment that `accelerate launch` makes of the file to the final model, is what happens on GPUs.
"""

import contextlib
import json
import os
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, prepare_multi_gpu_env
from child_processes import end_at_once, launcher, run_child
from safetensors.torch import load_file
from tiny_siglip import TOWER, siglip_sizes
from transformers import AutoModel

from modeling_tier import TierCLIPConfig, TierCLIPModel, TierSiglipConfig, TierSiglipModel
from training_tier.loop.integrity import find_fault
from training_tier.memory.gradient_caching import backward_in_chunks
from training_tier.memory.sharding import (
    broadcast_weights,
    check_sharded_checkpoint,
    check_sharding,
    prepare_for_sharding,
    whole_model,
    whole_tensor,
)

REPOSITORY = Path(__file__).resolve().parents[3]
CONFIGS = sorted((REPOSITORY / "configs" / "accelerate").glob("*.yaml"))
TERMS = ("loss", "contrastive_loss", "token_entropy", "patch_entropy")


def read_config(path):
    """The arguments of `accelerate launch` with a file, and those that it knows."""
    parser = launch_command_parser()
    args = parser.parse_args(["--config_file", str(path), "train_tier.py"])
    args.nondefault = set()  # a custom action of the parser sets it where there are such
    known = {action.dest for action in parser._actions}
    return _validate_launch_command(args)[0], known


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_loads_and_names_only_what_accelerate_knows(path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = load_config_from_file(str(path))  # refuses unknown options of the first level
    args, known = read_config(path)
    content = yaml.safe_load(path.read_text())
    for name in ("fsdp_config", "deepspeed_config"):
        assert set(content.get(name, {})) <= known
        assert all(getattr(args, key) == value for key, value in content.get(name, {}).items())
    assert config.num_processes >= config.num_machines == content["num_machines"]
    assert args.use_fsdp == (path.stem == "fsdp") and args.use_deepspeed == (path.stem == "deepspeed")
    assert args.multi_gpu == path.stem.startswith("multi")
    assert "not run" in path.read_text() or path.stem == "cpu"


def fsdp_environment():
    """What `accelerate launch` tells its processes of FSDP."""
    environment = prepare_multi_gpu_env(read_config(REPOSITORY / "configs" / "accelerate" / "fsdp.yaml")[0])
    return {name: value for name, value in environment.items() if name.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))}


@contextlib.contextmanager
def fsdp_on_cpus():
    make = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        make(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init
    yield
    AcceleratorState.__init__ = make


def make_model(pooling: str) -> TierCLIPModel | TierSiglipModel:
    torch.manual_seed(0)
    text = {"vocab_size": 99, "max_position_embeddings": 20, "bos_token_id": 97, "eos_token_id": 98}
    size = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes = {"text_config": text | size, "vision_config": {"image_size": 32, "patch_size": 8} | size}
    weights = {"token_entropy_weight": 3.0, "patch_entropy_weight": 5.0}
    if pooling == "siglip":
        text |= {**TOWER, "projection_size": 24, "pad_token_id": 98}
        model = TierSiglipModel(TierSiglipConfig(**siglip_sizes() | {"text_config": text}, **weights)).train()
        model.logit_scale.data.fill_(2.0)
        model.logit_bias.data.fill_(-3.0)
        return model
    return TierCLIPModel(TierCLIPConfig(**sizes, **weights, projection_dim=24, image_pooling=pooling)).train()


def make_batch() -> dict[str, torch.Tensor]:
    """Eight pairs; the texts have 9, 7, 0, 1, 2, 1, 4 and 3 words, so that the processes count different numbers."""
    lengths = torch.tensor([9, 7, 0, 1, 2, 1, 4, 3])
    generator = torch.Generator().manual_seed(1)
    positions = torch.arange(11)
    input_ids = torch.randint(0, 97, (8, 11), generator=generator)
    input_ids[:, 0] = 97
    input_ids[positions > lengths[:, None]] = 98
    return {
        "input_ids": input_ids,
        "attention_mask": (positions <= lengths[:, None] + 1).long(),
        "pixel_values": torch.randn(8, 3, 32, 32, generator=generator),
        "text_groups": torch.tensor([3, 1, 4, 3, 3, 4, 0, 2]),
    }


SIGLIP_LAYERS = [
    "SiglipEncoderLayer",
    "SiglipMultiheadAttentionPoolingHead",
    "SiglipTextEmbeddings",
    "SiglipVisionEmbeddings",
]
CASES = [("patch_mean", None), ("siglip", None), ("siglip", 3), ("cls", 2)]  # pooling, and pairs of a chunk
STEPS = 3


def train(model, optimizer, backward, rows, chunk_size=None) -> torch.Tensor:
    """The terms of a few steps, (steps, terms)."""
    batch = {name: value[rows] for name, value in make_batch().items()}
    history = []
    for _ in range(STEPS):
        if chunk_size is None:
            terms = model(**batch, return_loss=True)
            backward(terms["loss"])
        else:
            terms = backward_in_chunks(model, batch, chunk_size, backward)
        optimizer.step()
        optimizer.zero_grad()
        history.append(torch.stack([terms[term].detach() for term in TERMS]))
    return torch.stack(history)


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    timeout = timedelta(minutes=10)  # not 30
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=timeout)
    with fsdp_on_cpus():
        plugin = FullyShardedDataParallelPlugin()
        accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    check_sharding(plugin)
    for pooling, chunk_size in CASES:
        model = make_model(pooling)
        plugin.transformer_cls_names_to_wrap = None
        scalars = prepare_for_sharding(model, plugin)
        assert scalars == (set() if pooling == "siglip" else {"logit_scale"})
        names = ["CLIPEncoderLayer", "CLIPTextEmbeddings", "CLIPVisionEmbeddings"]
        assert plugin.transformer_cls_names_to_wrap == (SIGLIP_LAYERS if pooling == "siglip" else names)
        if rank:
            model.vision_model.post_layernorm.weight.data.zero_()
        broadcast_weights(model, accelerator.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        sharded, optimizer = accelerator.prepare(model, optimizer)
        local = sum(parameter.to_local().numel() for parameter in sharded.parameters())
        total = sum(parameter.numel() for parameter in sharded.parameters())
        rows = slice(0, 4) if rank == 0 else slice(4, 8)
        terms = train(sharded, optimizer, accelerator.backward, rows, chunk_size)
        state_dict = accelerator.get_state_dict(sharded)
        assert whole_tensor(sharded.logit_scale.detach()).shape == (1,)
        if rank == 0:
            before = torch.get_rng_state()
            weights = whole_model(type(make_model(pooling)), sharded, state_dict, scalars).state_dict()
            assert torch.equal(torch.get_rng_state(), before)
        result = {"terms": terms, "share": local / total, "weights": weights if rank == 0 else {}}
        torch.save(result, Path(folder) / f"{pooling}-{chunk_size}-{rank}.pt")
        accelerator.free_memory()
    with pytest.raises(ValueError) as error:  # in both processes, and none waits for the other
        backward_in_chunks(sharded, {name: value[: 2 + 2 * rank] for name, value in make_batch().items()}, 2)
    assert str(error.value) == (
        "The processes have from 1 to 2 chunks in a step. FSDP needs the same number in each; use "
        "--dataloader_drop_last true."
    )
    dist.destroy_process_group()
    end_at_once()


@pytest.mark.slow
def test_two_sharded_processes_are_one_with_the_whole_batch(tmp_path, monkeypatch):
    for name, value in fsdp_environment().items():
        monkeypatch.setenv(name, value)
    torch.multiprocessing.spawn(process, args=(str(tmp_path),), nprocs=2)
    for pooling, chunk_size in CASES:
        ranks = [torch.load(tmp_path / f"{pooling}-{chunk_size}-{rank}.pt", weights_only=True) for rank in range(2)]
        model = make_model(pooling)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        expected = train(model, optimizer, torch.Tensor.backward, slice(0, 8))
        assert (expected[0, 0] - expected[-1, 0]).abs() > 0.1  # the weights do change
        got = (ranks[0]["terms"] + ranks[1]["terms"]) / 2
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)
        assert all(0.4 < rank["share"] < 0.6 for rank in ranks)
        weights = model.state_dict()
        assert ranks[0]["weights"].keys() == weights.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(ranks[0]["weights"][name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (None, "FSDP needs at least two processes with a GPU each"),
        (SimpleNamespace(fsdp_version=1), "fsdp_version=1 cannot shard scalars such as logit_scale"),
        ("SHARDED_STATE_DICT", "fsdp_state_dict_type=SHARDED_STATE_DICT does not save the model"),
    ],
    ids=["not there", "version 1", "sharded checkpoints"],
)
def test_what_does_not_work_is_refused(plugin, message, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    if isinstance(plugin, str):
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type=plugin)
    with pytest.raises(ValueError, match=message):
        check_sharding(plugin)


def test_a_checkpoint_without_shards_is_refused(tmp_path):
    check_sharded_checkpoint(None)
    with pytest.raises(ValueError, match="was saved without FSDP; resume without it, or start a new run with"):
        check_sharded_checkpoint(tmp_path)
    (tmp_path / "pytorch_model_fsdp.bin").touch()
    check_sharded_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average_top_k": True}, "average_top_k needs whole weights"),
        ({"is_deepspeed_enabled": True, "zero_stage": 3}, "use stage 2"),
    ],
    ids=["average", "stage 3"],
)
def test_a_trainer_refuses_what_needs_whole_weights(options, message):
    """Also where accelerate, and no option of the training, asks for the sharding."""
    from training_tier.loop.contrastive import TierTrainer  # heavy, and not for the processes above

    trainer = object.__new__(TierTrainer)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="FULL_STATE_DICT")
    trainer.is_deepspeed_enabled = options.get("is_deepspeed_enabled", False)
    trainer.is_fsdp_enabled = not trainer.is_deepspeed_enabled
    stage = SimpleNamespace(zero_stage=options.get("zero_stage"))
    trainer.accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin, deepspeed_plugin=stage))
    trainer.args = SimpleNamespace(average_top_k=options.get("average_top_k", False), world_size=2)
    trainer.model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=message):
        trainer._check_distribution()


TRAIN = f"""
import importlib.util

import train_tier

spec = importlib.util.spec_from_file_location("test_fsdp", {__file__!r})
test_fsdp = importlib.util.module_from_spec(spec)
spec.loader.exec_module(test_fsdp)
with test_fsdp.fsdp_on_cpus():
    train_tier.main()
test_fsdp.end_at_once()
"""
QUICK = [
    *("--data", "phantom:num_images=48,image_size=64", "--model", "nano", "--image_size", "32"),
    *("--eval_split", "validation", "--min_positives", "2", "--text_warmup_epochs", "0", "--max_steps", "6"),
    *("--token_entropy_weight", "0.3", "--patch_entropy_weight", "0.2", "--logging_steps", "1"),
    *("--eval_strategy", "steps", "--eval_steps", "3", "--save_strategy", "steps", "--save_steps", "3"),
    *("--report_to", "none", "--use_cpu", "true", "--dataloader_pin_memory", "false", "--disable_tqdm", "true"),
]


def launch(file, folder, *options, processes=1):
    environment = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "support")])}
    if processes > 1:
        environment |= fsdp_environment()
    options = (*options, "--per_device_train_batch_size", str(8 // processes), "--per_device_eval_batch_size", "8")
    command = [*launcher(processes), file, *QUICK, "--output_dir", folder, *options]
    result = run_child(command, **environment)
    assert result.returncode == 0, result.stderr[-3000:]
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return history, load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_a_sharded_training_is_one_process_with_the_whole_batch_and_can_be_resumed(tmp_path):
    """train_tier.py, from the first step to the final model, its best checkpoint."""
    from evaluation_tier.models.loading import load_model  # heavy, and not for the processes above

    file = tmp_path / "train.py"
    file.write_text(TRAIN)
    one, weights = launch(REPOSITORY / "train_tier.py", tmp_path / "one")
    two, sharded = launch(file, tmp_path / "two", processes=2)
    for name in ("loss", *TERMS[1:], "eval_loss", "eval_auroc"):
        expected = [entry[name] for entry in one if name in entry]
        assert len(expected) == (2 if name.startswith("eval") else 6)
        # the first steps to 1e-6; AdamW, which divides by small moments, lets rounding grow
        assert [entry[name] for entry in two if name in entry] == pytest.approx(expected, rel=1e-4)
    assert [entry["loss"] for entry in two if "loss" in entry][:3] == pytest.approx(
        [entry["loss"] for entry in one if "loss" in entry][:3], rel=1e-5
    )
    assert sharded.keys() == weights.keys() and sharded["logit_scale"].shape == ()
    for name, weight in weights.items():
        torch.testing.assert_close(sharded[name], weight, rtol=1e-3, atol=1e-4)
    model, processor = load_model(str(tmp_path / "two"))
    assert type(model) is TierCLIPModel and processor.tokenizer is not None
    remote = AutoModel.from_pretrained(tmp_path / "two", trust_remote_code=True)
    assert type(remote).__name__ == "TierCLIPModel" and remote.config.architectures == ["TierCLIPModel"]

    for step in (3, 6):
        assert find_fault(tmp_path / "two" / f"checkpoint-{step}") is None
    (tmp_path / "two" / "checkpoint-3").rename(tmp_path / "checkpoint-3")
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    (tmp_path / "checkpoint-3").rename(resumed / "checkpoint-3")
    history, again = launch(file, resumed, "--resume_from_checkpoint", "last", processes=2)
    for name in ("loss", *TERMS[1:], "grad_norm", "eval_loss", "eval_auroc"):
        assert [entry[name] for entry in history if name in entry] == [entry[name] for entry in two if name in entry]
    assert all(torch.equal(again[name], sharded[name]) for name in sharded)

    checkpoint = resumed / "checkpoint-6"
    for name in ("pytorch_model_fsdp.bin", "optimizer.bin"):
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(content[:-20])
        assert find_fault(checkpoint) == f"{name} is cut short"
        (checkpoint / name).write_bytes(content)
    (checkpoint / "optimizer.bin").unlink()
    assert find_fault(checkpoint) == "it does not hold optimizer.bin"
