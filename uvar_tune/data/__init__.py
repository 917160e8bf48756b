"""Images, their order, and their tokens: what every stage of training and evaluation reads. Plain PyTorch and NumPy.

load_images ─► ImageSet ─ build_token_cache ─► TokenCache
epoch_order, Order: which image stands at which position of the training, whatever the number of ranks
"""

from uvar_tune.data.image_set import ImageSet
from uvar_tune.data.images import load_images
from uvar_tune.data.order import Order, epoch_order
from uvar_tune.data.token_cache import TokenCache, build_token_cache

__all__ = ["ImageSet", "Order", "TokenCache", "build_token_cache", "epoch_order", "load_images"]
