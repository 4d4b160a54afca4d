"The command `sslnb` as a user meets it: help, errors, a whole run, Ctrl-C and going on, a bare folder of images."
import json, os, re, signal, subprocess, sys, time
from html.parser import HTMLParser
import pytest
from helpers import root, sslnb
from sslnb.app.cli import main
from sslnb.run.keywords import keys_of, method_info, method_names
from sslnb.run.recipes import recipes

small = ['--size', '8', '--hidden', '32', '--dim', '16', '--warmup', '0']

def env(): return {**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg', 'COLUMNS': '100'}
def command(*argv): return [sys.executable, '-c', 'import sys; from sslnb.app.cli import main; sys.exit(main())', *map(str, argv)]
def process(*argv, cwd=None):
    "The command in a process of its own: whatever it imports and prints."
    return subprocess.run(command(*argv), capture_output=True, text=True, env=env(), cwd=cwd, timeout=300)

def weights(run):
    from safetensors.torch import load_file
    return {k: v.numpy().tobytes() for k, v in load_file(run/'backbone.safetensors').items()}

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A short run that nobody interrupts, and its folder."
    run = tmp_path_factory.mktemp('cli')/'whole'
    return process('pretrain', '--out', run, '--epochs', 4, '--seed', 3, *small), run

# help

def test_help_imports_nothing_heavy():
    code = ("import sys; from sslnb.app.cli import main\n"
            "for a in (['--help'], ['pretrain','--help'], ['pretrain','--method','SelfClassifier','--help'], ['methods'], ['methods','SelfClassifier'], ['recipes']): assert main(a)==0\n"
            "print({'torch', 'numpy', 'fastai', 'fastcore', 'sklearn', 'matplotlib', 'timm'} & set(sys.modules))")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env())
    assert done.returncode == 0 and done.stdout.endswith('set()\n'), done.stderr

@pytest.mark.parametrize('name', method_names())
def test_help_has_every_keyword_with_its_meaning(name):
    text = ' '.join(sslnb('pretrain', '--method', name, '--help')[1].split())
    for k in keys_of(name, method_info(name).views if 'views' not in text else '').values():
        if k.part in ('data', 'learner', 'method', 'fit'): assert f'--{k.name}' in text, k
        if k.part == 'method': assert k.doc and k.doc in text, k

def test_lists():
    text = sslnb('methods')[1]
    assert all(re.search(rf'^{n} +\S', text, re.M) for n in method_names())
    text = sslnb('recipes')[1]
    assert all(n in text for n in recipes())
    assert sslnb('--version')[1] == f'sslnb {__import__("sslnb").__version__}\n'

# errors

@pytest.mark.parametrize('argv, says', [
    (['pretrian'], "did you mean 'pretrain'"),
    (['pretrain', '--row_tua', '1'], 'did you mean --row_tau'),
    (['pretrain', '--epochs', 'many'], '--epochs many: expected a whole number'),
    (['pretrain', '--bn', 'perhaps'], 'expected true or false'),
    (['pretrain', '--method', 'SelfClasifier'], 'unknown method'),
    (['pretrain', '--data', 'digit'], "did you mean 'digits'"),
    (['pretrain', '--data', './nowhere'], 'is not a folder'),
    (['pretrain', '--recipe', 'digit'], "did you mean 'digits'"),
    (['pretrain', '--resume', 'nowhere'], 'is no run'),
    (['evaluate', 'nowhere'], 'is no run'),
    (['methods', 'swaw'], 'unknown method')])
def test_wrong_word_is_one_line(argv, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = sslnb(*argv)
    assert (code, out) == (2, '')
    assert says in err and len(err.splitlines()) == 1, err
    assert not list(tmp_path.iterdir())

def test_a_process_ends_as_the_function_does(tmp_path):
    done = process('evaluate', 'nowhere', cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == '' and 'is no run' in done.stderr and len(done.stderr.splitlines()) == 1

def test_what_shows_late_is_one_line_too_and_leaves_nothing(tmp_path):
    code, _, err = sslnb('pretrain', '--backbone', 'conv5', '--out', tmp_path/'run')
    assert code == 2 and 'conv4' in err and len(err.splitlines()) == 1 and not (tmp_path/'run').exists()
    with pytest.raises(ValueError, match='queue=5'): sslnb('pretrain', '--queue', 5, '--out', tmp_path/'run', '--debug')

# a run

def test_a_run_makes_its_files(whole):
    done, run = whole
    assert done.returncode == 0, done.stderr
    assert {p.name for p in run.iterdir()} == {'recipe.yml', 'history.csv', 'checkpoint.pt', 'backbone.safetensors', 'scores.json', 'report.html'}
    scores = json.loads((run/'scores.json').read_text())
    assert set(scores) == {'raw', 'untrained', 'trained'}
    for row in scores.values(): assert all(isinstance(row[k], float) and 0 <= row[k] <= 1 for k in ('knn', 'linear', 'nmi', 'ami', 'ari', 'acc'))
    table = done.stdout[done.stdout.index('kNN'):].splitlines()
    assert table[0].split() == ['kNN', 'linear', 'NMI', 'AMI', 'ARI', 'ACC', 'ACC', 'test'] and [l.split('  ')[0] for l in table[1:4]] == ['raw pixels + k-means', 'untrained backbone', 'trained']
    assert f"{scores['trained']['knn']:.3f}" in table[3] and str(run/'report.html') in done.stdout
    assert not done.stderr, 'warnings of other libraries are kept away'

class Links(HTMLParser):
    def __init__(self): super().__init__(); self.tags, self.links = [], []
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ('src', 'href', 'srcset', 'action')]

def test_report_stands_alone(whole):
    text = (whole[1]/'report.html').read_text(encoding='utf-8')
    p = Links(); p.feed(text); p.close()
    assert p.tags.count('img') >= 5 and 'script' not in p.tags and all(l.startswith('data:') for l in p.links)
    assert not re.search(r'url\((?!data:)|@import', text)
    for what in ('views', 'curves', 'clusters', 'neighbours', 'map'): assert f'<strong>{what}</strong>' in text

def test_the_exported_backbone_loads(whole):
    import torch
    from sslnb.checkpoints.export import load_backbone
    bb = load_backbone(whole[1]/'backbone.safetensors')
    assert bb.meta['method'] == 'SelfClassifier' and bb.meta['size'] == 8 and len(bb.meta['mean']) == len(bb.meta['std']) == 1
    assert bb(torch.zeros(2, 1, 8, 8)).shape == (2, bb.num_features)

def test_nothing_is_written_over(whole):
    before = {p.name: p.stat().st_mtime_ns for p in whole[1].iterdir()}
    code, _, err = sslnb('pretrain', '--out', whole[1], '--epochs', 1)
    assert code == 2 and '--resume' in err and '--out' in err
    code, _, err = sslnb('pretrain', '--resume', whole[1], '--epochs', 9)
    assert code == 2 and 'was made with epochs=4' in err
    code, out, _ = sslnb('pretrain', '--resume', whole[1])
    assert code == 0 and 'is finished' in out and 'trained' in out
    assert before == {p.name: p.stat().st_mtime_ns for p in whole[1].iterdir()}

def test_killed_then_stopped_by_ctrl_c_it_ends_as_if_nothing_had_happened(whole, tmp_path):
    run, pipes = tmp_path/'run', dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env())
    p = subprocess.Popen(command('pretrain', '--out', run, '--epochs', 4, '--seed', 3, *small), **pipes)
    while not (run/'recipe.yml').exists() and p.poll() is None: time.sleep(.01)
    p.kill(); p.communicate()
    assert [f.name for f in run.iterdir()] == ['recipe.yml'], 'killed before anything was trained'
    p = subprocess.Popen(command('pretrain', '--out', run, '--resume'), **pipes)
    for line in p.stdout:
        if line.lstrip().startswith('epoch'): break
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=120)
    assert p.returncode == 130 and f'sslnb pretrain --resume {run}' in out and 'Traceback' not in err, (out, err)
    assert (run/'checkpoint.pt').exists() and not (run/'scores.json').exists()
    code, out, err = sslnb('pretrain', '--resume', run)
    assert code == 0 and 'going on' in out, err
    assert weights(run) == weights(whole[1])
    assert (run/'recipe.yml').read_text() == (whole[1]/'recipe.yml').read_text()

def test_a_bare_folder_of_images(tmp_path, monkeypatch):
    "No labels, images of two sizes and kinds, a broken file: the job ends well."
    import numpy as np
    from PIL import Image
    (tmp_path/'photos').mkdir()
    g = np.random.default_rng(0)
    for i in range(40): Image.fromarray(g.integers(0, 255, (20 + i % 2, 24, 3), dtype=np.uint8)).save(tmp_path/'photos'/f'{i}.png')
    (tmp_path/'photos'/'broken.png').write_bytes(b'not an image')
    monkeypatch.chdir(tmp_path)
    code, out, err = sslnb('pretrain', 'photos', '--epochs', 2, '--size', 16, '--no-pretrained')
    assert code == 0, err
    run = tmp_path/'runs'/'photos-selfclassifier-seed0'
    scores = json.loads((run/'scores.json').read_text())
    assert scores['trained']['knn'] is None and scores['trained']['rankme'] > 1
    assert 'skipped 1 unreadable' in out and 'no labels' in out
    text = (run/'report.html').read_text(encoding='utf-8')
    for what in ('views', 'curves', 'clusters', 'neighbours', 'map'): assert f'<strong>{what}</strong>' in text
