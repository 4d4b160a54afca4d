"""What a training step costs beside the bare network: views, the loop, the loss.

    python benchmarks/step.py [--backbone resnet8] [--bs 256] [--size 32] [--rounds 15]

All variants take turns in one process, so that a busy machine disturbs them alike; the figures are medians, the ratios medians of ratios within a round.
"""
import argparse, statistics, time
import numpy as np, torch
from sslnb.core import bare
from sslnb.data.loader import ssl_dls
import sslnb.train.fit
from sslnb.train.method import SSLMethod
from sslnb.train.learner import ssl_learner
from sslnb.models.heads import mlp
from sslnb.augment.views import Views, two_views
from torch.nn import functional as F


class NTXent(SSLMethod):
    def head(self, n_in): return mlp(n_in, 64, 32)
    def loss(self, z, y=None):
        a,b = (F.normalize(x, dim=1) for x in z)
        return F.cross_entropy(a@b.T/0.2, torch.arange(len(a), device=a.device))


class Ready(Views):
    "Views that were made before."
    def __init__(self, views): self.views = views
    def __call__(self, x, **key): return self.views


def sync(dev):
    if dev.type=='cuda': torch.cuda.synchronize()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--backbone', default='resnet8'); p.add_argument('--bs', type=int, default=256); p.add_argument('--size', type=int, default=32)
    p.add_argument('--rounds', type=int, default=15); p.add_argument('--steps', type=int, default=2, help='steps a round and variant')
    a = p.parse_args()
    x = np.random.RandomState(0).randint(0, 256, (a.bs*a.steps, 3, a.size, a.size), dtype=np.uint8)
    x = np.concatenate([x, x[:a.bs]])
    dls = ssl_dls((x, None), bs=a.bs, valid_pct=a.bs/len(x)); dev = dls.device
    views = two_views(a.size, mean=dls.mean, std=dls.std)
    learn = ssl_learner(dls, a.backbone, NTXent(), views)
    learn.logger = lambda *_: None
    learn.fit_ssl(1)                                                     # warm up: kernels, memory, optimiser
    ready = [v.contiguous() for v in views(dls.train.one_batch()[0])]
    m,opt = bare(learn.model),learn.opt.opt
    both = torch.cat(ready)
    if m.channels_last: both = both.contiguous(memory_format=torch.channels_last)

    def bare_steps():
        m.train()
        for _ in range(a.steps):
            z = m.head(m.backbone(both)).split(a.bs)
            learn.method.loss(z).backward(); opt.step(); opt.zero_grad()
    def fit(v):
        learn.views = v
        with learn.no_logging(): learn.fit(1)
    def only_views():
        for _ in range(a.steps): views(dls.train.one_batch()[0])
    ways = dict(bare=bare_steps, loop=lambda: fit(Ready(ready)), whole=lambda: fit(views), views=only_views)
    t = {k:[] for k in ways}
    for r in range(a.rounds+1):
        for k in (list(ways) if r%2 else list(ways)[::-1]):
            sync(dev); t0 = time.perf_counter(); ways[k](); sync(dev)
            if r: t[k].append((time.perf_counter()-t0)/a.steps)
    med = {k:statistics.median(v) for k,v in t.items()}
    ratio = lambda k: statistics.median(u/v for u,v in zip(t[k], t['bare']))
    print(f'{a.backbone}, {a.bs} x 2 views of {a.size} x {a.size}, {dev}, {torch.get_num_threads()} threads')
    for k,name in dict(bare='forward, backward, optimiser on ready views', loop='the same through the Learner', whole='a whole training step, views included', views='making the views alone').items():
        print(f'{name:48s} {med[k]*1000:9.1f} ms   {ratio(k):5.2f} x bare')


if __name__=='__main__': main()
