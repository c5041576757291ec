"""`RotNetFeatures`: the vectors of a pretrained network as a transformer for scikit-learn."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from rotnet_fast.backbone import DEFAULT_BATCH_SIZE, Backbone, load_backbone
from rotnet_fast.errors import ArgumentError
from rotnet_fast.image_layout import Layout
from rotnet_fast.plain import as_sequence, as_whole, counted, shown


class RotNetFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turn images into the vectors of a pretrained network, for pipelines of scikit-learn.

    X is whatever `rotnet_fast.backbone.Backbone.embed` takes, arrays uint8 [N,H,W,3] first of all; or, with
    ``image_shape``, scikit-learn's usual table: one flattened image per row.

    Args:
        model: a model that `rotnet_fast.load_backbone` takes, or a `Backbone`.
        layer: feature map whose means over place are the vectors. None: the network's default.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; a `Backbone` is moved there, too.
        batch_size: images per forward pass.
        image_shape: (H, W, C) of the images in the rows of a table, with C = 3, or 1 for grey ones; one of
            the three may be -1, as for ``numpy.reshape``. The table holds numbers in 0..255 of any type,
            which are rounded. None: X is no table.

    Attributes:
        backbone_: the `Backbone`, once fitted.
        n_features_in_, feature_names_in_: of a table, as everywhere in scikit-learn.

    ``fit`` reads the network and learns nothing; ``transform`` returns float32 [N,D]. Errors are those of
    `Backbone.embed` and, for tables, of scikit-learn.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Backbone = "nin4-cifar10-jpeg",
        layer: str | None = None,
        device: str = "auto",
        batch_size: int = DEFAULT_BATCH_SIZE,
        image_shape: tuple[int, int, int] | None = None,
    ) -> None:
        self.model = model
        self.layer = layer
        self.device = device
        self.batch_size = batch_size
        self.image_shape = image_shape

    def fit(self, X: Any, y: Any = None) -> RotNetFeatures:
        """Read the network.

        Args:
            X: the images; of a table, its form is remembered.
            y: ignored.

        Raises:
            ArgumentError: the network has no such layer, or the device does not exist.
            CheckpointError: the network cannot be read.
        """
        if self.image_shape is not None:
            self._images(X, is_new=True)
        if isinstance(self.model, Backbone):
            backbone = self.model if self.device == "auto" else self.model.to(self.device)
        else:
            backbone = load_backbone(self.model, self.device)
        layer = backbone.network.default_layer if self.layer is None else self.layer
        backbone.network.check_layers([layer])
        self.backbone_, self._layer = backbone, layer
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Return one vector per image, float32 [N,D]."""
        check_is_fitted(self)
        images = X if self.image_shape is None else self._images(X, is_new=False)
        if isinstance(images, np.ndarray) and images.ndim == 2:
            raise ArgumentError(
                f"X is a table with the shape {list(images.shape)}; pass image_shape=(H, W, C) to say what "
                f"its rows are, or images [N,H,W,3]"
            )
        layout: Layout | None = None if self.image_shape is None else "NHWC"
        with torch.no_grad():
            vectors = self.backbone_.embed(images, self._layer, self.batch_size, layout=layout)
        found: NDArray[np.float32] = vectors.cpu().numpy()
        return found

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Return ``conv2_0``, ``conv2_1`` and so on, as the columns of ``python -m rotnet_fast.embed`` are.

        Args:
            input_features: ignored.
        """
        check_is_fitted(self)
        count = self.backbone_.network.feature_channels(self._layer)
        return np.array([f"{self._layer}_{number}" for number in range(count)], dtype=object)

    def _images(self, X: Any, is_new: bool) -> NDArray[np.uint8]:
        """Return the images in the rows of a table: uint8 [N,H,W,3].

        Args:
            X: numbers [N,H*W*C].
            is_new: whether to remember the form of X, instead of comparing it.
        """
        table = validate_data(self, X, reset=is_new, dtype="numeric")
        shape = as_sequence(self.image_shape)
        sides = None if shape is None else [as_whole(side) for side in shape]
        if sides is None or len(sides) != 3 or None in sides or sides[2] not in (1, 3, -1):
            raise ArgumentError(
                f"image_shape is {shown(self.image_shape)}; it must be (H, W, C) with C = 1 or 3"
            )
        rounded = np.rint(table)
        if rounded.min() < 0 or rounded.max() > 255:
            # These words are those of scikit-learn, whose checks look for them.
            negative = "Negative values in data passed to RotNetFeatures: " if table.min() < 0 else ""
            raise ArgumentError(
                f"{negative}X holds values from {table.min():.4g} to {table.max():.4g}; pixels must lie in "
                f"0..255"
            )
        if is_new and table.dtype.kind == "f" and 0 < table.max() <= 1:
            warnings.warn(
                "X holds floats in 0..1, which are taken for almost black pixels of 0..255; pass 255 * X",
                stacklevel=3,
            )
        try:
            images = rounded.astype(np.uint8).reshape(len(table), *sides)
        except ValueError:
            raise ArgumentError(
                f"image_shape is {tuple(sides)}, but the rows of X have {counted(table.shape[1], 'value')}; "
                f"there must be H*W*C"
            ) from None
        if images.shape[3] not in (1, 3):
            raise ArgumentError(f"image_shape makes images of the shape {images.shape[1:]}; C must be 1 or 3")
        return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images

    def __sklearn_tags__(self) -> Any:
        """Say what X may be: a table of numbers that are not negative if there is an image shape."""
        tags = super().__sklearn_tags__()
        is_table = self.image_shape is not None
        tags.input_tags.two_d_array = tags.input_tags.positive_only = is_table
        tags.transformer_tags.preserves_dtype = []
        return tags
