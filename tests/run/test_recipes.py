"""Every recipe that comes with the library: it loads, its keys and values are such as the library takes, a small copy of it trains, and its learning rates are the published ones.

A small copy has 96 random images, a small network, few classes, units and local crops; method, losses, views, optimiser and schedule are the recipe's own. Where the recipe says fp16, the copies
but one run in fp32: a CPU takes ten times as long for half precision, and the scaler of the gradients leaves out the first steps until it has found its size."""
import math, re
import pytest, torch
from helpers import quiet, sslnb, sweep
from sslnb.app.options import parse
from sslnb.run.keywords import keys_of
from sslnb.run.recipes import check_keys, folder, layers, load_recipe, read_recipe, recipes

every, quick = pytest.mark.parametrize('name', recipes()), pytest.mark.quick

# what the official scripts of Self-Classifier say: images in a batch, highest rate, rate at the start (None: no warm-up), last rate
V2 = {n: (4092, 4.8, .3, .0048) for n in '''100ep 200ep 400ep no_multicrop no_nn no_nn_no_multicrop 1x1k 1x2k 1x4k 1x8k 5x1k 10x1k 15x1k fixed_cls no_mlp num_hidden_3 dim_256 hidden_dim_8192
    hidden_dim_8192_dim_256 num_hidden_3_dim_256 q_len_512K q_len_1M col_tau_5e-2_row_tau_7e-2 col_tau_3e-2_row_tau_1e-1 col_tau_3e-2_row_tau_7e-2 wd_1e-5 wd_5e-5 wd_5e-6'''.split()}
V2 |= {n: (4092, 3.2, .2, .0032) for n in ('800ep', 'q_len_128K', 'base_lr_0.2')}
V2 |= {'base_lr_0.1': (4092, 1.6, .1, .0016), 'base_lr_0.4': (4092, 6.4, .4, .0064)}
V2 |= dict(bs_256=(256, .3, None, .0003), bs_512=(512, .6, None, .0006), bs_1024=(1024, 1.2, .3, .0012), bs_2048=(2048, 2.4, .3, .0024))
V1 = {n: (4096, 4.8, .3, .0048) for n in '''100ep 1x300 1x1000 1x3000 30x300 30x3000 50x1000 100x128 learnable_cls dim_128_num_hidden_1x4096 dim_128_num_hidden_3x4096
    dim_256_num_hidden_1x4096 dim_256_num_hidden_2x4096 no_mlp wd_1e-3 wd_1e-5 wd_1e-6 wd_1e-7'''.split()}
V1 |= {'800ep': (4096, 3.2, .2, .0032), **{f'lr_{r}': (4096, 16*r, r, .016*r) for r in (.05, .1, .2, .4, .5)}}
V1 |= {n: (256, 3.2, None, .032) for n in ('cifar10', 'cifar100-20')}
# of SwAV, DeepCluster-v2 and SeLa-v2: the same; what has no official script has the rates of the run that it differs from
SWAV = {n: (4096, 4.8, .3, .0048) for n in '''100ep 200ep 400ep 800ep 400ep_2x224 RN50w2_400ep 400ep_2x160 prototypes_300 prototypes_1000 prototypes_10000 prototypes_30000 prototypes_100000
    fixed_prototypes hard_codes sinkhorn_1 sinkhorn_10'''.split()}
SWAV |= {n: (256, .6, None, .0006) for n in ('200ep_bs256', '400ep_bs256', '200ep_bs256_2x160')}
SWAV |= dict(RN50w4_400ep=(2560, 4.8, .3, .0048), RN50w5_400ep=(1536, 4.8, .1875, 0.))
OFFLINE = {n: (4096, 4.8, .3, .0048) for n in ('400ep', '400ep_2x224', '800ep')}
GROUPS = dict(self_classifier=V2, self_classifier_v1=V1, swav=SWAV, deepcluster_v2=OFFLINE, sela_v2={n: r for n, r in OFFLINE.items() if n != '800ep'},
              self_con=dict(cifar100=(1024, .5, .01, .0005), imagenet=(2048, .25, .01, .00025)), sup_con=dict(cifar100=(1024, .5, .01, .0005)), one_stage=dict(cifar100=(1024, .8, .01, .0008)))
# of PAWS, SimCLR with SuNCEt, and SuNCEt after PAWS: the configuration files
GROUPS |= dict(paws=dict(imgnt_train=(4096, 6.4, .3, .064), cifar10_train=(256, 3.2, .8, .032)), simclr_ct=dict(imgnt_train=(2816, 4.8, .6, .048), imgnt_2020=(2816, 4.8, .6, 0.)), suncet=dict(cifar10_snn=(640, .1, None, .01)))
RATES = {f'{g}/{n}': r for g, rs in GROUPS.items() for n, r in rs.items()}
OURS = dict(swav='cifar10 cifar10_800ep cifar10_solo_learn cifar100_solo_learn imagenette digits'.split(), deepcluster_v2='cifar10 cifar100 digits'.split(), sela_v2=['digits'], relation_net=['essential'], paws=['cifar10_cpu', 'digits'], suncet=['digits'])      # not from the authors, or (relation_net) looked at in losses/test_golden_relation.py

# files

@quick
@every
def test_says_what_it_is(name):
    first = (folder/f'{name}.yml').read_text(encoding='utf-8').splitlines()[0]
    assert re.fullmatch(r'# [A-Z].{10,150}\.', first)

@quick
@every
def test_keys_and_values_are_known(name):
    flat = load_recipe(name)
    for own in layers(name).values(): assert set(own) - {'recipe'} <= set(flat), 'nothing is lost on the way'
    keys = check_keys(flat)
    for k, v in flat.items():
        words = str(v).replace("'", '"') if isinstance(v, dict) else ' '.join(map(str, v)) if isinstance(v, tuple) else str(v)
        assert parse(keys[k], words.split(' ') if isinstance(v, tuple) else [words]) == v, k

@quick
def test_every_official_script_is_there():
    groups = {g: [n for n in recipes() if n.startswith(f'{g}/') and n.split('/')[1] not in OURS.get(g, ())] for g in GROUPS}
    assert set(RATES) == set(sum(groups.values(), [])) and set(RATES) | {f'{g}/{n}' for g, ns in OURS.items() for n in ns} == {n for n in recipes() if '/' in n}
    ablations = {g: [n for n in ns if 'scripts/ablation/' in recipes()[n].read_text(encoding='utf-8') and not n.endswith('ep')] for g, ns in groups.items()}
    assert (len(ablations['self_classifier']), len(ablations['self_classifier_v1'])) == (33, 22)

@quick
def test_ablations_hold_only_what_is_different():
    for name in recipes():
        own = read_recipe(name)
        if 'recipe' in own:
            below = load_recipe(own['recipe'])
            assert not {k for k, v in own.items() if k in below and below[k] == v}, name

@quick
def test_mixed_precision_stands_for_batch_norm_as_officially():
    for name in V2:
        r = load_recipe(f'self_classifier/{name}')
        assert (r['bn'], r['precision']) == ((True, 'fp32') if name.endswith('ep') or name.startswith('bs_') else (False, 'fp16')), name

@quick
@pytest.mark.parametrize('name', RATES)
def test_learning_rates_are_the_official_ones(name):
    from sslnb.train.schedule import check_recipe, lr_factor, schedule
    from sslnb.run.keywords import training_keys
    flat, (bs, peak, first, last) = load_recipe(name), RATES[name]
    r = check_recipe({k: v for k, v in flat.items() if k in training_keys()})
    lrs = schedule({**r, 'epochs': 100 if r['lr_each'] == 'step' else r['epochs']}, 313, bs)
    assert flat['bs'] == bs and lr_factor(r, bs)*r['lr'] == pytest.approx(peak, rel=5e-3) == lrs.max()
    assert lrs[0] == pytest.approx(first or peak, rel=5e-3) and lrs[-1] == pytest.approx(last, rel=5e-3, abs=1e-6)
    assert int(lrs.argmax()) == (313*10-(r['lr_each'] != 'epoch_end' and r['top_twice']) if first else 0)

@quick
@pytest.mark.parametrize('name', SWAV)
def test_the_prototypes_are_frozen_for_the_official_steps(name):
    r = load_recipe(f'swav/{name}')
    n = 1281167//r['bs']
    steps = {'200ep_bs256': 5005, '400ep_bs256': 5005, '200ep_bs256_2x160': 5005, 'fixed_prototypes': 400*n}.get(name, 313)
    assert round(r['freeze']*n) == steps
    assert (r['queue'], r['queue_start'] if r['queue'] else None) == {256: (3840, 15), 2560: (2560, 0), 1536: (1536, 0)}.get(r['bs'], (0, None))

@quick
def test_all_of_swav_see_images_with_its_own_deviation():
    for name in RATES:
        if name.startswith(('swav/', 'deepcluster_v2/', 'sela_v2/')): assert load_recipe(name)['std'] == (.228, .224, .225), name

@quick
def test_supports_are_those_of_all_processes_together():
    for name, shape in (('paws/imgnt_train', (15*64, 7, 1)), ('paws/cifar10_train', (10, 64, 2)), ('simclr_ct/imgnt_train', (20, 2*64, 1))):
        r = load_recipe(name)
        assert (r['support_classes'], r['support_images'], r['support_views']) == shape
    r = load_recipe('suncet/cifar10_snn')
    assert (10*r['few']//r['bs']*r['epochs'], r['unlabelled'], r['support_classes'], r['support_images'], r['still_norm']) == (30*int(int(5000*(1-.92))/64), False, 10, 64, True)

# training

@pytest.fixture(scope='session')
def images():
    from sslnb.data.image_set import ImageSet
    g = torch.Generator().manual_seed(0)
    make = lambda n: ImageSet(torch.randint(256, (n, 3, 32, 32), generator=g).byte(), torch.arange(n) % 4, name='noise')
    return make(96), make(24)

def small(r):
    "A recipe with small numbers for everything that costs time."
    few = lambda n: max(2, n//100) if n >= 100 else min(n, 6)
    out = dict(bs=32, size=16, backbone='resnet8', epochs=1, precision='fp32', **({'hidden': 32} if 'hidden' in keys_of(r.get('method') or 'SelfClassifier') else {}))
    if r.get('exits'): out |= dict(exits=(False, True))
    if r.get('stem') == 'small': out['stem'] = 'auto'
    if 'dim' in r: out['dim'] = 64 if r.get('n_layers') == 0 else r['dim']//8
    if isinstance(r.get('classes'), tuple): out['classes'] = tuple(map(few, r['classes'][:4]))
    elif r.get('classes'): out['classes'] = few(r['classes'])
    if 'n_classifiers' in r: out['n_classifiers'] = min(4, r['n_classifiers'])
    if r.get('restarts', 0) > 2: out |= dict(restarts=2)
    if r.get('queue'): out |= dict(queue=64, **{'queue_start': 0} if 'queue_start' in r else {})     # full after two of three steps
    if isinstance(r.get('n_prototypes'), tuple): out['n_prototypes'] = tuple(map(few, r['n_prototypes']))
    elif r.get('n_prototypes'): out['n_prototypes'] = min(90, few(r['n_prototypes']))
    if r.get('support_classes'): out |= dict(support_classes=4, support_images=2)
    if 'local_size' in r: out |= dict(local_size=8, n_local=min(2, r['n_local']))
    if len(r.get('mean') or (0, 0, 0)) != 3: out |= dict(mean=None, std=None)
    return out

def train(name, images, **given):
    "A small copy of a recipe, trained for three steps; the Learner, its recipe, and which of its parameters have moved."
    from sslnb.run.pretrain import build
    from sslnb.run.recipes import split_recipe
    r = load_recipe(name)
    learn, flat = build({'method': 'SelfClassifier', **load_recipe(name, {**small(r), **given})}, sets=images)
    quiet(learn)
    before = [p.detach().clone() for p in learn.model.parameters()]
    learn.fit_ssl(**split_recipe(flat)['fit'])
    return learn, flat, [not torch.equal(a, b) for a, b in zip(before, learn.model.parameters()) if b.requires_grad]

def changes(name):
    "What kind of recipe it is: its group, and the names of the keys that it sets itself."
    return name.split('/')[0], tuple(sorted(read_recipe(name)))

@pytest.mark.parametrize('name', sweep(recipes(), changes))
def test_a_small_copy_trains(name, images):
    learn, flat, moved = train(name, images)
    losses = learn.recorder.losses
    assert learn.model.step == len(losses) == 3 and all(map(math.isfinite, losses))
    assert type(learn.opt.opt).__name__.lower() == flat['opt'].replace('_', '') and flat['opt'] == load_recipe(name).get('opt', flat['opt'])
    assert sum(moved) > len(moved)/2, 'parameters move'
    if flat.get('queue'): assert all(q.full for q in getattr(learn.model.head, 'queues', None) or [learn.model.head.queue])

def test_a_small_copy_trains_in_its_own_precision(images):
    learn, flat, moved = train('self_classifier_v1/100ep', images, precision=load_recipe('self_classifier_v1/100ep')['precision'])
    assert flat['precision'] == 'fp16' and all(map(math.isfinite, learn.recorder.losses)) and any(moved)

# the command line

def said(*argv):
    code, out, err = sslnb(*argv)
    assert code == 0, err
    return out

def test_all_are_listed():
    text = said('recipes')
    for n in recipes(): assert re.search(rf'^{re.escape(n)} +[A-Z]', text, re.M), n
    group = said('recipes', 'self_classifier')
    assert 'self_classifier/100ep' in group and 'digits' not in group and 'self_classifier_v1/' not in group

def test_one_is_shown_with_what_it_builds_on():
    text = said('recipes', 'self_classifier/bs_256')
    assert text.index('queue: 16384') < text.index('# builds on self_classifier/100ep') < text.index('queue: 262144')
    import yaml
    full = yaml.safe_load(said('recipes', 'self_classifier/bs_256', '--full'))
    assert (full['queue'], full['bs'], full['row_tau']) == (16384, 256, .1) and 'recipe' not in full

def test_dry_run_without_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sslnb.run.plan.known_data', list)       # as on a machine that lacks it
    text = said('pretrain', '--recipe', 'self_classifier/800ep', '--dry-run')
    for words in ('imagenet: 1,281,167 images to train, 50,000 to test, 1,000 classes', 'not on this machine', '4,092 images in a batch, 313 steps in an epoch', '800 epochs, 250,400 steps',
                  'global 1, 224 x 224: scale 0.4 1,', 'local 1 to local 6, 96 x 96: scale 0.05 0.4,', 'solarise 0.2', 'resnet50, 23,508,032 parameters, 2,048 features', 'emb (2, 128)',
                  'logits (8, 2, 1000), (8, 2, 2000), (8, 2, 4000), (8, 2, 8000)', '7.947 where everything has collapsed', 'larc, momentum 0.9, trust 0.001, fp32', 'decay 1e-06: 173 tensors, 34,368,344 parameters',
                  'with 4,092 it is 3.197', '0.1998 at the first step, 3.197 from step 3,130', 'at the last, step 250,400', 'queue: 262144', 'global_scale: [0.4, 1.0]'): assert words in text, words
    assert not list(tmp_path.iterdir()), 'nothing is written'

def test_what_is_given_wins_and_the_rate_scales(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sslnb.run.plan.known_data', list)
    small = ('--backbone', 'resnet8', '--hidden', 32, '--size', 32, '--local-size', 16, '--dry-run')
    text = said('pretrain', '--recipe', 'self_classifier/100ep', '--bs', 512, '--epochs', 7, '--row-tau', .2, *small)
    for words in ('512 images in a batch, 2,502 steps in an epoch', '7 epochs, 17,514 steps', 'lr 0.3 is for 256 images and grows with the batch: with 512 it is 0.6', 'row_tau: 0.2', 'epochs: 7'): assert words in text, words
    text = said('pretrain', '--recipe', 'self_classifier/100ep', '--lr', .1, *small)
    assert 'with 4,092 it is 1.598' in text and '0.0999 at the first step' in text
    code, _, err = sslnb('pretrain', '--recipe', 'self_classifier/100ep', '--queue', '2000000', *small)
    assert code == 2 and 'queue=2000000 with 1281167 images' in err and not list(tmp_path.iterdir())

def test_dry_run_of_the_main_job_is_what_the_run_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = said('pretrain', '--dry-run')
    assert 'digits: 1,438 images to train, 359 to test' in text and 'not on this machine' not in text and 'runs/digits-selfclassifier-seed0' in text
    assert sslnb('pretrain', '--dry-run', '--resume', 'nowhere')[0] == 2 and not list(tmp_path.iterdir())
