"""Self-Classifier, both versions, beside the official code: losses, models, queue, layout.

Families of README-self-classifier.md that are tested elsewhere: schedule, epoch_schedule, param_groups, clip (train/test_golden_optim.py); mlp, vit,
resnet18_cifar (models/test_golden_backbones.py); knn, cluster_*, class_entropy_v1, grid, cifar100_to_20 (evaluate/test_golden_scores.py).
"""
import numpy as np, pytest, torch
from torch import nn
from torchvision.models import resnet50
from helpers import T, fill_normal, golden, layout, meta
from sslnb.distributed import rank, run_ranks
from sslnb.train.model import SSLModel
from sslnb.models.embedding_queue import Queue, nearest_other
from sslnb.checkpoints.self_classifier import from_official, from_official_v1, to_official, to_official_v1
from sslnb.models.self_classifier_heads import SelfClassifierHead, SelfClassifierV1Head, orthogonal
from sslnb.methods.self_classifier import self_classifier_loss
from sslnb.methods.self_classifier_v1 import self_classifier_v1_loss

pytestmark = pytest.mark.quick

D = golden('self_classifier')
M = meta(D)
LOSSES = sorted({k.split('/')[1] for k in D if k.startswith('loss/')})


def losses(logits, m, taus=('row_tau','col_tau')):
    "Mean over classifiers, as the method takes it."
    return torch.stack([self_classifier_loss(l, m[taus[0]], m[taus[1]], m['eps']) for l in logits]).mean()


@pytest.mark.parametrize('name', LOSSES)
def test_loss(name):
    m = M[f'loss/{name}']
    xs = [T(D[f'loss/{name}/logits{c}']).clone().requires_grad_() for c in range(len(m['classes']))]
    assert [x.shape[2] for x in xs]==m['classes'] and xs[0].shape[0]==m['views']
    loss = losses(xs, m); loss.backward()
    assert abs(loss.item()-float(D[f'loss/{name}/loss']))<2e-6*max(1,abs(loss.item()))
    for c,x in enumerate(xs): np.testing.assert_allclose(x.grad.numpy(), D[f'loss/{name}/grad{c}'], atol=2e-6, rtol=1e-4)


def _rank_loss():
    m,r = M['loss_ws2'],rank()
    xs = [T(D[f'loss_ws2/r{r}/logits{c}']).clone().requires_grad_() for c in range(len(m['C']))]
    loss = losses(xs, m, ('row','col')); loss.backward()
    return loss.item(), [x.grad.numpy() for x in xs]


def test_loss_of_two_processes():
    out = run_ranks(_rank_loss)
    for r,(loss,grads) in enumerate(out):
        assert abs(loss-float(D[f'loss_ws2/r{r}/loss']))<2e-6
        for c,g in enumerate(grads): np.testing.assert_allclose(g, D[f'loss_ws2/r{r}/grad{c}'], atol=2e-6, rtol=1e-4)
    m = M['loss_ws2']                                   # the joint batch: mean of the losses, half of each gradient
    xs = [torch.cat([T(D[f'loss_ws2/r{r}/logits{c}']) for r in (0,1)], 1).requires_grad_() for c in range(len(m['C']))]
    joint = losses(xs, m, ('row','col')); joint.backward()
    assert abs(sum(l for l,_ in out)/2-joint.item())<2e-6
    for c,x in enumerate(xs): np.testing.assert_allclose(np.concatenate([out[r][1][c] for r in (0,1)], 1)/2, x.grad.numpy(), atol=2e-6)


class StandIn(nn.Module):
    "The backbone of the golden vectors."
    def __init__(self, width):
        super().__init__()
        self.conv,self.bn = nn.Conv2d(3, width, 3, 2, 1, bias=False),nn.BatchNorm2d(width)
    def forward(self, x): return self.bn(self.conv(x)).relu().mean((2,3))


def fill(sd, keys, seed):
    "A state dict in the official layout, filled by the rule, which goes by the official order of entries."
    want = layout(str(keys))
    assert {k:tuple(v.shape) for k,v in sd.items()}==want
    class InOrder:
        def state_dict(self): return {k:sd[k] for k in want}
        def load_state_dict(self, new): sd.update(new)
    fill_normal(InOrder(), seed)
    return sd


def filled(m):
    "Our model with the weights of the golden model."
    model = SSLModel(StandIn(m['bb']), SelfClassifierHead(m['bb'], m['cls'], m['dim'], m['h'], m['nh'], m['use_bn']))
    sd = to_official(model.state_dict())
    missing = model.load_state_dict(from_official(fill(sd, D['model/keys'], m['fill_seed'])), strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys)<={'head.running','_extra_state'}
    return model


def test_model():
    m = M['model']
    views = [T(D[f'model/view{i}']) for i in range(sum(n for _,n in m['V']))]
    for mode in ('eval','train'):
        model = filled(m).train(mode=='train')
        with torch.no_grad():
            z = model.head.embed(torch.cat(model.encode(views))).view(len(views), m['B'], -1)
            out = filled(m).train(mode=='train')(views, dict(idx=torch.arange(m['B'])))['out']
        np.testing.assert_allclose(z.numpy(), D[f'model/{mode}/embeddings'], atol=1e-5)
        for c,l in enumerate(out['logits']): np.testing.assert_allclose(l.numpy(), D[f'model/{mode}/logits{c}'], atol=1e-5)
        np.testing.assert_allclose(out['emb'].numpy(), D[f'model/{mode}/embeddings'][0], atol=1e-5)


def test_single_view():
    model = filled(M['model']).eval()
    with torch.no_grad(): out = model([T(D['model/view0'])], {})['out']
    np.testing.assert_allclose(out['logits'][0][0].numpy(), D['model/single_view_cls0'], atol=1e-5)


def test_trainable():
    trainable = {k:p for k,p in filled(M['model']).named_parameters() if p.requires_grad}
    assert set(to_official(trainable))=={str(n) for n in D['model/trainable']}


def test_queue():
    m = M['nn_queue']
    q = Queue(m['L'], m['D'])
    for t in range(len(m['pushes'])):
        p = f'nn_queue/push{t}'
        q.push(T(D[f'{p}/x']), T(D[f'{p}/indices']).long())
        ptr,full = (int(v) for v in D[f'{p}/ptr_full'])
        assert (q.ptr, q.full)==(ptr, bool(full))
        np.testing.assert_allclose(q.rows.numpy(), D[f'{p}/queue_after'], atol=1e-7)
        written = np.arange(m['L'])<(m['L'] if full else ptr)
        np.testing.assert_array_equal(q.indices.numpy()[written], D[f'{p}/indices_after'][written])
    near,_ = nearest_other(q, T(D['nn_queue/query/x']), T(D['nn_queue/query/indices']).long())
    np.testing.assert_allclose(near.numpy(), D['nn_queue/query/nn'], atol=1e-6)


def test_layout_of_the_release():
    want = layout(str(D['layout/train_800ep']))
    sizes = [s[0] for k,s in want.items() if k.endswith('weight_g')]
    dim,hidden = want['mlp_head.mlp.3.weight']
    with torch.device('meta'):
        bb = resnet50(); bb.fc = nn.Identity()
        model = SSLModel(bb, SelfClassifierHead(want['mlp_head.mlp.0.weight'][1], sizes, dim, hidden, 2))
    assert {k:tuple(v.shape) for k,v in to_official(model.state_dict()).items()}==want
    assert sum(p.numel() for p in model.parameters())==M['layout/train_800ep']['params']


@pytest.mark.parametrize('rows', (0, 1))
def test_loss_v1(rows):
    n = len(M['loss_v1']['C'])
    xs = [[T(D[f'loss_v1/logits{c}_view{v}']).clone().requires_grad_() for v in (0,1)] for c in range(n)]
    assert [x.shape for x,_ in xs]==[(M['loss_v1']['B'], c) for c in M['loss_v1']['C']]
    loss = torch.stack([self_classifier_v1_loss(*x, normalise_rows=bool(rows)) for x in xs]).mean(); loss.backward()
    p = f'loss_v1/normalize_rows_{rows}'
    assert abs(loss.item()-float(D[f'{p}/loss']))<2e-6*max(1,abs(loss.item()))
    for c,x in enumerate(xs):
        for v in (0,1): np.testing.assert_allclose(x[v].grad.numpy(), D[f'{p}/grad{c}_view{v}'], atol=2e-6, rtol=1e-4)
    if len(set(M['loss_v1']['C']))==1:                  # all classifiers in one call
        whole = self_classifier_v1_loss(*(torch.stack([x[v] for x in xs], 1) for v in (0,1)), normalise_rows=bool(rows))
        assert abs(whole.item()-loss.item())<2e-6*max(1,abs(loss.item()))


def test_model_v1():
    m,keys = M['model_v1'],layout(str(D['model_v1/keys']))
    width = keys['backbone.conv.weight'][0]
    model = SSLModel(StandIn(width), SelfClassifierV1Head(width, m['cls_size'], m['num_cls'], m['dim'], m['hidden'], m['num_hidden']+1, m['tau']))
    sd = fill(to_official_v1(model.state_dict()), D['model_v1/keys'], m['fill_seed'])
    assert not model.load_state_dict(from_official_v1(sd), strict=False).unexpected_keys
    names = sorted(k for k in D if k.startswith('model_v1/view'))
    with torch.no_grad(): out = model.eval()([T(D[k]) for k in names], {})['out']
    for k,o in zip(names, out): np.testing.assert_allclose(o.transpose(0,1).numpy(), D[k.replace('/view', '/out_view')], atol=1e-5)
    np.testing.assert_allclose(out[0][:,0].numpy(), D['model_v1/single'], atol=1e-5)


def test_orthogonal_classifiers_v1():
    official = T(D['model_v1/cls0_orthogonal'])
    for w in (official, orthogonal(*official.shape)):   # the draws differ, the law does not
        n,d = w.shape
        np.testing.assert_allclose((w@w.T if n<=d else w.T@w).numpy(), np.eye(min(n,d)), atol=1e-5)
