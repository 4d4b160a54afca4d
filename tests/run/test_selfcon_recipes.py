"""Recipes by rule of SelfCon and the methods beside it: views, labels, exits, data and rates of each form; ImageNet-100 in the order of its list; a small copy of one trains."""
import pytest, torch
from helpers import quiet
from sslnb.data.class_subsets import class_list
from sslnb.run.recipes import grids, load_recipe, split_recipe

CIFAR10, CIFAR100, IMAGENET = ((.4914, .4822, .4465), (.2023, .1994, .2010)), ((.5071, .4867, .4408), (.2675, .2565, .2761)), ((.485, .456, .406), (.229, .224, .225))
DATA = dict(cifar10=(32, CIFAR10), cifar100=(32, CIFAR100), tiny=(64, IMAGENET), imagenet100=(224, IMAGENET), imagenet=(224, IMAGENET))
FORMS = dict(con=('Con', 2, None, 0), supcon=('SupCon', 2, None, 0), supcon_s=('SupCon', 1, None, 0), **{f'selfcon{v}{s}': ('SelfCon', 2 if 'm' in v else 1, 'u' not in v, float(bool(s))) for v in ('', '_su', '_m', '_mu') for s in ('', '_star')})
STAGE = dict(ce='ce', subnet_ce='subnet_ce', kd='kd', one_stage='selfcon')


def test_they_say_what_the_paper_says():
    grid = grids()['selfcon']
    assert len(grid) == (len(FORMS)+len(STAGE))*len(DATA)*8
    for n in [f'{m}-{d}-{b}' for m in (*FORMS, *STAGE) for d, b in (('cifar10', 'vgg16'), ('cifar100', 'resnet18'), ('tiny', 'wrn'), ('imagenet100', 'resnet50'), ('imagenet', 'efficientnet'))]:
        m, d, b = n.split('-')
        r = load_recipe(f'selfcon/{n}')
        assert (r['data'], r['size'], (r['mean'], r['std'])) == (d, *DATA[d]), n
        assert bool(r['exits']) == (m.startswith('selfcon') or m in ('subnet_ce', 'kd', 'one_stage')), n
        if m in FORMS:
            assert (r['method'], r['k'], r.get('labels', True if m.startswith('selfcon') else None), r.get('alpha', 0)) == FORMS[m] and r['temp'] == .1, n
            assert (r['bs'], r['lr']*r['bs']/256, r['epochs']) == ((2048, .25, 800) if d.startswith('imagenet') else (1024, .5, 1000)), n
        else: assert (r['method'], r['kind'], r['jitter'], r['lr']*r['bs']/256, r['epochs'], r.get('classifier')) == ('OneStage', STAGE[m], None, .8, 500, 'mlp' if b == 'vgg16' else None), n
        if b.startswith('resnet'): assert r['stem'] == ('imagenet' if d.startswith('imagenet') else 'small'), n
        assert r.get('exit_size') == ('same' if r['exits'] and b == 'resnet50' else None), n


def test_imagenet100_is_in_the_order_of_its_list():
    names = class_list('imagenet100')
    assert (len(set(names)), names[:4], names[-2:]) == (100, ['n02869837', 'n01749939', 'n02488291', 'n02107142'], ['n01855672', 'n02090622']) and names != sorted(names)


@pytest.mark.parametrize('name', ['selfcon_mu_star-imagenet100-resnet50', 'one_stage-cifar10-vgg13'])
def test_a_small_copy_trains(name):
    from sslnb.data.image_set import ImageSet
    from sslnb.run.pretrain import build
    noise = ImageSet(torch.randint(256, (32, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte(), torch.arange(32) % 4, name='noise')
    learn, flat = build(load_recipe(f'selfcon/{name}', dict(bs=16, size=16, backbone='resnet8', exits=(False, True), epochs=1, precision='fp32', stem='auto')), sets=(noise, noise))
    quiet(learn).fit_ssl(**split_recipe(flat)['fit'])
    assert len(learn.recorder.losses) == 2 and torch.tensor(learn.recorder.losses).isfinite().all()
    if name.startswith('selfcon_mu'): assert not learn.method.labels and learn.dls.labelled, 'trained without labels, which are there for evaluation'
