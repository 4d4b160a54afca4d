"Supports beside a batch: in memory and in files, one process and two, killed and resumed, and with bad input."
import re
import numpy as np, pytest, torch
from PIL import Image
from safetensors import safe_open
from torch import nn
from helpers import quiet, sslnb, stop_at
from sslnb.core import bare
from sslnb.data.loader import ssl_dls
from sslnb.data.image_set import ImageSet
from sslnb.data.named_sets import digits
from sslnb.data.image_sets import image_sets
from sslnb.data.supports import Supports
from sslnb.distributed import gather
from sslnb.models.heads import mlp
from sslnb.train.method import SSLMethod
from sslnb.train.learner import ssl_learner
from sslnb.testing import check_precision, check_processes, check_resume
from sslnb.augment.views import two_views

class Nearest(SSLMethod, register=False):
    "The class of one view by its supports, as the other view sees it."
    needs_labels, tiny = True, dict(classes=4, n=2)
    def __init__(self, classes=4, n=2, S=1, unique=False, official=False): self.k, self.n, self.S, self.unique, self.official = classes, n, S, unique, official
    def setup(self, dls, backbone): self.supports = Supports(dls.train, self.k, self.n, self.S, self.unique, .1, official=self.official)
    def head(self, n_in): return mlp(n_in, 16, 8)
    def before_batch(self): self.supports.put_first(self.learn)
    def after_fit(self): self.supports.close()
    def loss(self, out, batch):
        S, Y = batch['support views'], batch['label rows']
        assert len(out) == S+2 and sum(map(len, out[:S])) == len(batch['slots'])
        z = gather(nn.functional.normalize(torch.cat(out[:S]), dim=1))
        p, q = [(nn.functional.normalize(o, dim=1)@z.T/.1).softmax(1)@Y.to(z.dtype) for o in out[S:]]
        return -(q.detach()*p.log()).sum(1).mean()

@pytest.mark.parametrize('kw', [dict(S=2), dict(unique=True), dict(official=True, classes=5)], ids=str)
def test_killed_and_resumed(kw): check_resume(Nearest, kw, epochs=2, stop=7)

@pytest.mark.parametrize('kw', [dict(), dict(unique=True, S=2)], ids=str)
def test_two_processes_are_one(kw): check_processes(Nearest, kw, steps=2)

def test_precision(): check_precision(Nearest, Nearest.tiny)

@pytest.fixture
def folder(tmp_path):
    "Three classes of 1, 2 and 9 images, and some more without a class; of different sizes, so that they stay in files."
    g = np.random.default_rng(0)
    for c, k in (('ant', 1), ('bee', 2), ('cat', 9)):
        (tmp_path/'train'/c).mkdir(parents=True); (tmp_path/'test'/c).mkdir(parents=True)
        for i in range(k): Image.fromarray(g.integers(0, 255, (20+i, 24, 3), dtype=np.uint8)).save(tmp_path/'train'/c/f'{c}{i}.png')
        Image.fromarray(g.integers(0, 255, (30, 24, 3), dtype=np.uint8)).save(tmp_path/'test'/c/f't{c}.png')
    return tmp_path

def learner(dls, **kw):
    return quiet(ssl_learner(dls, 'conv4', Nearest(3, 2, **kw), size=16, views=dict(flip=0.)))

def test_own_folder_with_one_image_of_a_class(folder):
    dls = ssl_dls(folder, bs=4, device='cpu')
    dls.train.ds.workers = 1
    learn = learner(dls, S=2)
    learn.fit(2, 1e-3)
    assert bare(learn.model).step == 6 and all(map(np.isfinite, learn.recorder.losses))
    s = learn.method.supports
    assert s._coming is None
    idx = s.rows(0).view(2, 3)
    names = [[dls.train.ds.names[i] for i in r] for r in idx.tolist()]
    assert sum('ant0' in n for r in names for n in r) == 2 and len({n for r in names for n in r}) == 5      # the only ant twice, others once
    like = s.views_like(learn.views)
    x, _, i = s.at(0, views=like)
    a, b = [v[i == idx[0, [('ant' in n) for n in names[0]].index(True)]] for v in like(x, tag='support')][0]
    assert not torch.equal(a, b)      # each draw of it looks different
    s.close()

def test_files_killed_and_resumed(folder, tmp_path_factory):
    def fit(**kw):
        dls = ssl_dls(folder, bs=4, device='cpu')
        dls.train.ds.workers = 1
        return learner(dls).fit_ssl(2, opt='adamw', lr=1e-3, warmup=0, clip=None, **kw)
    run, whole = tmp_path_factory.mktemp('run'), fit()
    assert fit(run=run, cbs=stop_at(5)).stopped
    again = fit(run=run, resume=True)
    assert again.recorder.losses == whole.recorder.losses
    for a, b in zip(again.model.state_dict().values(), whole.model.state_dict().values()): assert not torch.is_tensor(a) or torch.equal(a, b)

def test_files_kept_by_a_list(folder):
    (folder/'few.csv').write_text('path,label\nant0.png,ant\nbee1.png,bee\ncat3.png,cat\ncat5.png,cat\n')
    dls = ssl_dls(folder, bs=4, few=str(folder/'few.csv'), device='cpu')
    s = Supports(dls.train, n=4)
    for t in range(4): assert {dls.train.ds.names[i].split('/')[-1] for i in s.rows(t).tolist()} == {'ant0.png', 'bee1.png', 'cat3.png', 'cat5.png'}

def test_class_that_cannot_be_read(folder):
    dls = ssl_dls(folder, bs=4, device='cpu')
    s, like = Supports(dls.train, n=2), two_views(16)
    dls.train.ds.workers, dls.train.ds.max_bad = 0, 1.
    (folder/'train'/'ant'/'ant0.png').write_bytes(b'no picture')
    with pytest.raises(ValueError, match="labelled images of class 'ant' can be read"): s.at(0, views=s.views_like(like))

def test_bad_input(folder):
    train, test = digits()
    none = train.with_labels(torch.where(train.labels == 3, -1, train.labels))
    dls = ssl_dls((none, test), bs=64, device='cpu')
    with pytest.raises(ValueError, match='1 of 10 classes of digits have no labelled image: 3'): Supports(dls.train)
    assert Supports(dls.train, skip=True).classes == 9
    with pytest.raises(ValueError, match='10 classes in a batch of supports, but there are labels for 9'): Supports(dls.train, 10, skip=True)
    with pytest.raises(ValueError, match='has no labels'): Supports(ssl_dls((train.with_labels(None), test), bs=64, device='cpu').train)
    for few, why in (('nowhere.txt', 'nowhere.txt'), (str(folder), 'there is no file'), ('coin 7', 'coin 10%')):
        with pytest.raises((ValueError, FileNotFoundError), match=why): image_sets((train, test), few=few)

def test_every_way_to_say_few(tmp_path):
    train, test = digits()
    array = ImageSet(train.images, train.labels, train.classes)
    (tmp_path/'spc.txt').write_text(''.join(f'{i}\n' for i in (5, 70, 11)))
    count = lambda few, **kw: int((image_sets((array, test), few=few, **kw)[0].labels >= 0).sum())
    assert [count(f) for f in (4, '4', str(tmp_path/'spc.txt'), [1, 2], 1.)] == [40, 40, 3, 2, len(array)]
    assert count(.29) == sum(round(.29*k) for k in array.labels.bincount().tolist()) and 0 < count('coin 10%', split_seed=0) < len(array)/5
    kept = lambda seed: image_sets((array, test), few=4, split_seed=seed)[0].labels.tolist()
    assert kept(1) == kept(1) != kept(2)

BEE, CAT = 'bee0.png,bee\n', 'cat3.png,cat\n'

@pytest.mark.parametrize('key, value, words', [
    ('--few', BEE+CAT, '1 of 3 classes of .* have no labelled image: ant; label some, or leave'),
    ('--few', BEE+CAT+'dog7.png,cat\n', 'images in .*list.csv are not in .*dog7.png; it has'),
    ('--few', BEE+CAT+'ant0.png,dog\n', "unknown class in .*list.csv 'dog'.*ant, bee, cat; or a number from 0 to 2"),
    ('--few', BEE+CAT+'ant0.png,3\n', "unknown class in .*list.csv '?3'?.*a number from 0 to 2"),
    ('--few', None, 'there is no file .*list.csv; expected a list'),
    ('--labels', 'false', 'PAWS needs labels'),
    ('--support-classes', 4, '4 classes in a batch of supports, but there are labels for 3; expected 3 or fewer'),
    ('--support-images', 0, 'expected at least 1')])
def test_bad_input_through_the_command_line(folder, key, value, words):
    if key == '--few':
        if value: (folder/'list.csv').write_text(value)
        value = folder/'list.csv'
    small = ['--backbone', 'conv4', '--size', 16, '--bs', 4, '--dim', 16, '--epochs', 1]
    code, _, err = sslnb('pretrain', folder, '--method', 'PAWS', *small, '--out', folder/'run', key, value)
    assert code == 2 and re.search(words, err) and 'Traceback' not in err, err
    assert not (folder/'run').exists()

@pytest.fixture(scope='module')
def paws_run(tmp_path_factory):
    "An epoch of PAWS on the digits with four labels of each: the Learner and the folder of its run."
    from sslnb.run.pretrain import build
    from sslnb.run.recipes import load_recipe, split_recipe
    from sslnb.run.run_folder import save_recipe
    learn, flat = build(load_recipe('paws/digits', dict(epochs=1, size=8, bs=256)))
    run = tmp_path_factory.mktemp('paws')/'run'
    save_recipe(flat, run/'recipe.yml')
    return quiet(learn).fit_ssl(run=run, **split_recipe(flat)['fit']), run

def test_a_classifier_grows_out_of_paws(paws_run):
    from sslnb.app.classifier import test_classifier as again, train_classifier
    learn, run = paws_run
    assert learn.dls.train.ds.labels.ge(0).sum() == 40
    c = train_classifier(run, finetune=True, few=4, like='paws', epochs=1, progress=False)
    assert again(c.path) == c.scores and c.settings['bs'] == 1024
    with safe_open(c.path/'classifier.safetensors', 'pt') as f: sd = {k: f.get_tensor(k) for k in f.keys()}
    assert torch.equal(sd['fc.fc1.weight'], learn.model.head.fc.fc1.weight) and sd['fc.fc2.weight'].any()      # one step: below zeros there is no gradient yet
    assert sd['fc.fc2.weight'].shape == (10, 64)

def test_suncet_goes_on_from_a_run_of_paws(paws_run, tmp_path):
    from sslnb.app.networks import open_backbone
    from sslnb.run.pretrain import pretrain
    learn, run = paws_run
    small = dict(recipe='suncet/digits', size=8, init=str(run), progress=False)
    still = pretrain(out=tmp_path/'still', epochs=1, lr=0., start_lr=0., final_lr=0., **small)
    assert len(still.learn.dls.train.ds) == 40 and still.learn.dls.train.ds.labels.bincount().tolist() == [4]*10
    for k, v in learn.model.state_dict().items():                           # where it begins, head included; norms stay as they are
        if torch.is_tensor(v) and v.is_floating_point(): assert torch.equal(v, still.learn.model.state_dict()[k]), k
    with pytest.raises(ValueError, match='head.pred'): pretrain(out=tmp_path/'odd', **{**small, 'pred': True})
    assert open_backbone(tmp_path/'still').learn.method.__class__.__name__ == 'SuNCEt'
