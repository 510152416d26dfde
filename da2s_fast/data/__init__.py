"""Image data sets, batched augmentation and endless loaders."""

from da2s_fast.data.augment import Augmentation
from da2s_fast.data.decode import read_image
from da2s_fast.data.image_data import ImageData
from da2s_fast.data.load import load_data
from da2s_fast.data.loader import EndlessLoader, evaluation_batches, normalize
from da2s_fast.data.splits import split_train

__all__ = [
    "Augmentation",
    "EndlessLoader",
    "ImageData",
    "evaluation_batches",
    "load_data",
    "normalize",
    "read_image",
    "split_train",
]
