"""Batched augmentation: the operations (`ops`) and the draws with the pipeline (`pipeline`)."""
from .ops import *
from .pipeline import *
