"""Whole steps of PAWS and SimCLR+CT beside the official code, in float64: network, heads, loss, LARS, schedule."""
from ast import literal_eval
import numpy as np, pytest, torch
from helpers import families, fill_slots, golden, hash_images
from sslnb.models.create import create_backbone
from sslnb.data.supports import label_rows
from sslnb.train.model import SSLModel
from sslnb.methods.paws import PAWS
from sslnb.methods.simclr_ct import SimCLRCT
from sslnb.train.optim import make_opt, param_groups, warmup_cosine
from sslnb.models.paws_head import PAWSHead
from sslnb.checkpoints.paws import to_paws

D = golden('paws')


@pytest.mark.parametrize('case', families(D, 'trainstep'))
def test_steps(case):
    a, want = literal_eval(str(D[f'trainstep/{case}/args'])), D[f'trainstep/{case}/loss1_loss2_lr_larsavg_larsmin_larsmax']
    S, K, B = a['views'], a['classes'], a['B']
    bb = create_backbone('wide_resnet28w2', last_momentum=.99)
    m = SSLModel(bb, PAWSHead(bb.num_features, a['out'], a['pred'], n_large=S+2)).double().train()
    official = to_paws(m.state_dict())
    fill_slots(official, a['seed'], 1.)
    kw = dict(dim=a['out'], pred=a['pred'], temp=a['tau'], support_views=S)
    method = PAWS(**kw, sharpen=a['T']) if a['kind'] == 'paws' else SimCLRCT(**kw, support_images=a['n'])
    slots = torch.arange(K).repeat(a['n']*S)
    batch = {'support views': S, 'slots': slots, 'label rows': label_rows(slots, K, a['smoothing']).double()}
    opt = make_opt('lars_inside', [{k: v for k, v in g.items() if k != 'name'} for g in param_groups(m, a['wd'], no_decay='name')], a['lr'], momentum=.9, nesterov=a['nesterov'])
    lrs = warmup_cosine(3*a['steps'], a['lr'], a['final'], a['steps'], a['start'], top_twice=False)
    for t in range(a['steps']):
        make = lambda base, k, *shape: [hash_images(base+100*t+v, a['seed'], shape) for v in range(k)]
        out = m([*make(2000, S, K*a['n'], 3, 32, 32), *make(2010, 2, B, 3, 32, 32), *make(2020, a['mc'], B, 3, 18, 18)], batch)['out']
        loss = method.loss(out, batch)
        if a['kind'] == 'paws': np.testing.assert_allclose([p.item() for p in method.parts(out, batch)], want[t, :2], rtol=1e-6)
        np.testing.assert_allclose([loss.item(), lrs[t].item()], [want[t, :2].sum(), want[t, 2]], rtol=1e-6)
        opt.zero_grad(); loss.backward()
        eta = [1e-3*p.norm()/(p.grad.norm()+a['wd']*p.norm()+1e-8) for g in opt.param_groups if g['adapt'] for p in g['params'] if p.norm() > 0 and p.grad.norm() > 0]
        np.testing.assert_allclose([f(torch.stack(eta)).item() for f in (torch.mean, torch.min, torch.max)], want[t, 3:], rtol=1e-6)
        for g in opt.param_groups: g['lr'] = lrs[t].item()
        opt.step()
    params = {id(p) for p in m.parameters()}
    end = [v.detach() for k, v in to_paws(dict(m.named_parameters())).items()]
    assert len(end) == len(params)
    close = lambda got, key: np.testing.assert_allclose(got, D[f'trainstep/{case}/{key}'], rtol=1e-6, atol=1e-6)
    close([v.sum().item() for v in end], 'param_sums'); close([v.norm().item() for v in end], 'param_l2')
