"""DeepCluster-v2 and SeLa-v2 in the cases that their notebooks have no room for: stopped and taken up again, settings that cannot be, images in files."""
from functools import cache
import pytest, torch
from PIL import Image
from fastai.callback.core import Callback
from helpers import quiet, same_state, stop_at
from sslnb.all import *

BOTH = pytest.mark.parametrize('cls', (DeepClusterV2, SeLaV2))
FIT = dict(opt='adamw', lr=3e-3, warmup=0)
a,b = digits()


def make(cls, n=200, bs=40, data=None, **kw):
    return quiet(ssl_learner(ssl_dls(data or (a.subset(range(n)),b.subset(range(50))), bs=bs, device='cpu'), 'conv4', cls(**{**cls.tiny, **kw}), views=cls.tiny_views))


def same(x, y): same_state(*({k:v for k,v in l.model.state_dict().items() if torch.is_tensor(v)} for l in (x,y)))


@cache
def never_stopped(cls): return make(cls, n=120).fit_ssl(3, **FIT)

@BOTH
@pytest.mark.parametrize('stops', ([1], [5], [6], [2,7]), ids=str)
def test_stopped_anywhere_and_taken_up_again(cls, tmp_path, stops):
    "Three steps an epoch: after the first step, inside the second epoch, at its end, and twice."
    for k,stop in enumerate(stops):
        assert make(cls, n=120).fit_ssl(3, **FIT, run=tmp_path, resume=k>0, cbs=stop_at(stop)).stopped
    again = make(cls, n=120).fit_ssl(3, **FIT, run=tmp_path, resume=True)
    same(never_stopped(cls), again)
    assert never_stopped(cls).recorder.losses==again.recorder.losses


@BOTH
def test_state_is_saved_to_the_bit(cls, tmp_path):
    learn = make(cls, n=210).fit_ssl(2, **FIT, run=tmp_path)           # ten images of every epoch are left out
    state,own = load_file(tmp_path/'checkpoint.pt')['model'],learn.model.state_dict()
    for k in ('head.bank.rows','head.bank.seen','head.labels',*(f'head.prototypes.prototypes{h}.weight' for h in range(3))): assert torch.equal(state[k], own[k]), k
    new = make(cls, n=210); new.model.load_state_dict(state); same(learn, new)
    assert own['head.bank.seen'].sum()>200 and own['head.bank.rows'].norm(dim=2)[:,own['head.bank.seen']].sub(1).abs().max()<1e-5


@BOTH
def test_labels_change_at_the_start_of_an_epoch_only(cls):
    seen = []
    class Watch(Callback):
        def after_batch(self): seen.append(self.learn.model.head.labels.clone())
    learn = make(cls, n=210).fit_ssl(3, **FIT, cbs=Watch())
    for e in range(3): assert all(torch.equal(seen[5*e], l) for l in seen[5*e:5*e+5])
    assert not torch.equal(seen[0], seen[5]) and not torch.equal(seen[5], seen[10])
    assert (seen[0]==-100).sum(1).tolist()==[10]*3                     # no embedding before the first epoch
    assert all(s.amax()<k for s,k in zip(seen[-1], learn.method.sizes))
    rows = learn.model.head.bank.rows.clone()
    learn.fit_ssl(1, **FIT)                                            # a further fit begins with the bank as it is
    assert learn.model.epoch==4 and not torch.equal(rows, learn.model.head.bank.rows)


def test_prototypes_of_deepcluster_are_never_trained():
    seen = []
    class Watch(Callback):
        order = 99
        def before_step(self): seen.append([p.weight.clone() for p in self.learn.model.head.sets]); assert all(p.weight.grad is None for p in self.learn.model.head.sets)
    learn = make(DeepClusterV2).fit_ssl(2, opt='sgd', lr=.1, wd=.1, momentum=.9, warmup=0, cbs=Watch())
    for e in range(2): assert all(torch.equal(x, y) for k in range(5) for x,y in zip(seen[5*e], seen[5*e+k]))
    mine = {id(p) for g in learn.opt.opt.param_groups for p in g['params']}
    for p in learn.model.head.sets:
        assert id(p.weight) not in mine
        torch.testing.assert_close(p.weight.norm(dim=1), torch.ones(len(p.weight)))


@pytest.mark.parametrize('frozen', (0,1,2))
def test_prototypes_of_sela_wait_then_learn(frozen):
    seen = []
    class Watch(Callback):
        order = 99
        def before_step(self): seen.append(self.learn.model.head.sets[0].weight.detach().clone())
    make(SeLaV2, freeze=frozen).fit_ssl(3, opt='sgd', lr=.1, wd=.1, momentum=.9, warmup=0, cbs=Watch())
    for w in seen: torch.testing.assert_close(w.norm(dim=1), torch.ones(len(w)))
    moved = [(w-seen[0]).abs().max()>1e-6 for w in seen]
    assert moved==[k>5*frozen for k in range(15)]


BAD = ((dict(n_prototypes=(10,201)), '201 clusters of 200 images'), (dict(n_prototypes=[1]), 'at least 2'),
       (dict(n_prototypes=[]), 'at least 2'), (dict(temp=0.), 'above 0'), (dict(assign_crops=()), 'such as'), (dict(assign_crops=(-1,)), 'such as'))

@pytest.mark.parametrize('cls,kw,words', (
    *((c, *bad) for c in (DeepClusterV2, SeLaV2) for bad in BAD), (DeepClusterV2, dict(kmeans_iters=-1), 'expected'),
    (SeLaV2, dict(eps=0.), 'expected'), (SeLaV2, dict(max_iters=0), 'expected')))
def test_bad_settings(cls, kw, words):
    with pytest.raises(ValueError, match=words): make(cls, **kw)


@BOTH
def test_views_that_are_not_there(cls):
    with pytest.raises(ValueError, match='there are 4 views'): make(cls, assign_crops=(0,4)).fit_ssl(1, **FIT)


@BOTH
@pytest.mark.parametrize('kw', (
    dict(n_prototypes=[7]), dict(n_prototypes=12, hidden=0), dict(n_prototypes=(5,9), assign_crops=(1,)),
    dict(n_prototypes=(5,9,3,4), assign_crops=(0,1,2), bn=False), dict(n_prototypes=[200])), ids=str)
def test_other_settings(cls, kw):
    learn = make(cls, **kw).fit_ssl(2, **FIT)
    assert all(map(np.isfinite, learn.recorder.losses))
    assert len(learn.model.head.bank.rows)==len(kw.get('assign_crops', (0,1)))
    assert clusters(learn, b.subset(range(50)).images).max()<learn.method.sizes[0]


@pytest.mark.parametrize('eps', (1e-3, 1e-6))
def test_tiny_eps_gives_no_nan(eps):
    learn = make(SeLaV2, eps=eps).fit_ssl(1, **FIT)
    assert all(map(np.isfinite, learn.recorder.losses)) and learn.model.head.labels.min()>=0


@BOTH
def test_images_in_files(cls, tmp_path):
    "Two of them break off: the next one stands in the place of each, twice in one batch perhaps; they have no label themselves."
    for i in range(80): Image.fromarray(a.images[i,0].numpy()).resize((20+i%3,24)).save(tmp_path/f'{i:03}.png')
    dls = ssl_dls(tmp_path, bs=16, device='cpu')
    for i in (40,60): (f:=tmp_path/f'{i:03}.png').write_bytes(f.read_bytes()[:-30])
    learn = ssl_learner(dls, 'conv4', cls(**cls.tiny), views=cls.tiny_views, size=16)
    quiet(learn).fit_ssl(3, **FIT)
    h,bad = learn.model.head,sorted(dls.train.ds.bad)
    assert bad and (~h.bank.seen).nonzero().flatten().tolist()==bad
    assert all(map(np.isfinite, learn.recorder.losses)) and (h.labels[:,h.bank.seen]>=0).all() and (h.labels[:,bad]==-100).all()
