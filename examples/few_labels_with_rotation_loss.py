"""Few labels: a classifier of digits trained with and without the rotation loss on images without labels.

Both take the same steps on the same images: digits, or those of a `--folder` with class folders. Objects are
classified by conv2 and rotations by conv3, because the last features are about rotations alone.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from rotnet_fast import RotationLoss, rotate_batch
from rotnet_fast.data.datasets import load_dataset
from rotnet_fast.models.nin import NetworkInNetwork

parser = argparse.ArgumentParser()
parser.add_argument("--folder", type=Path, help="a folder of labelled images instead of the digits")
parser.add_argument("--labels-per-class", type=int, default=2)
parser.add_argument("--steps", type=int, default=400)
parser.add_argument("--seeds", type=int, default=1)
settings = parser.parse_args()
is_digits = settings.folder is None
dataset = load_dataset(
    "digits" if is_digits else "folder", settings.folder, 16 if is_digits else 32, progress=False
)
train, test, classes = dataset.train, dataset.test, len(dataset.classes)
augmentation: dict[str, Any] = {"pad": 1, "flip_prob": 0.0} if is_digits else {"pad": 4, "flip_prob": 0.5}
labelled_batch, other_batch = 20, 32


def test_accuracy(seed: int, weight: float) -> float:
    """Train with this weight on the rotation loss; returns the share of right test images, in percent."""
    torch.manual_seed(seed)
    shuffled = torch.randperm(len(train))
    by_class = [shuffled[train.labels[shuffled] == label] for label in range(classes)]
    chosen = torch.cat([numbers[: settings.labels_per_class] for numbers in by_class])
    network = NetworkInNetwork(num_classes=4, blocks=3, width=0.25)
    classifier = torch.nn.Linear(network.feature_channels("conv2"), classes)
    rotation = RotationLoss(network, network.feature_channels("conv3"), seed=seed, **augmentation)
    parameters = [*network.feature_parameters("conv3"), *classifier.parameters(), *rotation.parameters()]
    sgd = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, settings.steps)
    for step in range(settings.steps):
        rows = chosen[torch.randperm(len(chosen))[:labelled_batch]]
        images, _ = rotate_batch(train.images, rows, rotations=(0,), seed=seed, epoch=step, **augmentation)
        views, turns = rotation.rotate(train.images[torch.randint(len(train), (other_batch,))])
        # In one batch, because BatchNorm will normalise the test images by all that it has seen. So it is
        # without weight, too: the loss is the only difference.
        maps = network.train().features(torch.cat([images, views]), ["conv2", "conv3"])
        scores = classifier(maps["conv2"][: len(rows)].mean(dim=(2, 3)))
        supervised = torch.nn.functional.cross_entropy(scores, train.labels[rows])
        loss = supervised + weight * rotation.of_features(maps["conv3"][len(rows) :], turns).loss
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        schedule.step()
    with torch.no_grad():
        network.eval()
        right = 0
        for rows in torch.arange(len(test)).split(500):
            images, _ = rotate_batch(test.images, rows, rotations=(0,), pad=0, flip_prob=0.0)
            scores = classifier(network.features(images, ["conv2"])["conv2"].mean(dim=(2, 3)))
            right += int((scores.argmax(dim=1) == test.labels[rows]).sum())
    return 100 * right / len(test)


found = []
for seed in range(settings.seeds):
    found.append([test_accuracy(seed, weight) for weight in (0.0, 1.0)])
    print(
        f"seed {seed}: {found[-1][0]:.1f} % without, {found[-1][1]:.1f} % with the rotation loss", flush=True
    )
without, with_loss = torch.tensor(found, dtype=torch.float64).T
gains = with_loss - without
print(f"mean gain {gains.mean():+.1f} points, positive for {int((gains > 0).sum())} of {len(gains)} seeds")
