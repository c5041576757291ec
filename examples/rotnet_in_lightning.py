"""RotNet as a LightningModule, which needs `pip install lightning`.

A loader gives uint8 images, which travel to the device as bytes. There, `on_after_batch_transfer` makes views
and labels of them: augmented while training, plain while validating.
"""

from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

from rotnet_fast import RotateBatch
from rotnet_fast.data import digits
from rotnet_fast.models.nin import NetworkInNetwork


class RotNet(lightning.LightningModule):  # type: ignore[misc]
    """Learns to tell how far an image was turned."""

    def __init__(self) -> None:
        super().__init__()
        self.network = NetworkInNetwork(num_classes=4, blocks=3, width=0.25)
        self.rotate = RotateBatch(pad=1, flip_prob=0.0)  # its draws are saved in Lightning's checkpoints

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn uint8 images [B,H,W,C] into views [B*4,C,H,W] and labels [B*4]."""
        return self.rotate(batch[0])

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return the loss over all views of a batch."""
        views, labels = batch
        return torch.nn.functional.cross_entropy(self.network(views), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the share of the views whose rotation was recognised."""
        views, labels = batch
        self.log("rotation_accuracy", (self.network(views).argmax(dim=1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Train with SGD."""
        return torch.optim.SGD(self.network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


dataset = digits.load(None, image_size=16, progress=False)
train = DataLoader(TensorDataset(dataset.train.images), batch_size=32, shuffle=True, drop_last=True)
test = DataLoader(TensorDataset(dataset.test.images), batch_size=120)
lightning.seed_everything(0, verbose=False)
rotnet = RotNet()
trainer = lightning.Trainer(
    max_epochs=3,
    accelerator="auto",
    devices=1,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
)
trainer.fit(rotnet, train, test)
print(f"rotation accuracy {trainer.callback_metrics['rotation_accuracy'].item():.1%}")
