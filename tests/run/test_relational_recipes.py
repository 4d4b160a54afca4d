"""Recipes by rule of relational reasoning and its companions, and the three stages: what the paper sets for each method, data set and network, and what is refused."""
import csv, json
import pytest, torch
from helpers import quiet, sslnb
from sslnb.app.options import parse
from sslnb.run.recipes import check_keys, grids, load_recipe

METHODS = dict(relationnet='RelationNet', simclr='SimCLR', deepcluster='DeepCluster', deepinfomax='DeepInfoMax', rotationnet='RotNet', randomweights='RandomWeights', standard='Supervised')
DATA = dict(cifar10=(32, 4, .491, .247), cifar100=(32, 4, .507, .267), supercifar100=(32, 4, .507, .267), stl10=(96, 12, .5, .5), slim=(64, 8, .5, .25), tiny=(64, 8, .5, .25))      # side, border, mean and deviation of red
BACKBONES = ('conv4', 'resnet8', 'resnet32', 'resnet56', 'resnet34')
RATES = dict(relationnet=(64, 'adam', .001), simclr=(128, 'adam', .001), deepcluster=(128, 'adam', .001), deepinfomax=(128, 'adam', .0001), rotationnet=(128, 'adam', .001), standard=(128, 'sgd', .1))
BORDER = ('deepcluster', 'rotationnet', 'standard')
parts = lambda n: n.split('/')[1].split('-')

@pytest.mark.quick
def test_there_are_210_and_they_say_what_the_paper_says():
    names = list(grids()['relational'].names())
    assert len(set(names)) == 210 == len(METHODS)*len(DATA)*len(BACKBONES)
    for n in names:
        m, d, b = parts(n)
        r = load_recipe(n)
        side, pad, mean, std = DATA[d]
        assert (r['method'], r['backbone'], r['size'], r['mean'][0], r['std'][0], r['epochs']) == (METHODS[m], b, side, mean, std, 300 if d == 'stl10' else 200), n
        assert r.get('stem') == ('imagenet' if b == 'resnet34' else None) and r['lr_rule'] == 'none' and r['wd'] == 0, n
        assert r['data'] == ({'standard': 'stl10_labelled'}.get(m, 'stl10_unlabelled') if d == 'stl10' else d), n
        if m in RATES: assert (r['bs'], r['opt'], r['lr']) == RATES[m], n
        if m in BORDER: assert (r['scale'], r['pad']) == (None, 0 if (m, d) == ('standard', 'stl10') else pad), n
        if m in ('relationnet', 'simclr'): assert (r['scale'], r['jitter'], r['grey']) == ((.08, 1.), (.8, .8, .8, .2), .2), n
        if m == 'relationnet': assert r['k'] == {('tiny', 'resnet32'): 16, ('stl10', 'resnet34'): 25}.get((d, b), 32), n

@pytest.mark.parametrize('group', grids())
def test_keys_and_values_of_recipes_by_rule_are_known(group):
    for n in grids()[group].names():
        r = load_recipe(n)
        keys = check_keys(r)
        for k, v in r.items(): assert parse(keys[k], list(map(str, v)) if isinstance(v, tuple) else [str(v)]) == v, (n, k)

@pytest.mark.parametrize('name', ['relational/relationnet-tiny-resnet32', 'relational/simclr-cifar10-conv4', 'relational/rotationnet-stl10-conv4', 'relational/deepinfomax-slim-resnet8', 'relational/standard-stl10-conv4'])
def test_a_small_copy_of_a_recipe_by_rule_trains(name):
    from sslnb.data.image_set import ImageSet
    from sslnb.run.pretrain import build
    from sslnb.run.recipes import split_recipe
    m = load_recipe(name)['method']
    noise = ImageSet(torch.randint(256, (48, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte(), torch.arange(48) % 4, name='noise')
    learn, flat = build(load_recipe(name, dict(bs=16, size=32, backbone='conv4', epochs=1, **({'k': 3} if m == 'RelationNet' else {}))), sets=(noise, noise))
    quiet(learn).fit_ssl(**split_recipe(flat)['fit'])
    assert len(learn.recorder.losses) == 3 and all(torch.tensor(learn.recorder.losses).isfinite())
    assert {g['lr'] for g in learn.opt.opt.param_groups} <= {flat['lr'], flat['lr']*.1, flat['lr']*.01}

def test_recipes_by_rule_are_listed_shown_and_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert 'relational/METHOD-DATA-BACKBONE  210 recipes. Relational reasoning' in sslnb('recipes')[1]
    text = sslnb('recipes', 'relational')[1]
    for words in (*METHODS, *DATA, *BACKBONES): assert words in text
    assert 'k: 16' in sslnb('recipes', 'relational/relationnet-tiny-resnet32')[1]
    for name, words in (('relational/relationnet-cifar10-conv5', "'conv5': did you mean 'conv4'"), ('relational/simclr', 'is made of method (relationnet, simclr'), ('relational', 'e.g. relational/'), ('relational/swav-cifar10-conv4', 'unknown method in the recipe')):
        for argv in (['recipes', name], ['pretrain', '--recipe', name])[name == 'relational':]:
            rc, out, err = sslnb(*argv)
            assert (rc, out, len(err.splitlines())) == (2, '', 1) and words in err
    assert not list(tmp_path.iterdir())

# the stages

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    from sslnb.run.pretrain import pretrain
    return pretrain(out=tmp_path_factory.mktemp('stages')/'run', epochs=1, size=8, hidden=16, restarts=2, renew=0, warmup=0, backbone='conv4', progress=False).path

def coloured(n, classes):
    "Grey squares of 8 pixels, a brightness for each class."
    from sslnb.data.image_set import ImageSet
    y = torch.arange(n) % len(classes)
    return ImageSet((y.view(-1, 1, 1, 1)*20+torch.randint(20, (n, 1, 8, 8), generator=torch.Generator().manual_seed(0))).byte(), y, classes, name='coloured')

def test_three_stages_on_other_images_than_the_first(run, monkeypatch):
    from sslnb.data.image_sets import DATASETS
    monkeypatch.setitem(DATASETS, 'coloured', lambda: (coloured(120, list('abcdef')), coloured(60, list('abcdef'))))
    monkeypatch.setitem(DATASETS, 'others', lambda: (coloured(120, list('abcxyz')), coloured(60, list('abcxyz'))))
    monkeypatch.setitem(DATASETS, 'digits', lambda: pytest.fail('the images of the first stage are not needed'))
    out = run.parent/'transfer'
    assert sslnb('linear', run, '--data', 'coloured', '--like', 'swav', '--epochs', 2, '--few', 4, '--out', out)[0] == 0
    made = {p.name for p in out.iterdir()}
    assert made == {'backbone.safetensors', 'checkpoint.pt', 'classifier.safetensors', 'classifier.yml', 'history.csv', 'scores.json'}
    scores = json.loads((out/'scores.json').read_text())
    rc, text, err = sslnb('test', out, '--bs', 7)
    assert rc == 0 and f"top-1 {100*scores['top1']:.2f} %" in text and f"loss {scores['loss']:.4f}" in text and scores['images'] == 60
    rc, text, err = sslnb('test', out, '--data', 'others')
    assert rc == 2 and '3 of those in coloured are none of them (x, y, z)' in err and 'sslnb linear SOURCE --data others' in err
    rc, text, err = sslnb('table', out, '--out', run.parent/'t.csv')
    row, = csv.DictReader(open(run.parent/'t.csv'))
    assert (row['trained_on'], row['tested_on'], row['few'], row['runs']) == ('digits', 'coloured', '4', '1') and 'not in it: lower bound' in text

@pytest.mark.parametrize('command, words', [
    ('linear RUN --like swav --data nothing', 'unknown data set'), ('linear RUN --like swap', "did you mean 'swav'"),
    ('linear RUN --few 120%', 'a share of 1.2 of the labels; expected more than 0 and at most 1'),
    ('linear RUN --like swav --few 10000', 'labels'),
    ('test RUN', 'of the second stage'), ('table TOP', 'is no run'), ('compare none/*', 'no recipe is called')])
def test_refused(run, command, words):
    code, _, err = sslnb(*[dict(RUN=run, TOP=run.parent).get(a, a) for a in command.split()])
    assert code == 2 and words in err and len(err.splitlines()) == 1, err
    assert not (run.parent/'run-linear').exists(), 'what failed leaves nothing behind'
