"""RotNet, DeepCluster, the linear protocol, fine-tuning and training with labels beside the official code.

Every family of README-relational.md that begins with `dc` or `lr`, `acc`, and `step/rotationnet`, `step/standard_*`."""
from functools import cache
import numpy as np, pytest, torch
import torch.nn.functional as F
from torch import nn
from helpers import T, fill_hash, golden
from sslnb.models.create import create_backbone
from sslnb.data.loader import ssl_dls
from sslnb.data.image_set import ImageSet
from sslnb.evaluate.finetune import FINETUNE_LIKE
from sslnb.evaluate.linear_protocol import LINEAR_LIKE, LinearProtocol, StaysInEval, top_accuracy
from sslnb.train.schedule import check_recipe, schedule
from sslnb.train.model import SSLModel
from sslnb.train.learner import ssl_learner
from sslnb.methods.rotnet import RotNet
from sslnb.methods.supervised import Supervised
from sslnb.losses.classification import cluster_weights
from sslnb.methods.pseudo_labels import balanced_order, cluster_labels, whiten, wrapped_pixels
from sslnb.augment.views import rotations

pytestmark = pytest.mark.quick

D = golden('relational')
SEED = int(D['meta/fill_seed'])


# DeepCluster

def test_whitening():
    u = whiten(T(D['dc/features']))
    np.testing.assert_allclose((u@u.T).numpy(), D['dc/normed_gram'], rtol=1e-4, atol=1e-5)

def test_clusters():
    want,k = D['dc/kmeans_labels'],len(D['dc/class_weight'])
    for seed in range(3):
        got = cluster_labels(whiten(T(D['dc/features'])), k, seed).numpy()
        assert len(set(zip(got, want)))==len(set(want))==len(set(got)), 'the same but for the names'

def test_weights_of_clusters():
    np.testing.assert_allclose(cluster_weights(T(D['dc/kmeans_labels']), len(D['dc/class_weight'])).numpy(), D['dc/class_weight'], rtol=1e-6)

def test_pixels_wrap_around():
    np.testing.assert_array_equal(wrapped_pixels(T(D['dc/reassign_in'])).permute(0,2,3,1).numpy(), D['dc/reassign_pil'])

def test_balanced_order():
    np.testing.assert_array_equal(balanced_order(D['dc/sampler_groups'], int(D['dc/sampler_seed'])), D['dc/sampler_indexes'])


# rates

@pytest.mark.parametrize('name', ['train','finetune'])
def test_rates(name):
    "(backbone, classifier) in every epoch."
    E,want = int(D['lr/tot_epochs']),D[f'lr/{name}']
    own = Supervised.recipe if name=='train' else FINETUNE_LIKE['relational']
    r = check_recipe({**own, 'epochs':E})
    for bs in (128,64):
        head = schedule(r, 1, bs).numpy()
        bb = head*(1 if r['backbone_lr'] is None else r['backbone_lr']/r['lr'])
        np.testing.assert_allclose(np.stack([bb, head], 1)[:len(want)], want, rtol=1e-9)


# three steps

X,Y = T(D['step/aug'])[0],T(D['step/labels'])
SPREAD = dict(conv4=.5)                                 # smallest variance of the fill; 2 for every ResNet
def filled(name): return fill_hash(create_backbone(name), SEED, var_lo=SPREAD.get(name, 2.)).train()

@cache
def setting(): # network and number of classes, which the vectors do not name: those that give the first loss
    for name in ('conv4','resnet8','resnet32'):
        with torch.no_grad(): f = filled(name)(X)
        for classes in (10,20,100,200,int(Y.max())+1):
            head = fill_hash(nn.Linear(f.shape[1], classes), SEED+1)
            if classes>Y.max() and abs(F.cross_entropy(head(f), Y).item()-D['step/standard_train/loss'][0])<1e-4: return name,classes
    raise AssertionError('no network of the paper gives the first loss')

def images(method, classes): # a Learner's method that knows the number of classes
    dls = ssl_dls((ImageSet(torch.zeros(len(X),3,16,16).byte(), torch.arange(len(X))%classes, [str(i) for i in range(classes)]),)*2, bs=len(X), device='cpu')
    method.setup(dls, None)
    return method

def steps(net, head, opt, loss, n):
    got = []
    for _ in range(n):
        z = head(net(X))
        l = loss(z); opt.zero_grad(); l.backward(); opt.step()
        got.append((l.item(), z))
    return got

def test_rotation_steps():
    want = D['step/rotationnet/loss']
    net,method = filled(setting()[0]),RotNet()
    head = fill_hash(method.head(net.num_features), SEED+1)
    model = SSLModel(net, head).train()
    views = rotations(X.shape[-1], scale=(1.,1.), ratio=(1.,1.), flip=0.)
    opt,got = torch.optim.Adam(model.parameters(), lr=RotNet.recipe['lr']),[]
    turned,y = [X.rot90(k, (2,3)) for k in range(4)],views.labels(len(X))
    for _ in want:
        z = model(turned, {})['out']
        loss = method.loss(z); opt.zero_grad(); loss.backward(); opt.step()
        got.append((loss.item(), 100*(torch.cat(z).argmax(1)==y).float().mean().item()))
    np.testing.assert_allclose([g[0] for g in got], want, rtol=2e-3)
    np.testing.assert_allclose([g[1] for g in got], D['step/rotationnet/score'], atol=1e-3)

def optimiser(r, net, head):
    groups = [dict(params=[*net.parameters()], lr=r.get('backbone_lr') or r['lr']), dict(params=[*head.parameters()], lr=r['lr'])]
    if r['opt']=='adam': return torch.optim.Adam(groups, weight_decay=r['wd'])
    return torch.optim.SGD(groups, momentum=r['momentum'], weight_decay=r['wd'])

@pytest.mark.parametrize('name', ['train','linear_evaluation','finetune'])
def test_labelled_steps(name):
    key = f'step/standard_{name}'
    own = dict(train=Supervised.recipe, linear_evaluation=LINEAR_LIKE['relational'], finetune=FINETUNE_LIKE['relational'])[name]
    network,classes = setting()
    net = filled(network)
    method = images(Supervised() if name=='train' else LinearProtocol(std=None), classes)
    head = fill_hash(method.head(net.num_features), SEED+1)
    opt = optimiser(own, net, head)
    model = (StaysInEval(net) if name=='linear_evaluation' else net).train()
    got = steps(model, head, opt, lambda z: method.loss([z], Y), len(D[f'{key}/loss']))
    np.testing.assert_allclose([l for l,_ in got], D[f'{key}/loss'], rtol=2e-3)
    np.testing.assert_allclose([100*(z.argmax(1)==Y).float().mean().item() for _,z in got], D[f'{key}/score'], atol=1e-3)
    with torch.no_grad(): z = head(net.eval()(X))
    loss,acc = D[f'{key}/test']
    np.testing.assert_allclose(F.cross_entropy(z, Y).item(), loss, rtol=5e-3)
    np.testing.assert_allclose(100*(z.argmax(1)==Y).float().mean().item(), acc, atol=1e-3)

def test_accuracy():
    "What the test script reports, by the library's own way through a Learner."
    z,y = T(D['acc/logits']),T(D['acc/targets'])
    class Given(nn.Module):
        num_features = z.shape[1]
        def __init__(self): super().__init__(); self.p = nn.Parameter(torch.zeros(1))
        def forward(self, x): return z[(x[:,0,0,0]*255).round().long().clamp(max=len(z)-1)]
    numbers = torch.arange(len(z)).view(-1,1,1,1).expand(-1,3,4,4).byte()
    s = ImageSet(numbers, y, [str(i) for i in range(z.shape[1])])
    learn = ssl_learner(ssl_dls((s,s), bs=4, mean=[0.]*3, std=[1.]*3, device='cpu'), Given(), LinearProtocol(), size=4)
    learn.model.head = nn.Identity()
    np.testing.assert_allclose(100*top_accuracy(learn)[1], D['acc/top1'], rtol=1e-5)
