"""The networks of SwAV, DeepCluster-v2 and SeLa-v2 beside the official code: backbone, head and prototypes in one, every released layout, accuracy.

The other families of README-swav.md are in methods/test_golden_swav.py and train/test_golden_optim.py.
"""
from types import SimpleNamespace as S
import pytest, torch
from torch import nn
from helpers import T, families, fill_normal, golden, layout, meta, near, shapes
from sslnb.models.resnet import feature_map, resnet
from sslnb.models.create import create_backbone
from sslnb.data.image_set import ImageSet
from sslnb.evaluate.linear_protocol import top_accuracy
from sslnb.checkpoints.layouts import backbone_of, recognise, weights
from sslnb.train.method import methods
from sslnb.train.model import SSLModel
from sslnb.models.prototypes import PrototypeHead
from sslnb.checkpoints.swav import from_swav, to_swav
from sslnb.augment.views import two_views

pytestmark = pytest.mark.quick

D = golden('swav')
M = meta(D)
R = M['resnet']
NETS = [n for n in ('resnet_single', 'resnet_multi') if f'{n}/keys' in D]


def close(got, want, share=1e-5):
    "Within a share of the largest number. Ours is in float64, so that what is left is the rounding of the official float32: in training mode, with batch norm over few rows, up to 3e-5."
    near(got, want, share)


def filled(m):
    "The fill counts the entries of the official dict, ours are in the same order under other names."
    class Official(nn.Module):
        def state_dict(self): return to_swav(m.state_dict())
        def load_state_dict(self, sd): m.load_state_dict({**from_swav(sd), '_extra_state': m.get_extra_state()})
    fill_normal(Official(), R['fill_seed'])
    return m


@pytest.fixture(params=NETS)
def net(request):
    name = request.param
    bb = resnet(R['layers'], R.get('widen', 1), block=R['block'])
    m = SSLModel(bb, PrototypeHead(bb.num_features, R['out'], R['hid'], tuple(R['multi']) if name.endswith('multi') else R['protos']))
    return name, filled(m).double()


def crops(): return [T(D[f'resnet_single/{k}']).double() for k in sorted(families(D, 'resnet_single')) if k.startswith('crop')]


def test_names_and_shapes(net):
    name, m = net
    want = layout(D[f'{name}/keys'])
    have = {k: tuple(v.shape) for k, v in to_swav(m.state_dict()).items()}
    assert have == want and list(have) == list(want), 'also in the same order'


@pytest.mark.parametrize('mode', ('eval', 'train'))
def test_embeddings_and_scores(net, mode):
    name, m = net
    with torch.no_grad():
        out = m.train(mode == 'train')(crops(), {})['out']
    share = 1e-4 if mode == 'train' else 1e-5
    close(torch.cat(out['z']), D[f'{name}/{mode}/emb'], share)
    sets = [k for k in D if k.startswith(f'{name}/{mode}/scores')]
    assert len(out['scores']) == len(sets)
    for h, s in enumerate(out['scores']): close(torch.cat(s), D[f'{name}/{mode}/scores{h}'], share)


@pytest.mark.parametrize('net', [n for n in NETS if f'{n}/feature_map_crop0' in D], indirect=True)
def test_map_before_pooling(net):
    name, m = net
    want = D[f'{name}/feature_map_crop0']
    with torch.no_grad(): close(feature_map(m.eval().backbone, crops()[0])[:, :want.shape[1]], want)


LAYOUTS = families(D, 'layout')
NAMES = dict(resnet50_dcv2='resnet50', resnet50w5_backbone='resnet50w5')

@pytest.mark.parametrize('name', LAYOUTS)
def test_released_layouts(name):
    "Our network has the names and shapes of the file, and the file is recognised by them."
    want, m = layout(D[f'layout/{name}']), M[f'layout/{name}']
    methods()
    with torch.device('meta'):
        bb = create_backbone(NAMES.get(name, name))
        assert sum(p.numel() for p in bb.parameters()) == m['backbone_params']
        if not m['hidden_mlp']: assert shapes(bb) == want
        else:
            p = m['nmb_prototypes']
            model = SSLModel(bb, PrototypeHead(bb.num_features, hidden=m['hidden_mlp'], prototypes=p if isinstance(p, int) else tuple(p)))
            assert {k: tuple(v.shape) for k, v in to_swav(model.state_dict()).items()} == want
            assert sum(p.numel() for p in model.parameters()) == m['params']
        got, sd, head = recognise({k: torch.empty(s) for k, s in want.items()})
        bb = backbone_of({k[9:]: v for k, v in sd.items() if k.startswith('backbone.')})
        again = SSLModel(bb, head(bb.num_features))
    assert got == ('backbone' if not m['hidden_mlp'] else 'SwAV' if isinstance(m['nmb_prototypes'], int) else 'DeepCluster-v2 or SeLa-v2')
    assert bb.created['name'] == NAMES.get(name, name)
    assert {k: tuple(v.shape) for k, v in weights(again).items()} == {k: tuple(v.shape) for k, v in sd.items()}


class Given(nn.Module):
    "A classifier whose outputs are given."
    def __init__(self, out):
        super().__init__()
        self.out, self.amp, self.w = out, None, nn.Parameter(torch.zeros(1))
    def forward(self, views, batch): return dict(out=[self.out[batch['idx']]])


def test_accuracy():
    out, y = T(D['accuracy/output']), T(D['accuracy/target'])
    ds = ImageSet(torch.zeros(len(y), 3, 8, 8, dtype=torch.uint8), y)
    learn = S(model=Given(out), dls=S(valid=S(ds=ds)), views=two_views(8))
    got = top_accuracy(learn, tops=(1, 5))
    assert 100*got[1] == pytest.approx(float(D['accuracy/top1'].item()), abs=1e-4)
    assert got[5] == pytest.approx((out.argsort(1, descending=True)[:, :5] == y[:, None]).any(1).float().mean().item())
