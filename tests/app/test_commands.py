"After training: a folder of photographs without labels is clustered, turned into features, exported to plain torchvision and timm, and judged."
import csv, json, subprocess, sys
from importlib.util import find_spec
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from helpers import root, sslnb

colours = dict(red=(200, 40, 40), green=(40, 170, 50), blue=(40, 60, 210), grey=(130, 130, 130))
net18 = ['torchvision:resnet18', '--size', '32']

def photos(folder, n=60, nested=False):
    "Images of four plain colours with noise, of two sizes."
    rs = np.random.default_rng(0)
    for i in range(n):
        name, c = list(colours.items())[i % 4]
        x = (np.array(c) + rs.integers(-30, 30, (36 + i % 2, 40, 3))).clip(0, 255).astype(np.uint8)
        f = folder/name/f'{i:02d}.png' if nested else folder/f'{i:02d}.png'
        f.parent.mkdir(parents=True, exist_ok=True); Image.fromarray(x).save(f)
    return folder

def rows(path):
    with open(path, newline='', encoding='utf-8') as f: return list(csv.DictReader(f))

@pytest.fixture(scope='module')
def top(tmp_path_factory): return tmp_path_factory.mktemp('commands')

@pytest.fixture(scope='module')
def flat(top): return photos(top/'photos')

@pytest.fixture(scope='module')
def run(top, flat):
    code, _, err = sslnb('pretrain', flat, '--epochs', 2, '--backbone', 'resnet18', '--size', 32, '--stem', 'imagenet', '--views', 'two_views', '--classes', 4,
                         '--hidden', 32, '--dim', 16, '--bs', 16, '--warmup', 0, '--queue', 0, '--out', top/'run')
    assert code == 0, err
    return top/'run'

@pytest.fixture(autouse=True)
def here(top, monkeypatch): monkeypatch.chdir(top)

def test_clusters_of_a_flat_folder(run):
    code, out, err = sslnb('cluster', run, '--out', 'own')
    assert (code, err) == (0, ''), err
    table = rows('own/clusters.csv')
    assert list(table[0]) == ['path', 'split', 'cluster', 'confidence']
    assert [r['path'] for r in table] == [f'{i:02d}.png' for i in range(60)], 'every file once, in order'
    assert all(0 < float(r['confidence']) <= 1 and 0 <= int(r['cluster']) < 4 for r in table)
    used = {r['cluster'] for r in table}
    assert {p.stem.split('-')[-1] for p in Path('own/grids').iterdir()} == used and Image.open('own/overview.png').width > 100
    assert "60 images in" in out and "the network's own head" in out and 'own/clusters.csv' in out

def test_clusters_by_k_means_and_on_other_images(run, top):
    code, out, err = sslnb('cluster', run, '--data', photos(top/'sorted', 40, nested=True), '--k', 4, '--out', 'new')
    assert (code, err) == (0, ''), err
    table = rows('new/clusters.csv')
    assert list(table[0]) == ['path', 'split', 'cluster', 'distance', 'label'] and len(table) == len({r['path'] for r in table}) == 40
    assert all(r['path'].split('/')[0] == r['label'] for r in table)
    assert set(json.loads(Path('new/scores.json').read_text())) == {'nmi', 'ami', 'ari', 'acc'} and 'commonest label' in out and 'agreement with the labels' in out

def test_features_go_to_a_file_and_come_back(run):
    code, out, err = sslnb('features', run, '--out', 'f.npz')
    assert (code, err) == (0, ''), err
    with np.load('f.npz', allow_pickle=False) as z:
        assert z['features'].shape == (60, 512) and z['names'].tolist() == [f'{i:02d}.png' for i in range(60)]
        assert sorted(set(z['splits'])) == ['test', 'train'] and (z['labels'] == -1).all() and z['clusters'].min() >= 0
    code, out, err = sslnb('cluster', 'f.npz', '--k', 3, '--out', 'from_file')
    assert (code, err) == (0, '') and len(rows('from_file/clusters.csv')) == 60
    before = Path('f.npz').read_bytes()
    assert sslnb('features', run, '--out', 'f.npz')[0] == 2 and Path('f.npz').read_bytes() == before
    assert sslnb('features', run, '--out', 'f.npz', '--force')[0] == 0

@pytest.mark.parametrize('library', ['torchvision', 'timm'])
def test_export_loads_in_plain_torchvision_and_timm(run, library):
    from sslnb.app.networks import open_backbone
    code, out, err = sslnb('export', run, '--format', library)
    assert (code, err) == (0, ''), err
    file = f'run.{library}.pth'
    sd = torch.load(file, weights_only=True)
    if library == 'timm':
        import timm
        plain = timm.create_model('resnet18')
    else:
        import torchvision
        plain = torchvision.models.resnet18()
    missing, odd = plain.load_state_dict(sd, strict=False)
    assert sorted(missing) == ['fc.bias', 'fc.weight'] and not odd and file in out
    plain.fc = torch.nn.Identity()
    x, ours = torch.rand(3, 3, 32, 32), open_backbone(run, device='cpu').backbone
    with torch.no_grad(): assert torch.allclose(plain.eval()(x), ours(x), atol=1e-4)
    assert sslnb('export', run, '--format', library)[0] == 2, 'not written over'

def test_export_says_how_a_small_stem_is_built(top):
    code, out, err = sslnb('export', *net18, '--format', 'torchvision', '--out', 'small.pth')
    assert code == 0, err
    lines = [l.strip() for l in out.splitlines()]
    assert 'net.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)' in lines and 'net.maxpool = torch.nn.Identity()' in lines
    import torchvision
    net = torchvision.models.resnet18()
    net.conv1, net.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
    assert sorted(net.load_state_dict(torch.load('small.pth', weights_only=True), strict=False).missing_keys) == ['fc.bias', 'fc.weight']

def test_export_for_detection(run):
    import pickle
    code, out, err = sslnb('export', run, '--format', 'detectron2')
    assert code == 0 and 'MODEL.WEIGHTS: run.detectron2.pkl' in out, err
    with open('run.detectron2.pkl', 'rb') as f: d = pickle.load(f)
    assert d['matching_heuristics'] is True and {'stem.conv1.weight', 'stem.conv1.norm.bias', 'res2.0.conv1.norm.weight', 'res5.0.shortcut.weight', 'res5.0.shortcut.norm.running_var'} <= set(d['model'])
    assert all(type(v) is np.ndarray for v in d['model'].values())

@pytest.mark.skipif(not (find_spec('onnx') and find_spec('onnxscript') and find_spec('onnxruntime')), reason='the extra onnx is not installed')
def test_export_to_onnx_takes_any_number_of_images(run):
    import onnxruntime
    from sslnb.app.networks import open_backbone
    code, out, err = sslnb('export', run, '--format', 'onnx', '--out', 'r.onnx')
    assert (code, err) == (0, '') and 'compared with torch' in out, err
    s, x = onnxruntime.InferenceSession('r.onnx', providers=['CPUExecutionProvider']), torch.rand(5, 3, 32, 32)
    with torch.no_grad(): want = open_backbone(run, device='cpu').backbone(x).numpy()
    np.testing.assert_allclose(s.run(None, dict(images=x.numpy()))[0], want, atol=1e-4)
    assert json.loads(s.get_modelmeta().custom_metadata_map['size']) == 32

def test_onnx_without_its_packages_says_what_to_install(monkeypatch):
    import sslnb.app.formats as f
    monkeypatch.setattr(f.importlib.util, 'find_spec', lambda name: None)
    code, out, err = sslnb('export', 'sslnb:conv4', '--size', 16, '--format', 'onnx', '--out', 'x.onnx')
    assert code == 2 and "pip install 'sslnb[onnx]'" in err and not Path('x.onnx').exists()

def test_evaluate_without_labels_and_with_those_of_others(run, top):
    code, out, err = sslnb('evaluate', run)
    assert code == 0 and [l.split('  ')[0] for l in out.splitlines()[-3:]] == ['raw pixels + k-means', 'untrained backbone', 'trained'] and 'no labels' in out and 'RankMe' in out, (out, err)
    photos(top/'others', 48, nested=True)
    code, out, err = sslnb('evaluate', run, '--data', 'others', '--protocol', 'knn', '--labels', '50%', '--out', 's.json')
    assert code == 0, err
    s = json.loads(Path('s.json').read_text())
    assert s['knn']['trained']['k=10 top-1'] > .9 and s['about'] == dict(network='run', data='others', train=40, test=8, labels=.5, superclasses=None)
    code, out, err = sslnb('evaluate', *net18, '--data', 'others', '--protocol', 'cluster', '--k', 4)
    assert code == 0 and 'untrained, k-means, 4 clusters' in out and 'ARI' in out, err

def test_evaluate_needs_no_network_where_features_are_there(run, top):
    assert sslnb('features', run, '--data', photos(top/'others', 48, nested=True), '--out', 'd.npz')[0] == 0
    code, out, err = sslnb('evaluate', 'd.npz', '--protocol', 'all')
    assert code == 0 and 'k=200 top-1' in out and 'linear protocol' not in out, err

@pytest.mark.parametrize('argv, says', [
    (['cluster'], 'missing: SOURCE'),
    (['cluster', 'photos'], 'train on it first'),
    (['cluster', 'nowhere'], 'is no run'),
    (['cluster', *net18], 'has no images of its own'),
    (['cluster', *net18, '--data', './nowhere'], 'is not a folder'),
    (['cluster', *net18, '--data', 'empty'], 'no images in'),
    (['cluster', *net18, '--data', 'one'], '1 image'),
    (['cluster', *net18, '--data', 'photos', '--k', '61'], '61 clusters of 60 images'),
    (['cluster', *net18, '--data', 'photos', '--k', 'many'], "--k many: expected a whole number"),
    (['cluster', *net18, '--dat', 'photos'], 'did you mean --data'),
    (['features', 'torchvision:resnet81', '--data', 'photos'], 'did you mean'),
    (['evaluate', 'resnet50', '--data', 'photos'], 'torchvision:NAME'),
    (['evaluate', *net18, '--data', 'photos', '--protocol', 'knn'], 'has no labels'),
    (['evaluate', *net18, '--data', 'digits', '--superclasses', 'cifar21'], 'superclasses'),
    (['evaluate', *net18, '--data', 'digits', '--labels', '5'], 'expected a share such as 0.01'),
    (['export', 'sslnb:conv4', '--format', 'timm'], 'conv4 is a network of this library'),
    (['export', *net18, '--format', 'detectron2'], 'with the 7x7 stem'),
    (['export', *net18, '--format', 'pth'], "unknown --format 'pth'"),
    (['export', 'none.safetensors'], 'there is no file')])
def test_mistakes_are_one_line(argv, says, top, flat):
    (top/'empty').mkdir(exist_ok=True); (top/'one').mkdir(exist_ok=True)
    Image.new('RGB', (40, 40)).save(top/'one'/'a.png')
    before = sorted(p.name for p in top.iterdir())
    code, out, err = sslnb(*argv)
    assert (code, len(err.splitlines())) == (2, 1) and says in err, err
    assert sorted(p.name for p in top.iterdir()) == before, 'nothing is left behind'

def test_help_imports_nothing_heavy(tmp_path):
    code = ("import sys; from sslnb.app.cli import main\n"
            "for c in ('cluster', 'features', 'evaluate', 'label', 'export'): assert main([c, '--help']) == 0\n"
            "for a in (['cluster'], ['export', 'x', '--formt', 'y'], ['evaluate', 'x', '--k', 'y']): assert main(a) == 2\n"
            "print({'torch', 'numpy', 'fastai', 'fastcore', 'sklearn', 'matplotlib', 'timm'} & set(sys.modules))")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0 and done.stdout.endswith('set()\n') and done.stdout.count('examples:') == 5, done.stderr
