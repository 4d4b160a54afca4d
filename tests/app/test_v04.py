"""What version 0.4 wrote is opened, gone on with, judged and exported, and its command lines mean what they meant.

`tests/fixtures/v04` was written by 0.4 with `tests/fixtures/make.py`; its README says how."""
import contextlib, csv, importlib.util, io, json, os, re, shutil, sys, tarfile
from pathlib import Path
import numpy as np
import pytest
import torch
import yaml
from torch.optim.optimizer import register_optimizer_step_post_hook
import sslnb.all as sslnb
from sslnb.app.cli import main

fixtures = Path(__file__).resolve().parents[1]/'fixtures'
old = fixtures/'v04'


def by_path(file, name):
    "A Python file as a module of that name."
    spec = importlib.util.spec_from_file_location(name, file)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)      # timm looks for it there
    spec.loader.exec_module(module)
    return module


make = by_path(fixtures/'make.py', 'make_fixtures')
said = json.loads((old/'expected.json').read_text())
known = json.loads((old/'options.json').read_text())
slow = lambda names, quick: [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.fixture(scope='module', autouse=True)
def top(tmp_path_factory):
    "A copy of the fixtures where they can be written to, with the images that they were made from."
    top, threads = tmp_path_factory.mktemp('v04')/'top', torch.get_num_threads()
    data = os.environ.get('SSLNB_DATA')
    shutil.copytree(old, top)
    shutil.unpack_archive(top/'unfinished.tar.xz', top/'unfinished')
    for p in top.rglob('*.yml'):
        p.write_text(p.read_text(encoding='utf-8').replace('TOP/', f'{top}/'), encoding='utf-8')
    make.prepare(top/'images')
    yield top
    torch.set_num_threads(threads)
    os.environ.pop('SSLNB_DATA')
    if data is not None: os.environ['SSLNB_DATA'] = data


def command(*argv):
    "Exit status and what was printed, output and errors."
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out): code = main([str(a) for a in argv])
    return code, out.getvalue()


def scores_of(folder): return json.loads((folder/'scores.json').read_text())


def table_of(file):
    with open(file, newline='', encoding='utf-8') as f: return list(csv.DictReader(f))


def close(got, want, off, path=''):
    "The same keys, words and counts; numbers that differ by `off` at most."
    if isinstance(want, dict):
        assert set(got) >= set(want), f'{path} lacks {set(want) - set(got)}'
        for k in want: close(got[k], want[k], off, f'{path}/{k}')
    elif isinstance(want, (list, tuple)):
        assert len(got) == len(want), path
        for i, (a, b) in enumerate(zip(got, want)): close(a, b, off, f'{path}/{i}')
    elif isinstance(want, float) and got is not None: assert got == pytest.approx(want, rel=off, abs=off), path
    else: assert got == want, path

@contextlib.contextmanager
def steps():
    "Collects a mark for each step of an optimiser."
    seen = []
    handle = register_optimizer_step_post_hook(lambda *args: seen.append(1))
    try: yield seen
    finally: handle.remove()

# Runs that were stopped inside an epoch


def same_end(got, want, state):
    "That training ended as it would have with 0.4: losses and weights to what float32 holds on another processor."
    close(got['losses'], want['losses'], 1e-5, 'losses')
    for k, v in want['marks'].items():
        size = state[k].double().abs().sum().item()
        assert got['marks'][k] == pytest.approx(v, abs=1e-5*(1 + size)), k
    close(got['history'], want['history'], spread(got, want), 'history')


def spread(got, want):
    "Where the losses are the same to nine digits, so is all else; if not, a neighbour or a cluster may be another."
    return 1e-6 if got['losses'] == want['losses'] else .15


@pytest.mark.parametrize('method', [m for m in make.RUNS if m not in make.NO_CHECKPOINT])
def test_training_goes_on_to_the_same_end(method, top):
    run = shutil.copytree(top/'unfinished'/method, top/'going_on'/method)
    assert len(table_of(run/'history.csv')) == 1 and not (run/'scores.json').exists()
    learn, flat = sslnb.build(sslnb.load_recipe(run/'recipe.yml'))
    learn.logger = lambda *args: None
    with steps() as taken: learn.fit_ssl(run=run, resume=True, **sslnb.split_recipe(flat)['fit'])
    assert len(taken) == 2, 'of eight steps, six were taken by 0.4'
    same_end(make.numbers(learn, None), said['runs'][method], learn.model.state_dict())
    assert len(table_of(run/'history.csv')) == 2


@pytest.mark.parametrize('method', slow(make.RUNS, ('SelfClassifier', 'PAWS')))
def test_an_unfinished_run_is_finished_with_the_same_scores(method, top):
    run = shutil.copytree(top/'unfinished'/method, top/'finished'/method)
    assert (run/'checkpoint.pt').exists() == (method not in make.NO_CHECKPOINT)
    r = sslnb.pretrain(resume=run, progress=False)
    got, want = make.numbers(r.learn, r.scores), said['runs'][method]
    same_end(got, want, r.learn.model.state_dict())
    close(got['scores'], want['scores'], spread(got, want), 'scores')
    assert scores_of(run).keys() == r.scores.keys() and (run/'backbone.safetensors').exists()
    then = top/'runs'/method/'report.html'
    assert not then.exists() or len(told(then)) > 20 and not told(then) - told(run/'report.html')


def told(report):
    "Titles and cells of a report, but for times and versions."
    text = report.read_text(encoding='utf-8')
    return {t for t in re.findall(r'<(?:strong|h\d|th|td)>([^<]*)<', text) if not re.search(r'\d s\b|sslnb \d', t)}


@pytest.mark.parametrize('name', [*make.FAMILIES, 'digits'])
def test_a_finished_run_is_opened(name, top):
    run = top/'digits' if name == 'digits' else top/'runs'/name
    net = sslnb.open_backbone(run)
    assert net.trained and net.learn is not None and (net.size, net.name) == (8, name)
    assert type(net.learn.method).__name__ == ('SelfClassifier' if name == 'digits' else name)
    kept = torch.load(run/'checkpoint.pt', weights_only=True)['model']
    state = net.learn.model.state_dict()
    assert kept.keys() == state.keys() and all(torch.equal(v, state[k]) for k, v in kept.items() if torch.is_tensor(v))
    code, text = command('pretrain', '--resume', run)
    assert code == 0 and 'is finished' in text, text


@pytest.mark.slow
@pytest.mark.parametrize('name', [*make.FAMILIES, 'digits'])
def test_a_finished_run_is_scored_anew(name, top):
    run = top/'digits' if name == 'digits' else top/'runs'/name
    want = json.loads((run/'scores.json').read_text())
    close(sslnb.evaluate_run(run), want, .05)


def test_a_checkpoint_is_a_beginning_for_another_run(top):
    learn, _ = sslnb.build(sslnb.load_recipe(top/'runs'/'SwAV'/'recipe.yml', dict(seed=8)))
    sslnb.init_from(learn, top/'runs'/'SwAV'/'checkpoint.pt')
    kept = torch.load(top/'runs'/'SwAV'/'checkpoint.pt', weights_only=True)['model']
    assert torch.equal(learn.model.backbone.conv1.weight, kept['backbone.conv1.weight'])

# Features, tables, scores


def test_a_file_of_features_is_read_and_written(top):
    f = sslnb.load_features(top/'features.npz')
    assert (f.train.shape, f.test.shape) == ((64, 8), (24, 8))
    assert (f.classes, f.source) == (list(make.CLASSES), 'SelfClassifier')
    new = sslnb.embed(top/'runs'/'SelfClassifier')
    assert new.rows == f.rows and all(torch.equal(new.whole(k), f.whole(k)) for k in ('y', 'assign'))
    np.testing.assert_allclose(new.whole('x'), f.whole('x'), rtol=1e-4, atol=1e-5)
    sslnb.save_features(new, top/'again.npz')
    with np.load(top/'again.npz') as a, np.load(top/'features.npz') as b:
        assert {k: (v.shape, v.dtype) for k, v in a.items()} == {k: (v.shape, v.dtype) for k, v in b.items()}


def test_features_are_clustered_and_judged_from_a_file(top):
    assert sslnb.cluster_images(top/'features.npz', k=3).assign.shape == (88,)
    code, text = command('evaluate', top/'features.npz', '--protocol', 'knn', '--out', top/'from_file.json')
    assert code == 0, text
    want = json.loads((top/'evaluate_fast.json').read_text())['fast']['trained']
    code, text = command('evaluate', top/'features.npz', '--out', top/'from_file.json', '--force')
    assert code == 0, text
    got = json.loads((top/'from_file.json').read_text())['fast']
    close(got[list(got)[-1]], {k: want[k] for k in ('knn', 'linear')}, .05)


def test_clusters_are_those_of_04(top):
    c = sslnb.cluster_images(top/'runs'/'SwAV')
    sslnb.save_clusters(c, top/'clusters_again')
    new, then = table_of(top/'clusters_again'/'clusters.csv'), table_of(top/'clusters'/'clusters.csv')
    assert [list(r) for r in new] == [list(r) for r in then] and [r['path'] for r in new] == [r['path'] for r in then]
    assert sum(a['cluster'] != b['cluster'] for a, b in zip(new, then)) <= 1
    np.testing.assert_allclose([float(r['confidence']) for r in new], [float(r['confidence']) for r in then], atol=2e-3)
    close(scores_of(top/'clusters_again'), scores_of(top/'clusters'), .05)


def test_labels_are_those_of_04(top):
    sslnb.label_images(top/'runs'/'PAWS', labels=2, temp=.01, out=top/'labels_again.csv')
    new, then = table_of(top/'labels_again.csv'), table_of(top/'labels.csv')
    assert list(new[0]) == list(then[0])
    assert all(a[k] == b[k] for a, b in zip(new, then, strict=True) for k in ('path', 'split', 'given'))
    assert sum(a['label'] != b['label'] for a, b in zip(new, then)) <= 1 and {r['given'] for r in new} == {'0', '1'}
    np.testing.assert_allclose([float(r['confidence']) for r in new], [float(r['confidence']) for r in then], atol=2e-3)


@pytest.mark.parametrize('protocol', slow(make.PROTOCOLS, ('knn', 'snn', 'exits', 'cluster')))
def test_scores_are_those_of_04(protocol, top):
    run, *argv = make.PROTOCOLS[protocol]
    code, text = command('evaluate', top/'runs'/run, *argv, '--protocol', protocol, '--out', top/f'{protocol}.json')
    assert code == 0, text
    new, then = (json.loads((top/f).read_text()) for f in (f'{protocol}.json', f'evaluate_{protocol}.json'))
    then['about'].pop('picture', None)
    close(new, then, .05)

# Exported files


def features_of(network, images):
    "Features of images as 0.4 prepared them."
    net = sslnb.open_backbone(network)
    return net.features(images).numpy()


@pytest.fixture(scope='module')
def images(top): return sslnb.image_sets('cifar10')[1].at(8)[torch.arange(24)]


def test_an_exported_backbone_is_opened(top, images):
    bb = sslnb.load_backbone(top/'exported.safetensors')
    want = dict(name='timm:sslnb_mini', method='SelfClassifier', data='cifar10', size=8, epochs=2, seed=7)
    assert {k: bb.meta[k] for k in want} == want
    want = features_of(top/'runs'/'SelfClassifier', images)
    for file in ('exported.safetensors', 'runs/SelfClassifier/backbone.safetensors'):
        np.testing.assert_allclose(features_of(top/file, images), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('format', slow(('safetensors', 'timm', 'onnx'), ('safetensors', 'timm')))
def test_a_run_is_exported_as_by_04(format, top, images):
    if format == 'onnx': pytest.importorskip('onnxscript')
    end = sslnb.FORMATS[format]
    code, text = command('export', top/'runs'/'SelfClassifier', '--format', format, '--out', top/f'new{end}')
    assert code == 0, text
    if format == 'timm': a, b = (torch.load(top/f'{n}{end}', weights_only=True) for n in ('new', 'exported'))
    elif format == 'safetensors':
        a, b = (sslnb.load_backbone(top/f'{n}{end}').state_dict() for n in ('new', 'exported'))
        assert sslnb.backbone_meta(top/f'new{end}') == sslnb.backbone_meta(top/f'exported{end}')
    else: a, b = (dict(features=torch.tensor(by_onnx(top/f'{n}{end}', images))) for n in ('new', 'exported'))
    assert list(a) == list(b) and all(torch.allclose(a[k], b[k], atol=1e-6) for k in b)


def by_onnx(file, images):
    "Features by an ONNX file, of images prepared as it says."
    run = pytest.importorskip('onnxruntime').InferenceSession(str(file), providers=['CPUExecutionProvider'])
    told = {k: json.loads(v) for k, v in run.get_modelmeta().custom_metadata_map.items()}
    assert (told['size'], told['in_chans']) == (8, 3)
    mean, std = (torch.tensor(told[k]).view(1, 3, 1, 1) for k in ('mean', 'std'))
    return run.run(None, dict(images=((images.float()/255 - mean)/std).numpy()))[0]


def test_an_exported_onnx_file_gives_the_features_of_the_run(top, images):
    want = features_of(top/'runs'/'SelfClassifier', images)
    np.testing.assert_allclose(by_onnx(top/'exported.onnx', images), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('format', slow(said['resnet'], ('torchvision',)))
def test_names_in_state_dicts_of_other_libraries(format, top):
    "A ResNet-18 as it is drawn, exported by 0.4 and by this version: the same names, shapes and numbers."
    import pickle
    file = top/f'resnet{sslnb.FORMATS[format]}'
    net = ['torchvision:resnet18', '--size', 64, '--stem', 'imagenet']
    code, text = command('export', *net, '--format', format, '--out', file)
    assert code == 0, text
    sd = pickle.loads(file.read_bytes())['model'] if format == 'detectron2' else torch.load(file, weights_only=True)
    want = said['resnet'][format]
    assert {k: list(v.shape) for k, v in sd.items()} == {k: shape for k, (shape, _) in want.items()}
    for k, v in sd.items(): assert make.mark(torch.as_tensor(v)) == pytest.approx(want[k][1], rel=1e-5, abs=1e-4), k
    file.unlink()

@pytest.mark.parametrize('file', ['exported.timm.pth', 'exported.onnx'])
def test_a_file_for_other_programs_is_opened_or_the_error_says_what_to_give(file, top):
    code, text = command('features', top/file, '--data', 'cifar10', '--out', top/f'{file}.npz')
    assert code == 0 or (code, len(text.splitlines())) == (2, 1) and re.search('give it as backbone=|expected a run', text)

# Classifiers and tables


@pytest.mark.parametrize('name', ['linear', 'finetune'])
def test_a_classifier_is_tested(name, top):
    close(sslnb.test_classifier(top/name), json.loads((top/name/'scores.json').read_text()), 1e-4)


def test_a_classifier_goes_on(top):
    same = dict(epochs=2, bs=16, out=top/'linear-unfinished', progress=False)
    with steps() as taken: c = sslnb.train_classifier(top/'runs'/'RelationNet', resume=True, **same)
    assert c.finished and len(taken) == 2, 'of eight steps, six were taken by 0.4'
    close(c.scores, said['linear-unfinished'], 1e-4)


def test_a_table_of_classifiers_and_one_of_runs(top):
    made = sorted((top/'compare').glob('*-linear'))
    assert len(made) == 6
    sslnb.table(made, top/'table.csv')
    assert table_of(top/'table.csv') == table_of(top/'compare'/'table.csv')
    code, text = command('table', *(top/'runs'/n for n in make.FAMILIES))
    assert code == 0 and all(n in text for n in make.FAMILIES) and 'lower bound' in text, text


def test_a_comparison_that_is_finished_trains_nothing(top):
    files = lambda: {p: p.stat().st_mtime_ns for p in (top/'compare').glob('*/*')}
    before = files()
    told = []
    sslnb.compare(make.COMPARED, out=top/'compare', say=told.append, **make.COMPARE)
    assert len(told) == 6 and table_of(top/'compare'/'table.csv') == table_of(old/'compare'/'table.csv')
    assert before == files()

# Recipes and words of the command line


@pytest.mark.parametrize('method', slow(make.RUNS, make.FAMILIES))
def test_a_recipe_is_read_whole_and_planned(method, top):
    file = top/'unfinished'/method/'recipe.yml'
    own = yaml.safe_load(file.read_text())
    flat = sslnb.load_recipe(file)
    assert {k: json.loads(json.dumps(v)) for k, v in flat.items()} == own, 'every key means something'
    code, text = command('pretrain', '--recipe', file, '--dry-run')
    assert code == 0 and all(w in text for w in (method, 'cifar10', 'sslnb_mini')), text


def word(name, kind):
    "Some word that an option takes, by what its help says of it."
    if isinstance(kind, list): return [kind[0]]
    if kind is None: return []
    if name in ('superclasses', 'like'): return [dict(superclasses='cifar100_20', like='relational')[name]]
    if 'LABELS' in kind or 'NUMBER' in kind: return ['0.5']
    return ['3'] if re.search(r'\b(INT|N|K|PIXELS)\b', kind) else ['x']


def lost(name, options, wrong, says):
    """Options (name -> words) that a command refuses, with what it says. Each stands beside something `wrong`, of which
    the command complains (`says`) once it has taken all the rest. An option may be gone where the error says what to
    type in its place; `unknown option` and a guess is not that."""
    def refused(names):
        text = command(name, *wrong, *(w for n in names for w in options[n]))[1]
        return '' if says in text else text
    if not refused(options): return {}
    errors = {n: text for n in options if (text := refused([n]))}
    says_what = lambda n, text: 'unknown option' not in text and re.search(f'--{n}'.replace('_', '[-_]'), text)
    told = {n for n, text in errors.items() if says_what(n, text)}
    bad = {n: text for n, text in errors.items() if n not in told}
    return bad or ({'all': text} if (text := refused([n for n in options if n not in told])) else {})


WITH = dict(superclasses='cluster', hierarchy='cluster', together='exits', average='exits', gallery='retrieval',
            **dict.fromkeys(('like', 'opt', 'epochs'), 'linear'), **dict.fromkeys(('at', 'fresh_norm', 'temp'), 'snn'))


@pytest.mark.parametrize('name, wrong, says', [
    *((n, ['nowhere'], 'is no run') for n in ('cluster', 'label', 'features', 'linear', 'export', 'table')),
    ('test', ['nowhere'], 'is no classifier'), ('compare', ['nowhere/*'], 'no recipe is called')])
@pytest.mark.parametrize('dash', ['-', '_'])
def test_options_of_a_command(name, wrong, says, dash, top):
    options = {n: [f"--{n.replace('_', dash)}", *word(n, k)] for n, k in known['commands'][name].items()}
    for n in ('help', 'force'): options.pop(n, None)
    assert options and not lost(name, options, wrong, says)


@pytest.mark.parametrize('option', [n for n in known['commands']['evaluate'] if n not in ('help', 'hierarchy')])
def test_options_of_evaluate(option, top):
    words = [f"--{option.replace('_', '-')}", *word(option, known['commands']['evaluate'][option])]
    protocol = ['--protocol', WITH[option]] if option in WITH else []
    assert not lost('evaluate', {option: words}, ['nowhere', *protocol], 'is no run')


def words(value):
    "A default as words of a command line."
    if isinstance(value, dict): return [json.dumps(value)]
    values = value if isinstance(value, list) else [value]
    return [str(v).lower() if isinstance(v, bool) or v is None else str(v) for v in values]


def keywords(flat):
    "Keys of a recipe as options."
    return {k: [f'--{k}', *words(v)] for k, v in flat.items() if v != []}


NOWHERE = ['--data', './nowhere'], './nowhere is not a folder'


@pytest.mark.parametrize('method', known['methods'])
def test_keywords_of_a_method(method, top):
    options = keywords({**known['methods'][method], **known['training']})
    assert not lost('pretrain', options, ['--method', method, *NOWHERE[0]], NOWHERE[1])


@pytest.mark.parametrize('views, method', [
    ('two_views', 'SimCLR'), ('k_views', 'SupCon'), ('multi_crop', 'SwAV'), ('rotations', 'RotNet')])
def test_keywords_of_views(views, method, top):
    options = keywords({k: v for k, v in known['views'][views].items() if k not in known['methods'][method]})
    wrong = ['--method', method, '--views', views, *NOWHERE[0]]
    assert len(options) > 20 and not lost('pretrain', options, wrong, NOWHERE[1])


@pytest.mark.parametrize('method', slow(make.RUNS, make.FAMILIES))
def test_a_whole_recipe_as_options(method, top):
    flat = yaml.safe_load((top/'unfinished'/method/'recipe.yml').read_text())
    first = [w for k in ('method', 'views') for w in (f'--{k}', flat.pop(k))]
    flat.pop('data')
    assert len(flat) > 45 and not lost('pretrain', keywords(flat), [*first, *NOWHERE[0]], NOWHERE[1])


def test_no_command_is_lost_and_help_has_every_option(top):
    text = command('--help')[1]
    assert all(re.search(rf'^  {c}\b', text, re.M) for c in known['commands'])
    shown = command('pretrain', '--help')[1].replace('-', '_')
    assert not [n for n in known['commands']['pretrain'] if not re.search(rf'__{n}\b', shown)]
    shows = (['methods', 'SwAV'], ['recipes', 'digits', '--full'], ['recipes', make.COMPARED[0]])
    assert not any(command(*argv)[0] for argv in shows)


def test_nothing_says_where_it_was_made():
    "No path of the machine that the fixtures were made on, in any file and in what is in the archive."
    with tarfile.open(old/'unfinished.tar.xz') as z: inside = {m.name: z.extractfile(m).read() for m in z if m.isfile()}
    files = [p for p in old.rglob('*') if p.is_file() and p.suffix != '.xz']
    every = {**inside, **{str(p.relative_to(old)): p.read_bytes() for p in files}}
    assert len(every) > 80 and not [n for n, b in every.items() if make.PLACE.search(b)]
