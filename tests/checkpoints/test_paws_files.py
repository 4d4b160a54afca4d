"""Files in the layouts that PAWS's authors published, written here with small networks: loaded, refused, looked through on the command line, and trained on."""
import json
from functools import cache
import numpy as np, pytest, torch
from PIL import Image
from torch import nn
from helpers import quiet, sslnb
from sslnb.models.create import create_backbone
from sslnb.data.loader import ssl_dls
from sslnb.evaluate.support_accuracy import support_accuracy
from sslnb.checkpoints.export import load_backbone
from sslnb.checkpoints.layouts import LAYOUTS, weights
from sslnb.train.model import SSLModel
from sslnb.train.learner import ssl_learner
from sslnb.app.networks import open_backbone
from sslnb.models.paws_head import PAWSClassifier, PAWSHead
from sslnb.checkpoints.paws import to_paws
from sslnb.checkpoints.released import load_official

X = torch.rand(4, 3, 48, 48)


@cache
def made(bb='resnet18', tuned=False, **kw):
    "A small network with a head, made once for all tests: none of them changes it."
    torch.manual_seed(0)
    b = create_backbone(bb, size=32 if bb.startswith('wide') else 224)
    m = SSLModel(b, PAWSHead(b.num_features, 12, **kw))
    with torch.no_grad(): m([X]*2, {})                       # running statistics that are not those of the start
    if tuned: m = SSLModel(b, m.head.classifier(5, zero=False))
    return m.eval()


def official(m, prefix='module.', tuned=False):
    "What the published code saves, beside the network what else is in it."
    sd = {prefix+k: v for k, v in to_paws(m.state_dict()).items()}
    opt = dict(state={0: dict(momentum_buffer=torch.ones(2))}, param_groups=[dict(lr=.1, params=[0])])
    amp = dict(scale=65536., growth_factor=2.)
    if tuned: return dict(encoder=sd, opt=opt, sched=dict(last_epoch=50), epoch=50, unlabel_prob=.9, world_size=4, best_top1_acc=75.5, batch_size=256, lr=.02, amp=amp)
    return dict(encoder=sd, opt=opt, epoch=100, unlabel_prob=.9, loss=1.2, s_batch_size=7, u_batch_size=64, world_size=64, lr=6.4, temperature=.1, amp=amp)


@pytest.fixture
def save(tmp_path):
    def f(o, name='paws_imgnt_1percent_100ep.pth.tar'): torch.save(o, tmp_path/name); return tmp_path/name
    return f


def out(m):
    with torch.no_grad(): o = m([X, X[:, :, :32, :32]], {})['out']
    return torch.cat([torch.cat(v) for v in o.values()]) if isinstance(o, dict) else torch.cat(o)


KINDS = {'pre-trained': {}, 'narrow projection': dict(hidden=20), 'WRN': dict(bb='wide_resnet28w2', pred=False), 'fine-tuned': dict(tuned=True), 'fine-tuned WRN': dict(bb='wide_resnet28w2', tuned=True)}

@pytest.mark.parametrize('kind', KINDS)
def test_files_of_all_kinds(save, kind):
    kw = KINDS[kind]
    a, tuned = made(**kw), 'tuned' in kw
    forms = (official(a, tuned=tuned), official(a, '', tuned), official(a)['encoder'], dict(encoder=official(a)['encoder']))
    for o in forms[:4 if kind.endswith('WRN') else 1]:
        b = load_official(save(o))
        assert b.meta['layout'] == ('PAWS, fine-tuned' if tuned else 'PAWS') and b.meta['epoch'] == o.get('epoch') and not b.training
        assert b.backbone.created['name'] == kw.get('bb', 'resnet18') and isinstance(b.head, PAWSClassifier if tuned else PAWSHead)
        assert torch.equal(out(a), out(b))


@pytest.mark.parametrize('kind', ('WRN', 'fine-tuned'))
def test_the_order_of_imports_makes_no_difference(save, monkeypatch, kind):
    "Layouts are asked in the order in which their modules were imported; no other one takes these files for its own."
    monkeypatch.setattr('sslnb.checkpoints.layouts.LAYOUTS', dict(reversed(LAYOUTS.items())))
    kw = KINDS[kind]
    assert load_official(save(official(made(**kw), tuned='tuned' in kw))).meta['layout'].startswith('PAWS')


def test_a_backbone_alone(save):
    a = made()
    b = load_official(save(dict(encoder={f'module.{k}': v for k, v in a.backbone.state_dict().items()})))
    assert isinstance(b.head, nn.Identity)
    with torch.no_grad(): assert torch.equal(a.backbone(X), b.backbone(X))


def without(sd, *words): return {k: v for k, v in sd.items() if not any(w in k for w in words)}

@pytest.mark.parametrize('words,change', [
    ('missing: backbone.layer3.*: 30 tensors', lambda sd: without(sd, 'layer3')),
    ('missing: head.fc.fc3.*: 2 tensors', lambda sd: without(sd, 'fc.fc3')),
    ('left over: head.pred.fc3.weight', lambda sd: {**sd, 'module.pred.fc3.weight': torch.zeros(3, 3)}),
    ('head.pred.fc1.weight is 4x12 in the file, expected 3x12', lambda sd: {**sd, 'module.pred.fc1.weight': torch.zeros(4, 12)}),
    ('NaN or infinity in head.fc.fc2.bias', lambda sd: {**sd, 'module.fc.fc2.bias': torch.full((512,), float('nan'))})])
def test_what_does_not_fit_is_said(save, words, change):
    o = official(made())
    path = save(dict(o, encoder=change(o['encoder'])))
    with pytest.raises(ValueError) as e: load_official(path)
    assert words in str(e.value) and str(path) in str(e.value) and '\n' not in str(e.value), str(e.value)


def said(*argv):
    code, out, err = sslnb(*argv)
    assert code == 0, err
    return out

@pytest.mark.parametrize('tuned', (False, True))
def test_commands_take_the_file(save, tmp_path, monkeypatch, tuned):
    monkeypatch.chdir(tmp_path)
    for i in range(24):
        f = tmp_path/'photos'/'ab'[i % 2]/f'{i:02d}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 90+80*(i % 2), (32, 32, 3)).astype(np.uint8)).save(f)
    a = made(tuned=tuned)
    path = save(official(a, tuned=tuned))
    said('features', path, '--data', tmp_path/'photos', '--size', 32, '--out', 'f.npz')
    z = np.load('f.npz')
    net = open_backbone(path, size=32, device='cpu')
    photo = torch.from_numpy(np.array(Image.open(tmp_path/'photos'/str(z['names'][0]).replace('\\', '/')))).permute(2, 0, 1)[None]
    with torch.no_grad(): np.testing.assert_allclose(z['features'][:1], a.backbone(net.prepare(photo)), rtol=1e-3, atol=1e-4)
    assert z['features'].shape == (24, 512) and tuple(net.mean) == (.485, .456, .406)
    near = said('evaluate', path, '--data', tmp_path/'photos', '--size', 32, '--protocol', 'snn', '--fresh-norm')
    assert f"trained, {'features' if tuned else 'prediction'}" in near and 'untrained, features' in near
    if tuned: return
    said('evaluate', path, '--data', tmp_path/'photos', '--size', 32, '--protocol', 'snn', '--out', 'near.json')
    want = support_accuracy(a.backbone, ssl_dls(tmp_path/'photos', bs=4, device='cpu', mean=list(net.mean), std=list(net.std)), head=a.head, size=32)
    got = json.loads((tmp_path/'near.json').read_text())['snn']['trained']
    assert got['at'] == want['at'] == 'prediction' and got['supports'] == want['supports'] and got['top1'] == pytest.approx(want['top1'], abs=1e-6) and got['top5'] is None      # of two classes
    assert 'trained' in said('evaluate', path, '--data', tmp_path/'photos', '--size', 32, '--protocol', 'knn')
    said('export', path, '--out', 'b.safetensors')
    b = load_backbone('b.safetensors')
    with torch.no_grad(): assert torch.equal(a.backbone(X), b(X))
    assert b.meta['name'] == 'resnet18' and tuple(b.meta['std']) == (.229, .224, .225)


def test_to_begin_with(save):
    a = made()
    dls = ssl_dls((torch.randint(256, (32, 3, 32, 32)).byte(), torch.arange(32) % 3), bs=16, device='cpu')
    learn = quiet(ssl_learner(dls, 'resnet18', 'swav', size=32, stem='imagenet'))
    learn.init_from(save(official(a)), init_head=False)
    for k, v in weights(a.backbone).items(): assert torch.equal(v, weights(learn.model.backbone)[k]), k
