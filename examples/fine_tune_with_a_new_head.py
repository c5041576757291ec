"""Fine-tuning: a new head on a pretrained network, both trained together.

A backbone is frozen and takes stored images; its `network` is an ordinary module that can be thawed and takes
normalised images, as the fused op makes them. The head starts from nothing, so its learning rate is higher.
"""

import torch

from rotnet_fast import load_backbone, rotate_batch
from rotnet_fast.data import digits
from rotnet_fast.data.datasets import limit_split
from rotnet_fast.data.sampling import epoch_order

epochs, layer = 6, "conv3"
dataset = digits.load(None, image_size=16, progress=False)
train = limit_split(dataset.train, 200, "limit_train")  # 20 labels per class
backbone = load_backbone("nin4-cifar10-jpeg", device="cpu")
network = backbone.network.requires_grad_(True)
torch.manual_seed(0)
head = torch.nn.Linear(network.feature_channels(layer), len(dataset.classes))


def logits(images: torch.Tensor) -> torch.Tensor:
    """Normalised images [B,3,H,W] -> [B,10]; blocks after ``layer`` do not run."""
    maps: torch.Tensor = network.features(images, [layer])[layer]  # [B,C,H/4,W/4]
    scores: torch.Tensor = head(maps.mean(dim=(2, 3)))
    return scores


def test_accuracy() -> float:
    """Share of the test images that are classified correctly, in 0..1."""
    images, _ = rotate_batch(dataset.test.images, rotations=(0,), pad=0, flip_prob=0.0)
    network.eval()
    with torch.no_grad():
        return (logits(images).argmax(dim=1) == dataset.test.labels).double().mean().item()


groups = [
    {"params": network.feature_parameters(layer), "lr": 0.01},
    {"params": head.parameters(), "lr": 0.1},
]
sgd = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, epochs)
for epoch in range(epochs):
    network.train()
    order, _ = epoch_order(len(train), len(train), seed=0, epoch=epoch)
    for indices in order.split(20):
        # One rotation, 0, leaves what the op does else: gather, shift by up to 2 pixels, normalise.
        images, _ = rotate_batch(train.images, indices, rotations=(0,), epoch=epoch, pad=2, flip_prob=0.0)
        loss = torch.nn.functional.cross_entropy(logits(images), train.labels[indices])
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    schedule.step()
    print(f"epoch {epoch + 1}: loss of the last step {loss.item():.3f}, test accuracy {test_accuracy():.1%}")
