"""Batched augmentation: the operations (`ops`), the draws with the pipeline (`pipeline`), and images that are cut one by one (`per_image`)."""
from .ops import *
from .pipeline import *
from .per_image import *
