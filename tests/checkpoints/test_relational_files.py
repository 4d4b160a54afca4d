"""Files as the code of relational reasoning saves them, written here in plain torch: recognised, loaded, looked through, gone on with; and files that are broken or of somebody else."""
import numpy as np, pytest, torch
from PIL import Image
from torch import nn
from fastai.callback.core import Callback
from sslnb.models.create import create_backbone
from sslnb.data.loader import ssl_dls
from sslnb.data.image_set import from_array
from sslnb.checkpoints.export import load_backbone
import sslnb.train.fit
from sslnb.train.learner import ssl_learner
from sslnb.methods.relation_net import RelationNet
from sslnb.app.networks import open_backbone
from sslnb.checkpoints.released import load_official
from sslnb.losses.relation import relation_pairs
from sslnb.checkpoints.relational import relational_images

BACKBONES = dict(conv4=(64, 24, 12), resnet8=(64, 54, 27), resnet32=(64, 198, 99), resnet56=(64, 342, 171), resnet34=(512, 216, 108))      # features, entries, parameters that Adam knows


def network(name):
    "A network of theirs: conv4 layer by layer under their names, the others under torchvision's."
    torch.manual_seed(0)
    if name != 'conv4': m = create_backbone(name, stem='imagenet')
    else:
        sizes = [3, 8, 16, 32, 64]
        pool = lambda i: nn.AvgPool2d(2, 2) if i < 3 else nn.AdaptiveAvgPool2d(1)
        m = nn.Sequential()
        for i, (a, b) in enumerate(zip(sizes, sizes[1:])):
            l = nn.Sequential(); l.add_module('conv', nn.Conv2d(a, b, 3, 1, 1, bias=False)); l.add_module('bn', nn.BatchNorm2d(b)); l.add_module('relu', nn.ReLU()); l.add_module('pool', pool(i))
            m.add_module(f'layer{i+1}', l)
        m.add_module('flatten', nn.Flatten())
    with torch.no_grad():
        for k, v in m.state_dict().items():
            if k.endswith('running_mean'): v.normal_(0, .1)
            if k.endswith('running_var'): v.uniform_(.5, 1.5)
    return m.eval()


def perceptron(n_in, n_out, hidden=256):
    m = nn.Sequential()
    for n, l in dict(linear1=nn.Linear(n_in, hidden), bn1=nn.BatchNorm1d(hidden), relu=nn.LeakyReLU(), linear2=nn.Linear(hidden, n_out)).items(): m.add_module(n, l)
    return m


def adam(*modules):
    "Their optimiser after a step: a group for each module."
    o = torch.optim.Adam([dict(params=m.parameters()) for m in modules], lr=1e-3)
    for m in modules:
        for p in m.parameters(): p.grad = torch.randn_like(p)*.01
    o.step(); o.zero_grad()
    return o


def file(method, name, path, **more):
    "What the method saves, with the network and its head."
    bb = network(name); f = BACKBONES[name][0]
    part, head = dict(relationnet=('relation', perceptron(2*f, 1)), simclr=('head', perceptron(f, 64)), deepcluster=('classifier', perceptron(f, 100)), rotationnet=('classifier', nn.Linear(f, 4)),
                      standard=('classifier', nn.Linear(f, 10)), randomweights=(None, None))[method]
    if head is None: out = dict(backbone=bb.state_dict())
    else: out = {'backbone': bb.state_dict(), part: head.state_dict(), 'optimizer': adam(bb, head).state_dict()}
    if method == 'standard': out |= dict(optimizer_lineval=adam(head).state_dict(), optimizer_finetune=adam(bb, head).state_dict())
    torch.save({**out, **more}, path)
    return bb.eval(), head and head.eval(), path


X = torch.rand(3, 3, 32, 32)
def same(a, b, x=X):
    with torch.no_grad(): np.testing.assert_allclose(a(x), b(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', BACKBONES)
def test_relation_networks(tmp_path, name):
    bb, head, path = file('relationnet', name, tmp_path/f'relationnet_cifar10_{name}_seed_1_epoch_200.tar')
    features, entries, params = BACKBONES[name]
    ck = torch.load(path, weights_only=True)
    assert len(ck['backbone']) == entries and [len(g['params']) for g in ck['optimizer']['param_groups']] == [params, 6]     # the file is as it should be
    m = load_official(path)
    assert (m.meta['layout'], m.backbone.created['name'], m.backbone.num_features, m.head.aggregation) == ('Relational Reasoning', name, features, 'cat')
    assert sum(p.numel() for p in m.head.parameters()) == {64: 33793, 512: 263169}[features]
    same(m.backbone, bb)
    with torch.no_grad():
        z = bb(torch.rand(12, 3, 32, 32)).view(3, 4, -1)
        np.testing.assert_allclose(m.head(list(z)).flatten(), head(relation_pairs(z)[0]).squeeze(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('method,layout', dict(simclr='SimCLR of Relational Reasoning', deepcluster='DeepCluster of Relational Reasoning', rotationnet='network with a linear classifier',
                                               standard='network with a linear classifier', randomweights='backbone alone').items())
def test_the_other_methods(tmp_path, method, layout):
    bb, head, path = file(method, 'resnet8', tmp_path/'x.tar')
    m = load_official(path)
    assert (m.meta['layout'], m.backbone.created['name']) == (layout, 'resnet8')
    same(m.backbone, bb)
    if head: same(m.head, head, torch.randn(5, 64))


def test_without_names_of_layers(tmp_path):
    bb = network('conv4')
    torch.save({k.replace('.conv.', '.0.').replace('.bn.', '.1.'): v for k, v in bb.state_dict().items()}, tmp_path/'backbone.tar')
    m = load_official(tmp_path/'backbone.tar')
    assert m.backbone.created['name'] == 'conv4' and 'short script' in m.meta['layout']
    same(m.backbone, bb)
    net = open_backbone(tmp_path/'backbone.tar')
    assert (net.size, tuple(net.std)) == (32, (.247, .243, .262))


@pytest.mark.parametrize('data,name', [('cifar10', 'conv4'), ('slim', 'resnet34'), ('stl10', 'resnet34'), ('cifar100', 'resnet56')])
def test_images_are_prepared_as_the_name_of_the_file_says(tmp_path, data, name):
    bb, _, path = file('relationnet', name, tmp_path/f'relationnet_{data}_{name}_seed_1_epoch_300.tar')
    net, want = open_backbone(path), relational_images[data]
    assert (net.size, tuple(net.mean), tuple(net.std)) == (want['size'], want['mean'], want['std'])
    images = torch.randint(0, 256, (2, 3, want['size'], want['size']), dtype=torch.uint8)
    x = (images/255-torch.tensor(want['mean']).view(3, 1, 1))/torch.tensor(want['std']).view(3, 1, 1)
    with torch.no_grad(): np.testing.assert_allclose(net.features(images).cpu(), bb(x), rtol=1e-3, atol=1e-4)


def test_a_name_that_says_nothing(tmp_path, capsys):
    net = open_backbone(file('relationnet', 'conv4', tmp_path/'mine.tar')[2])
    assert net.size == 32 and "mean and deviation are ImageNet's, the side is 32 pixels" in capsys.readouterr().out


def test_commands(tmp_path, capsys):
    from sslnb.app.cli import main
    file('relationnet', 'conv4', path := tmp_path/'relationnet_cifar10_conv4_seed_1_epoch_200.tar')
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    for i, a in enumerate(images):
        d = tmp_path/'photos'/'ab'[i % 2]; d.mkdir(parents=True, exist_ok=True); Image.fromarray(a).save(d/f'{i:02d}.png')
    for words in (('features', path, '--data', tmp_path/'photos', '--out', tmp_path/'f.npz'), ('cluster', path, '--data', tmp_path/'photos', '--k', 2, '--out', tmp_path/'groups'),
                  ('evaluate', path, '--data', tmp_path/'photos', '--protocol', 'knn')):
        assert main([*map(str, words)]) == 0, (words, capsys.readouterr())
    bb, _, path = file('relationnet', 'resnet34', tmp_path/'relationnet_slim_resnet34_seed_1_epoch_300.tar')
    assert main(['export', str(path), '--out', str(tmp_path/'b.safetensors')]) == 0, capsys.readouterr()
    again = load_backbone(tmp_path/'b.safetensors')
    assert (again.meta['size'], again.meta['data'], again.meta['epochs']) == (64, 'slim', 300)
    same(again.eval(), bb)


# going on

def learner(method=None, bs=8, backbone='conv4'):
    x = torch.randint(0, 256, (2*bs, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ssl_learner(ssl_dls((from_array(x), from_array(x)), bs=bs, device='cpu'), backbone, method or RelationNet(), views=dict(k=3))


def test_adam_goes_on(tmp_path):
    "Two more steps as torch's own Adam makes them that was saved with the network."
    bb, head, path = file('relationnet', 'conv4', tmp_path/'x.tar')
    ck = torch.load(path, weights_only=True)
    theirs = [p for m in (bb, head) for p in m.parameters()]
    opt = torch.optim.Adam([dict(params=bb.parameters()), dict(params=head.parameters())], lr=1e-3)
    opt.load_state_dict(ck['optimizer'])
    class Beside(Callback):
        order, steps = 95, 0
        def before_step(self):
            ours = list(self.learn.model.parameters())
            for p, q in zip(theirs, ours): p.grad = q.grad.clone()
        def after_step(self):
            opt.step(); self.steps += 1
            for p, q in zip(theirs, self.learn.model.parameters()): np.testing.assert_allclose(p.detach(), q.detach(), rtol=1e-5, atol=1e-7)
    beside = Beside()
    learn = learner().init_from(path).adam_from(path).fit_ssl(1, cbs=beside)
    assert beside.steps == 2
    state = learn.opt.opt.state[next(iter(learn.model.parameters()))]
    assert state['step'].item() == 3
    learn.fit_ssl(1)                                             # a second fit is a new one
    assert learn.opt.opt.state[next(iter(learn.model.parameters()))]['step'].item() == 2


def test_moments_that_do_not_fit(tmp_path):
    path = file('relationnet', 'conv4', tmp_path/'x.tar')[2]
    with pytest.raises(ValueError, match='exp_avg of parameter 12 is 256x128 in the file, expected 256x64'): learner(RelationNet(aggregation='sum')).adam_from(path)
    with pytest.raises(ValueError, match='holds no moments of Adam'): learner().adam_from(file('randomweights', 'conv4', tmp_path/'y.tar')[2])


def test_steps_of_old_torch(tmp_path):
    "torch 1.4 counted steps in plain integers."
    bb, head, path = file('relationnet', 'conv4', tmp_path/'x.tar')
    ck = torch.load(path, weights_only=True)
    for s in ck['optimizer']['state'].values(): s['step'] = 150000
    torch.save(ck, path, _use_new_zipfile_serialization=False)
    learn = learner().init_from(path).adam_from(path).fit_ssl(1)
    assert learn.opt.opt.state[next(iter(learn.model.parameters()))]['step'].item() == 150002


def test_begin_with_the_backbone_alone(tmp_path):
    bb, head, path = file('relationnet', 'conv4', tmp_path/'x.tar')
    with pytest.raises(ValueError, match='head.linear1.weight is 256x128 in the file, expected 256x64'): learner(RelationNet(aggregation='max')).init_from(path)
    same(learner(RelationNet(aggregation='max')).init_from(path, False).model.backbone.eval(), bb)


# what does not load

BROKEN = {'no layer2':     (lambda c: {k: v for k, v in c['backbone'].items() if not k.startswith('layer2')}, None, 'missing: backbone.layer2.*'),
          'other conv':    (lambda c: {**c['backbone'], 'layer1.conv.weight': torch.zeros(9, 3, 3, 3)}, None, 'layer1.conv.weight is 9x3x3x3 in the file, expected 8x3x3x3'),
          'NaN':           (lambda c: {**c['backbone'], 'layer4.bn.bias': torch.full((64,), float('nan'))}, None, 'NaN or infinity in backbone.layer4.bn.bias'),
          'more':          (lambda c: {**c['backbone'], 'fc.weight': torch.zeros(3, 64)}, None, 'left over: backbone.fc.weight'),
          'half a head':   (None, lambda c: {k: v for k, v in c['relation'].items() if not k.startswith('bn1')}, 'missing: head.bn1.*'),
          'another width': (None, lambda c: perceptron(100, 1).state_dict(), 'head.linear1.weight is 256x100 in the file, expected 256x128'),
          'no head':       (None, lambda c: {'linear1.weight': torch.zeros(256)}, 'head.linear1.weight is 256 in the file, expected 256x128')}

@pytest.mark.parametrize('what', BROKEN)
def test_broken(tmp_path, what):
    bb, relation, text = BROKEN[what]
    path = file('relationnet', 'conv4', tmp_path/'relationnet_cifar10_conv4_seed_1_epoch_200.tar')[2]
    ck = torch.load(path, weights_only=True)
    if bb: ck['backbone'] = bb(ck)
    if relation: ck['relation'] = relation(ck)
    torch.save(ck, path)
    with pytest.raises(ValueError) as e: load_official(path)
    assert text in str(e.value) and path.name in str(e.value) and '\n' not in str(e.value), str(e.value)


def test_nothing_is_run(tmp_path):
    class Trap:
        def __reduce__(self): return print, ('it ran',)
    path = file('relationnet', 'conv4', tmp_path/'x.tar', extra=Trap())[2]
    with pytest.raises(ValueError, match='refused, nothing was run'): load_official(path)


def test_somebody_elses(tmp_path):
    torch.save(dict(backbone={'stem.weight': torch.zeros(4, 3, 5, 5)}), tmp_path/'x.tar')
    with pytest.raises(ValueError, match='no known network has these tensors'): load_official(tmp_path/'x.tar')
    torch.save(dict(relation=perceptron(128, 1).state_dict()), tmp_path/'y.tar')
    with pytest.raises(ValueError, match='y.tar'): load_official(tmp_path/'y.tar')
    torch.save(dict(backbone={}), tmp_path/'z.tar')
    with pytest.raises(ValueError, match='no network in it'): load_official(tmp_path/'z.tar')
