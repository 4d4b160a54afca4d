import os, numpy as np, torch
from pathlib import Path
from torch import Tensor
from .sets import ImageSet, split, from_array
from .files import from_folder
from ..core import choose
DATASETS = {}
def dataset(f):
    "Decorator: the function's name becomes a data set's name for `image_sets`."
    DATASETS[f.__name__] = f
    return f

@dataset
def digits()->tuple:
    "scikit-learn's handwritten digits: 1,797 scans of 8 x 8 pixels, 10 classes; no download."
    from sklearn.datasets import load_digits
    d = load_digits()
    return split(ImageSet(torch.from_numpy(np.rint(d.images*255/16).astype(np.uint8))[:,None], torch.from_numpy(d.target), name='digits'))

# %% ../../nbs/10_data.sets.ipynb #dde74e5e
def image_sets(
    source, # a name (`'digits'`), a folder, an array, `(images, labels)`, an `ImageSet`, or a pair of `ImageSet`s
    size:int|tuple|None=None, # for folders: side in pixels, or (H, W)
    labels:bool|None=None, # for folders: whether folder names are classes
    valid_pct:float=0.2, # share held out where the source has no test part
    split_seed:int=42 # of that draw
)->tuple: # train and test `ImageSet`s
    "Train and test images from whatever is given."
    if isinstance(source, (str,Path)):
        if str(source) in DATASETS: return DATASETS[str(source)]()
        if os.path.isdir(source): return from_folder(source, size, labels, valid_pct, split_seed)
        if os.sep in str(source) or str(source).startswith(('.','~')): return from_folder(source, size, labels, valid_pct, split_seed)
        choose(str(source), DATASETS, 'data set (and no folder of that name)')
    if isinstance(source, ImageSet): return split(source, valid_pct, split_seed)
    if isinstance(source, (tuple,list)) and len(source)==2:
        if all(isinstance(s, ImageSet) for s in source): return tuple(source)
        return split(from_array(*source), valid_pct, split_seed)
    if hasattr(source, '__array__') or isinstance(source, Tensor): return split(from_array(source), valid_pct, split_seed)
    raise TypeError(f'cannot read images from {type(source).__name__}; expected a data set name, a folder, an array, (images, labels) or an ImageSet')
