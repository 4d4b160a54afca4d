"Backbones and heads against the numbers of the official code."
import re, subprocess, sys
import pytest, torch
import helpers
from helpers import T, families, fill_hash, fill_normal, golden, layout, meta, shapes
from sslnb.models.create import create_backbone
from sslnb.models.small import resnet18_cifar, vit
from sslnb.models.heads import ProjectionMLP, wn_to_new, wn_to_old

VAR = dict(conv4=0.5)      # lowest running variance of the fill; 2 for every ResNet
def close(got, want, rtol=1e-3, atol=1e-4): helpers.close(got, want, rtol, atol)

@pytest.mark.parametrize('name', families(golden('relational'), 'bb'))
def test_relational_backbones(name):
    d = golden('relational')
    m = create_backbone(name, stem='imagenet')
    assert len(m.state_dict())==d[f'bb/{name}/n_entries']
    assert sum(p.numel() for p in m.parameters())==d[f'bb/{name}/n_params']
    fill_hash(m, d['meta/fill_seed'], var_lo=VAR.get(name,2.))
    x32,x64 = T(d['x32']),T(d['x64'])
    with torch.no_grad():
        m.eval(); close(m(x32), d[f'bb/{name}/eval32']); close(m(x64), d[f'bb/{name}/eval64'])
        m.train(); close(m(x64), d[f'bb/{name}/train64'])
        m.eval(); close(m(x64), d[f'bb/{name}/eval64_after_train'])
    assert m.num_features==d[f'bb/{name}/eval32'].shape[1]

def test_maps():
    d = golden('relational')
    fams = families(d, 'dim_enc')
    assert fams
    for name in fams:
        m = create_backbone(name, stem='imagenet', maps=True).eval()
        fill_hash(m, int(d['meta/fill_seed'])+3, var_lo=VAR.get(name,2.))
        with torch.no_grad(): out = m(T(d['x32']))
        k = f'dim_enc/{name}'
        close(out['out'], d[f'{k}/y'])
        corner = d[f'{k}/M_corner']
        assert list(out['maps'].shape)==d[f'{k}/M_shape'].tolist() and m.map_channels==corner.shape[1]
        close(out['maps'][:,:,:corner.shape[2],:corner.shape[3]], corner)
        close(out['maps'].mean((2,3)), d[f'{k}/M_mean'])

def test_resnet18_cifar():
    d = golden('self_classifier')
    m = fill_normal(resnet18_cifar(), meta(d)['resnet18_cifar']['fill_seed'])
    assert shapes(m)==layout(d['resnet18_cifar/keys']) and list(shapes(m))==list(layout(d['resnet18_cifar/keys']))
    x = T(d['resnet18_cifar/x'])
    with torch.no_grad():
        close(m.eval()(x), d['resnet18_cifar/eval'], 1e-4, 1e-5)
        close(m.train()(x), d['resnet18_cifar/train'], 1e-4, 1e-5)

def test_vit():
    d = golden('self_classifier'); h = meta(d)['vit']
    m = vit(h['img'], h['patch'], h['dim'], h['depth'], h['heads']).eval()
    assert shapes(m)==layout(d['vit/keys']) and list(shapes(m))==list(layout(d['vit/keys']))
    fill_normal(m, h['fill_seed'])
    for s in h['sizes']:
        with torch.no_grad(): close(m(T(d[f'vit/x{s}'])), d[f'vit/out{s}'], 1e-4, 1e-5)

def test_mlp():
    d = golden('self_classifier'); h = meta(d)['mlp']
    fams = [k for k in families(d, 'mlp') if k!='x']
    assert fams
    for k in fams:
        n,bn,relu = map(int, re.fullmatch(r'n(\d+)_bn(\d)_noleaky(\d)', k).groups())
        m = ProjectionMLP(h['i'], h['o'], h['h'], n_layers=n, bn=bool(bn), leaky=not relu)
        assert list(shapes(m).items())==list(layout(d[f'mlp/{k}/keys']).items()), k
        fill_normal(m, h['fill_seed'])
        for mode in ('eval','train'): close(m.train(mode=='train')(T(d['mlp/x'])), d[f'mlp/{k}/{mode}'], 1e-5, 1e-6)

def test_weight_norm_keys():
    old = dict.fromkeys(layout(golden('self_classifier')['model/keys']))
    assert list(wn_to_old(wn_to_new(old)))==list(old) and not any('weight_g' in k for k in wn_to_new(old))

def test_nothing_heavy_is_imported():
    code = """import sys
from sslnb.models.create import *
create_backbone('conv4', size=32); assert 'torchvision' not in sys.modules
create_backbone('resnet18', size=32); backbones(); assert 'timm' not in sys.modules"""
    subprocess.run([sys.executable,'-c',code], check=True, cwd=helpers.root)
