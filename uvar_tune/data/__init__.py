"""Images, their tokens and their order in training. Plain PyTorch and NumPy.

load_images ─► ImageSet ─ build_token_cache ─► TokenCache
epoch_order, Order: the image at each position of a training, independent of the number of ranks
resolve_label: the label of a class name
"""

from uvar_tune.data.classes import resolve_label
from uvar_tune.data.image_set import ImageSet
from uvar_tune.data.images import load_images
from uvar_tune.data.order import Order, epoch_order
from uvar_tune.data.token_cache import TokenCache, build_token_cache

__all__ = ["ImageSet", "Order", "TokenCache", "build_token_cache", "epoch_order", "load_images", "resolve_label"]
