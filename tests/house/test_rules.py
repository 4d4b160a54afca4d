"""The house rules of CONTRIBUTING.md. What breaks them today stands in `offenders.csv` with its figure.

`tools/rules.py` measures and keeps the list. Below, each measure is shown to fail on a bad example."""
import json
import pytest
import rules
from rules import (LIMITS, Repo, body_lines, branches, definitions, differences, imports, imports_in_functions,
                   is_long_proof, is_registered, listed, measured, module_of, points_up, private_imports, public_names,
                   shared_lines, updated, wide_lines)

pytestmark = pytest.mark.quick

@pytest.fixture(scope='module')
def now(): return measured(Repo())

@pytest.mark.parametrize('name', LIMITS)
def test_rule(now, name):
    "Nothing new breaks the rule, nothing got worse, and the list holds no more than it has to."
    of_this = lambda d: {k: v for k, v in d.items() if k[1] == name}
    left = differences(of_this(now), of_this(listed()))
    assert not left, '\n'.join(left)

def test_the_list_has_known_rules_only():
    assert {name for _, name in listed()} <= set(LIMITS)

def test_every_folder_has_a_floor_and_a_digit():
    folders = {m.split('.')[0] for m in Repo().modules if '.' in m}
    assert folders <= set(rules.FLOORS) and folders == set(rules.DIGITS)

# every measure on an example that breaks the rule

def test_wide_lines_are_counted(): assert wide_lines('a\n' + 'x'*121 + '\n# ' + 'x'*119 + '\n' + 'y'*120) == 2

def test_bodies_are_counted_without_signature_docstring_comments_and_blank_lines():
    text = 'def f(\n    a, # one\n    b  # two\n):\n    "What it does"\n    x = a\n\n    # why\n    return x\n'
    assert body_lines(text) == {'f': 2}
    assert body_lines('class A:\n    def f(self):\n        def g(): pass\n        return g\n') == {'A.f': 2, 'A.f.g': 1}

def test_width_does_not_hide_length():
    "One line of 200 characters is laid out on several."
    text = "def f(): return dict(" + ', '.join(f'argument_{i}={i}' for i in range(14)) + ')\n'
    assert body_lines(text) == {'f': 1} and body_lines(rules.formatted({'x': text})['x'])['f'] > 10

@pytest.mark.parametrize('body, n', [
    ('if a: pass\nelif b: pass', 2), ('for i in a: pass', 1), ('while a: pass', 1),
    ('try: pass\nexcept A: pass\nexcept B: pass', 2), ('assert a', 1),
    ('x = a if b else c', 1), ('x = a and b or c', 2), ('x = [i for i in a if i if b]', 3),
    ('x = {k: v for k in a for v in b}', 2), ('with a: pass', 0), ('match a:\n    case 1: pass\n    case 2: pass', 2)])
def test_branches_are_counted(body, n): assert branches('def f():\n    ' + body.replace('\n', '\n    ')) == {'f': n}

def test_definitions_of_a_cell_are_counted():
    cell = '#| export\ndef f(): pass\nclass A:\n    def g(self): pass\nx = 1\ndef h(): pass'
    assert definitions(cell) == ['f', 'A', 'h']

def test_long_proofs_are_found():
    assert is_long_proof('\n'.join(f'assert {i}' for i in range(16))) and is_long_proof('assert ' + 'x'*600)
    assert not is_long_proof('#| slow\n\n' + '\n'.join(f'assert {i}' for i in range(15)))

CLOCK = 'time.' 'time()'                        # in two parts, so that this file has none

def test_stop_watches_are_found():
    assert rules.has_stop_watch(f't = {CLOCK}\nf()\nassert {CLOCK}-t < 5')
    assert not rules.has_stop_watch(f'print({CLOCK})')
    assert not rules.has_stop_watch('t = time.process_time()\nassert f()')

def test_shared_lines_are_counted():
    assert shared_lines('a = 1; b = 2; c = 3\nif a: b; c\nd = "x;y"\nfor i in a: pass') == 2

@pytest.mark.parametrize('code, package, found', [
    ('from sslnb.data.files import _read, open', 'sslnb', ['data.files._read']),
    ('from .files import _read', 'sslnb.data', ['data.files._read']),
    ('def f():\n    from ..core import _x', 'sslnb.data', ['core._x']),
    ('from sslnb.app import cli\ncli._asked()', 'sslnb', ['app.cli._asked']),
    ('import sslnb.app.cli as c\nc._asked()', 'sslnb', ['app.cli._asked']),
    ('import sslnb.app.cli\nsslnb.app.cli._asked()', 'sslnb', ['app.cli._asked']),
    ('from sslnb.app import cli\ncli.__doc__', 'sslnb', []),
    ('from numpy import _x\nself._x', 'sslnb', [])])
def test_private_imports_are_found(code, package, found):
    assert private_imports(code, package, {'app.cli', 'core'}) == found

def test_public_names_are_read(): assert public_names("__all__ = ['a', 'B']\ndef c(): pass") == ['a', 'B']

@pytest.mark.parametrize('code, package, found', [
    ('from ..core import x', 'sslnb.data', ['core.x']), ('from . import loader', 'sslnb.data', ['data.loader']),
    ('import sslnb.core', 'sslnb', ['core']), ("importlib.import_module('sslnb.app.cli')", 'sslnb', ['app.cli']),
    ("import_module('.commands', __package__)", 'sslnb.app', ['app.commands']),
    ("def f(): __import__('sslnb.core')", 'sslnb', ['core']), ('import torch', 'sslnb', [])])
def test_imports_are_read(code, package, found): assert imports(code, package) == found

NUMBER = {'core': 0, 'augment.ops': 100, 'data.images': 200, 'data.sets': 202, 'methods.swav': 810, 'app.cli': 921}

@pytest.mark.parametrize('module, target, up', [
    ('data.images', 'augment.ops', False), ('augment.ops', 'data.images', True), ('augment.ops', 'losses.kmeans', True),
    ('data.images', 'data.sets', True), ('data.sets', 'data.images', False), ('train.fit', 'methods.swav', True),
    ('methods.swav', 'app.cli', True), ('app.cli', 'methods.swav', True), ('evaluate.knn', 'checkpoints.export', True),
    ('core', 'all', True), ('all', 'core', False), ('__main__', 'app.cli', False)])
def test_floors(module, target, up): assert points_up(module, target, NUMBER) == up

def test_a_dotted_name_belongs_to_the_longest_module():
    assert module_of('data.sets.ImageSet', {'data', 'data.sets'}) == 'data.sets'
    assert module_of('data.x', {'data'}) == 'data'
    assert module_of('torch.nn', {'data'}) is None

def test_what_methods_share_is_no_method():
    assert is_registered('class A(SSLMethod): pass') and is_registered('class B(OfflineClustering): pass')
    assert not is_registered('class H(nn.Module): pass\nclass A(SSLMethod, register=False): pass\ndef f(): pass')

def test_imports_in_functions_are_counted():
    text = 'from .core import x\ndef f():\n    from .core import y\n    import timm\n    def g(): import sslnb.app'
    assert imports_in_functions(text, 'sslnb') == 2

def repo(top, notebooks, modules={}):
    "A small repository: notebooks of code cells, and modules."
    for name, cells in notebooks.items():
        (top/'nbs').mkdir(exist_ok=True)
        (top/'nbs'/name).write_text(json.dumps(dict(cells=[dict(cell_type='code', source=s) for s in cells])))
    for name, text in modules.items():
        (top/'sslnb'/name).parent.mkdir(parents=True, exist_ok=True)
        (top/'sslnb'/name).write_text(text)
    return Repo(top)

def test_every_rule_finds_its_offender_in_a_repository(tmp_path):
    long, crowded = 'def f():\n' + '    g()\n'*26, 'def f():\n' + '    assert g\n'*11
    three = '#| export\ndef f(): pass\ndef g(): pass\nclass A: pass'
    books = {'100_augment.a.ipynb': ['#| default_exp augment.a', three, 'a = 1; b = 2', 'assert 1\n'*16],
             '199_data.b.ipynb': ['#| default_exp data.b', 'from sslnb.methods.m import M\nassert M', '# ' + 'x'*120],
             '800_methods.m.ipynb': ['#| default_exp methods.m', f't = {CLOCK}\nassert {CLOCK}-t < 5']}
    texts = {'augment/a.py': f'__all__ = ["x"]\nfrom ..data.b import _b\n{long}',
             'data/b.py': f'__all__ = ["x"]\n{crowded}def h(): from sslnb.augment import a\n',
             'methods/m.py': 'from .n import N\nclass M(SSLMethod): pass',
             'methods/n.py': 'x = 1\n'*251 + 'class N(SSLMethod): pass',
             'app/c.py': "import_module('sslnb.methods.m')"}
    found = measured(repo(tmp_path, books, texts))
    assert {f'{place}: {name} {n}' for (place, name), n in found.items()} == {
        'nbs/100_augment.a.ipynb:f: definitions in a cell 3', 'nbs/100_augment.a.ipynb: long proofs 1',
        'nbs/100_augment.a.ipynb: shared lines 1', 'nbs/199_data.b.ipynb: wide lines 1',
        'nbs/199_data.b.ipynb: digit is not its folder 1', 'nbs/800_methods.m.ipynb: stop watches 1',
        'nbs/199_data.b.ipynb: proofs that point up 1',
        'sslnb/augment/a.py:f: body lines 26', 'sslnb/augment/a.py: private imports 1', 'x: same public name 2',
        'sslnb/augment/a.py -> data.b: imports that point up 1', 'sslnb/data/b.py:f: branches 11',
        'sslnb/data/b.py: imports in functions 1', 'sslnb/methods/m.py -> methods.n: imports that point up 1',
        'sslnb/methods/n.py: module lines 253', 'sslnb/app/c.py -> methods.m: imports that point up 1'}
    assert {name for _, name in found} == set(LIMITS), 'an offender of each rule'

# the list

BEFORE = {**{(k, 'branches'): (12, '') for k in 'abc'}, ('d', 'branches'): (12, 'a table')}
NOW = {('a', 'branches'): 13, ('b', 'branches'): 11, ('d', 'branches'): 12, ('e', 'branches'): 11}

def test_differences_of_every_kind_are_named():
    assert not differences({k: n for k, (n, _) in BEFORE.items()}, BEFORE)
    grown, fallen, new, gone = differences(NOW, BEFORE)
    assert grown == 'a: branches 13, has grown from 12; at most 10' and new == 'e: branches 11, at most 10'
    assert fallen.startswith('b: branches fell from 12 to 11: lower it')
    assert gone.startswith('c: branches is fine now: strike it')

def test_the_list_shrinks_by_itself_and_grows_only_when_asked_to():
    shrunk = {('a', 'branches'): (12, ''), ('b', 'branches'): (11, ''), ('d', 'branches'): (12, 'a table')}
    assert updated(NOW, BEFORE) == shrunk
    assert updated(NOW, BEFORE, allow_new=True) == {**shrunk, ('a', 'branches'): (13, ''), ('e', 'branches'): (11, '')}

def test_the_list_is_written_as_it_is_read(tmp_path):
    rows = {('a, b', 'branches'): (12, 'a "table"'), ('a', 'wide lines'): (13, '')}
    rules.write(rows, tmp_path/'x.csv')
    assert listed(tmp_path/'x.csv') == rows
