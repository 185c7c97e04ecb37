"""The trainer's data: an index of tars, an order of samples, and batches of images with texts."""

from trainer.data.captions import CaptionOptions
from trainer.data.images import NORMALISATIONS, Augment, normalise
from trainer.data.index import Index, open_index
from trainer.data.loader import Batch, Loader, LoaderOptions
from trainer.data.order import State

__all__ = [
    "NORMALISATIONS",
    "Augment",
    "Batch",
    "CaptionOptions",
    "Index",
    "Loader",
    "LoaderOptions",
    "State",
    "normalise",
    "open_index",
]
