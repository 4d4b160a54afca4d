"""What SelfCon's one view with exits costs beside SupCon's two views: time and memory of a training step.

    python benchmarks/selfcon.py [--backbone resnet18] [--exit-size fc] [--bs 64] [--size 32] [--rounds 5]

The methods take turns in one process, so that a busy machine disturbs them alike: times are medians, ratios medians of ratios within a round. A step is a whole one, views, loss and optimiser included.
Memory: on a GPU the most that a step allocates beyond weights and optimiser; on a CPU what is kept for the backward pass, in bytes of the tensors that autograd saves, each once.
"""
import argparse, statistics, time
import numpy as np, torch
from sslnb.models.exits import exit_points
from sslnb.models.create import create_backbone
from sslnb.data.loader import ssl_dls
import sslnb.train.fit
from sslnb.train.learner import ssl_learner
from sslnb.methods.selfcon import SelfCon
from sslnb.methods.supcon import SupCon

WAYS = {'SelfCon, 1 view':(SelfCon,1), 'SupCon-S, 1 view':(SupCon,1), 'SupCon, 2 views':(SupCon,2), 'SelfCon-M, 2 views':(SelfCon,2)}


def learner(name, a):
    cls,k = WAYS[name]
    rs = np.random.RandomState(0)
    x,y = rs.randint(0, 256, (a.bs*a.steps, 3, a.size, a.size), dtype=np.uint8),np.arange(a.bs*a.steps)%10
    dls = ssl_dls(((x, y), (x[:10], y[:10])), bs=a.bs)
    exits = None
    if cls is SelfCon:
        n = len(exit_points(create_backbone(a.backbone, size=a.size)))
        exits = [i==(n-1)//2 for i in range(n)]
    learn = ssl_learner(dls, a.backbone, cls(), views=dict(k=k), exits=exits, exit_size=a.exit_size)
    learn.logger = lambda *_: None
    return learn


def saved(learn):
    "Bytes of all tensors that autograd keeps for one batch, parameters left out."
    seen,own = {},{p.untyped_storage().data_ptr() for p in learn.model.parameters()}
    def keep(t):
        s = t.untyped_storage()
        if s.data_ptr() not in own: seen[s.data_ptr()] = (s.nbytes(), s)            # held, so that no address is used twice
        return t
    x,y,i = learn.dls.train.one_batch()
    batch = dict(y=y, idx=i)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        learn.ssl_loss(learn.model.train()(learn.views(x), batch), batch)
    return sum(n for n,_ in seen.values())


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--backbone', default='resnet18'); p.add_argument('--exit-size', default='fc'); p.add_argument('--bs', type=int, default=64); p.add_argument('--size', type=int, default=32)
    p.add_argument('--rounds', type=int, default=5); p.add_argument('--steps', type=int, default=2, help='steps a round and method')
    a = p.parse_args()
    learns = {n:learner(n, a) for n in WAYS}
    dev,t,mem = learns['SupCon, 2 views'].dls.device,{n:[] for n in WAYS},{}
    for r in range(a.rounds+1):
        for n in (list(WAYS) if r%2 else list(WAYS)[::-1]):
            if dev.type=='cuda': torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats(); base = torch.cuda.memory_allocated()
            t0 = time.perf_counter()
            learns[n].fit_ssl(1, warmup=0)
            if dev.type=='cuda': torch.cuda.synchronize(); mem[n] = torch.cuda.max_memory_allocated()-base
            if r: t[n].append((time.perf_counter()-t0)/a.steps)           # the first round warms up
    kept = mem or {n:saved(l) for n,l in learns.items()}
    ref = 'SupCon, 2 views'
    ratio = lambda n: statistics.median(u/v for u,v in zip(t[n], t[ref]))
    print(f'{a.backbone}, {a.exit_size} exit, {a.bs} images of {a.size} x {a.size}, {dev}, {torch.get_num_threads()} threads, torch {torch.__version__}')
    print(f"{'':20s} {'ms a step':>10s} {'x SupCon':>9s} {'peak MB' if mem else 'kept MB':>9s} {'x SupCon':>9s}")
    for n in WAYS:
        print(f'{n:20s} {1000*statistics.median(t[n]):10.1f} {ratio(n):9.2f} {kept[n]/1e6:9.1f} {kept[n]/kept[ref]:9.2f}')


if __name__=='__main__': main()
