"""The multi-exit networks of SelfCon beside the official code: features and projections of every family, parameter counts, classifiers on two exits.

The other families of README-selfcon.md are tests of the losses and of training.
"""
import argparse
import numpy as np, pytest, torch
import helpers
from helpers import SelfConOfficial, T, families, fill_hash, golden
from sslnb.models.create import create_backbone
from sslnb.models.exit_heads import ContrastHead, ExitClassifiers, mean_logits, vgg_classifier
from sslnb.checkpoints.layouts import recognise
from sslnb.train.model import SSLModel
from sslnb.checkpoints.released import load_official
from sslnb.checkpoints.selfcon import from_selfcon, to_selfcon

D = golden('selfcon')
S0 = int(D['meta/fill_seed'])
NETS = families(D, 'net')
SIDE = {'resnet18_same_010': 64, 'wrn_16_8_small_10': 64}
def close(got, want): helpers.close(got, want, 1e-3, 1e-4)
count = lambda m: sum(p.numel() for p in m.parameters())


def settings(key):
    "Name, size and positions of `architecture_size_positions[_large]`."
    large = key.endswith('_large')
    parts = key.removesuffix('_large').split('_')
    pos = parts.pop() if set(parts[-1]) <= {'0', '1'} else ''
    size = parts.pop() if parts[-1] in ('fc', 'small', 'same', 'none') else 'fc'
    name = '_'.join(parts)
    name = {'efficientnet': 'efficientnet_cifar'}.get(name, name + '_cifar' if name.startswith('vgg') else name)
    side = 64 if large else SIDE.get(key, 32)
    exits = [p == '1' for p in pos] or None
    return dict(name=name, size=side, stem='auto' if not name.startswith('resnet') else 'imagenet' if large else 'small', exits=exits, exit_size='fc' if size == 'none' else size)


def build(key):
    bb = create_backbone(**settings(key))
    return SSLModel(bb, ContrastHead(bb.num_features, n_exits=sum(settings(key)['exits'] or [])))


@pytest.mark.parametrize('key', NETS)
@torch.no_grad()
def test_network(key):
    d = {k.split('/')[2]: v for k, v in D.items() if k.startswith(f'net/{key}/')}
    m = build(key).eval()
    assert (count(m), len(to_selfcon(m.state_dict()))) == (int(d['n_params']), int(d['n_entries']))
    fill_hash(SelfConOfficial(m), S0, var_lo=float(d['var_lo']))
    out = m([T(D[f"x{settings(key)['size']}"])], dict(y=None, idx=None))
    f, z = m.backbone(T(D[f"x{settings(key)['size']}"])), out['out']
    close(out['features'][0], d['feat'])
    close(z['z'][0], d['proj'])
    for i in range(sum(settings(key)['exits'] or [])):
        close(f['exits'][i], d[f'sub{i}_feat'])
        close(z['exits'][0][i], d[f'sub{i}_proj'])


def test_counts():
    "The table of the specification: encoder, and encoder with heads of 128 outputs."
    rows = [('resnet18', 'same', 'FTF', 21662272, 22318912), ('resnet18', 'fc', 'TFF', 11202112, 11858752), ('resnet18', 'small', 'FFT', 14841920, 15498560),
            ('resnet34', 'small', 'FTF', 28230464, 28887104), ('resnet34', 'same', 'FTF', 41213760, 41870400), ('resnet50', 'same', 'FTF', 45563456, 54480704),
            ('resnet101', 'fc', None, 42492480, 46951104), ('vgg13_bn_cifar', 'same', 'FTFF', 18560832, 19217472), ('vgg16_bn_cifar', 'small', 'FTFF', 18560832, 19217472),
            ('vgg16_bn_cifar', 'same', 'FTFF', 29185344, 29841984), ('wrn_16_8', 'same', 'TF', 21455712, 22112352), ('wrn_16_8', 'small', 'FT', 14633824, 15290464),
            ('efficientnet_cifar', 'fc', 'T', 4064892, 4721532)]
    for name, size, where, encoder, whole in rows:
        with torch.device('meta'):
            bb = create_backbone(name, size=32, exits=where and [c == 'T' for c in where], exit_size=size)
            head = ContrastHead(bb.num_features, n_exits=(where or '').count('T'))
        assert (count(bb), count(bb) + count(head)) == (encoder, whole), (name, size, where)


@torch.no_grad()
def test_classifiers():
    bb = create_backbone('resnet18', size=32, exits=[False, True, False]).eval()
    m = SSLModel(bb, ContrastHead(512, n_exits=1))
    enc = SelfConOfficial(m)
    enc.state_dict = lambda: {k: v for k, v in to_selfcon(m.state_dict()).items() if k.startswith('encoder.')}
    enc.load_state_dict = lambda sd: m.load_state_dict({**m.state_dict(), **from_selfcon(sd)})
    fill_hash(enc, S0, var_lo=2.)
    c = ExitClassifiers(512, D['val/logits'].shape[1], n_exits=1)
    for i, l in enumerate((c.main, c.exits[0]), 1): fill_hash(l, S0+i)
    main, sub = c(bb(T(D['val/images'])))
    close(main, D['val/logits'])
    close(sub, D['val/sub_logits'])
    y = T(D['val/labels'])
    for l, want in zip((main, sub, mean_logits([main, sub])), D['val/best']):
        hits = l.topk(5).indices == y[:, None]
        one, five = (100*hits[:, :k].any(1).float().mean().item() for k in (1, 5))
        np.testing.assert_allclose([one, five if one else 0.], want, atol=1e-4)      # the official code keeps the top-5 of the best top-1, which starts at 0
    close(fill_hash(vgg_classifier(512, D['val/vgg_logits'].shape[1]), S0+3).eval()(T(D['val/vgg_in'])), D['val/vgg_logits'])


def test_file_of_ones_own_run(tmp_path):
    "A checkpoint with a namespace, from several GPUs, with the old name of shortcuts: network, exits and head are read from it."
    bb = create_backbone('resnet8', exits=[True, False], exit_size='small')
    m = SSLModel(bb, ContrastHead(64, 1)).eval()
    sd = {k.replace('encoder.', 'encoder.module.').replace('shortcut', 'downsample'): v for k, v in to_selfcon(m.state_dict()).items()}
    torch.save(dict(opt=argparse.Namespace(model='resnet8'), model=sd, optimizer={}, epoch=7), tmp_path/'last.pth')
    got = load_official(tmp_path/'last.pth')
    assert (got.meta['layout'], got.meta['epoch'], got.backbone.created['kw']) == ('SelfCon, SupCon or Con', 7, dict(exits=[True, False], exit_size='small'))
    x = [torch.rand(2, 3, 16, 16)]
    with torch.no_grad():
        a, b = (n(x, {})['out'] for n in (m, got))
        assert torch.equal(a['z'][0], b['z'][0]) and torch.equal(a['exits'][0][0], b['exits'][0][0])


def test_efficientnet_by_order():
    with torch.device('meta'):
        bb = create_backbone('efficientnet_cifar', exits=[True])
        ours = SSLModel(bb, ContrastHead(512, 1)).state_dict()
    theirs = {k if i else 'encoder._conv_stem.weight': v for i, (k, v) in enumerate(to_selfcon(ours).items())}
    name, got, _ = recognise(theirs)
    assert name.startswith('SelfCon') and list(got) == [k for k in ours if k != '_extra_state']
    with pytest.raises(ValueError, match='another variant'): from_selfcon(dict(list(theirs.items())[:-9] + [('encoder.more', torch.zeros(2))]))
