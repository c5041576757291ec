"""The fused op for another method: two augmented views of each image and NT-Xent, as in SimCLR.

With the one rotation 0 the op only gathers, crops, flips and normalises. Crop and flip are drawn from
(seed, epoch, sample id), so that two sample ids per image give two views of it.
"""

import torch

from rotnet_fast import rotate_batch
from rotnet_fast.data import digits
from rotnet_fast.data.sampling import epoch_order
from rotnet_fast.models.nin import NetworkInNetwork


def nt_xent(z: torch.Tensor, temperature: float = 0.2) -> torch.Tensor:
    """Normalised temperature-scaled cross-entropy of embeddings [2*B,D]; row i and row i + B are one image.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020.
    """
    z = torch.nn.functional.normalize(z, dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)  # [2*B,2*B]; none is its own partner
    partner = torch.arange(len(z)).roll(len(z) // 2)  # row i's is row i + B, and the other way round
    return torch.nn.functional.cross_entropy(similarity, partner)


epochs, batch_size, seed = 3, 128, 0
images = digits.load(None, image_size=16, progress=False).train.images  # uint8 [1437,16,16,3]
torch.manual_seed(seed)
encoder = NetworkInNetwork(num_classes=32, blocks=3, width=0.25)  # its classifier serves as the projection
sgd = torch.optim.SGD(encoder.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
losses = []
for epoch in range(epochs):
    order, _ = epoch_order(len(images), len(images), seed, epoch)
    batches = order.split(batch_size)[:-1]  # without the last, smaller one: it would have fewer negatives
    for indices in batches:
        both, _ = rotate_batch(
            images,
            indices.repeat(2),
            sample_ids=torch.cat([2 * indices, 2 * indices + 1]),
            rotations=(0,),
            seed=seed,
            epoch=epoch,
            pad=3,
            flip_prob=0.0,  # a mirrored digit is no digit
        )  # [2*B,3,16,16]
        loss = nt_xent(encoder(both))
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    print(f"epoch {epoch + 1}: loss {sum(losses[-len(batches) :]) / len(batches):.3f}")
