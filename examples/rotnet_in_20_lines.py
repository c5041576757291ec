"""RotNet on scikit-learn's handwritten digits: learn image features by telling how far each image was turned.

Images, epoch order, fused op and network come from the package; everything else is plain torch. On a CPU, the
weights have the bits of ``python -m rotnet_fast.pretrain --preset quickstart --precision fp32``. Fused SGD is
part of that, because torch's other implementations of SGD round differently.
"""

import torch

from rotnet_fast import rotate_batch
from rotnet_fast.data import digits
from rotnet_fast.data.sampling import epoch_order
from rotnet_fast.models.nin import NetworkInNetwork

epochs = 8
dataset = digits.load(None, image_size=16, progress=False)
images = dataset.train.images  # uint8 [1437,16,16,3]
torch.manual_seed(0)
network = NetworkInNetwork(num_classes=4, width=0.5)  # one class per rotation: 0, 90, 180 and 270 degrees
sgd = torch.optim.SGD(network.parameters(), momentum=0.9, nesterov=True, weight_decay=2e-3, fused=True)
for epoch in range(epochs):
    losses = []
    batches = epoch_order(len(images), len(images), seed=0, epoch=epoch)[0].split(32)  # int64 [32] each
    for step, indices in enumerate(batches):
        sgd.param_groups[0]["lr"] = 0.1 * (1 - (epoch + step / len(batches)) / epochs)  # 0.1, falling to 0
        views, labels = rotate_batch(images, indices, pad=0, flip_prob=0.0)  # [32*4,3,16,16], and 0 1 2 3 ...
        loss = torch.nn.functional.cross_entropy(network.train()(views), labels)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    with torch.no_grad():
        views, labels = rotate_batch(dataset.test.images, pad=0, flip_prob=0.0)
        accuracy = (network.eval()(views).argmax(dim=1) == labels).double().mean().item()
    print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}, rotation accuracy {accuracy:.2%}")
