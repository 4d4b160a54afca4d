"""The networks, optimisers and schedules of PAWS beside the official code.

Other families of README-paws.md: the losses (losses/test_golden_soft_neighbours.py).
"""
import numpy as np, pytest, torch
from torch import nn
from helpers import T, families, fill_slots, golden, hash_images, near
from sslnb.models.create import create_backbone
from sslnb.models.wide_resnet import wide_resnets
from sslnb.checkpoints.layouts import backbone_of, recognise, weights
from sslnb.train.model import SSLModel
from sslnb.train.optim import LARSInside, make_opt, param_groups, warmup_cosine
from sslnb.models.paws_head import PAWSHead
from sslnb.checkpoints.paws import to_paws
import sslnb.checkpoints.paws

D = golden('paws')
NETS = families(D, 'models')


def close(got, key, tol): near(got, D[key], tol, key)


def layout_of(name):
    shape = lambda s: () if s == 'scalar' else tuple(map(int, s.split('x')))
    return {str(k): shape(str(s)) for k, s in zip(D[f'models/{name}/keys'], D[f'models/{name}/shapes'])}


@pytest.fixture(scope='module', params=NETS)
def net(request):
    "Built from what the file's names and shapes say, filled by the rule, with the views and how many of them are large."
    p, want = f'models/{request.param}', layout_of(request.param)
    with torch.device('meta'): name, sd, head = recognise({k: torch.empty(s) for k, s in want.items()})
    bb = backbone_of({k[9:]: v for k, v in sd.items() if k.startswith('backbone.')}).created['name']
    with torch.device('meta'): bb = create_backbone(bb, **(dict(last_momentum=.99) if bb in wide_resnets else {}))         # as published
    shapes = [tuple(s) for s in D[f'{p}/img_shapes'].tolist()]
    large = sum(s[2:] == shapes[0][2:] for s in shapes)
    dtype = torch.float64 if D[f'{p}/eval_h'].dtype == np.float64 else torch.float32
    with torch.device('meta'): m = SSLModel(bb, head(bb.num_features, n_large=large)).to(dtype)
    m = m.to_empty(device='cpu')
    seed, gain = D[f'{p}/seed_gain']
    views = [hash_images(1000+j, int(seed), s).to(dtype) for j, s in enumerate(shapes)]
    return p, m, views, lambda: fill_slots(to_paws(m.state_dict()), int(seed), gain)


def test_names_shapes_and_groups(net):
    p, m, *_ = net
    want, have = layout_of(p.split('/')[1]), to_paws(m.state_dict())
    assert {k: tuple(v.shape) for k, v in have.items()} == want and list(have) == list(want), 'also in the same order'
    assert sum(v.numel() for v in m.parameters()) == int(D[f'{p}/n_params'])
    names = {id(v): k for k, v in m.named_parameters()}
    opt = make_opt('lars_inside', [{k: v for k, v in g.items() if k != 'name'} for g in param_groups(m, 1e-6, no_decay='name')], .1)
    got = {adapt: [names[id(v)].split('.', 1)[1] for g in opt.param_groups if g['adapt'] == adapt for v in g['params']] for adapt in (True, False)}
    assert got == {True: list(D[f'{p}/lars_adapted']), False: list(D[f'{p}/lars_excluded'])}
    assert [g['weight_decay'] for g in opt.param_groups] == [1e-6, 0]
    by_dimension = [names[id(v)].split('.', 1)[1] for g in LARSInside(param_groups(m, 1e-6), lr=.1).param_groups if g['adapt'] for v in g['params']]
    assert set(got[True])-set(by_dimension) == {k for k in got[True] if k.endswith('downsample.1.weight')} and set(by_dimension) <= set(got[True])


def test_outputs(net):
    "Evaluation, the backbone alone, then a step in training with its running statistics."
    p, m, views, fill = net
    tol = 1e-9 if views[0].dtype == torch.float64 else 1e-4
    both = lambda: {k: torch.cat(v) for k, v in m(views, {})['out'].items()}
    with torch.no_grad():
        fill(); m.eval()
        out = m(views, {})
        close(torch.cat(out['features']), f'{p}/eval_trunk', tol)
        for k, v in out['out'].items(): close(torch.cat(v), f'{p}/eval_{k}', tol)
        m.train()
        for k, v in both().items(): close(v, f'{p}/train_{k}', tol)
    stats = to_paws(m.state_dict())
    for k in families(D, p):
        if k.startswith('after_train_'): close(stats[k.removeprefix('after_train_')], f'{p}/{k}', tol)


@pytest.mark.parametrize('i', families(D, 'optim'))
def test_optimiser_and_its_schedule(i):
    p = f'optim/{i}'
    wd, momentum, nesterov, lars, steps, lr, start, final, warmup, trust = D[f'{p}/args'].tolist()
    names = [k for k in families(D, p) if f'{p}/{k}/init' in D]
    ps = {k: nn.Parameter(T(D[f'{p}/{k}/init'])) for k in names}
    adapted = [k for k in names if ps[k].ndim > 1]
    groups = [dict(params=[ps[k] for k in ks], weight_decay=w, adapt=a) for ks, w, a in ((adapted, wd, bool(lars)), ([k for k in names if k not in adapted], 0., False))]
    opt = make_opt('lars_inside', groups, lr, momentum=momentum, trust=trust, nesterov=bool(nesterov))
    lrs = warmup_cosine(int(steps), lr, final, int(warmup), start, top_twice=False)
    np.testing.assert_allclose(lrs, D[f'{p}/lrs'][:, 0], rtol=1e-12)
    for t in range(int(steps)):
        for g in opt.param_groups: g['lr'] = lrs[t].item()
        for k, v in ps.items(): v.grad = T(D[f'{p}/{k}/grads'][t])
        opt.step()
        if lars:
            r = torch.cat(opt.ratios); r = r[~r.isnan()]
            np.testing.assert_allclose([r.mean(), r.min(), r.max(), len(r)], D[f'{p}/lars_stats_avg_min_max_count'][t], rtol=1e-6)
        for k, v in ps.items(): np.testing.assert_allclose(v.detach(), D[f'{p}/{k}/traj'][t], rtol=0, atol=5e-6*max(1, np.abs(D[f'{p}/{k}/traj'][t]).max()), err_msg=f'{k}, step {t}')
    for k, v in ps.items():
        assert ('momentum_buffer' in opt.state[v]) == (f'{p}/{k}/momentum_buffer' in D)
        if momentum: close(opt.state[v]['momentum_buffer'], f'{p}/{k}/momentum_buffer', 5e-6)


@pytest.mark.parametrize('i', families(D, 'sched'))
def test_schedule(i):
    epochs, n, warmup, start, lr, final = D[f'sched/{i}/args'].tolist()
    want = D[f'sched/{i}/lr']
    got = warmup_cosine(int(epochs*n), lr, final, int(warmup*n), start, top_twice=False)
    np.testing.assert_allclose(got, want[:len(got)], rtol=1e-12)
    assert want[len(got):] == pytest.approx(final)                               # after the last step


@pytest.mark.parametrize('name', ['resnet152', 'resnet200w2'])
def test_every_network_of_the_family_is_recognised(name):
    with torch.device('meta'):
        bb = create_backbone(name)
        m = SSLModel(bb, PAWSHead(bb.num_features))
        _, sd, head = recognise(to_paws(m.state_dict()))
        again = SSLModel(backbone_of({k[9:]: v for k, v in sd.items() if k.startswith('backbone.')}), head(bb.num_features))
    assert again.backbone.created['name'] == name
    assert {k: v.shape for k, v in weights(again).items()} == {k: v.shape for k, v in weights(m).items()}
