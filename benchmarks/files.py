"""Multi-crop from photographs of many sizes: images a second, beside the same crops by per-image torchvision in a DataLoader with as many workers.

    python benchmarks/files.py                      # 300 JPEGs of 300 to 600 pixels a side, 2 x 224 + 6 x 96 crops
    python benchmarks/files.py --workers 4 --rounds 7

Two comparisons: `crops` is decoding, cropping and flipping alone (8-bit crops in the main process); `views` is the whole recipe of Self-Classifier, jitter, grey, blur and
solarisation included (normalised floats in the main process). The ways take turns, each round is one pass over all images; the median counts, and so does a first pass that is thrown away."""
import argparse, os, random, statistics, tempfile, time
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
import numpy as np, torch, torch.nn.functional as F
from pathlib import Path
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import InterpolationMode, v2
from sslnb.data.folders import from_folder
from sslnb.data.loader import FileLoader
from sslnb.augment.views import multi_crop

BICUBIC,MEAN,STD = InterpolationMode.BICUBIC,(.485,.456,.406),(.229,.224,.225)

def photographs(folder, n, lo=300, hi=600, seed=0):
    "Noise of many scales, as rough as photographs are, saved as JPEG of quality 90."
    g = np.random.default_rng(seed)
    for i in range(n):
        h,w = (int(s) for s in g.integers(lo, hi+1, 2))
        x = torch.zeros(3, h, w)
        for k in (4,8,16,32,64,128):
            small = torch.from_numpy(g.standard_normal((1,3,h//k+2,w//k+2)).astype(np.float32))
            x += k**.5*F.interpolate(small, (h,w), mode='bicubic')[0]
        x += .3*torch.from_numpy(g.standard_normal((3,h,w)).astype(np.float32))
        x = (x-x.min())/(x.max()-x.min())*255
        Image.fromarray(x.permute(1,2,0).byte().numpy()).save(folder/f'{i:04}.jpg', quality=90)

class Blur: # what the official code blurs with
    def __init__(self, p): self.p = p
    def __call__(self, im): return im.filter(ImageFilter.GaussianBlur(random.uniform(.1, 2.))) if random.random()<self.p else im

def recipe(size, scale, blur, solarise, colour, tensors):
    "One view by torchvision; `tensors`: on 8-bit tensors, the fastest way that torchvision has; else on PIL images."
    out = [v2.RandomResizedCrop(size, scale=scale, interpolation=BICUBIC, antialias=True), v2.RandomHorizontalFlip()]
    if colour:
        gauss = v2.RandomApply([v2.GaussianBlur(2*(size//20)+1, (.1,2.))], blur) if tensors else Blur(blur)
        out += [v2.RandomApply([v2.ColorJitter(.4,.4,.2,.1)], .8), v2.RandomGrayscale(.2), gauss]
        if solarise: out.append(v2.RandomSolarize(128, solarise))
    if not tensors: out.append(v2.PILToTensor())
    if colour: out += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    return v2.Compose(out)

class PerImage(Dataset):
    "Every view of one image, as the official multi-crop data sets do it."
    def __init__(self, files, colour, tensors):
        self.files,self.tensors = files,tensors
        kinds = [(224,(.4,1.),.1,0.), (224,(.4,1.),1.,.2)] + [(96,(.05,.4),.5,0.)]*6
        self.views = [recipe(*k, colour, tensors) for k in kinds]
    def __len__(self): return len(self.files)
    def __getitem__(self, i):
        im = decode_image(read_file(str(self.files[i])), ImageReadMode.RGB) if self.tensors else Image.open(self.files[i]).convert('RGB')
        return [v(im) for v in self.views]

def theirs(files, colour, tensors, bs, workers):
    dl = DataLoader(PerImage(files, colour, tensors), bs, shuffle=True, num_workers=workers, drop_last=True)
    def run(): return sum(len(b[0]) for b in dl)
    return run

def ours(folder, colour, bs, workers):
    ds,_ = from_folder(folder, valid_pct=.02)
    ds.workers = workers
    plain = {} if colour else dict(jitter=None, grey=0., blur=0., second=None, local=None)
    dl = FileLoader(ds, bs); dl.views,dl.ready = multi_crop(224, mean=MEAN, std=STD, **plain),colour        # crops alone: 8-bit, as for a GPU; views: finished by the workers, as on a CPU
    def run():
        n = 0
        for k,(x,*_) in enumerate(dl):
            if colour: x = dl.views(x, seed=0, step=k)
            n += len(x[0])
        return n
    return run

def compare(ways, rounds):
    for f in ways.values(): f()
    times = {k:[] for k in ways}
    for _ in range(rounds):
        for k,f in ways.items():
            t = time.perf_counter(); n = f(); times[k].append(n/(time.perf_counter()-t))
    return {k:statistics.median(v) for k,v in times.items()}

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name,default in dict(images=300, bs=64, workers=2, rounds=5, threads=1).items(): p.add_argument(f'--{name}', type=int, default=default)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d); photographs(folder, a.images)
        files = sorted(folder.glob('*.jpg'))
        print(f'{a.images} JPEGs of 300 to 600 pixels, batches of {a.bs}, {a.workers} workers, {a.threads} thread(s) in the main process')
        for colour,name in ((False,'crops'), (True,'views')):
            speed = compare({'sslnb':ours(folder, colour, a.bs, a.workers), 'torchvision, PIL images':theirs(files, colour, False, a.bs, a.workers),
                             'torchvision v2, 8-bit tensors':theirs(files, colour, True, a.bs, a.workers)}, a.rounds)
            for k,v in speed.items(): print(f'{name:6} {k:32} {v:7.1f} images/s' + ('' if k=='sslnb' else f'   sslnb is {speed["sslnb"]/v:.2f}x'), flush=True)
