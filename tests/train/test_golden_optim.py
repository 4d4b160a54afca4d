"Optimisers and schedules against the numbers of the official code."
import json
import numpy as np, pytest, torch
from torch import nn
from helpers import T, families, golden, layout, meta
from sslnb.train.optim import LARC, clip_per_param, param_groups, warmup_cosine

pytestmark = pytest.mark.quick

@pytest.mark.parametrize('fam,tol', [('larc_f32',1e-6), ('larc_f64',1e-12)])
def test_larc(fam, tol):
    d = golden('swav'); h = meta(d)['larc']
    names = families(d, fam)
    ps = {n:nn.Parameter(T(d[f'{fam}/{n}/before'])) for n in names}
    opt = LARC(ps.values(), lr=h['lr'], momentum=h['mom'], weight_decay=h['wd'], trust=h['trust'], clip=h['clip'], eps=h['eps'])
    for t in range(h['steps']):
        for n,p in ps.items():
            g = d.get(f'{fam}/{n}/grad{t}')
            p.grad = None if g is None else T(g)
        opt.step()
        for n,p in ps.items(): np.testing.assert_allclose(p.detach(), d[f'{fam}/{n}/after{t}'], rtol=0, atol=tol, err_msg=f'{n}, step {t}')

def test_larc_clip():
    d = golden('swav'); h = meta(d)['larc_clip']
    p = nn.Parameter(T(d['larc_clip/before'])); p.grad = T(d['larc_clip/grad'])
    LARC([p], lr=h['lr'], momentum=0., weight_decay=h['wd'], trust=h['trust'], clip=h['clip']).step()
    np.testing.assert_allclose(p.detach(), d['larc_clip/after'], rtol=0, atol=1e-6)

@pytest.mark.parametrize('system', ['swav','self_classifier'])
def test_schedule(system):
    d = golden(system)
    fams = families(d, 'schedule')
    assert fams
    for k in fams:
        h = meta(d)[f'schedule/{k}']; n = h['iters_per_epoch']
        base,final = h.get('base_lr', h.get('base')), h.get('final_lr', h.get('final'))
        got = warmup_cosine(n*h['epochs'], base, final, n*h['warmup_epochs'], h['start_warmup'])
        np.testing.assert_allclose(got, d[f'schedule/{k}'], rtol=1e-12, atol=1e-12)

def test_epoch_schedule():
    d = golden('self_classifier')
    fams = families(d, 'epoch_schedule')
    assert fams
    for k in fams:
        h = meta(d)[f'epoch_schedule/{k}']
        for name,final in (('linear_eval',0.), ('cifar_v1',h['final_lr'])):
            np.testing.assert_allclose(warmup_cosine(h['epochs'], h['lr'], final), d[f'epoch_schedule/{k}/{name}'], rtol=1e-12, atol=1e-12)

def stand_in(shapes):
    "A model with the parameters and buffers of these names and shapes, and nothing else."
    m = nn.Module()
    for name,s in shapes.items():
        *path,leaf = name.split('.'); at = m
        for part in path:
            if not hasattr(at, part): at.add_module(part, nn.Module())
            at = getattr(at, part)
        if leaf.startswith(('running_','num_')): at.register_buffer(leaf, torch.zeros(s))
        else: at.register_parameter(leaf, nn.Parameter(torch.zeros(s)))
    return m

def test_param_groups():
    d = golden('self_classifier')
    m = stand_in(layout(d['model/keys']))
    names = {id(p):n for n,p in m.named_parameters()}
    fams = families(d, 'param_groups')
    assert fams
    for k in fams:
        nobias,bb = k.removeprefix('nobiaswd').split('_bbonewd')
        got = param_groups(m, 0.125, no_decay=bool(int(nobias)), backbone_wd=None if bb=='None' else float(bb))
        want = json.loads(str(d[f'param_groups/{k}']))
        flat = lambda gs: sorted((sorted(g['names']), 0.125 if g['weight_decay']=='default' else g['weight_decay']) for g in gs if g['names'])
        assert flat([dict(names=[names[id(p)] for p in g['params']], weight_decay=g['weight_decay']) for g in got])==flat(want), k

def test_clip():
    d = golden('self_classifier'); limit = meta(d)['clip']
    n = len(d['clip/norms'])
    ps = []
    for i in range(n):
        g = T(d[f'clip/grad{i}']); p = nn.Parameter(torch.zeros_like(g)); p.grad = g; ps.append(p)
    np.testing.assert_allclose(clip_per_param(ps, limit), d['clip/norms'], rtol=1e-6)
    for i,p in enumerate(ps): np.testing.assert_allclose(p.grad, d[f'clip/after{i}'], rtol=1e-6, atol=1e-7)
