"""Relational reasoning beside the official code: pairs, focal loss, head, three steps of training, learning rates, accuracy.

Other families of README-relational.md: bb (models/test_golden_backbones.py), ntxent and step/simclr (losses/test_golden_contrastive.py), dim and step/deepinfomax (losses/test_golden_infomax.py).
"""
from types import SimpleNamespace
import numpy as np, pytest, torch
from torch import nn
from torch.nn import functional as F
from helpers import T, close, families, fill_hash, golden
from sslnb.models.create import create_backbone
from sslnb.data.image_set import ImageSet
from sslnb.evaluate.linear_protocol import top_accuracy
from sslnb.train.schedule import RECIPE, check_recipe, schedule
from sslnb.train.model import SSLModel
from sslnb.methods.relation_net import RelationNet
from sslnb.run.recipes import load_recipe
from sslnb.losses.relation import AGGREGATIONS, RelationHead, focal_loss, pair_accuracy, relation_pairs
from sslnb.augment.views import k_views

pytestmark = pytest.mark.quick

D = golden('relational')
SEED = int(D['meta/fill_seed'])


@pytest.mark.parametrize('case', families(D, 'agg'))
def test_pairs(case):
    B,K,_ = D[f'agg/{case}/BKD']
    z = T(D[f'agg/{case}/features']).view(K, B, -1)
    found = [a for a in AGGREGATIONS if f'agg/{case}/{a}/pairs' in D]
    assert found
    for a in found:
        x,y = relation_pairs(z, a)
        np.testing.assert_array_equal(x.numpy(), D[f'agg/{case}/{a}/pairs'])
        np.testing.assert_array_equal(y.numpy(), D[f'agg/{case}/targets'])
        assert [int(y.sum()), int((1-y).sum())] == D[f'agg/{case}/counts'].tolist()


@pytest.mark.parametrize('case', families(D, 'focal'))
def test_focal(case):
    r,y,want,grad = (D[f'focal/{case}/{k}'] for k in ('logits','targets','loss','grad'))
    gamma,alpha = D[f'focal/{case}/gamma_alpha'].tolist()
    r = T(r).requires_grad_()
    loss = focal_loss(r, T(y), gamma, None if np.isnan(alpha) else alpha); loss.backward()
    tol = 1e-9 if loss.dtype==torch.float64 else 1e-5
    close(loss, want, tol); close(r.grad, grad, max(tol, 1e-4*(tol>1e-9)), 1e-6*(tol>1e-9)+1e-12)


@pytest.mark.parametrize('agg', families(D, 'head'))
def test_head(agg):
    d = {k:D[f'head/{agg}/{k}'] for k in ('scores','focal','bce','grad_focal','bn_running_mean','scores_eval')}
    B,K = D[f'head/{agg}/BK']
    z = T(D[f'head/{agg}/features']).view(K, B, -1).requires_grad_()
    head = fill_hash(RelationHead(z.shape[2], agg, len(d['bn_running_mean'])), SEED+1)
    s = head(list(z)).flatten()
    y = relation_pairs(z.detach())[1]
    close(s, d['scores'], 1e-4, 1e-5)
    loss = focal_loss(s, y); loss.backward()
    close(loss, d['focal'], 1e-5); close(focal_loss(s, y, 0., None), d['bce'], 1e-5); close(F.binary_cross_entropy_with_logits(s, y), d['bce'], 1e-5)
    close(z.grad.flatten(0,1), d['grad_focal'], 1e-4, 1e-6)
    close(head.bn1.running_mean, d['bn_running_mean'], 1e-4, 1e-6)
    with torch.no_grad(): close(head.eval()(list(z)).flatten(), d['scores_eval'], 1e-4, 1e-5)


@pytest.mark.parametrize('agg', [f[len('relationnet_'):] for f in families(D, 'step') if f.startswith('relationnet_')])
def test_three_steps(agg):
    views,m = list(T(D['step/aug'])),RelationNet(agg)
    bb = fill_hash(create_backbone('conv4'), SEED, var_lo=.5)
    model = SSLModel(bb, fill_hash(m.head(bb.num_features), SEED+1)).train()
    opt = torch.optim.Adam(model.parameters(), lr=m.recipe['lr'], weight_decay=m.recipe['wd'])
    wants = D[f'step/relationnet_{agg}/loss'],D[f'step/relationnet_{agg}/score']
    for n,(want,score) in enumerate(zip(*wants)):
        s = model(views, {})['out']
        loss = m.loss(s); opt.zero_grad(); loss.backward(); opt.step()
        close(loss, want, 1e-5 if n==0 else 2e-3)
        assert abs(100*pair_accuracy(s).item()-score) < (.01 if n==0 else 200.1/s.numel())      # after a step, pairs at the edge may fall to the other side
        assert m.right[-1]==pair_accuracy(s)


def test_the_short_script_as_a_recipe():
    r = load_recipe('relation_net/essential')
    assert [r[k] for k in ('bs','k','bce','opt','lr','wd','epochs','scale','jitter')]==[64, 4, True, 'adam', 1e-3, 0, 10, (.08,1.), (.8,.8,.8,.2)]
    fit = check_recipe({k:v for k,v in r.items() if k in RECIPE})
    assert schedule(fit, 7, r['bs']).tolist()==pytest.approx([1e-3]*70)


def test_steps_of_the_rate():
    "Supervised training, and fine-tuning of backbone and classifier: a tenth after half and three quarters of the epochs."
    E = int(D['lr/tot_epochs'])
    for name in ('train','finetune'):
        want = D[f'lr/{name}']
        for column in want.T:
            r = check_recipe(dict(lr=float(column[0]), lr_rule='none', decay_at=[int(.5*E),int(.75*E)], final_lr=None, lr_each='epoch', epochs=E))
            close(schedule(r, 1, 128), column, 1e-9)


class Given(nn.Module):
    "Answers with logits that were given."
    amp = None
    def __init__(self, logits): super().__init__(); self.logits = nn.Parameter(logits)
    def forward(self, views, batch): return dict(out=[self.logits[batch['idx']]])


def test_accuracy():
    logits,y = T(D['acc/logits']),T(D['acc/targets'])
    ds = ImageSet(torch.zeros(len(y), 3, 8, 8, dtype=torch.uint8), y)
    learn = SimpleNamespace(model=Given(logits), dls=SimpleNamespace(valid=SimpleNamespace(ds=ds)), views=k_views(8, k=1))
    for bs in (5,256): close(100*top_accuracy(learn, (1,), bs=bs)[1], D['acc/top1'], 1e-6)
