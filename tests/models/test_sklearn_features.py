"""Features as a transformer of scikit-learn: its own checks, pipelines, and what is refused."""

from __future__ import annotations

import pickle
import subprocess
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import pixels, save
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils.estimator_checks import check_estimators_overwrite_params, parametrize_with_checks

import rotnet_fast
from rotnet_fast import RotNetFeatures, load_backbone
from rotnet_fast.backbone import Backbone
from rotnet_fast.engine.checkpoint import state_hash
from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.nin import NetworkInNetwork


def tiny_backbone() -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Backbone(NetworkInNetwork(width=0.1), rotations=(0, 90, 180, 270), image_size=8)


@parametrize_with_checks(
    [RotNetFeatures(tiny_backbone(), device="cpu", image_shape=(1, -1, 1))],
    expected_failed_checks=lambda _: {
        "check_estimators_overwrite_params": "it compares joblib's hash of the Backbone with that of a copy, "
        "which differs for every torch module; below, a model is given by its name"
    },
    **({"xfail_strict": True} if "xfail_strict" in signature(parametrize_with_checks).parameters else {}),
)
@pytest.mark.filterwarnings("ignore:X holds floats in 0..1")
def test_scikit_learn_accepts_it(estimator: RotNetFeatures, check: Any) -> None:
    check(estimator)


@pytest.mark.filterwarnings("ignore:X holds floats in 0..1")
def test_fitting_changes_no_parameter() -> None:
    features = RotNetFeatures(layer="conv1", device="cpu", image_shape=(1, -1, 1))
    check_estimators_overwrite_params("RotNetFeatures", features)
    backbone = tiny_backbone()
    RotNetFeatures(backbone, device="cpu").fit_transform(np.zeros((2, 8, 8, 3), np.uint8))
    assert state_hash(backbone.state_dict()) == state_hash(tiny_backbone().state_dict())


@pytest.fixture
def images() -> Any:
    return np.stack([pixels(number, 12, 10) for number in range(20)])


def test_vectors_are_those_of_the_backbone(images: Any, tmp_path: Path) -> None:
    backbone = load_backbone("nin4-cifar10-jpeg", "cpu")
    expected = backbone.embed(images, layer="conv1").numpy()
    features = RotNetFeatures(layer="conv1", device="cpu")
    found = features.fit_transform(images)
    assert (found.dtype, found.shape) == (np.float32, (20, 96))
    assert np.array_equal(found, expected)
    paths = [tmp_path / f"{number:02d}.png" for number in range(20)]
    for path, image in zip(paths, images, strict=True):
        save(path, image)
    for what in (paths, np.array(paths), tmp_path, [Image.fromarray(one) for one in images]):
        assert np.array_equal(features.transform(what), expected)
    assert list(features.get_feature_names_out()) == [f"conv1_{number}" for number in range(96)]


def test_tables_hold_flattened_images(images: Any) -> None:
    backbone = tiny_backbone()
    expected = RotNetFeatures(backbone, device="cpu").fit_transform(images)
    features = RotNetFeatures(backbone, device="cpu", image_shape=(12, 10, 3))
    for table in (images.reshape(20, -1), images.reshape(20, -1).astype(float) + 0.3):
        assert np.array_equal(features.fit_transform(table), expected)
    assert features.n_features_in_ == 360
    grey = np.repeat(images[..., :1], 3, axis=3)
    features.set_params(image_shape=(12, 10, 1))
    assert np.array_equal(
        features.fit_transform(images[..., 0].reshape(20, -1)), backbone.embed(grey).numpy()
    )


def test_a_grid_search_chooses_among_layers(images: Any) -> None:
    labels = np.arange(20) % 2
    images = images // 2 + (labels * 100).astype(np.uint8)[:, None, None, None]
    pipeline = Pipeline(
        [("features", RotNetFeatures(tiny_backbone(), device="cpu")), ("classifier", LogisticRegression())]
    )
    search = GridSearchCV(pipeline, {"features__layer": ["conv1", "conv2"]}, cv=2)
    search.fit(images, labels)
    assert len(search.cv_results_["params"]) == 2
    assert search.score(images, labels) == 1
    assert search.best_estimator_["features"].backbone_ is not pipeline["features"].model


def test_it_can_be_cloned_pickled_and_changed(images: Any) -> None:
    features = RotNetFeatures("nin4-cifar10-jpeg", "conv1", "cpu", 7)
    assert (
        clone(features).get_params()
        == features.get_params()
        == {
            "model": "nin4-cifar10-jpeg",
            "layer": "conv1",
            "device": "cpu",
            "batch_size": 7,
            "image_shape": None,
        }
    )
    found = features.fit_transform(images)
    again = pickle.loads(pickle.dumps(features))
    assert np.array_equal(again.transform(images), found)
    assert features.set_params(layer="conv3").fit_transform(images).shape == (20, 192)
    assert repr(features) == "RotNetFeatures(batch_size=7, device='cpu', layer='conv3')"


def test_a_pipeline_of_its_own_names_reads_the_network_once_it_is_fitted(images: Any) -> None:
    pipeline = make_pipeline(RotNetFeatures(tiny_backbone(), device="cpu"), LogisticRegression())
    with pytest.raises(NotFittedError):
        pipeline[0].transform(images)
    pipeline.fit(images, np.arange(20) % 2)
    assert pipeline.predict(images).shape == (20,)


@pytest.mark.parametrize(
    ("changes", "table", "says"),
    [
        (
            {"image_shape": None},
            np.zeros((2, 12)),
            r"X is a table with the shape \[2, 12\]; pass image_shape",
        ),
        ({"image_shape": (2, 2)}, np.zeros((2, 12)), r"image_shape is \(2, 2\); it must be \(H, W, C\)"),
        ({"image_shape": (2, 2, 2)}, np.zeros((2, 8)), r"image_shape is \(2, 2, 2\); it must be"),
        ({"image_shape": (2, 3, 3)}, np.zeros((2, 12)), r"image_shape is \(2, 3, 3\), but the rows .* 12"),
        ({"image_shape": (2, 3, -1)}, np.zeros((2, 12)), r"makes images of the shape \(2, 3, 2\); C must"),
        ({}, np.full((2, 12), 256), r"X holds values from 256 to 256; pixels must lie in 0\.\.255"),
        ({}, np.full((2, 12), -1), r"Negative values .*: X holds values from -1 to -1; pixels must lie"),
        ({}, np.zeros((2, 2, 2, 3)), "Found array with dim 4"),
        ({"layer": "conv9"}, np.zeros((2, 12)), "layers holds 'conv9'"),
        ({"batch_size": 0}, np.zeros((2, 12)), "batch_size is 0"),
    ],
)
def test_wrong_uses_are_named(changes: dict[str, Any], table: Any, says: str) -> None:
    features = RotNetFeatures(tiny_backbone(), device="cpu", image_shape=(2, 2, 3)).set_params(**changes)
    with pytest.raises(ValueError, match=says):
        features.fit(table).transform(table)


def test_floats_of_0_to_1_cause_a_warning() -> None:
    features = RotNetFeatures(tiny_backbone(), device="cpu", image_shape=(2, 2, 3))
    with pytest.warns(UserWarning, match=r"X holds floats in 0\.\.1.*; pass 255 \* X"):
        features.fit(np.full((2, 12), 0.5))


def test_other_errors_are_those_of_the_backbone() -> None:
    features = RotNetFeatures(tiny_backbone(), device="cpu").fit(None)
    with pytest.raises(TypeError, match="pass uint8 images"):
        features.transform(np.zeros((2, 8, 8, 3)))
    with pytest.raises(ArgumentError, match="what is empty"):
        features.transform([])


def test_importing_the_package_does_not_import_scikit_learn() -> None:
    program = "import sys, rotnet_fast; assert not {'sklearn', 'torch', 'PIL'} & sys.modules.keys()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(Path(rotnet_fast.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert "RotNetFeatures" in dir(rotnet_fast)
