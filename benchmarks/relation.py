"""What relational reasoning costs with all pairs written out, and without: peak memory and time of a training step.

    python benchmarks/relation.py [--backbone conv4] [--bs 64] [--k 32] [--size 32] [--aggregation cat] [--rounds 7]

*Pairs written out* is the same head on the tensor of all pairs. Time: both take turns in one process, medians, ratios within a round. Memory: each in a process of its own, the highest that
a step takes above what is there before it (resident memory on a CPU, allocated memory on a GPU). Under the whole step stands the backbone alone, without any head: no way of
judging pairs can be below that.
"""
import argparse, json, statistics, subprocess, sys, time
import torch
from torch.nn import functional as F
from sslnb.models.create import create_backbone
from sslnb.losses.relation import RelationHead, focal_loss, relation_pairs


class Plain(RelationHead):
    "Every pair is a row."
    def scores(self, z):
        x,_ = relation_pairs(z, self.aggregation)
        return self.linear2(F.leaky_relu(self.bn1(self.linear1(x)))).view(-1, 2, z.shape[1])

WAYS = {'pairs written out':Plain, 'sslnb':RelationHead}
FLOOR = 'backbone alone'                                                # what no head can be below
PARTS = {'head':'head and loss, forward and backward', 'step':'whole step: backbone, head, loss, backward, Adam'}


def make(way, part, a, dev, small=False):
    "A function that runs one step."
    torch.manual_seed(0)
    k,bs = (2,2) if small else (a.k,a.bs)
    net = create_backbone(a.backbone, size=a.size).to(dev)
    head = None if way==FLOOR else WAYS[way](net.num_features, a.aggregation).to(dev)
    x = torch.randn(k*bs, 3, a.size, a.size, device=dev) if part=='step' else torch.randn(k*bs, net.num_features, device=dev, requires_grad=True)
    opt = torch.optim.Adam([*(net.parameters() if part=='step' else ()), *(head.parameters() if head else ())], lr=1e-3)
    def step():
        if head is None: net(x).square().mean().backward(); opt.step(); opt.zero_grad(); return
        s = head(list((net(x) if part=='step' else x).split(bs)))
        focal_loss(s, s.new_tensor([1.,0.])[:,None].expand_as(s)).backward()
        if part=='step': opt.step()
        opt.zero_grad(); x.grad = None
    return step


def resident(key): # of this process, bytes
    with open('/proc/self/status') as f: return next(int(l.split()[1])*1024 for l in f if l.startswith(key))

def peak(way, part, a, dev):
    make(way, part, a, dev, small=True)()                               # kernels, libraries
    step = make(way, part, a, dev)
    if dev=='cuda':
        step(); torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated(); step()
        return torch.cuda.max_memory_allocated()-before
    with open('/proc/self/clear_refs', 'w') as f: f.write('5')          # Linux: the peak counts from here
    before = resident('VmRSS'); step()
    return resident('VmHWM')-before


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--backbone', default='conv4'); p.add_argument('--bs', type=int, default=64); p.add_argument('--k', type=int, default=32); p.add_argument('--size', type=int, default=32)
    p.add_argument('--aggregation', default='cat'); p.add_argument('--rounds', type=int, default=7); p.add_argument('--peak', nargs=2, help=argparse.SUPPRESS)
    a = p.parse_args()
    dev = 'cuda' if torch.cuda.is_available() else 'cpu'
    if a.peak: return print(json.dumps(peak(*a.peak, a, dev)))
    print(f'{a.backbone}, {a.bs} images of {a.size} x {a.size} in {a.k} views, {a.aggregation}: {a.bs*a.k*(a.k-1):,} pairs; {dev}, {torch.get_num_threads()} thread(s), torch {torch.__version__}')
    for part,what in PARTS.items():
        ways = [*WAYS] if part=='head' else [*WAYS,FLOOR]
        steps,t = {w:make(w, part, a, dev) for w in ways},{w:[] for w in ways}
        for r in range(a.rounds+1):
            for w in (ways if r%2 else ways[::-1]):
                if dev=='cuda': torch.cuda.synchronize()
                t0 = time.perf_counter(); steps[w]()
                if dev=='cuda': torch.cuda.synchronize()
                if r: t[w].append(time.perf_counter()-t0)
        mem = {w:json.loads(subprocess.run([sys.executable, *sys.argv, '--peak', w, part], check=True, capture_output=True, text=True).stdout.splitlines()[-1]) for w in ways}
        plain = 'pairs written out'
        print(f'\n{what}')
        for w in ways:
            ratio = statistics.median(u/v for u,v in zip(t[w], t[plain]))
            print(f'{w:20s} {statistics.median(t[w])*1000:9.0f} ms  {ratio:5.2f} x     {mem[w]/2**20:7.0f} MB  {mem[w]/mem[plain]:5.2f} x')


if __name__=='__main__': main()
