"The file of keywords is in step with the signatures; the command line needs nothing else, and is quick."
import inspect, os, resource, subprocess, sys
from pathlib import Path
import pytest
from sslnb.app import collect
from sslnb.app.cli import command_parser, main, run_parser
from sslnb.run.keywords import COMMANDS, function_keys, keys_of, keyword_file, live_info, method_names

root = Path(__file__).resolve().parents[2]
names = sorted(keyword_file()['commands'])

def test_file_is_in_step():
    assert collect.collect() == keyword_file(), 'python tools/export.py writes it anew'

def other_settings(
    opt:str='adamw', # another meaning
    lr:float=.1 # highest learning rate, for a batch of 256
): "As `training_settings`, with another comment and another default."

def test_another_comment_or_default_is_noticed(monkeypatch):
    monkeypatch.setattr(collect, 'training_settings', other_settings)
    new, old = collect.collect(), keyword_file()
    assert {k for k in old if new[k] != old[k]} == {'fit'}
    assert [{f for f in a if a[f] != b.get(f)} for a, b in zip(new['fit'], old['fit'])] == [{'doc'}, {'default'}]

@pytest.mark.parametrize('name', names)
def test_every_argument_of_a_command_is_an_option_with_its_meaning(name):
    collect.import_app()
    f = COMMANDS[name].function
    parameters = [p for p in inspect.signature(f).parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    p, keys = run_parser(name, 'SwAV') if keyword_file()['commands'][name]['keywords'] else command_parser(name)
    text = ' '.join(p.format_help().split())
    for k in parameters:
        assert keys[k.name].doc, f'{name}: {k.name} has no comment'
        assert f'--{k.name}' in text or k is parameters[0], k
    assert keyword_file()['commands'][name]['doc'].split()[0] in text and f'sslnb {name}' in text

def one_square(size, mean=None, std=None, corner:int=3): "A view set of one's own."

def test_a_view_set_of_ones_own_needs_no_entry():
    from sslnb.train.method import SSLMethod
    class Own(SSLMethod, register=False):
        views, view_settings = one_square, dict(corner=5)
        def __init__(self, width:int=8): self.width = width
    info = live_info(Own)
    assert info.views == 'one_square' and set(info.view_keys) == {'corner'}
    keys = keys_of(Own)
    assert (keys['corner'].part, keys['corner'].default, keys['width'].part) == ('views', 5, 'method')

def test_methods_and_their_keys_are_those_of_python():
    from sslnb.train.method import methods
    for name in method_names():
        assert function_keys(methods()[name], 'method').keys() >= {k for k, v in keys_of(name).items() if v.part == 'method'}

# what the command line costs

def used(argv):
    "Output of a command, and the seconds of processor that it took."
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, 'PYTHONPATH': str(root), 'COLUMNS': '100'}
    done = subprocess.run([sys.executable, '-m', 'sslnb', *argv], capture_output=True, text=True, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

@pytest.mark.parametrize('argv, seconds', [('--help', .15), ('pretrain --help', .5), ('pretrain --method SwAV --help', .5), ('evaluate --help', .5), ('methods', .5)])
def test_help_is_quick(argv, seconds):
    assert used(argv.split())[1] < 10*seconds, 'ten times what it may take on a quiet core'

def test_the_module_is_the_command(capsys):
    assert main(['--version']) == 0
    assert used(['--version'])[0] == capsys.readouterr().out
