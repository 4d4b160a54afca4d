"SwAV in the cases that its notebook has no room for: the queue and a kill, bad settings, tiny eps, several crops, hard codes; and no NaN in the weights."
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from helpers import quiet, same_state, stop_at
from sslnb.all import *
from sslnb.methods.swav import SwAVHead

BS,N = 64,328                                           # 5 steps an epoch


def tiny(views=None, bs=BS, **kw):
    a,b = digits()
    dls = ssl_dls((a.subset(range(N)),b), bs=bs, device='cpu')
    return quiet(ssl_learner(dls, 'conv4', SwAV(**{'hidden':32, 'dim':16, **kw}), views={**SwAV.tiny_views, **(views or {})}))

FIT = dict(opt='larc', lr=.3, lr_rule='none', warmup=0, start_lr=0., final_lr=.01)


@pytest.mark.parametrize('stop', (8, 10, 13, 17))      # while the queue fills, as it gets full at the end of an epoch, in its use, later
def test_killed_with_a_queue_and_resumed_is_never_stopped(tmp_path, stop):
    kw = dict(queue=256, queue_start=1.2, freeze=1.6)   # filled in steps 6 to 9, used from step 10; prototypes move from step 8
    whole = tiny(**kw)
    seen = []
    class Watch(Callback):
        def before_step(self):
            h = self.learn.model.head
            seen.append((h.queues[0].full, h.prototypes.weight.grad is None))
    whole.fit_ssl(4, **FIT, cbs=Watch())
    assert [f for f,_ in seen]==[False]*10+[True]*10 and [g for _,g in seen]==[True]*8+[False]*12
    part = tiny(**kw).fit_ssl(4, **FIT, run=tmp_path, cbs=stop_at(stop))
    assert part.stopped and part.model.step==stop
    state = load_file(tmp_path/'checkpoint.pt')['model']
    same_state({k:v for k,v in part.model.state_dict().items() if torch.is_tensor(v)}, {k:v for k,v in state.items() if torch.is_tensor(v)})
    assert {'head.queues.0.rows','head.queues.1.state','head.prototypes.weight'}<=set(state)
    again = tiny(**kw).fit_ssl(4, **FIT, run=tmp_path, resume=True)
    same_state(whole.model.state_dict(), again.model.state_dict())
    assert whole.recorder.losses==again.recorder.losses


def test_the_queue_counts():
    losses = {q: tiny(queue=q, queue_start=0, freeze=0).fit_ssl(1, **FIT).recorder.losses for q in (0,128)}
    assert losses[0][:2]==losses[128][:2] and losses[0][2]!=losses[128][2], 'used from the step after it is full'


def test_frozen_prototypes_stay_as_drawn():
    for opt in ('larc','adamw'):
        learn = tiny(queue=0, freeze=.8); before = learn.model.head.prototypes.weight.detach().clone()
        class Watch(Callback):
            seen = []
            def after_step(self): self.seen.append(torch.allclose(self.learn.model.head.prototypes.weight, before, atol=1e-6, rtol=0))
        learn.fit_ssl(1, **{**FIT, 'opt':opt, 'wd':.1}, cbs=Watch())
        assert Watch.seen==[True]*4+[False], opt


@pytest.mark.parametrize('kw', (dict(hard=True), dict(hidden=0), dict(dim=0), dict(bn=False), dict(assign_crops=(1,)), dict(assign_crops=(0,1,3)), dict(n_prototypes=2), dict(n_prototypes=328, queue=320), dict(sinkhorn_iters=10)))
def test_settings_train(kw):
    learn = tiny(**{'queue':64, 'queue_start':0, 'freeze':0, **kw}).fit_ssl(2, **FIT)
    assert all(map(np.isfinite, learn.recorder.losses))
    assert len(learn.model.head.queues)==len(kw.get('assign_crops', (0,1)))
    assert all(p.isfinite().all() for p in learn.model.parameters())


@pytest.mark.parametrize('eps', (1e-2, 1e-3, 1e-6))
@pytest.mark.parametrize('precision', ('fp32', 'bf16'))
def test_no_nan_with_a_tiny_eps(eps, precision):
    learn = tiny(eps=eps, queue=64, queue_start=0, freeze=0).fit_ssl(2, **FIT, precision=precision)
    assert all(map(np.isfinite, learn.recorder.losses))
    assert all(v.isfinite().all() for v in learn.model.state_dict().values() if torch.is_tensor(v) and v.is_floating_point())


@pytest.mark.parametrize('kw,words', (
    (dict(n_prototypes=1), 'at least 2'), (dict(n_prototypes=2.5), 'whole number'), (dict(n_prototypes=1000), 'not enough'),
    (dict(queue=32), 'use 64, or 0'), (dict(queue=100), '64 or 128'), (dict(queue=-64), 'expected a number'), (dict(queue=640), 'more than once'),
    (dict(eps=0.), 'above 0'), (dict(temp=-.1), 'above 0'), (dict(sinkhorn_iters=0), 'at least 1'), (dict(assign_crops=()), 'numbers of views'), (dict(assign_crops=(0,0)), 'each once')))
def test_bad_settings(kw, words):
    with pytest.raises(ValueError, match=words): tiny(**kw)


def test_codes_from_a_view_that_is_not_there():
    with pytest.raises(ValueError, match='there are views 0 to 3'): tiny(assign_crops=(0,4)).fit_ssl(1, **FIT)


def test_more_prototypes_than_images_at_hand_are_spoken_of():
    with pytest.warns(UserWarning, match='spread over several'): tiny(n_prototypes=100, queue=0)


def test_a_nan_stops_the_run_before_it_is_kept(tmp_path):
    class Poison(Callback):
        order = 30
        def before_step(self):
            if self.learn.model.step==7: next(self.learn.model.parameters()).data.fill_(float('nan'))
    with pytest.raises(FloatingPointError): tiny(queue=64, queue_start=0).fit_ssl(3, **FIT, run=tmp_path, cbs=Poison())
    state = load_file(tmp_path/'checkpoint.pt')['model']
    assert all(v.isfinite().all() for v in state.values() if torch.is_tensor(v) and v.is_floating_point())


def test_official_settings_of_views_and_rates():
    learn = tiny(queue=0)
    own = SwAV.view_settings
    views = SwAV.views(224, mean=[.5]*3, std=[.25]*3, **own)
    assert [s for s in views.sizes]==[224]*2+[96]*6
    assert [tuple(a.scale) for a in views.augs]==[(.14,1.)]*2+[(.05,.14)]*6
    assert {(a.blur, tuple(a.jitter), a.interpolation) for a in views.augs}=={(.5, (.8,.8,.8,.2), 'bilinear')}
    r = check_recipe(SwAV.recipe)
    assert [round(r[k]*4096/256, 6) for k in ('lr','start_lr','final_lr')]==[4.8,.3,.0048] and (r['wd'],r['warmup'],r['opt'])==(1e-6,10,'larc')
    assert isinstance(learn.model.head, SwAVHead)
