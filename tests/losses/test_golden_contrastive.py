"""Contrastive losses beside the official code: NT-Xent in its three forms, the supervised contrast in all its variants, SuNCEt; one process and two."""
from ast import literal_eval
import numpy as np, pytest, torch
from helpers import T, families, fill_hash, golden
from sslnb.models.small import Conv4
from sslnb.losses.contrastive import nt_xent, selfcon_loss, sup_con, suncet
from sslnb.distributed import local, rank, run_ranks
from sslnb.train.model import SSLModel
from sslnb.methods.simclr import SimCLR

pytestmark = pytest.mark.quick

R,P,S = golden('relational'),golden('paws'),golden('selfcon')


def close(a, b, tol, more=0.):
    "Relative to the largest entry, and a tenth of it absolutely."
    a,b = (np.asarray(x.detach() if torch.is_tensor(x) else x, dtype=np.float64) for x in (a,b))
    assert a.shape==b.shape and np.isfinite(a).all()
    assert abs(a-b).max()<=tol*(abs(b).max()+.1)+more, (abs(a-b).max(), abs(b).max())


def graded(f, x):
    x = T(x).requires_grad_()
    loss = f(x); loss.backward()
    return loss, x.grad


def tol(x, single, double=1e-9): return double if x.dtype==np.float64 else single


# NT-Xent as in Relational Reasoning: rows 2i and 2i+1 are a pair, logarithm of the mean

interleaved = lambda x: [x[0::2],x[1::2]]
PAIRS = [c for c in families(R, 'ntxent') if f'ntxent/{c}/grad' in R]


def lost(x, t):
    "What the official code may lose: it subtracts exp(1/t) in float32, in the float64 case, too."
    u = torch.nn.functional.normalize(T(x).double())
    e = (u@u.T/t).exp().fill_diagonal_(0.)
    return 2**-23*np.exp(1/t)/e.sum(1).min().item()


@pytest.mark.parametrize('case', PAIRS)
def test_ntxent(case):
    x,t,want,grad = (R[f'ntxent/{case}/{k}'] for k in ('x','t','loss','grad'))
    loss,g = graded(lambda x: nt_xent(interleaved(x), float(t), 'log_mean'), x)
    close(loss, want, 1e-5, lost(x, t)); close(g, grad, 1e-5, lost(x, t))


@pytest.mark.parametrize('case', [c for c in families(R, 'ntxent') if f'ntxent/{c}/loss_exact' in R])
def test_ntxent_does_not_cancel(case):
    x,t,exact,official = (R[f'ntxent/{case}/{k}'] for k in ('x','t','loss_exact','loss_official_f32'))
    loss = nt_xent(interleaved(T(x)), float(t), 'log_mean')
    assert loss.dtype==torch.float32 and abs(loss-exact)<1e-5*abs(exact)<abs(official-exact)


# SimCLR and SuNCEt as in PAWS: view 1 then view 2, no gradient through the rows compared with

simclr = lambda z,tau: nt_xent(list(z.chunk(2)), tau, detach=True)


@pytest.mark.parametrize('case', families(P, 'simclr'))
def test_simclr(case):
    z,tau,want,grad = (P[f'simclr/{case}/{k}'] for k in ('z','tau','loss','grad_z'))
    loss,g = graded(lambda z: simclr(z, float(tau)), z)
    close(loss, want, tol(z, 5e-5)); close(g, grad, tol(z, 5e-5))


@pytest.mark.parametrize('case', families(P, 'suncet'))
def test_suncet(case):
    z,y,tau,want,grad = (P[f'suncet/{case}/{k}'] for k in ('z','labels','tau','loss','grad_z'))
    loss,g = graded(lambda z: suncet(z, T(y), float(tau)), z)
    close(loss, want, tol(z, 5e-5)); close(g, grad, tol(z, 5e-5))


def _both(tau):
    out = []
    for name,f in (('suncet', lambda z: suncet(z, local(T(P[f'dist2/suncet/rank{rank()}/labels'])), tau)), ('simclr', lambda z: simclr(z, tau))):
        loss,g = graded(f, P[f'dist2/{name}/rank{rank()}/z'])
        out.append((name, loss.item(), g.numpy()))
    return out


def test_two_processes():
    tau = literal_eval(str(P['dist2/contrastive_args']))['tau']
    for r,out in enumerate(run_ranks(_both, tau)):
        for name,loss,g in out: close(loss, P[f'dist2/{name}/rank{r}/loss'], 5e-5); close(g, P[f'dist2/{name}/rank{r}/grad_z'], 5e-5)


# Supervised contrast: features (B, views or exits, D), taken as they are

@pytest.mark.parametrize('case', families(S, 'con'))
def test_con(case):
    d = {k.split('/')[2]:S[k] for k in S if k.startswith(f'con/{case}/')}
    x,(temp,base) = d['features'],map(float, d['temp_base'])
    y,mask = (T(d[k]) if k in d else None for k in ('labels','mask'))
    crops = 2 if case.startswith(('selfcon_m_','selfcon_mu_')) else 1          # rows of the second crop after those of the first
    anchors = crops*(x.shape[1]-1) if case.endswith('_fg') else 'one' if case.endswith('_one') else 'all'
    views = lambda x: [v for e in x.unbind(1) for v in e.chunk(crops)]
    loss,g = graded(lambda x: sup_con(views(x), y, mask, temp, base, anchors, normalise=False), x)
    close(loss, d['loss'], tol(x, 1e-5)); close(g, d['grad'], tol(x, 1e-5))
    if case!='unnormalised': close(sup_con(views(T(x)), y, mask, temp, base, anchors), d['loss'], tol(x, 1e-5))


@pytest.mark.parametrize('case', [k.split('/')[1] for k in S if k.startswith('switch/') and '_mv' in k])
def test_switch(case):
    method,mv,lab,star,e = case.split('_')
    y,crops = T(S['switch/labels']),1+int(mv[-1])
    rows = lambda name: [T(r) for r in np.split(S[f'switch/{name}'], 2)][:crops]
    exits = [rows(f'sub{i+1}') for i in range(int(e[1:]))] if method=='SelfCon' else []
    labels = dict(Con=False, SupCon=True).get(method, lab=='lab1')             # the switch is SelfCon's alone
    loss = selfcon_loss(rows('main'), exits, y if labels else None, float(S['switch/alpha'])*(star=='star1'), float(S['switch/temp']))
    close(loss, S[f'switch/{case}'], 1e-5)


# SimCLR of Relational Reasoning: three steps of Adam on two views of one batch

def test_simclr_steps():
    m,seed = SimCLR(reduction='log_mean'),int(R['meta/fill_seed'])
    model = SSLModel(fill_hash(Conv4(), seed, var_lo=.5), fill_hash(m.head(64), seed+1))
    opt = torch.optim.Adam(model.parameters(), lr=m.recipe['lr'], weight_decay=m.recipe['wd'])
    for want in R['step/simclr/loss']:
        loss = m.loss(model(list(T(R['step/aug'][:2])), {})['out'])
        assert abs(loss.item()-want)<2e-3*abs(want)
        opt.zero_grad(); loss.backward(); opt.step()


# Batches at the edge: defined, finite, and 0 with no gradient where nothing belongs together

EDGES = dict(one_of_a_class=[0,0,1,2,2], each_alone=[0,1,2,3,4], one_class=[3]*5, some_without=[0,-1,0,-1,1], none=[-1]*5)
FORMS = dict(supcon_s=lambda a,b,y: sup_con([a], y), zero=lambda a,b,y: sup_con([a], y, singletons='zero'), supcon=lambda a,b,y: sup_con([a,b], y), one=lambda a,b,y: sup_con([a,b], y, anchors='one'),
             selfcon=lambda a,b,y: selfcon_loss([a], [[b]], y), selfcon_m=lambda a,b,y: selfcon_loss([a,b], [[b,a]], y), star=lambda a,b,y: selfcon_loss([a], [[b]], y, .5), suncet=lambda a,b,y: suncet(a, y))
ALONE = ('supcon_s','zero','suncet')                       # one row an image: without a class there is no positive


def edge(form, case):
    g = torch.Generator().manual_seed(0)
    a,b = (torch.randn(5, 4, generator=g).requires_grad_() for _ in range(2))
    y = torch.tensor(EDGES[case])
    loss = FORMS[form](a, b, y); loss.backward()
    return loss.item(), max(0 if x.grad is None else x.grad.abs().max().item() for x in (a,b))


@pytest.mark.parametrize('case', EDGES)
@pytest.mark.parametrize('form', FORMS)
def test_edge(form, case):
    loss,grad = edge(form, case)
    assert np.isfinite(loss) and loss>-1e-6 and np.isfinite(grad)
    if form in ALONE and case in ('each_alone','none'): assert (loss, grad)==(0, 0)
    elif (form,case)!=('suncet','one_class'): assert loss>0 and grad>0
    if case=='none' and form not in ALONE: assert abs(loss-edge(form, 'each_alone')[0])<1e-6      # -1 is a class of one's own, not one class for all


def _half(ys):
    y = torch.tensor(ys[rank()])
    x = torch.randn(len(y), 4, generator=torch.Generator().manual_seed(rank())).requires_grad_()
    loss = sup_con([x], y)+suncet(x, y); loss.backward()
    return loss.item(), x.grad.numpy()


@pytest.mark.parametrize('ys', ([[0,0,1],[2,3,-1]], [[0,1,2],[3,4,-1]]))
def test_a_process_without_positives(ys):
    (l0,g0),(l1,g1) = run_ranks(_half, ys)
    assert np.isfinite([l0,l1]).all() and np.isfinite(g0).all() and np.isfinite(g1).all() and l1==0
    assert (l0>0 and abs(g1).max()>0)==(ys[0][0]==ys[0][1])          # its rows are still negatives of the other's anchors
