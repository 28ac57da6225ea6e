"""scikit-learn's handwritten digits: small enough to train on any machine in seconds."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from usdcore.engine.data import DataSets
from usdcore.errors import UsdcoreError

from .tensors import ArrayPixels, TensorImages

if TYPE_CHECKING:
    from .config import DigitsConfig

_TEST_IMAGES = 360
_SPLIT_SEED = 0
_SIDE = 8


class Digits:
    """1797 grey images of 8x8, split 1437 to 360 by a fixed seed with equal class shares."""

    def __init__(self, config: DigitsConfig) -> None:
        self.config = config

    def load(self) -> DataSets:
        """Read the images from the installed package, scale them up, normalise by the training images.

        Raises:
            UsdcoreError: scikit-learn is not installed.
        """
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError as error:
            msg = 'data.source: digits needs scikit-learn, which is not installed: pip install "usdcore[quickstart]"'
            raise UsdcoreError(msg) from error
        images, labels = load_digits(return_X_y=True)
        train, test = train_test_split(
            np.arange(len(labels)), test_size=_TEST_IMAGES, random_state=_SPLIT_SEED, stratify=labels
        )
        return self._datasets(images.reshape(-1, 1, _SIDE, _SIDE).astype(np.float32), labels, train, test)

    def _datasets(self, images: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray) -> DataSets:
        mean, std = [float(images[train].mean())], [float(images[train].std())]
        content = np.concatenate([images.ravel(), labels, test]).astype(np.uint16).tobytes()
        scaled = self._scaled(images)
        shift = self.config.input_size // _SIDE if self.config.augment == "shift" else 0

        def part(indices: np.ndarray, shift: int = 0) -> TensorImages:
            return TensorImages(ArrayPixels(scaled[indices]), labels[indices].tolist(), mean, std, shift=shift)

        return DataSets(
            train=part(train, shift),
            train_eval=part(train),
            test=part(test),
            num_classes=10,
            in_chans=1,
            description=f"scikit-learn digits: {len(train)} training and {len(test)} evaluation images of 10 classes",
            fingerprint=hashlib.sha256(content).hexdigest(),
        )

    def _scaled(self, images: np.ndarray) -> np.ndarray:
        options = {"align_corners": False} if self.config.interpolation == "bilinear" else {}
        size = (self.config.input_size, self.config.input_size)
        return F.interpolate(torch.from_numpy(images), size, mode=self.config.interpolation, **options).numpy()
