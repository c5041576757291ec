"""Wrong uses of the commands, and how soon each is answered: ``python -m benchmarks.wrong_uses [WORDS]``.

Every case of ``CASES`` is run as a user would, in a process of its own, and its seconds are printed. Each
answer shall come within three seconds on an otherwise idle machine; ``tests/commands/test_wrong_uses.py``
checks what the answers say. With words, only the cases that contain one of them are run.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

LATIN1 = os.fsdecode(b"caf\xe9")
"""A name that is not UTF-8."""

LONG = 300 * "x"
"""A name that no file can have."""


@dataclass(frozen=True)
class WrongUse:
    """A command line that cannot work.

    Attributes:
        line: command and options; paths are those of :func:`make_world`.
        code: the documented exit code, see `rotnet_fast.command`.
        says: what the sentence must contain: the argument, the value found, the remedy.
    """

    line: str
    code: int
    says: tuple[str, ...]

    def arguments(self) -> list[str]:
        """What stands behind ``python``."""
        new = f"new-{zlib.crc32(self.line.encode())}"  # cases that run at once must not meet
        line = self.line.replace("LATIN1", LATIN1).replace("LONG", LONG).replace("NEW", new)
        command, *options = shlex.split(line)
        return ["-m", f"rotnet_fast.{command}", *options]


QUICK = "pretrain --preset quickstart --output NEW"
FOLDER = "pretrain --output NEW --dataset folder --data-dir"
EMBED = "embed run --data-dir photos --output NEW.npz"
CIFAR = "pretrain --output NEW --dataset cifar10 --data-dir"

CASES = [
    # Arguments: 2
    WrongUse("pretrain --preset papier", 2, ("preset is 'papier'", "choose from quickstart, cpu,")),
    WrongUse(f"{QUICK} --epoch 5", 2, ("unrecognized option --epoch", "did you mean --epochs?")),
    WrongUse(f"{QUICK} --epochs 0", 2, ("epochs is 0", "must be at least 1")),
    WrongUse(f"{QUICK} --epochs many", 2, ("epochs is many", "must be an integer")),
    WrongUse(f"{QUICK} --lr nan", 2, ("lr is nan", "must be a number above 0")),
    WrongUse(f"{QUICK} --batch-size -8", 2, ("batch-size is -8", "must be at least 1")),
    WrongUse(f"{QUICK} --blocks 6", 2, ("blocks is '6'", "choose from 3, 4, 5")),
    WrongUse(f"{QUICK} --blocks 5 --model resnet18", 2, ("blocks is 5", "only applies to --model nin")),
    WrongUse(f"{QUICK} --model resnet19", 2, ("unknown model 'resnet19'", "did you mean resnet18")),
    WrongUse(f"{QUICK} --rotations 0 90 90", 2, ("rotations is (0, 90, 90)", "such as 0 90 180 270")),
    WrongUse(f"{QUICK} --pretext-task puzzle", 2, ("pretext-task is 'puzzle'", "choose from rotation, auto")),
    WrongUse(
        f"{QUICK} --pretext-task autoencoder --model resnet18", 2, ("only applies to --model nin", "choose")
    ),
    WrongUse(f"{QUICK} --pretext-task jigsaw --rotations 0 90", 2, ("rotations is 0 90", "remove one")),
    WrongUse(f"{QUICK} --pretext-task jigsaw --image-size 15", 2, ("image-size is 15", "multiple of 2")),
    WrongUse(f"{QUICK} --device cuda:99", 2, ("device is cuda:99", "use --device cpu")),
    WrongUse(f"{QUICK} --device cpu --precision fp16", 2, ("precision is fp16", "use --precision bf16")),
    WrongUse(f"{QUICK} --device cpu --graph on", 2, ("graph is on", "omit --graph")),
    WrongUse(f"{QUICK} --loader dali", 2, ("loader is dali", "omit --loader")),
    WrongUse(f"{QUICK} --image-size 100000", 2, ("image-size is 100000", "must lie in [1, 256]")),
    WrongUse(f"{QUICK} --limit-train 100000", 2, ("limit-train is 100000", "lie in [1, 1437]")),
    WrongUse("pretrain --image-size 64 --output NEW", 2, ("image-size is 64", "use --dataset folder")),
    WrongUse("pretrain --dataset folder --output NEW", 2, ("dataset folder", "needs --data-dir")),
    WrongUse("pretrain --preset quickstart --output run", 2, ("output run already holds", "--resume auto")),
    WrongUse("pretrain --preset quickstart --output busy", 2, ("output busy is in use", "with --output")),
    WrongUse("pretrain --preset quickstart --output LATIN1", 2, (r"output is b'caf\xe9'", "choose another")),
    WrongUse("evaluate --checkpoint run --layers conv9", 2, ("layers holds 'conv9'", "choose from conv1")),
    WrongUse("evaluate --checkpoint run --dataset cifar10", 2, ("dataset is cifar10", "another --dataset")),
    WrongUse("evaluate --checkpoint run --no-frozen", 2, ("--no-frozen", "add --random-init")),
    WrongUse("evaluate --checkpoint run --batch-size 1", 2, ("batch-size is 1", "such as --batch-size")),
    WrongUse("evaluate --checkpoint broken", 2, ("broken/config.json cannot be read", "restore or remove")),
    WrongUse("embed run --data-dir photos", 2, ("output is missing", "pass --output PATH")),
    WrongUse("embed run --data-dir photos --output NEW.txt", 2, ("output is new-", "end in .npz or .csv")),
    WrongUse(f"{EMBED} --layer conv9", 2, ("layers holds 'conv9'", "choose from conv1")),
    WrongUse(f"{EMBED} --loader disk", 2, ("loader is 'disk'", "choose from auto, resident, dali")),
    WrongUse(f"{EMBED} --batch-size 0", 2, ("batch-size is 0", "must be at least 1")),
    WrongUse(
        "embed run --data-dir photos --output foreign.npz", 2, ("foreign.npz exists", "choose another file")
    ),
    WrongUse("visualize --checkpoint run --images 1000", 2, ("images is 1000", "must be at most 100")),
    WrongUse("orient run", 2, ("data-dir is missing", "pass --data-dir PATH")),
    WrongUse("orient run --data-dir half --min-confidence 95", 2, ("min-confidence is 95", "in [0, 1]")),
    WrongUse("orient run --data-dir half --output x.jpg", 2, ("output is x.jpg", "must end in .csv")),
    WrongUse("orient run --data-dir half --apply half/new", 2, ("apply is half/new", "a folder apart")),
    WrongUse("orient run --data-dir half --apply .", 2, ("apply is ., which contains", "choose a folder")),
    WrongUse("orient run --data-dir half --apply NEW --evaluate", 2, ("--evaluate only", "remove one")),
    WrongUse("report run", 2, ("run/results.json holds no evaluation", "give a folder")),
    WrongUse("report study", 2, ("study/study.json has format 0", "run the study again")),
    WrongUse("reproduce --only --output NEW", 2, ("only has no value", "or omit it")),
    WrongUse("reproduce --dataset folder --data-dir= --output NEW", 2, ("data-dir is empty", "pass a value")),
    WrongUse("pretrain --preset quickstart --output ''", 2, ("output is empty", "or omit it")),
    WrongUse("reproduce --only table9 --output NEW", 2, ("only holds 'table9'", "choose from table3")),
    WrongUse("reproduce --preset demo --output NEW", 2, ("preset is demo", "add --dataset digits")),
    WrongUse("benchmark --output NEW.txt", 2, ("output is new-", "must end in .json")),
    WrongUse("pretrain --preset quickstart --output LONG", 2, ("cannot be used: File name", "another path")),
    WrongUse("pretrain --preset quickstart --resume LONG", 2, ("File name too long; give another path",)),
    WrongUse("embed run --data-dir LONG --output NEW.npz", 2, ("File name too long; give another path",)),
    WrongUse(
        "pretrain --preset quickstart --output evaluated", 2, ("evaluated holds a run of another", "--output")
    ),
    WrongUse(
        "pretrain --preset quickstart --output evaluated --resume auto", 2, ("of another command", "--output")
    ),
    WrongUse("export run --output run/checkpoints", 2, ("checkpoints, which belongs to a run", "--output")),
    WrongUse("doctor --fix", 2, ("--fix", "--help")),
    # Data: 3
    WrongUse("pretrain --dataset folder --data-dir nowhere", 3, ("data-dir is nowhere", "pass the folder")),
    WrongUse(f"{FOLDER} half", 3, ("half/train/class holds no images", "add some or remove the folder")),
    WrongUse(f"{FOLDER} classes", 3, ("classes has no train/", "move them into classes/train")),
    WrongUse(f"{FOLDER} above", 3, ("above has no train/", "pass --data-dir above/photos")),
    WrongUse(
        f"{FOLDER} above/photos/test", 3, ("test has no train/", "one split of a data set; pass --data-dir")
    ),
    WrongUse(f"{FOLDER} called", 3, ("called has no train/", "rename called/Test to test")),
    WrongUse(f"{FOLDER} packed", 3, ("packed has no train/", "`tar -xf packed/x.tgz -C packed`")),
    WrongUse(f"{FOLDER} packed/x.tgz", 3, ("packed/x.tgz, an archive", "`tar -xf packed/x.tgz -C packed`")),
    WrongUse(f"{FOLDER} others", 3, ("others has no train/", "Found: 2 .heic", "1 .txt", "it must hold")),
    WrongUse(f"{FOLDER} tiny", 3, ("val_annotations.txt gives no class for val_1.jpg", "unpack the data")),
    WrongUse(f"{CIFAR} cifar", 3, ("bin lacks data_batch_1.bin", "unpack cifar-10-binary.tar.gz again")),
    WrongUse(f"{CIFAR} cifar/cifar-10-batches-bin", 3, ("bin lacks data_batch_1.bin", "unpack cifar-10")),
    WrongUse(f"{CIFAR} .", 3, ("data-dir is ., but CIFAR-10 is in", "pass --data-dir")),
    WrongUse(f"{CIFAR} half", 3, ("half, which contains train/", "with --dataset folder")),
    WrongUse("embed run --data-dir nowhere --output NEW.npz", 3, ("data-dir is nowhere", "pass a folder")),
    WrongUse("embed run --data-dir text.pt --output NEW.npz", 3, ("text.pt, which is not a folder", "pass")),
    WrongUse("embed run --data-dir others --output NEW.npz", 3, ("holds no images", "2 .heic", "pass a")),
    WrongUse("orient run --data-dir nowhere", 3, ("data-dir is nowhere", "pass a folder of images")),
    WrongUse("orient run --data-dir half --output NEW.csv", 3, ("half holds no images", "pass a folder")),
    WrongUse("reproduce --dataset digits --output study", 3, ("study/study.json", "another --output")),
    # Checkpoints: 4
    WrongUse(f"{QUICK} --resume nowhere", 4, ("resume is nowhere", "pass auto, or a run folder")),
    WrongUse(f"{QUICK} --resume run", 4, ("last.pt belongs to another run", "another --output")),
    WrongUse(f"{QUICK} --resume other.pt", 4, ("other.pt is not one", "give a run folder")),
    WrongUse("evaluate --checkpoint empty", 4, ("empty contains neither", "pass a run folder")),
    WrongUse(
        "evaluate --checkpoint text.pt", 4, ("the checkpoint text.pt is truncated", "give a run folder")
    ),
    WrongUse(
        "visualize --checkpoint pickle.pt", 4, ("the checkpoint pickle.pt is truncated", "give a run folder")
    ),
    WrongUse("pretrain --resume weights.pt --output NEW", 4, ("holds exported weights", "run folder")),
    WrongUse("pretrain --resume run --lr 0.7 --seed 5", 4, ("lr is ", "seed is ", "use the run's values")),
    WrongUse("pretrain --resume nowhere", 4, ("resume is nowhere", "does not exist")),
    WrongUse(f"{QUICK} --output study", 2, ("output study holds a study", "--output")),
    WrongUse("export --checkpoint nin4-cifar10-jpg", 4, ("does not exist", "did you mean nin4-cifar10-jpeg")),
    # Outputs: 7
    WrongUse("pretrain --preset quickstart --output a-file", 7, ("a-file: it is a file", "with --output")),
    WrongUse("evaluate --checkpoint run --output a-file/x", 7, ("cannot write a-file/x", "with --output")),
    WrongUse("export --checkpoint run --output a-file", 7, ("a-file: it is a file", "with --output")),
    WrongUse("embed run --data-dir photos --output a-file/x.npz", 7, ("a-file: it is a file", "--output")),
    WrongUse("orient run --data-dir half --apply a-file", 7, ("a-file: it is a file", "with --apply")),
    WrongUse("orient run --data-dir half --output a-file/x.csv", 7, ("cannot write a-file", "with --output")),
    WrongUse("benchmark --output a-file/x.json", 7, ("cannot write a-file", "with --output")),
]


@contextmanager
def make_world(world: Path) -> Iterator[None]:
    """Context with what the cases name, in a folder: runs, files that are no checkpoints, a folder in use."""
    import torch

    from rotnet_fast import evaluate
    from rotnet_fast.config import PretrainConfig
    from rotnet_fast.engine import checkpoint
    from rotnet_fast.export import ExportConfig, export
    from rotnet_fast.pretrain import pretrain

    run = world / "run"
    tiny = PretrainConfig(preset="quickstart", dataset="digits", image_size=8, limit_train=20, limit_test=10)
    sizes = {"blocks": 3, "width": 0.05, "epochs": 1, "milestones": (), "batch_size": 20}
    pretrain(PretrainConfig(**{**vars(tiny), **sizes, "output": run, "device": "cpu", "tensorboard": False}))
    shutil.copytree(run, world / "broken")
    (world / "broken" / "config.json").write_text('{"settings": ')
    export(ExportConfig(run, world / "exported"))
    flags = "--no-frozen --knn --epochs 1 --device cpu --output"
    assert evaluate.main(["--checkpoint", str(run), *flags.split(), str(world / "evaluated")]) == 0
    shutil.copy(world / "exported" / "model.safetensors", world / "weights.pt")
    torch.save({"weight": torch.zeros(3)}, world / "pickle.pt")
    checkpoint.save(world / "other.pt", {"weight": torch.zeros(3)})
    (world / "text.pt").write_text("to be trained\n")
    (world / "a-file").write_text("")
    (world / "empty").mkdir()
    (world / "half" / "train" / "class").mkdir(parents=True)
    for name, content in _data_folders().items():
        (world / name).parent.mkdir(parents=True, exist_ok=True)
        (world / name).write_bytes(content)
    (world / "study").mkdir()
    (world / "study" / "study.json").write_text(json.dumps({"format": 0, "settings": {}, "seeds": 1}))
    (world / "busy" / "checkpoints").mkdir(parents=True)
    with (world / "busy" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _data_folders() -> dict[str, bytes]:
    """Files of folders that no data set can be read from as they are."""
    return {
        **dict.fromkeys(("classes/cat/0.jpg", "classes/dog/0.jpg"), b""),
        **dict.fromkeys(("above/photos/train/a/0.jpg", "above/photos/test/a/0.jpg"), b""),
        **dict.fromkeys(("called/Train/0.jpg", "called/Test/0.jpg"), b""),
        "photos/0.jpg": b"",
        "foreign.npz": b"",
        "packed/x.tgz": gzip.compress(b""),
        **dict.fromkeys(("others/0.heic", "others/1.heic", "others/notes.txt"), b""),
        **dict.fromkeys(("tiny/train/a/images/0.jpg", "tiny/val/images/val_0.jpg"), b""),
        "tiny/val/images/val_1.jpg": b"",
        "tiny/val/val_annotations.txt": b"val_0.jpg\ta\n",
        "cifar/cifar-10-batches-bin/data_batch_2.bin": b"",
    }


def ask(case: WrongUse, world: Path) -> subprocess.CompletedProcess[str]:
    """Run a case in a process of its own, in the folder that :func:`make_world` has filled."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "60"}
    return subprocess.run(
        [sys.executable, *case.arguments()],
        cwd=world,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def main(words: list[str]) -> None:
    """Print the seconds of each case, the slowest last."""
    cases = [case for case in CASES if not words or any(word in case.line for word in words)]
    rows = []
    with tempfile.TemporaryDirectory() as folder, make_world(Path(folder)):
        for case in cases:
            seconds = []
            for _ in range(2):  # the first may have to read files from the disk
                start = time.perf_counter()
                ask(case, Path(folder))
                seconds.append(time.perf_counter() - start)
            rows.append((min(seconds), case))
    for taken, case in sorted(rows, key=lambda row: row[0]):
        print(f"{taken:5.2f} s  {case.code}  {case.line}")


if __name__ == "__main__":
    main(sys.argv[1:])
