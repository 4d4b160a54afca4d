"""Deep InfoMax beside the official code: loss and gradients, encoders with their maps, three steps of training.

Every family of README-relational.md that begins with `dim`, and `step/deepinfomax`.
"""
import numpy as np, pytest, torch
from helpers import T, families, fill_hash, golden
from sslnb.models.create import create_backbone
from sslnb.train.model import SSLModel
from sslnb.losses.infomax import DeepInfoMaxHead

pytestmark = pytest.mark.quick

D = golden('relational')
SEED = int(D['meta/fill_seed'])
CASES = [c for c in families(D, 'dim') if f'dim/{c}/abg' in D]
SPREAD = dict(conv4=.5)                                 # smallest variance of the fill; 2 for every ResNet


@pytest.mark.parametrize('case', CASES)
def test_loss(case):
    y,M = (T(D[f'dim/{k}']).requires_grad_() for k in ('y','M'))
    head = fill_hash(DeepInfoMaxHead(y.shape[1], M.shape[1], *D[f'dim/{case}/abg'].tolist()), SEED+2)
    loss = head.loss(head([dict(out=y, maps=M)], dict(noise=T(D['dim/noise']))))
    loss.backward()
    np.testing.assert_allclose(loss.item(), D[f'dim/{case}/loss'], rtol=1e-5)
    for k,x in dict(y=y, M=M).items():
        if f'dim/{case}/grad_{k}' in D: np.testing.assert_allclose(x.grad.numpy(), D[f'dim/{case}/grad_{k}'], rtol=1e-4, atol=1e-6)
        else: assert x.grad is None


@pytest.mark.parametrize('name', families(D, 'dim_enc'))
def test_encoder(name):
    bb = fill_hash(create_backbone(name, maps=True), SEED+3, var_lo=SPREAD.get(name, 2.)).eval()
    with torch.no_grad(): out = bb(T(D['x32']))
    M = out['maps']
    assert tuple(M.shape)==tuple(D[f'dim_enc/{name}/M_shape'])
    h,w = D[f'dim_enc/{name}/M_corner'].shape[2:]
    for x,k in ((out['out'],'y'), (M[:,:,:h,:w],'M_corner'), (M.mean((2,3)),'M_mean')): np.testing.assert_allclose(x.numpy(), D[f'dim_enc/{name}/{k}'], rtol=1e-3, atol=1e-4)


def test_three_steps():
    x,noise,want = T(D['step/aug'])[0],T(D['step/deepinfomax/noise']),D['step/deepinfomax/loss']
    name = next(n for n in ('conv4','resnet8','resnet34') if create_backbone(n, size=x.shape[-1]).num_features==noise.shape[1])
    bb = fill_hash(create_backbone(name, maps=True), SEED, var_lo=SPREAD.get(name, 2.))
    head = fill_hash(DeepInfoMaxHead(noise.shape[1], bb.map_channels, 0., 1., .1), SEED+1)
    model = SSLModel(bb, head).train()
    opt = torch.optim.Adam(model.parameters(), lr=1e-4)
    got = []
    for _ in want:
        loss = head.loss(model([x], dict(noise=noise))['out']); opt.zero_grad(); loss.backward(); opt.step()
        got.append(loss.item())
    np.testing.assert_allclose(got, want, rtol=2e-3)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
