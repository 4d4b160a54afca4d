"""Files in the layouts that SwAV's authors published, written here with a small network: loaded, complete or not, looked through, and trained on."""
from functools import cache
import numpy as np, pytest, torch
from torch import nn
from sslnb.models.create import create_backbone
from sslnb.core import bare
from sslnb.data.loader import ssl_dls
from sslnb.checkpoints.export import export_backbone, load_backbone
import sslnb.train.fit
from sslnb.checkpoints.layouts import weights
from sslnb.train.model import SSLModel
from sslnb.train.learner import ssl_learner
from sslnb.methods.swav import SwAV
from sslnb.app.networks import open_backbone
from sslnb.checkpoints.released import load_linear, load_official
from sslnb.models.prototypes import PrototypeHead
from sslnb.checkpoints.swav import to_swav, swav_std

X = torch.rand(4, 3, 64, 64)


@cache
def made(prototypes=9, bb='resnet18', **kw):
    "A small network with a head, made once for all tests: none of them changes it."
    torch.manual_seed(0)
    b = create_backbone(bb, size=224)
    m = SSLModel(b, PrototypeHead(b.num_features, **{'dim': 6, 'hidden': 10, **kw}, prototypes=prototypes))
    with torch.no_grad(): m([X]*2, {})                       # running statistics that are not those of the start
    return m.eval()


def official(m, wrapped=False):
    sd = {f'module.{k}': v for k, v in to_swav(m.state_dict()).items()}
    return dict(epoch=400, state_dict=sd, optimizer=dict(state={0: dict(momentum_buffer=torch.ones(2))})) if wrapped else sd


@pytest.fixture
def save(tmp_path):
    def f(o, name='swav_800ep_pretrain.pth.tar'): torch.save(o, tmp_path/name); return tmp_path/name
    return f


def out(m):
    with torch.no_grad(): o = m([X, X[:, :, :48, :48]], {})['out']
    return torch.cat(o['z']), [torch.cat(s) for s in o['scores']]


KINDS = {'swav': (9, {}), 'wrapped': (9, {}), 'no bn': (9, dict(bn=False)), 'one layer': (9, dict(hidden=0)), 'three sets': ((9, 7, 9), {}), 'one of several': ((9,), {}), 'no prefix': (9, {})}

@pytest.mark.parametrize('kind', KINDS)
def test_files_of_all_kinds(save, kind):
    prototypes, kw = KINDS[kind]
    a = made(prototypes, **kw)
    sd = official(a, kind == 'wrapped')
    b = load_official(save({k.removeprefix('module.'): v for k, v in sd.items()} if kind == 'no prefix' else sd))
    assert b.meta['layout'] == ('SwAV' if isinstance(prototypes, int) else 'DeepCluster-v2 or SeLa-v2') and not b.training
    assert b.meta['epoch'] == (400 if kind == 'wrapped' else None) and b.backbone.created['name'] == 'resnet18'
    (z, s), (z2, s2) = out(a), out(b)
    assert torch.equal(z, z2) and len(s) == len(s2) and all(map(torch.equal, s, s2))


def test_the_second_layer_under_the_number_it_has_with_batch_norm(save):
    a = made(bn=False)
    b = load_official(save({k.replace('head.2.', 'head.3.'): v for k, v in official(a).items()}))
    assert torch.equal(out(a)[0], out(b)[0])


def without(sd, *words): return {k: v for k, v in sd.items() if not any(w in k for w in words)}

def test_without_prototypes(save):
    a = made()
    b = load_official(save(without(official(a), 'prototypes')))
    assert torch.equal(out(a)[0], out(b)[0]) and out(b)[1] == [] and b.meta['layout'] == 'SwAV'


def test_without_a_projection_it_is_said(save):
    a = made()
    with pytest.warns(UserWarning, match='prototypes but no projection to them: only its backbone is taken'): b = load_official(save(without(official(a), 'projection')))
    assert isinstance(b.head, nn.Identity) and b.backbone.meta['std'] == swav_std


def test_fine_tuned_with_few_labels(save):
    "The official fine-tuning keeps its classifier where the projection was."
    sd = without(official(made(), True)['state_dict'], 'projection', 'prototypes')
    with pytest.warns(UserWarning, match='perhaps a classifier'):
        b = load_official(save(dict(epoch=20, state_dict={**sd, 'module.projection_head.weight': torch.zeros(10, 512), 'module.projection_head.bias': torch.zeros(10)})))
    assert isinstance(b.head, nn.Identity)


def test_a_backbone_alone_and_as_torchvision_has_it(save):
    a = made()
    sd = without(official(a), 'projection', 'prototypes')
    for more in ({}, {'module.fc.weight': torch.zeros(10, 512), 'module.fc.bias': torch.zeros(10)}):      # torch.hub adds a classifier that was never trained
        b = load_official(save({**sd, **more}))
        with torch.no_grad(): assert torch.equal(a.backbone(X), b.backbone(X)) and isinstance(b.head, nn.Identity)
        assert b.meta['layout'] == 'backbone'


def test_twice_as_wide(save):
    b = create_backbone('resnet18w2', size=224).eval()
    again = load_official(save(b.state_dict()))
    assert again.backbone.created['name'] == 'resnet18w2' and again.backbone.num_features == 1024
    with torch.no_grad(): assert torch.equal(b(X), again.backbone(X))


@pytest.mark.parametrize('words,change', [
    ('missing: backbone.layer3.*: 30 tensors', lambda sd: without(sd, 'layer3')),
    ('head.prototypes.weight is 9x5 in the file, expected 9x6', lambda sd: {**sd, 'module.prototypes.weight': torch.zeros(9, 5)}),
    ('left over: head.projection_head.7.*: 2 tensors', lambda sd: {**sd, 'module.projection_head.7.bias': torch.zeros(6), 'module.projection_head.7.weight': torch.zeros(3)}),
    ('NaN or infinity in head.prototypes.weight', lambda sd: {**sd, 'module.prototypes.weight': torch.full((9, 6), float('nan'))})])
def test_what_does_not_fit_is_said(save, words, change):
    path = save(change(official(made())))
    with pytest.raises(ValueError) as e: load_official(path)
    assert words in str(e.value) and str(path) in str(e.value) and '\n' not in str(e.value), str(e.value)


def test_deviation_goes_with_the_network(save, tmp_path, capsys):
    path = save(official(made()))
    net = open_backbone(path, size=64, device='cpu')
    assert tuple(net.std) == swav_std and tuple(net.mean) == (.485, .456, .406) and capsys.readouterr().out == ''
    x = (X*255).byte()
    white = net.prepare(torch.full((1, 3, 8, 8), 255, dtype=torch.uint8))
    assert white[0, :, 0, 0].tolist() == pytest.approx([(1-m)/s for m, s in zip(net.mean, net.std)], rel=1e-5)
    b = load_backbone(export_backbone(net.backbone, tmp_path/'b.safetensors'))
    assert tuple(b.meta['std']) == swav_std
    features, clusters, logits = net.look(x)
    assert net.clusters == 9 and logits.shape == (4, 9) and clusters.tolist() == logits.argmax(1).tolist()


def test_the_published_classifier(save):
    a = made()
    linear = nn.Linear(512, 10)
    path = save(dict(epoch=100, state_dict={f'module.linear.{k}': v for k, v in linear.state_dict().items()}, best_acc=75.3, scheduler=dict(last_epoch=100)), 'swav_800ep_eval_linear.pth.tar')
    f = a.backbone(X)
    assert torch.equal(load_linear(path)(f), linear(f))
    with pytest.raises(ValueError, match='load_linear'): load_official(path)
    with pytest.raises(ValueError, match='holds no linear layer: bn1.weight'): load_linear(save({'bn1.weight': torch.zeros(3)}, 'x.pth'))
    with pytest.raises(ValueError, match='left over'): load_linear(save({'linear.weight': torch.zeros(3, 4), 'bn.weight': torch.zeros(4)}, 'y.pth'))


def learner(**kw):
    m = SwAV(**{**dict(n_prototypes=9, dim=6, hidden=10, queue=0), **kw})
    learn = ssl_learner(ssl_dls((torch.randint(256, (96, 3, 32, 32)).byte(), torch.arange(96) % 3), bs=32, device='cpu'), 'resnet18', m, size=32, stem='imagenet', views=dict(n_local=2))
    learn.said = []
    learn.logger = learn.said.append
    return learn

def test_to_begin_with(save):
    a = made()
    path = save(official(a))
    same = lambda b, start: [torch.equal(v, weights(b.model)[k]) for k, v in weights(a).items() if k.startswith(start)]
    b = learner(queue=32, queue_start=0).init_from(path)
    assert all(same(b, '')) and bare(b.model).step == 0
    b.fit_ssl(1, warmup=0)
    assert np.isfinite(b.recorder.losses).all() and not all(same(b, 'backbone.'))
    c = learner(n_prototypes=12).init_from(path, 'mlp')                          # another number of prototypes: all but them
    assert all(same(c, 'backbone.')) and all(same(c, 'head.projection_head.'))
    with pytest.raises(ValueError, match='head.prototypes.weight is 9x6 in the file, expected 12x6'): learner(n_prototypes=12).init_from(path)
