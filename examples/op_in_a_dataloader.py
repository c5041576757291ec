"""The fused op in an ordinary loop over a torch DataLoader.

A DataLoader gives images as torchvision does, floating [B,C,H,W] in 0..1; the op takes uint8 [B,H,W,C].
Each image brings its number, so that its crop is a function of (seed, epoch, number) however it was batched.
"""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from rotnet_fast import rotate_batch
from rotnet_fast.models.nin import NetworkInNetwork


def to_stored(images: torch.Tensor) -> torch.Tensor:
    """Turn floating [B,C,H,W] in 0..1, or uint8 [B,C,H,W], into uint8 [B,H,W,C]."""
    if images.is_floating_point():
        images = (images * 255).round().to(torch.uint8)
    return images.permute(0, 2, 3, 1).contiguous()  # the op refuses a mere view of the other layout


torch.manual_seed(0)
images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16  # [1797,1,8,8] in 0..1
loader = DataLoader(TensorDataset(images, torch.arange(len(images))), batch_size=64, shuffle=True)
network = NetworkInNetwork(num_classes=4, width=0.25, in_channels=1)
sgd = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
losses = []
for epoch in range(2):
    for batch, numbers in loader:
        views, rotation_labels = rotate_batch(
            to_stored(batch),  # add .to("cuda") here to let the GPU do the rest
            sample_ids=numbers,
            epoch=epoch,
            pad=1,
            flip_prob=0.0,
            mean=(0.5,),
            std=(0.5,),
        )  # [B*4,1,8,8] and [B*4]; view 4*n + k is image n turned by k quarter turns
        loss = torch.nn.functional.cross_entropy(network(views), rotation_labels)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    print(f"epoch {epoch + 1}: loss {sum(losses[-len(loader) :]) / len(loader):.3f}")
