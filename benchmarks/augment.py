"""How fast are the views? Ours beside torchvision, PIL and kornia, in one process, on one CPU thread.

    python benchmarks/augment.py                      # 256 images of 32 x 32, SimCLR's recipe
    python benchmarks/augment.py --size 96 --n 64
    python benchmarks/augment.py --device cuda        # ours and kornia only: the others work on the CPU

The recipe: crop .2-1, flip, jitter .4/.4/.4/.1 with probability .8, grey .2, every image with its own draw. From uint8 images to a float batch.
The ways take turns, so that a busy machine slows all of them; a row gives the median, and the ratio is that of the medians.
kornia is timed where it is installed (`pip install kornia`); the library itself does not need it.
"""
import argparse, platform, statistics, time
import torch

RECIPE = dict(scale=(.2,1.), jitter=(.4,.4,.4,.1))

def ours(x, size):
    from sslnb.augment.pipeline import Augment
    from sslnb.core import rng
    aug,step = Augment(size, **RECIPE),iter(range(10**9))
    return lambda: aug(x, aug.draw(len(x), *x.shape[2:], rng(0,next(step),'view0')))

def _torchvision(T, size, to):
    return T.Compose([T.RandomResizedCrop(size, RECIPE['scale'], antialias=True), T.RandomHorizontalFlip(),
                      T.RandomApply([T.ColorJitter(*RECIPE['jitter'])], p=.8), T.RandomGrayscale(.2), *to])

def tv_tensor(x, size):
    from torchvision.transforms import v2 as T
    f = _torchvision(T, size, [T.ToDtype(torch.float32, scale=True)])
    return lambda: torch.stack([f(im) for im in x])

def tv_float(x, size):
    from torchvision.transforms import v2 as T
    f = _torchvision(T, size, [])
    return lambda: torch.stack([f(im) for im in x.float()/255])

def pil(x, size):
    from PIL import Image
    from torchvision import transforms as T
    f,ims = _torchvision(T, size, [T.ToTensor()]), [Image.fromarray(im.permute(1,2,0).numpy()) for im in x]
    return lambda: torch.stack([f(im) for im in ims])

def kornia_slice(x, size):
    import kornia.augmentation as K
    f = K.AugmentationSequential(K.RandomResizedCrop((size,size), scale=RECIPE['scale']), K.RandomHorizontalFlip(),
                                 K.ColorJitter(*RECIPE['jitter'], p=.8), K.RandomGrayscale(p=.2), same_on_batch=False)
    return lambda: f(x.float()/255)

def kornia_best(x, size):
    import kornia.augmentation as K
    f = K.AugmentationSequential(K.RandomResizedCrop((size,size), scale=RECIPE['scale'], cropping_mode='resample'), K.RandomHorizontalFlip(),
                                 K.ColorJiggle(*RECIPE['jitter'], p=.8), K.RandomGrayscale(p=.2), same_on_batch=False)
    return lambda: f(x.float()/255)

WAYS = {'sslnb': ours, 'kornia, resample + ColorJiggle': kornia_best, 'kornia, as documented': kornia_slice,
        'PIL per image': pil, 'torchvision v2 per image, uint8': tv_tensor, 'torchvision v2 per image, float': tv_float}

def measure(ways, x, size, repeats):
    "Median seconds of each way, taken in turns."
    run = {}
    for name,make in ways.items():
        try: run[name] = make(x, size); run[name]()
        except ImportError as e: print(f'{name}: left out ({e})')
    sync = torch.cuda.synchronize if x.is_cuda else lambda: None
    times = {name: [] for name in run}
    for _ in range(repeats):
        for name,f in run.items():
            sync(); t = time.perf_counter(); out = f(); sync()
            times[name].append(time.perf_counter()-t)
            assert out.shape[0]==len(x) and out.shape[2:]==(size,size)
    return {name: statistics.median(ts) for name,ts in times.items()}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=256, help='images a batch')
    p.add_argument('--size', type=int, default=32, help='side of images and views in pixels')
    p.add_argument('--repeats', type=int, default=11, help='turns; the median is reported')
    p.add_argument('--device', default='cpu', help='cpu or cuda')
    a = p.parse_args()
    torch.set_num_threads(1); torch.manual_seed(0)
    x = torch.randint(0, 256, (a.n,3,a.size//4,a.size//4)).float()
    x = torch.nn.functional.interpolate(x, size=(a.size,a.size), mode='bilinear').byte().to(a.device)
    ways = WAYS if a.device=='cpu' else {k:v for k,v in WAYS.items() if k.split(',')[0] in ('sslnb','kornia')}
    print(f'{a.n} images {a.size} x {a.size}, {a.device}, one thread, torch {torch.__version__}, {platform.processor() or platform.machine()}, median of {a.repeats}')
    ts = measure(ways, x, a.size, a.repeats)
    print(f"{'':34}{'images/s':>10}{'sslnb is':>12}")
    for name,t in sorted(ts.items(), key=lambda o: o[1]): print(f"{name:34}{a.n/t:10.0f}{t/ts['sslnb']:11.1f}x")

if __name__ == '__main__': main()
