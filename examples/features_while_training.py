"""How good the features are, while the pretraining runs.

Rotation accuracy says how well the pretext task is solved. What counts are the features: nearest neighbours
in conv2 tell here, after every second epoch, how many of the handwritten digits they recognise.
"""

import json
import tempfile
from pathlib import Path

from rotnet_fast import load_backbone, train_rotnet

folder = Path(tempfile.mkdtemp()) / "run"
train_rotnet(
    "digits",
    preset="quickstart",
    epochs=6,
    width=0.25,
    device="cpu",
    monitor=("knn",),
    monitor_every=2,
    output=folder,
)
lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
rotations = {line["epoch"]: line["rotation_accuracy"] for line in lines if line["kind"] == "test_epoch"}
features = {line["epoch"]: line["knn_accuracy"] for line in lines if line["kind"] == "features_epoch"}
for epoch, accuracy in features.items():
    print(f"after epoch {epoch + 1}: {rotations[epoch]:.1f} % of rotations, {accuracy:.1f} % of digits")
best = load_backbone(folder / "checkpoints" / "best-knn.pt", "cpu")  # the network of the best of these epochs
