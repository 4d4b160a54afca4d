"""Released checkpoints: what is loaded is right, and files that are broken, hostile or of another network end in one sentence."""
import argparse, os, pickle, subprocess, sys, types, warnings, zipfile
import numpy as np, pytest, torch
from torch import nn
from helpers import golden, layout as layout_of
from sslnb.models.create import create_backbone
from sslnb.core import bare
from sslnb.data.loader import ssl_dls
from sslnb.checkpoints.export import load_backbone, export_backbone
import sslnb.train.fit
from sslnb.checkpoints.layouts import backbone_of, recognise, weights
from sslnb.train.method import methods
from sslnb.train.model import SSLModel
from sslnb.train.learner import ssl_learner
from sslnb.checkpoints.self_classifier import to_official, to_official_v1
from sslnb.models.self_classifier_heads import SelfClassifierHead, SelfClassifierV1Head
from sslnb.methods.self_classifier import SelfClassifier
from sslnb.checkpoints.released import init_from, load_official, read_checkpoint

W = dict(a=torch.arange(6.).view(2,3), b=dict(c=torch.ones(2, dtype=torch.long), n=3))


@pytest.fixture
def save(tmp_path):
    def f(o, name='x.pth', **kw): torch.save(o, tmp_path/name, **kw); return tmp_path/name
    return f


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    m = SSLModel(create_backbone('resnet18', size=32, stem='imagenet'), SelfClassifierHead(512, [10,20], dim=16, hidden=32))
    with torch.no_grad(): m([torch.rand(8,3,64,64)]*2, {})                  # running statistics that are not those of the start
    return m.eval()


def official(model, **more): return dict(epoch=800, arch='resnet18', state_dict={f'module.{k}':v for k,v in to_official(model.state_dict()).items()}, **more)


def refused(path, *words, **kw):
    "One line that names the file and says all the words."
    with pytest.raises((ValueError,OSError)) as e: read_checkpoint(path, **kw)
    text = str(e.value)
    assert all(w in text for w in (str(path), *words)) and '\n' not in text, text


# what can be read

@pytest.mark.parametrize('new', (True, False))
def test_both_formats_of_torch(save, new):
    got = read_checkpoint(save(W, _use_new_zipfile_serialization=new))
    assert set(got)=={'a','b.c','b.n'} and got['b.n']==3 and torch.equal(got['a'], W['a']) and torch.equal(got['b.c'], W['b']['c'])


def test_parameters_become_tensors(save):
    got = read_checkpoint(save(dict(p=nn.Parameter(torch.ones(2)))))['p']
    assert type(got) is torch.Tensor and not got.requires_grad


def patched(path, old, new):
    "The pickle inside of a zip with other bytes."
    with zipfile.ZipFile(path) as z: parts = {n:z.read(n) for n in z.namelist()}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as z:
        for n,b in parts.items():
            if n.endswith('data.pkl'): assert old in b; b = b.replace(old, new)
            z.writestr(n, b)
    return path


def test_tensors_of_a_gpu_come_to_the_cpu(save):
    text = lambda s: b'X'+len(s).to_bytes(4, 'little')+s.encode()
    got = read_checkpoint(patched(save(W), text('cpu'), text('cuda:0')))
    assert got['a'].device.type=='cpu' and torch.equal(got['a'], W['a'])


def foreign(name, ran):
    "A class that only the author of the file has; anything that is run leaves a trace."
    module,cls = name.rsplit('.', 1)
    def trace(self, *a): ran.append(name)
    c = type(cls, (), dict(__init__=lambda self: setattr(self, 'queue', torch.ones(5,3)), __setstate__=trace, __module__=module, __qualname__=cls))
    return c


@pytest.fixture
def queue_file(save, monkeypatch):
    "As the official code saves: a queue object and the command line beside the weights."
    ran = []
    cls = foreign('utils.NNQueue', ran)
    monkeypatch.setitem(sys.modules, 'utils', types.SimpleNamespace(NNQueue=cls))
    def make(state, **more): return save(dict(state, nn_queue=cls(), args=argparse.Namespace(lr=4.8), best=np.float64(3), **more)), ran
    return make


def test_objects_are_left_out_and_not_made(queue_file):
    path,ran = queue_file(W)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        got = read_checkpoint(path)
    assert not ran and 'utils.NNQueue' in got['nn_queue'] and 'left out' in got['args'] and torch.equal(got['a'], W['a'])
    with pytest.raises(pickle.UnpicklingError): torch.load(path, weights_only=True)          # the permission ended with the call


def test_other_classes_can_be_named(save, monkeypatch):
    ran = []
    cls = foreign('main.Config', ran)
    monkeypatch.setitem(sys.modules, 'main', types.SimpleNamespace(Config=cls))
    path = save(dict(W, cfg=cls()))
    refused(path, 'main.Config', 'refused')
    assert 'left out' in read_checkpoint(path, stubs=('main.Config',))['cfg'] and not ran


# accidents

def test_missing_folder_empty(tmp_path):
    refused(tmp_path/'no.pth', 'does not exist')
    refused(tmp_path, 'is a folder')
    (tmp_path/'e.pth').touch(); refused(tmp_path/'e.pth', 'is empty')


@pytest.mark.parametrize('start', (b'<!DOCTYPE html>', b'\n  <html>', b'\xef\xbb\xbf<!doctype html>', b'<?xml version="1.0"?>'))
def test_saved_page(tmp_path, start):
    (tmp_path/'p.pth').write_bytes(start+b'<title>Google Drive - Virus scan warning</title>')
    refused(tmp_path/'p.pth', 'web page', 'browser')


@pytest.mark.parametrize('new', (True, False))
def test_cut_short(save, new):
    path = save(dict(W, big=torch.randn(1000)), _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    for n in (len(whole)-1 if new else len(whole)-100, len(whole)//2, 100, 8):
        path.write_bytes(whole[:n]); refused(path, 'download it again')


def test_one_wrong_bit(save):
    path = save(dict(W, big=torch.randn(1000)))
    b = bytearray(path.read_bytes()); b[len(b)//2] ^= 1
    path.write_bytes(b); refused(path, 'checksum', 'download it again')


def test_files_without_checksums(save):
    torch.serialization.set_crc32_options(False)
    try: path = save(W)
    finally: torch.serialization.set_crc32_options(True)
    assert torch.equal(read_checkpoint(path)['a'], W['a'])


def test_any_damage_is_a_sentence(save):
    "A few hundred files with wrong bytes: what can still be read is read, everything else ends in one line."
    rnd = np.random.default_rng(0)
    for new in (True, False):
        path = save(W, _use_new_zipfile_serialization=new)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(150):
            b = whole.copy()
            at = rnd.integers(0, min(len(b), 1500), rnd.integers(1, 9)); b[at] = rnd.integers(0, 256, len(at))
            path.write_bytes(b.tobytes())
            try: got = read_checkpoint(path)
            except ValueError as e: assert '\n' not in str(e)
            else: assert not new or torch.equal(got['a'], W['a'])          # the checksums of the new format


@pytest.mark.parametrize('content', (b'hello', b'\x00'*2000, bytes(range(256))*20, b'{"a": 1}', b'\x80\x02}q\x00.', b'\x89PNG\r\n\x1a\n'+b'\x01'*99, b'\x1f\x8b\x08'+b'\x07'*500))
def test_no_checkpoint(tmp_path, content):
    (tmp_path/'n.pth').write_bytes(content); refused(tmp_path/'n.pth', 'no checkpoint')
    (tmp_path/'n.safetensors').write_bytes(content); refused(tmp_path/'n.safetensors', 'no safetensors')


def test_other_archives(tmp_path, save):
    with zipfile.ZipFile(tmp_path/'z.pth', 'w') as z: z.writestr('weights/readme.txt', 'hello')
    refused(tmp_path/'z.pth', 'without a checkpoint')
    (tmp_path/'l.pth').write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n'); refused(tmp_path/'l.pth', 'LFS')
    refused(save([1,2]), 'holds a list'); refused(save(torch.ones(3)), 'holds a Tensor')


def test_torchscript(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.save(torch.jit.script(nn.Linear(2,3)), tmp_path/'t.pt')
    refused(tmp_path/'t.pt', 'TorchScript')


# malice

CALLS = dict(system=lambda p: (os.system, (f'touch {p}',)), exec=lambda p: (exec, (f'open({str(p)!r},"w")',)), popen=lambda p: (subprocess.Popen, (['touch',str(p)],)),
             open=lambda p: (open, (str(p),'w')), loads=lambda p: (pickle.loads, (b'.',)), load=lambda p: (torch.load, (str(p),)))

@pytest.mark.parametrize('new', (True, False))
@pytest.mark.parametrize('name', CALLS)
def test_nothing_is_run(save, tmp_path, name, new):
    trace = tmp_path/'ran'
    class Evil:
        def __reduce__(self): return CALLS[name](trace)
    for o in (dict(W, x=Evil()), dict(W, x=[{'y':Evil()}]), Evil()):
        refused(save(o, _use_new_zipfile_serialization=new), 'asks for', 'nothing was run')
        assert not trace.exists()


def test_a_stub_cannot_be_used_to_run(save, tmp_path):
    "The queue's state holds the call."
    trace = tmp_path/'ran'
    class Evil:
        def __reduce__(self): return os.system, (f'touch {trace}',)
    refused(save(dict(W, args=argparse.Namespace(x=Evil()))), 'system', 'nothing was run')
    assert not trace.exists()


def test_whole_network_as_an_object(save): refused(save(dict(model=nn.Linear(2,3))), 'torch.nn.modules.linear.Linear')


def test_bombs(save, tmp_path):
    path = save(dict(z=torch.zeros(300_000)))
    with zipfile.ZipFile(path) as z: parts = {n:z.read(n) for n in z.namelist()}
    with zipfile.ZipFile(tmp_path/'bomb.pth', 'w', zipfile.ZIP_DEFLATED) as z:
        for n,b in parts.items(): z.writestr(n, b)
    refused(tmp_path/'bomb.pth', 'compressed', '1,2')
    deep = dict(a=torch.ones(1))
    for _ in range(50): deep = dict(a=deep)
    with pytest.raises(ValueError, match='nested more than 20 deep'): read_checkpoint(save(deep))
    loop = dict(a=torch.ones(1)); loop['loop'] = loop
    with pytest.raises(ValueError, match='nested more than 20 deep'): read_checkpoint(save(loop))


@pytest.mark.parametrize('t', (torch.zeros(1).expand(10**6), torch.ones(2,2).to_sparse(), torch.zeros(2, device='meta'), torch.quantize_per_tensor(torch.ones(2), .1, 0, torch.qint8)), ids=('expanded','sparse','meta','quantised'))
def test_tensors_that_are_not_what_they_seem(save, t):
    path = save(dict(w=t))
    with pytest.raises(ValueError, match='claims|expected a plain one|no checkpoint|asks for'): read_checkpoint(path)


# recognised and loaded

def test_the_released_layout_is_recognised():
    methods()
    want = layout_of(str(golden('self_classifier')['layout/train_800ep']))
    with torch.device('meta'):
        name,sd,head = recognise({k:torch.empty(s) for k,s in want.items()})
        head = head(2048)
    bb = backbone_of({k[9:]:v for k,v in sd.items() if k.startswith('backbone.')})
    assert name=='Self-Classifier' and bb.created['name']=='resnet50'
    model = SSLModel(bb, head)
    assert {k:tuple(v.shape) for k,v in weights(model).items()}=={k:tuple(v.shape) for k,v in sd.items()}
    assert {k:tuple(v.shape) for k,v in to_official(model.state_dict()).items()}==want


@pytest.mark.parametrize('module', (True, False))
def test_version_2(queue_file, net, module):
    path,ran = queue_file(official(net) if module else to_official(net.state_dict()))
    m = load_official(path)
    x = torch.rand(3,3,64,64)
    with torch.no_grad(): a,b = net([x], {})['out'],m([x], {})['out']
    assert not ran and not m.training and 'nn_queue' in m.meta['left_out'] and m.meta['layout']=='Self-Classifier'
    for p,q in zip(a['logits'], b['logits'], strict=True): assert torch.equal(p, q)


@pytest.mark.parametrize('n_layers,dim', ((3,16), (2,16), (0,512)))
def test_version_1(save, n_layers, dim):
    v1 = SSLModel(create_backbone('resnet18_cifar'), SelfClassifierV1Head(512, 30, 3, dim, 32, n_layers, tau=.3)).eval()
    m = load_official(save(dict(state_dict=to_official_v1(v1.state_dict()))), tau=.3)
    x = torch.rand(2,3,32,32)
    with torch.no_grad(): assert torch.equal(m([x], {})['out'][0], v1([x], {})['out'][0])


@pytest.mark.parametrize('kw', (dict(n_layers=0), dict(n_layers=1, dim=24), dict(n_layers=3, dim=24, hidden=40), dict(n_layers=2, bn=False, leaky=False)))
def test_sizes_of_the_head(save, kw):
    a = SSLModel(create_backbone('resnet18_cifar'), SelfClassifierHead(512, [7,5,7], **{'hidden':32, **kw})).eval()
    m = load_official(save(official(a)), **({'leaky':False} if 'leaky' in kw else {}))
    x = torch.rand(2,3,32,32)
    with torch.no_grad():
        for p,q in zip(a([x], {})['out']['logits'], m([x], {})['out']['logits'], strict=True): assert torch.equal(p, q)


@pytest.mark.parametrize('name', ('resnet34','resnet50','wide_resnet50_2','resnext50_32x4d','vit_tiny'))
def test_the_backbone_is_found(name):
    kw = dict(size=32, patch=8) if 'vit' in name else dict(size=32, stem='small')
    b = create_backbone(name, **kw)
    again = backbone_of(b.state_dict())
    assert again.created['name']==name and {k:v.shape for k,v in again.state_dict().items()}=={k:v.shape for k,v in b.state_dict().items()}


def test_other_networks_by_their_name_in_the_file(save):
    b = create_backbone('shufflenet_v2_x0_5', size=64)
    m = load_official(save(dict(arch='shufflenet_v2_x0_5', state_dict=b.state_dict())))
    assert m.backbone.created['name']=='shufflenet_v2_x0_5'


def test_a_backbone_to_take_away(save, net, tmp_path):
    m = load_official(save(official(net)))
    b = load_backbone(export_backbone(m.backbone, tmp_path/'b.safetensors'))
    x = torch.rand(2,3,64,64)
    with torch.no_grad(): assert torch.equal(b(x), net.backbone(x))
    assert b.meta['mean']==[.485,.456,.406] and b.meta['name']=='resnet18'


def wrong(save, net, words, change):
    sd = to_official(net.state_dict()); change(sd)
    path = save(dict(state_dict={f'module.{k}':v for k,v in sd.items()}))
    with pytest.raises(ValueError) as e: load_official(path)
    assert str(path) in str(e.value) and all(w in str(e.value) for w in words) and len(str(e.value))<700, str(e.value)


def drop(*starts):
    def f(sd):
        for k in [k for k in sd if k.startswith(starts)]: del sd[k]
    return f


def put(key, f): return lambda sd: sd.update({key: f(sd.get(key))})


@pytest.mark.parametrize('words,change', [
    (('missing: backbone.layer3.*: 30 tensors',), drop('backbone.layer3.')),
    (('missing: backbone.layer2.0.conv1.weight',), drop('backbone.layer2.0.conv1.weight')),
    (('left over: head.mlp_head.mlp.7.weight',), lambda sd: sd.update({'mlp_head.mlp.7.weight':torch.zeros(3,3)})),
    (('left over: backbone.extra.*: 2 tensors',), lambda sd: sd.update({'backbone.extra.a':torch.zeros(1), 'backbone.extra.b':torch.zeros(1)})),
    (('head.cls_1.parametrizations.weight.original1 is 21x16 in the file, expected 20x16',), put('cls_1.weight_v', lambda v: torch.zeros(21,16))),
    (('backbone.layer1.0.conv1.weight is 64x64x1x1 in the file, expected 64x64x3x3',), put('backbone.layer1.0.conv1.weight', lambda v: v[...,:1,:1])),
    (('NaN or infinity in backbone.bn1.bias',), put('backbone.bn1.bias', lambda v: v*float('nan'))),
    (('NaN or infinity in backbone.bn1.running_var',), put('backbone.bn1.running_var', lambda v: v+float('inf'))),
    (('no known network',), lambda sd: [sd.pop(k) for k in list(sd) if k.startswith('backbone.')]+[sd.update({'backbone.w':torch.zeros(2,3,3,3)})])],
    ids=lambda v: v[0][:30] if isinstance(v, tuple) else '')
def test_what_does_not_fit_is_said(save, net, words, change): wrong(save, net, words, change)


@pytest.mark.parametrize('change', (put('cls_0.weight_g', lambda v: torch.tensor(1.)), put('mlp_head.mlp.0.weight', lambda v: v[:0]), put('cls_1.weight_g', lambda v: v[:0]), put('mlp_head.mlp.3.weight', lambda v: v[0])))
def test_odd_shapes(save, net, change): wrong(save, net, (), change)


def test_no_network_in_it(save):
    path = save(dict(epoch=3, a=torch.ones(2,3)))
    with pytest.raises(ValueError, match='no network in it: a'): load_official(path)


# to begin with

def learner(**kw):
    learn = ssl_learner(ssl_dls('digits', bs=128, device='cpu'), 'conv4', SelfClassifier(**{'classes':[10,20], 'dim':16, 'hidden':32, 'queue':0, **kw}), views=dict(flip=0.))
    learn.said = []
    learn.logger = learn.said.append
    return learn


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    learn = learner(queue=300)
    learn.fit_ssl(1, opt='adamw', lr=1e-3, run=folder)
    export_backbone(learn.model.backbone, folder/'backbone.safetensors')
    torch.save(official(learn.model), folder/'official.pth')
    return learn,folder


def same(a, b, start): return [torch.equal(v, weights(b.model)[k]) for k,v in weights(a.model).items() if k.startswith(start)]


@pytest.mark.parametrize('file', ('checkpoint.pt','official.pth','backbone.safetensors'))
def test_init_from(run, file):
    a,folder = run
    b = init_from(learner(), folder/file)
    assert all(same(a, b, 'backbone.')) and bare(b.model).step==0 and not b.model.head.running.any()
    assert all(same(a, b, 'head.')) == (file!='backbone.safetensors') and file in b.said[0]
    b.fit_ssl(1, opt='adamw', lr=1e-3)                                  # and it trains
    assert not all(same(a, b, 'backbone.')) and np.isfinite(b.recorder.losses).all()


def test_parts_of_the_head(run):
    a,folder = run
    b = learner(classes=[12]).init_from(folder/'official.pth', 'mlp')
    assert all(same(a, b, 'backbone.')) and all(same(a, b, 'head.mlp'))
    c = learner(classes=[12]).init_from(folder/'official.pth', False)
    assert all(same(a, c, 'backbone.')) and not all(same(a, c, 'head.mlp'))
    with pytest.raises(ValueError, match="head.cls_0.*10x1 in the file, expected 12x1.*left over: head.cls_1.*init_head='mlp'"): learner(classes=[12]).init_from(folder/'official.pth')
    with pytest.raises(ValueError, match='missing: head[.][*]: 9 tensors'): learner().init_from(folder/'backbone.safetensors', 'mlp')
    with pytest.raises(ValueError, match='expected True, False'): learner().init_from(folder/'official.pth', 'none')


def test_nothing_changes_if_it_does_not_fit(run):
    b = learner(classes=[12]); before = {k:v.clone() for k,v in weights(b.model).items()}
    with pytest.raises(ValueError): b.init_from(run[1]/'official.pth')
    assert all(torch.equal(v, before[k]) for k,v in weights(b.model).items())


def test_a_run_is_not_a_release(run):
    with pytest.raises(ValueError, match='a run of ours'): load_official(run[1]/'checkpoint.pt')
