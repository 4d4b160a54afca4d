"""Batched augmentation: operations, draws (`pipeline`), applied to a batch (`apply`) or one by one (`per_image`)."""
from .ops import *
from .pipeline import *
from .apply import *
from .per_image import *
