"What several tests need: the command line in this process, comparisons, golden vectors, rules that fill networks."
import io, json, os
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
import numpy as np, pytest, torch

root = Path(__file__).resolve().parents[1]

# the library

def sslnb(*argv):
    "Run the command line in this process: exit status, standard output, standard error."
    from threadpoolctl import threadpool_limits
    from sslnb.app.cli import main
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), threadpool_limits(1): code = main([str(a) for a in argv])
    return code, out.getvalue(), err.getvalue()

def quiet(learn):
    "The Learner, printing nothing while it trains."
    learn.logger = lambda *_: None
    return learn

def stop_at(step):
    "A callback that stops training as a signal would, when so many steps are done."
    from fastai.callback.core import Callback
    class StopAt(Callback):
        order = 89
        def after_batch(self):
            if self.learn.model.step+1 == step: self.learn.checkpoint.stop = True
    return StopAt()

def sweep(cases, kind):
    "Cases for `parametrize`: the first of each kind runs by default, the others are marked `slow`."
    cases = list(cases)
    first = {kind(c): i for i, c in reversed(list(enumerate(cases)))}
    return [c if first[kind(c)] == i else pytest.param(c, marks=pytest.mark.slow) for i, c in enumerate(cases)]

# numbers

def array(a): return np.asarray(a.detach() if torch.is_tensor(a) else a)

def close(got, want, rtol, atol=0., name=''):
    np.testing.assert_allclose(array(got), array(want), rtol=rtol, atol=atol, err_msg=name)

def near(got, want, share, name=''):
    "Equal within a share of the largest wanted number."
    close(got, want, 0, share*max(np.abs(want).max(), 1e-30), name)

def same_state(a, b):
    "Two state dicts are equal to the bit, in names, order and values."
    assert list(a) == list(b)
    for k, v in a.items(): assert torch.equal(v, b[k]) if torch.is_tensor(v) else v == b[k], k

# golden vectors

folder = Path(os.environ.get('SSLNB_GOLDEN') or root/'tests/golden')

@cache
def golden(name):
    "All arrays of `{name}.npz`, by key."
    with np.load(folder/f'{name}.npz') as f: return {k:f[k] for k in f.files}

def meta(d):
    "Settings that go with the arrays, by the prefix of their keys."
    return json.loads(str(d['meta_json']))

def T(a): return torch.from_numpy(np.array(a))

def families(d, prefix):
    "What stands after `prefix/` and before the next slash, in order and once each."
    return list(dict.fromkeys(k[len(prefix)+1:].split('/')[0] for k in d if k.startswith(prefix+'/')))

def layout(text):
    "`name|4x3|dtype` per line -> {name: shape}"
    rows = [l.split('|') for l in str(text).splitlines() if l]
    return {n: () if s=='scalar' else tuple(map(int, s.split('x'))) for n,s,_ in rows}

def shapes(module): return {k:tuple(v.shape) for k,v in module.state_dict().items()}

def fill_normal(module, seed):
    "The fill rule of swav.npz and self_classifier.npz: normal numbers, one generator an entry."
    sd = module.state_dict()
    for i,(k,v) in enumerate(sd.items()):
        r = np.random.RandomState(seed+i).standard_normal(tuple(v.shape))
        if not v.is_floating_point(): r = np.zeros(tuple(v.shape))
        elif k.endswith('running_var'): r = 0.5+0.5*np.abs(r)
        elif k.endswith('running_mean') or k.endswith('bias'): r = 0.1*r
        elif v.ndim==1 and k.endswith('weight'): r = 1+0.1*r
        else: r = r/np.sqrt(np.prod(v.shape[1:]))
        sd[k] = torch.as_tensor(r).to(v.dtype)
    module.load_state_dict(sd)
    return module

def fill_hash(module, seed, gain=2., var_lo=1.):
    "The fill rule of relational.npz: a hash of position, entry and seed."
    sd,m = module.state_dict(),np.uint64(0xffffffff)
    for idx,(k,v) in enumerate(sd.items()):
        i = np.arange(v.numel(), dtype=np.uint64)
        c = ((idx+1)*2246822519 + int(seed)*3266489917) & 0xffffffff
        h = (i*np.uint64(2654435761) + np.uint64(c)) & m
        h ^= h>>np.uint64(15); h = (h*np.uint64(2246822519))&m
        h ^= h>>np.uint64(13); h = (h*np.uint64(3266489917))&m
        h ^= h>>np.uint64(16)
        u = (h.astype(np.float64)+0.5)/2**32
        z = 2*u-1
        if k.endswith('num_batches_tracked'): z = 0*z
        elif k.endswith('running_mean'): z = 0.1*z
        elif k.endswith('running_var'): z = var_lo*(1+u)
        elif v.ndim>=2: z = z*np.sqrt(3*gain/np.prod(v.shape[1:]))
        elif k.endswith('weight'): z = 1+0.2*z
        else: z = 0.1*z
        sd[k] = torch.as_tensor(z).reshape(v.shape).to(v.dtype)
    module.load_state_dict(sd)
    return module

def hash_uniform(slot, seed, shape):
    "Numbers in 0..1 of paws.npz, float64: a hash of position, slot and seed."
    start = (0x9E3779B9*(slot+1) + 0x7F4A7C15*(seed+1)) & 0xffffffff
    h = np.arange(int(np.prod(shape)), dtype=np.uint32) + np.uint32(start)
    h ^= h>>np.uint32(16); h *= np.uint32(0x85EBCA6B)
    h ^= h>>np.uint32(13); h *= np.uint32(0xC2B2AE35)
    h ^= h>>np.uint32(16)
    return torch.from_numpy(h/2**32).reshape(shape)

def hash_images(slot, seed, shape): return (2*hash_uniform(slot, seed, shape)-1)*3**.5

def fill_slots(tensors, seed, gain):
    "The fill rule of paws.npz, on tensors by their official names and in their order."
    k = 0
    for n,v in tensors.items():
        if not v.is_floating_point(): v.zero_(); continue
        u,k = hash_uniform(k, seed, v.shape),k+1
        if v.ndim>=2: u = (2*u-1)*(3*gain/np.prod(v.shape[1:]))**.5
        elif n.endswith(('running_var','weight')): u = 0.5+u
        else: u = 0.2*(2*u-1)
        with torch.no_grad(): v.copy_(u)

class SelfConOfficial:
    "A model under SelfCon's official names and in their order, for the fill."
    def __init__(self, m): self.m = m
    def state_dict(self):
        from sslnb.checkpoints.selfcon import to_selfcon
        return to_selfcon(self.m.state_dict())
    def load_state_dict(self, sd):
        from sslnb.checkpoints.selfcon import from_selfcon
        self.m.load_state_dict({**from_selfcon(sd), '_extra_state': self.m.get_extra_state()})
