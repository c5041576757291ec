"""The features of every image in a folder: as a file, and in memory.

The folder holds 200 handwritten digits as small PNG files, in one folder per digit. `embed` is what
``python -m rotnet_fast.embed`` runs, and `Backbone.embed` gives the same vectors, bit for bit. Each digit is
then named by its nearest neighbour among the others.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from rotnet_fast import load_backbone
from rotnet_fast.embed import EmbedConfig, embed

MODEL = "nin4-cifar10-jpeg"

if __name__ == "__main__":  # larger folders are decoded by several processes
    with TemporaryDirectory() as place:
        photos, output = Path(place) / "photos", Path(place) / "features.npz"
        digits = load_digits()
        for number, (image, digit) in enumerate(zip(digits.images[:200], digits.target, strict=False)):
            (photos / str(digit)).mkdir(parents=True, exist_ok=True)
            pixels = Image.fromarray((image * 15.9375).astype(np.uint8))  # from 0..16 to 0..255
            pixels.save(photos / str(digit) / f"{number:03}.png")

        embed(EmbedConfig(checkpoint=MODEL, data_dir=photos, output=output, layer="conv3", device="cpu"))
        features = dict(np.load(output))  # names, vectors, labels, classes, rotation_probabilities ...
        in_memory = load_backbone(MODEL, "cpu").embed(photos, layer="conv3").numpy()

    is_equal = np.array_equal(features["vectors"], in_memory)
    vectors = features["vectors"] - features["vectors"].mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T - 2 * np.eye(len(vectors))  # nobody is a neighbour of itself
    nearest = similarity.argmax(axis=1)
    accuracy = (features["labels"] == features["labels"][nearest]).mean()
    print(f"{features['names'][0]} looks most like {features['names'][nearest[0]]}")
    print(f"equal in memory: {is_equal}; nearest neighbour of the same digit: {accuracy:.1%}")
