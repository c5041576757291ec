"""Settings and presets, and that they answer without torch."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from rotnet_fast.config import PresetName, PretrainConfig
from rotnet_fast.errors import ArgumentError, CheckpointError
from rotnet_fast.presets import PRESETS
from rotnet_fast.pretrain import parse


def test_no_flags_mean_the_papers_run_on_cifar10() -> None:
    config = parse([])
    assert config == PRESETS["paper"]() == PretrainConfig()
    assert (config.dataset, config.epochs, config.batch_size, config.device) == ("cifar10", 100, 128, "auto")


def test_every_preset_is_valid_and_knows_its_name() -> None:
    assert set(PRESETS) == set(get_args(PresetName))
    for name, preset in PRESETS.items():
        preset().validate()
        assert preset().preset == name


@pytest.mark.parametrize("name", ["paper", "official", "slides"])
def test_published_recipes_share_all_but_their_schedule(name: PresetName) -> None:
    config = PRESETS[name]()
    shared = (
        config.blocks, config.width, config.rotations, config.batch_size, config.lr, config.weight_decay,
        config.pad, config.flip_prob, config.schedule,
    )  # fmt: skip
    assert shared == (4, 1.0, (0, 90, 180, 270), 128, 0.1, 5e-4, 4, 0.5, "step")
    assert config.nesterov == (name != "slides")


def test_flags_override_the_preset_wherever_they_stand() -> None:
    config = parse(["--epochs", "7", "--preset", "slides", "--rotations", "0", "180", "--no-nesterov"])
    assert config == replace(PRESETS["slides"](), epochs=7, rotations=(0, 180), nesterov=False)
    assert parse(["--preset=official", "--nesterov"]) == PRESETS["official"]()


def test_every_setting_can_be_given_as_a_flag() -> None:
    flags = (
        "--preset quickstart --dataset folder --data-dir . --dataset-name n --image-size 24 --limit-train 5 "
        "--limit-test 6 --blocks 5 --width 0.5 --uniform-gamma --rotations 90 270 --pad 3 "
        "--flip-prob 0.25 --epochs 9 --batch-size 10 "
        "--lr 0.3 --schedule linear --milestones 2 4 --lr-factor 0.1 --warmup 1.5 --optimizer muon "
        "--muon-lr 0.02 --muon-weight-decay 0.01 --no-nesterov --weight-decay 0 --seed 8 "
        "--device cuda:1 --precision fp16 --compile max --graph off "
        "--output o --resume auto --eval-every 2 --log-every 3 --checkpoint-every-steps 4 "
        "--checkpoint-every-seconds None --no-tensorboard"
    )
    assert parse(shlex.split(flags)) == PretrainConfig(
        preset="quickstart", dataset="folder", data_dir=Path("."), dataset_name="n", image_size=24,
        limit_train=5, limit_test=6, blocks=5, width=0.5, uniform_gamma=True, rotations=(90, 270),
        pad=3, flip_prob=0.25, epochs=9, batch_size=10, lr=0.3, schedule="linear", milestones=(2, 4),
        lr_factor=0.1, warmup=1.5, optimizer="muon", muon_lr=0.02, muon_weight_decay=0.01, nesterov=False,
        weight_decay=0.0, seed=8, device="cuda:1", precision="fp16", compile="max", graph="off",
        output=Path("o"), resume="auto", eval_every=2, log_every=3,
        checkpoint_every_steps=4, checkpoint_every_seconds=None, tensorboard=False,
    )  # fmt: skip


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"rotations": (0,)}, "rotations is"),
    ({"rotations": (0, 360)}, "rotations is"),
    ({"rotations": (45, 90, 405)}, "rotations is"),
    ({"rotations": tuple(range(65))}, "rotations is"),
    ({"epochs": 0}, "epochs is 0"),
    ({"batch_size": 0}, "batch-size is 0"),
    ({"image_size": 0}, "image-size is 0"),
    ({"eval_every": 0}, "eval-every is 0"),
    ({"log_every": -1}, "log-every is -1"),
    ({"limit_train": 0}, "limit-train is 0"),
    ({"limit_test": 0}, "limit-test is 0"),
    ({"checkpoint_every_steps": 0}, "checkpoint-every-steps is 0"),
    ({"checkpoint_every_seconds": 0.0}, "checkpoint-every-seconds is 0"),
    ({"width": 0.0}, "width is 0"),
    ({"width": math.nan}, "width is nan"),
    (
        {"model": "resnet18", "width": 0.5},
        "width is 0.5; it only applies to --model nin: remove it",
    ),
    ({"model": "timm/resnet18", "blocks": 3}, "blocks is 3; it only applies to --model nin"),
    ({"model": "resnet18", "uniform_gamma": True}, "uniform-gamma is True; it only applies to --model nin"),
    ({"pad": -1}, "pad is -1"),
    ({"flip_prob": 1.5}, "flip-prob is 1.5"),
    ({"lr": 0.0}, "lr is 0"),
    ({"lr": math.inf}, "lr is inf"),
    ({"lr_factor": 0.0}, "lr-factor is 0"),
    ({"muon_lr": 0.0}, "muon-lr is 0"),
    ({"muon_weight_decay": -1.0, "optimizer": "muon"}, "muon-weight-decay is -1"),
    ({"muon_weight_decay": 0.1}, "muon-weight-decay is 0.1; it only applies to --optimizer muon"),
    ({"warmup": 1.0}, "warmup is 1.0; it must be 0 or, with schedule linear or cosine,"),
    ({"schedule": "linear", "warmup": -1.0}, "warmup is -1.0"),
    ({"schedule": "linear", "warmup": math.nan}, "warmup is nan"),
    ({"schedule": "cosine", "epochs": 2, "warmup": 2.0}, "warmup is 2.0"),
    ({"weight_decay": -1.0}, "weight-decay is -1"),
    ({"milestones": (60, 30)}, "milestones is"),
    ({"seed": -1}, "seed is -1"),
    ({"device": "tpu"}, "device is tpu"),
    ({"dataset": "folder"}, "dataset folder needs --data-dir"),
]


@pytest.mark.parametrize(("values", "beginning"), WRONG, ids=lambda value: str(value))
def test_unusable_values_are_refused_by_name(values: dict[str, Any], beginning: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{beginning}"):
        replace(PretrainConfig(), **values).validate()


def test_a_resume_path_that_does_not_exist_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        parse(["--resume", str(tmp_path / "no")])
    assert not (tmp_path / "no").exists()


def test_the_run_folder_is_named_after_preset_data_and_seed() -> None:
    assert parse(["--preset", "quickstart"]).output_folder() == Path("runs/quickstart-digits-seed0")
    assert parse(["--seed", "3"]).output_folder() == Path("runs/paper-cifar10-seed3")
    assert parse(["--output", "here"]).output_folder() == Path("here")


def test_a_preset_lends_another_network_nothing_that_is_of_nin_alone() -> None:
    flags = ["--preset", "quickstart", "--model=resnet18"]
    assert parse(flags) == replace(PRESETS["quickstart"](), model="resnet18", width=1.0)
    with pytest.raises(ArgumentError, match=r"width is 0.25; it only applies to --model nin"):
        parse([*flags, "--width", "0.25"])
    assert parse(["--preset", "quickstart", "--model", "nin"]) == PRESETS["quickstart"]()


def test_runs_of_another_network_have_its_name() -> None:
    folder = parse(["--model", "timm/resnet18", "--seed", "3"]).output_folder()
    assert folder == Path("runs/paper-cifar10-timm-resnet18-seed3")


def test_a_recipe_holds_every_setting_that_decides_the_result() -> None:
    flags = ["--schedule", "linear", "--warmup", "2", "--optimizer", "muon", "--muon-lr", "0.03", "--model"]
    plain, other = parse([]).recipe(), parse([*flags, "resnet18"]).recipe()
    changes = {"schedule": "linear", "warmup": 2.0, "optimizer": "muon", "muon_lr": 0.03, "model": "resnet18"}
    assert other == {**plain, **changes}
    assert not plain.keys() & {"preset", "data_dir", "device", "output", "log_every"}


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_are_made_of_their_recipe_again_also_from_json(preset: PresetName) -> None:
    config = replace(PRESETS[preset](), crop="pad")
    recipe = json.loads(json.dumps({**config.recipe(), "data_fingerprint": "0"}))
    assert PretrainConfig.from_recipe(recipe, preset=preset) == config
    del recipe["lr"]
    with pytest.raises(KeyError, match="lr"):
        PretrainConfig.from_recipe(recipe)
    with pytest.raises(ArgumentError, match="lr is 'x'"):
        PretrainConfig.from_recipe({**recipe, "lr": "x"})


def test_speedrun_changes_the_training_but_neither_the_network_nor_the_data() -> None:
    fast, paper = PRESETS["speedrun"]().recipe(), PRESETS["paper"]().recipe()
    changed = {name for name in fast.keys() | paper.keys() if fast.get(name) != paper.get(name)}
    assert changed <= {
        "epochs",
        "batch_size",
        "schedule",
        "milestones",
        "warmup",
        "lr",
        "optimizer",
        "muon_lr",
        "muon_weight_decay",
    }
    assert fast["epochs"] < paper["epochs"]


def test_what_a_preset_sets_for_another_optimizer_or_schedule_does_not_stay() -> None:
    usual = PretrainConfig()
    other = parse(["--preset", "speedrun", "--optimizer", "sgd"])
    assert (other.optimizer, other.muon_lr, other.muon_weight_decay) == ("sgd", usual.muon_lr, None)
    assert other.warmup == PRESETS["speedrun"]().warmup > 0
    assert parse(["--preset", "speedrun", "--schedule", "step"]).warmup == 0
    assert parse(["--preset", "speedrun"]) == replace(PRESETS["speedrun"]())
    with pytest.raises(ArgumentError, match=r"muon-weight-decay is 0\.1; it only applies to"):
        parse(["--preset", "speedrun", "--optimizer", "sgd", "--muon-weight-decay", "0.1"])


def test_a_recipe_names_a_decay_of_muon_only_where_it_is_apart() -> None:
    apart = PretrainConfig(optimizer="muon", muon_weight_decay=0.0)
    same = PretrainConfig(optimizer="muon")
    assert apart.recipe()["muon_weight_decay"] == apart.optimisation()["muon_weight_decay"] == 0.0
    assert "muon_weight_decay" not in same.recipe().keys() | same.optimisation().keys()
    assert PretrainConfig.from_recipe(apart.recipe()).muon_weight_decay == 0.0
    assert PretrainConfig.from_recipe(same.recipe()).muon_weight_decay is None


def test_a_named_run_is_resumed_in_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").touch()
    for path in (tmp_path, tmp_path / "checkpoints" / "last.pt"):
        assert parse(["--preset", "paper", "--resume", str(path)]).output_folder() == tmp_path


WITHOUT_TORCH = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "numpy", "sklearn"):
            raise ImportError(f"{name} is not to be imported here")

sys.meta_path.insert(0, Blocker())
from rotnet_fast.pretrain import main
codes = []
for arguments in json.loads(sys.argv[1]):
    try:
        codes.append(main(arguments))
    except SystemExit as exit:
        codes.append(exit.code)
print(json.dumps(codes))
"""


def test_help_and_wrong_flags_answer_without_torch(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    cases: list[tuple[list[str], int, str]] = [
        (["--help"], 0, ""),
        (["--preset", "quickstart", "--help"], 0, ""),
        (["--frobnicate"], 2, "--frobnicate"),
        (["--dataset", "mnist"], 2, "mnist"),
        (["--epochs", "many"], 2, "many"),
        (["--preset", "slow"], 2, "error: preset is 'slow'; choose from quickstart, cpu,"),
        (["--epochs", "0"], 2, "error: epochs is 0; it must be at least 1"),
        (["--rotations", "45", "405"], 2, "error: rotations is"),
        (["--output", str(tmp_path)], 2, "already holds a run"),
        (["--resume", str(tmp_path / "no")], 4, "does not exist"),
    ]
    script = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, json.dumps([arguments for arguments, _, _ in cases])],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    assert script.returncode == 0, script.stderr
    assert json.loads(script.stdout.splitlines()[-1]) == [code for _, code, _ in cases]
    for _, _, message in cases:
        assert message in script.stderr
    assert "Traceback" not in script.stderr


def test_the_recipe_says_whether_images_are_cropped() -> None:
    small = PretrainConfig(dataset="folder", data_dir=Path("photos"))
    large = replace(small, image_size=224)
    assert small.recipe()["crop"] == replace(large, crop="pad").recipe()["crop"] == "pad"
    assert large.recipe()["crop"] == replace(small, crop="resized").recipe()["crop"] == "resized"
