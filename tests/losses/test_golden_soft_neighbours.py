"""The losses of PAWS beside the official code.

Other families of README-paws.md: models, optim, sched (models/test_golden_paws_networks.py).
"""
import ast
import numpy as np, pytest
from helpers import T, families, golden, near
from sslnb.distributed import rank, run_ranks
from sslnb.losses.soft_neighbours import crop_targets, paws_loss, sharpen, soft_neighbours

pytestmark = pytest.mark.quick

D = golden('paws')


def close(got, key, f64=1e-9, f32=5e-5):
    "Within a share of the array's maximum."
    near(got, D[key], f64 if D[key].dtype == np.float64 else f32, key)


@pytest.mark.parametrize('p', [f'snn/{k}/{i}' for k in families(D, 'snn') for i in families(D, f'snn/{k}')])
def test_soft_neighbours(p):
    q, s = (T(D[f'{p}/{k}']).requires_grad_() for k in ('query', 'supports'))
    out = soft_neighbours(q, s, T(D[f'{p}/labels']), float(D[f'{p}/tau'])).exp()
    (out*T(D[f'{p}/w'])).sum().backward()
    close(out.detach(), f'{p}/out'); close(q.grad, f'{p}/grad_query'); close(s.grad, f'{p}/grad_supports')


def test_evaluation():
    close(soft_neighbours(T(D['snn_eval/query']), T(D['snn_eval/embs']), T(D['snn_eval/labels']), float(D['snn_eval/temp'])).exp(), 'snn_eval/out')


@pytest.mark.parametrize('i', families(D, 'sharpen'))
def test_sharpen(i):
    close(sharpen(T(D[f'sharpen/{i}/p']).log(), float(D[f'sharpen/{i}/T'])), f'sharpen/{i}/out')


INPUTS = dict(views='anchor_views', supports='anchor_supports', target_views='target_views', target_supports='target_supports', labels='labels')

def ours(p, **kw):
    "Loss and gradients of the arrays under `p`, in float64: what is left is the rounding of the official float32, on any machine."
    a = {k: T(D[f'{p}/{n}']).double() for k, n in INPUTS.items()}
    for k in ('views', 'supports'): a[k].requires_grad_()
    l = paws_loss(**a, **kw)
    sum(l).backward()
    return [x.item() for x in l], a['views'].grad.numpy(), a['supports'].grad.numpy()

def same(got, p):
    (ploss, rloss), gv, gs = got
    for k, v in dict(ploss=ploss, rloss=rloss, grad_anchor_views=gv, grad_anchor_supports=gs).items(): close(v, f'{p}/{k}')


@pytest.mark.parametrize('case', families(D, 'paws'))
def test_paws(case):
    p = f'paws/{case}'
    h = {k: D[f'{p}/{k}'].item() for k in ('tau', 'T', 'me_max', 'multicrop', 'batch')}
    same(ours(p, temp=h['tau'], sharp=h['T'], weight=float(h['me_max'])), p)
    close(soft_neighbours(*(T(D[f'{p}/{k}']) for k in ('anchor_views', 'anchor_supports', 'labels')), h['tau']).exp(), f'{p}/probs')
    t = sharpen(soft_neighbours(*(T(D[f'{p}/{k}']) for k in ('target_views', 'target_supports', 'labels')), h['tau']), h['T'])
    close(t, f'{p}/sharp_targets_2views')
    assert len(crop_targets(t, h['multicrop'])) == (2+h['multicrop'])*h['batch'] == len(D[f'{p}/anchor_views'])


PAIRS = [k for k in families(D, 'dist2') if k.startswith('paws')]

def test_paws_of_two_processes():
    args = {k: ast.literal_eval(str(D[f'dist2/{k}/args'])) for k in PAIRS}
    out = run_ranks(lambda: [ours(f'dist2/{k}/rank{rank()}', temp=args[k]['tau'], sharp=args[k]['T']) for k in PAIRS])
    for r, got in enumerate(out):
        for k, g in zip(PAIRS, got): same(g, f'dist2/{k}/rank{r}')
