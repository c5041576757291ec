"""Photos set upright: a network learns from your photos which way is up, and finds those that are turned.

The photos are made here, a sky above rough ground, so that the network needs seconds to learn. Turned ones
get upright copies without loss: their files get an orientation tag and stay the same otherwise.
"""

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rotnet_fast.config import PretrainConfig
from rotnet_fast.data.decode import decode_rgb
from rotnet_fast.orient import OrientConfig, evaluate, orient
from rotnet_fast.pretrain import pretrain


def landscape(number: int) -> NDArray[np.uint8]:
    """A photo as uint8 [24,32,3]."""
    rng = np.random.default_rng(number)
    brightness = np.linspace(rng.uniform(90, 140), rng.uniform(180, 230), 24)  # skies are brighter below
    photo = brightness[:, None, None] + np.array([-40, 0, 40]) + rng.normal(0, 6, (24, 32, 3))
    horizon = rng.integers(10, 18)
    photo[horizon:] = rng.uniform(40, 120, 3) + rng.normal(0, 25, (24 - horizon, 32, 1))
    return np.asarray(photo.clip(0, 255), dtype=np.uint8)


with tempfile.TemporaryDirectory() as folder:
    place = Path(folder)
    for name, numbers in (("train", range(160)), ("test", range(160, 200)), ("photos", range(200, 240))):
        (place / name).mkdir()
        for number in numbers:
            photo = landscape(number)
            if name == "photos":  # of which three in four are turned
                photo = np.rot90(photo, number % 4)
            Image.fromarray(photo).save(place / name / f"{number}.jpg", quality=95)

    run = place / "run"
    pretrain(
        PretrainConfig(
            dataset="folder",
            data_dir=place,
            image_size=16,
            blocks=3,
            width=0.1,
            epochs=4,
            batch_size=16,
            lr=0.05,
            schedule="linear",
            pad=0,
            device="cpu",
            precision="fp32",
            tensorboard=False,
            output=run,
        )
    )

    # How sure must the network be? The test photos are known to be upright.
    points = evaluate(
        OrientConfig(str(run), place / "test", output=place / "coverage.csv", evaluate=True, device="cpu")
    ).points
    found = orient(
        OrientConfig(
            str(run),
            place / "photos",
            output=place / "orientations.csv",
            apply=place / "upright",
            min_confidence=0.9,
            device="cpu",
        )
    )
    copies = {int(path.stem): decode_rgb(str(path)) for path in (place / "upright").iterdir()}
    upright = sum(
        shown.shape == (24, 32, 3) and np.abs(shown - landscape(number).astype(float)).mean() < 10
        for number, shown in copies.items()
    )

print(f"{upright} of {len(copies)} copies are upright; 10 photos were upright before")
