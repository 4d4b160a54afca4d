"""Batched augmentation: the operations (`ops`), the draws with the pipeline (`pipeline`), and images that are cut one by one (`single`)."""
from .ops import *
from .pipeline import *
from .single import *
