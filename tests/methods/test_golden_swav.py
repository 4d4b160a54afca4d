"""SwAV beside the official code: Sinkhorn in one and two processes, one step, training with and without the queue; SeLa's labels.

Families of README-swav.md that are tested elsewhere: larc_*, schedule (train/test_golden_optim.py); dc_* (methods/test_golden_offline_clustering.py); resnet_*, layout, accuracy (models/test_golden_swav_networks.py).
"""
import numpy as np, pytest, torch
from torch import nn
from fastai.callback.core import Callback
from helpers import T, families, golden, meta
from sslnb.distributed import rank, run_ranks
from sslnb.train.schedule import check_recipe
from sslnb.train.model import SSLModel
from sslnb.train.learner import ssl_learner
from sslnb.data.loader import ssl_dls
from sslnb.methods.swav import SwAV, SwAVHead, swav_loss
from sslnb.losses.sinkhorn import hard_codes, sinkhorn

pytestmark = pytest.mark.quick

D = golden('swav')
M = meta(D)


@pytest.mark.parametrize('name', families(D, 'sinkhorn'))
def test_sinkhorn(name):
    m,s,q = M[f'sinkhorn/{name}'],T(D[f'sinkhorn/{name}/scores']),D[f'sinkhorn/{name}/q']
    ours = sinkhorn(s, m['eps'], m['iters'])
    assert ours.dtype==s.dtype
    np.testing.assert_allclose(ours.numpy(), q, atol=1e-12 if s.dtype==torch.float64 else 1e-6)
    np.testing.assert_array_equal(hard_codes(ours).argmax(1).numpy(), q.argmax(1))


def _rank_sinkhorn():
    m = M['sinkhorn_ws2']
    return sinkhorn(T(D[f'sinkhorn_ws2/r{rank()}/scores']), m['eps'], m['iters']).numpy()


def test_sinkhorn_of_two_processes():
    m = M['sinkhorn_ws2']
    out = run_ranks(_rank_sinkhorn, world=m['world'])
    for r,q in enumerate(out): np.testing.assert_allclose(q, D[f'sinkhorn_ws2/r{r}/q'], atol=1e-6)
    joint = sinkhorn(torch.cat([T(D[f'sinkhorn_ws2/r{r}/scores']) for r in range(m['world'])]), m['eps'], m['iters'])
    np.testing.assert_allclose(joint.numpy(), np.concatenate(out), atol=1e-6)


@pytest.mark.parametrize('name', families(D, 'sela'))
def test_labels_of_sela(name):
    p,n = T(D[f'sela/{name}/softmax']),len(D[f'sela/{name}/labels'])
    for tol in (1e-6, .1/n):                            # to the end, and where the official code stops
        q = sinkhorn(p.log(), 1/M[f'sela/{name}']['lamb'], iters=None, tol=tol, max_iters=10_000)
        np.testing.assert_array_equal(q.argmax(1).numpy(), D[f'sela/{name}/labels'])


class Encoder(nn.Linear):
    "The network of the golden vectors: crops are vectors; of images it takes the first numbers."
    def __init__(self, w):
        super().__init__(w.shape[1], w.shape[0], bias=False)
        self.weight.data.copy_(w)
    def forward(self, x): return super().forward(x.flatten(1)[:,:self.in_features])


def test_loss_and_gradients():
    m = M['swav_loss']
    model = SSLModel(Encoder(T(D['swav_loss/enc_weight'])), SwAVHead(D['swav_loss/enc_weight'].shape[0], 0, prototypes=len(D['swav_loss/proto_weight'])))
    model.head.prototypes.weight.data.copy_(T(D['swav_loss/proto_weight']))
    model.head.normalise()
    np.testing.assert_allclose(model.head.prototypes.weight.detach().numpy(), D['swav_loss/proto_weight_after'], atol=1e-6)
    crops = list(T(D['swav_loss/crops']))
    assert len(crops)==sum(m['crops'])
    s = model(crops, {})['out']['scores'][0]
    loss = swav_loss(s, [sinkhorn(s[i], m['eps'], m['it']) for i in m['assign']], m['temp'], m['assign'])
    loss.backward()
    assert abs(loss.item()-float(D['swav_loss/loss']))<1e-6*max(1,loss.item())
    np.testing.assert_allclose(model.backbone.weight.grad.numpy(), D['swav_loss/grad_enc'], atol=1e-6)
    np.testing.assert_allclose(model.head.prototypes.weight.grad.numpy(), D['swav_loss/grad_proto'], atol=1e-6)


class Crops:
    "The crops of each step, in place of views."
    def __init__(self, crops): self.crops = crops
    def __call__(self, x, step=0, rank=0, world=1, **key): return [v.chunk(world)[rank] for v in self.crops[step]]


def trained(family):
    "The method as users run it, by the Learner, for the golden number of steps; weights and queues after each, and losses."
    m,crops = M['swav_train'],T(D[f'{family}/crops'])
    enc,proto = T(D[f'{family}/enc_weight']),T(D[f'{family}/proto_weight'])
    steps,B = len(crops),m['B']
    queue = D[f'{family}/queue_after0'].shape[1] if f'{family}/queue_after0' in D else 0
    images = torch.zeros(2*max(len(proto),queue,B*steps), 3, 8, 8, dtype=torch.uint8)
    dls = ssl_dls((images, images[:B]), bs=B, device='cpu')
    method = SwAV(len(proto), dim=0, temp=m['temp'], eps=m['eps'], sinkhorn_iters=m['it'], queue=queue, queue_start=0, freeze=m['freeze']/len(dls.train))
    learn = ssl_learner(dls, Encoder(enc), method)
    assert method.frozen==m['freeze']
    learn.model.head.prototypes.weight.data.copy_(proto)
    learn.views,learn.logger = Crops(crops),lambda *a: None
    learn.recipe = check_recipe(dict(opt='larc', lr=m['lr'][0], lr_rule='none', wd=m['wd'], momentum=m['mom'], trust=m['trust']))
    after = []
    class Watch(Callback):
        order = 50
        def before_step(self):
            for g in self.opt.opt.param_groups: g['lr'] = m['lr'][self.learn.model.step]
        def after_batch(self):
            h = self.learn.model.head
            after.append((self.learn.loss.item(), self.learn.model.backbone.weight.detach().clone(), h.prototypes.weight.detach().clone(), [q.newest_first(B) for q in h.queues]))
    dls.train.start = len(dls.train)-steps
    learn.fit(1, m['lr'][0], cbs=Watch())
    return after


@pytest.mark.filterwarnings('ignore:.*each image is spread')
@pytest.mark.parametrize('family', ('swav_train_queue', 'swav_train_noqueue'))
def test_training(family):
    after = trained(family)
    assert len(after)==len(D[f'{family}/losses'])
    for t,(loss,enc,proto,queues) in enumerate(after):
        assert abs(loss-float(D[f'{family}/losses'][t]))<1e-5*max(1,loss), t
        np.testing.assert_allclose(enc.numpy(), D[f'{family}/enc_after{t}'], atol=1e-5, err_msg=f'step {t}')
        np.testing.assert_allclose(proto.numpy(), D[f'{family}/proto_after{t}'], atol=1e-5, err_msg=f'step {t}')
        if queues: np.testing.assert_allclose(torch.stack(queues).numpy(), D[f'{family}/queue_after{t}'], atol=1e-5, err_msg=f'step {t}')
