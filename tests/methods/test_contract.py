"""The contract on every registered method, and Self-Classifier in the cases that its notebook has no room for."""
import pytest, torch
from fastai.callback.core import Callback
from helpers import quiet
from sslnb.all import *

@pytest.mark.parametrize('name', sorted(methods()))
def test_contract(name): test_method(methods()[name])


def test_names_and_recipes():
    for name,cls in methods().items():
        assert cls.__doc__ and 'http' in cls.__doc__, f'{name}: one line with the address of its paper'
        check_recipe(cls.recipe)


def tiny(method, **kw):
    return quiet(ssl_learner(ssl_dls('digits', bs=256, device='cpu'), 'conv4', method, views=dict(flip=0.), **kw))


def test_multi_crop_sees_every_resolution():
    m = SelfClassifier(hidden=64, queue=0)
    learn = tiny(m, size=16)
    seen = []
    learn.model.backbone.register_forward_hook(lambda mod,x,y: seen.append(tuple(x[0].shape)))
    learn.fit_ssl(1, opt='adamw', lr=1e-3, run=None)
    assert {s[-1] for s in seen}==set(learn.views.sizes) and all(s[0] in (2*256,6*256) for s in seen)


@pytest.mark.parametrize('kw', (
    dict(n_layers=0, dim=64), dict(n_layers=1), dict(n_layers=3, leaky=False, bn=False), dict(fixed=True),
    dict(classes=[7,11]), dict(classes=12), dict(nn_aug=False)), ids=str)
def test_ablations_build_and_step(kw):
    learn = tiny(SelfClassifier(hidden=32, **{'queue':300, **kw})).fit_ssl(1, opt='adamw', lr=1e-3)
    assert all(map(np.isfinite, learn.recorder.losses))
    if kw.get('fixed'): assert not any(p.requires_grad for n,p in learn.model.named_parameters() if '.cls_' in n)


@pytest.mark.parametrize('kw', (
    dict(learnable=True), dict(n_layers=0), dict(n_layers=3, normalise_rows=True), dict(classes=300, dim=16),
    dict(batch_local=True, n_classifiers=1)), ids=str)
def test_version_1_in_all_its_settings(kw):
    learn = tiny(SelfClassifierV1(**{'hidden':32, 'n_classifiers':3, **kw}))
    before = [w.clone() for w in learn.model.head.cls]
    learn.fit_ssl(1, opt='adamw', lr=1e-3)
    assert all(map(np.isfinite, learn.recorder.losses))
    assert all(torch.equal(a, b)!=kw.get('learnable', False) for a,b in zip(before, learn.model.head.cls))
    assert all(p.requires_grad==kw.get('learnable', False) for p in learn.model.head.cls)


@pytest.mark.parametrize('kw,words', (
    (dict(queue=100), 'longer than a batch'), (dict(queue=5000), 'the image itself'), (dict(classes=[1]), 'at least 2')))
def test_bad_settings(kw, words):
    with pytest.raises(ValueError, match=words): tiny(SelfClassifier(**kw))


@pytest.mark.parametrize('opt,lr', (('larc',.3),('lars',.3),('sgd',.05),('adamw',1e-3),('adam',1e-3)))
def test_every_optimiser_of_the_paper(opt, lr):
    more = dict(clip=1., backbone_wd=1e-4, no_decay=True)
    learn = tiny(SelfClassifier(hidden=32, queue=0)).fit_ssl(1, opt=opt, lr=lr, **more)
    assert all(map(np.isfinite, learn.recorder.losses))


def test_no_nan_reaches_a_file(tmp_path):
    class Poison(Callback):
        order = 30
        def before_step(self):
            if bare(self.learn.model).step==7: next(self.learn.model.parameters()).data.fill_(float('nan'))
    learn = tiny(SelfClassifier(hidden=32, queue=0))
    with pytest.raises(FloatingPointError): learn.fit_ssl(3, opt='adamw', run=tmp_path, cbs=Poison())
    state = load_file(tmp_path/'checkpoint.pt')['model']
    assert all(v.isfinite().all() for v in state.values() if torch.is_tensor(v) and v.is_floating_point())
    with pytest.raises(ValueError, match='NaN'): export_backbone(learn.model.backbone, tmp_path/'b.safetensors')
    assert not (tmp_path/'b.safetensors').exists()
