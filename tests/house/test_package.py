"Modules made from notebooks, clean notebooks, a wheel that holds everything. Sizes and imports are in test_rules.py."
import ast, json, os, re, shutil, subprocess, sys, zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path
import pytest
from helpers import root
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.quick

ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
made = {'__pycache__', '.venv', '.git', '_proc', '_docs', '_site', 'build', 'dist', 'runs', '.pytest_cache',
        'sslnb.egg-info', '.ipynb_checkpoints'}

def tracked():
    "Files under version control; where there is none (an unpacked archive), all that are not made by a tool."
    done = subprocess.run(['git', 'ls-files', '-z'], cwd=root, capture_output=True, text=True)
    names = done.stdout.split('\0') if done.returncode == 0 else []
    if not any(names): names = [str(p.relative_to(root)) for p in root.rglob('*')]
    return [root/n for n in names if n and not made & set(Path(n).parts) and (root/n).is_file()]

notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if not made & set(p.parts))
modules = sorted(p for p in (root/'sslnb').rglob('*.py') if not made & set(p.parts))
name = lambda p: str(p.relative_to(root))
each_notebook = pytest.mark.parametrize('path', notebooks, ids=name)
each_module = pytest.mark.parametrize('path', modules, ids=name)

def read(name): return (root/name).read_text(encoding='utf-8')
def source(c): return ''.join(c['source'])
def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']
def code(path): return [source(c) for c in cells(path) if c['cell_type'] == 'code']
def exported(path): return [s for s in code(path) if re.search(r'^#\|\s*export', s, re.M)]

def module_of(path):
    "Name of the module that a notebook makes, without `sslnb.`, or None."
    found = [m[1] for c in cells(path) if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', source(c), re.M))]
    return found[0] if found else None

def copy(dst, *names):
    "Parts of the repository in another place."
    for n in names:
        if (root/n).is_dir(): shutil.copytree(root/n, dst/n, symlinks=True, ignore=shutil.ignore_patterns(*made))
        else: shutil.copy(root/n, dst/n)
    return dst

# notebooks and modules

def test_modules_are_what_the_notebooks_export(tmp_path):
    copy(tmp_path, 'nbs', 'settings.ini', 'setup.py')
    is_module = lambda f: f in made or f.endswith('.py') and f != '__init__.py'
    shutil.copytree(root/'sslnb', tmp_path/'sslnb', ignore=lambda folder, files: [f for f in files if is_module(f)])
    # nbdev sets IN_TEST when it runs a notebook, and exports nothing while it is set
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    export = 'from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()'
    subprocess.run([sys.executable, '-c', export], cwd=tmp_path, check=True, env=env)
    fresh = {str(p.relative_to(tmp_path)): p.read_text(encoding='utf-8') for p in (tmp_path/'sslnb').rglob('*.py')}
    here = {name(p): p.read_text(encoding='utf-8') for p in modules}
    wrong = sorted(k for k in fresh.keys() | here.keys() if fresh.get(k) != here.get(k))
    assert not wrong, f'not what the notebooks export: {", ".join(wrong)}; run nbdev_export, remove modules without one'

@each_notebook
def test_notebook_is_clean(path):
    from execnb.nbio import nb2str
    from nbdev.clean import clean_nb
    text, nb = path.read_text(encoding='utf-8'), json.loads(path.read_text(encoding='utf-8'))
    clean_nb(nb)
    assert nb2str(nb) == text, f'run nbdev_clean --fname {name(path)}'

@each_notebook
def test_notebook_is_small(path):
    size = path.stat().st_size
    assert size < 300_000, f'{size//1000} KB: lighten its outputs'

@each_notebook
def test_notebook_opens_and_closes_as_agreed(path):
    first, last = source(cells(path)[0]), source(cells(path)[-1])
    opens = re.match(r'# \S', first) and re.search(r'^> \S', first, re.M) and '$' not in first
    assert opens, 'first cell: "# Title", "> one line", no LaTeX'
    closes = 'nbdev_export()' in last and '#| hide' in last
    assert closes or not exported(path), 'last cell: #| hide and nbdev.nbdev_export()'

@each_notebook
def test_notebook_proves_what_it_exports(path):
    public = exported(path)
    proofs = [s for s in code(path) if s not in public and re.search(r'\b(test_\w+\(|assert )', s)]
    assert proofs or not public, 'exports code and tests nothing'

def bound(nodes):
    "Names that a cell gives a meaning to."
    imports = [o for o in nodes if isinstance(o, (ast.Import, ast.ImportFrom))]
    imported = {a.asname or a.name.split('.')[0] for o in imports for a in o.names}
    defined = {o.name for o in nodes if isinstance(o, (ast.FunctionDef, ast.ClassDef))}
    arguments = {o.arg for o in nodes if isinstance(o, ast.arg)}
    assigned = {o.id for o in nodes if isinstance(o, ast.Name) and not isinstance(o.ctx, ast.Load)}
    return imported | defined | arguments | assigned

@each_notebook
def test_imports_have_cells_of_their_own(path):
    "To make a page, nbdev runs exports and all cells with an import, and runs them without the other cells."
    not_run, public = set(), exported(path)
    for s in code(path):
        if s in public or 'nbdev_export()' in s or re.search(r'^#\|\s*eval: *false|^[%!]', s, re.M): continue
        nodes = list(ast.walk(ast.parse(s)))
        if not any(isinstance(o, (ast.Import, ast.ImportFrom)) for o in nodes): not_run |= bound(nodes)
        else:
            missing = {o.id for o in nodes if isinstance(o, ast.Name)} & not_run - bound(nodes)
            names = ', '.join(sorted(missing))
            assert not missing, f'needs {names} from other cells: move its imports to a cell of their own:\n{s[:300]}'

@each_module
def test_folder_is_a_package(path):
    assert (path.parent/'__init__.py').exists(), f'{name(path.parent)} has no __init__.py, so a wheel leaves it out'

def place(path):
    "The number that a notebook's name begins with, or None."
    m = re.match(r'(\d+)_', path.name)
    return int(m[1]) if m else None

def test_every_place_is_taken_once():
    seen = {}
    for p in notebooks:
        if place(p) is not None: seen.setdefault((p.parent, place(p)), []).append(p.name)
    assert not [v for v in seen.values() if len(v) > 1]

def test_all_has_every_method():
    import sslnb.all as everything
    files = [p for p in (root/'sslnb/methods').glob('*.py') if p.name != '__init__.py']
    classes = [o for p in files for o in ast.parse(p.read_text(encoding='utf-8')).body if isinstance(o, ast.ClassDef)]
    public = {o.name for o in classes if not o.name.startswith('_')}
    assert public and not public - set(dir(everything)), f'sslnb.all lacks {public - set(dir(everything))}'

# what is installed

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "A wheel built from a copy, offline."
    parts = ('sslnb', 'setup.py', 'settings.ini', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE')
    top = copy(tmp_path_factory.mktemp('wheel'), *parts)
    code = 'from setuptools import build_meta; print(build_meta.build_wheel("out"))'
    done = subprocess.run([sys.executable, '-c', code], cwd=top, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next((top/'out').glob('*.whl'))) as z:
        return {n: z.read(n).decode('utf-8', 'replace') for n in z.namelist()}

def test_wheel_holds_every_module_and_data_file(wheel):
    kinds = {'.py', '.yml', '.yaml', '.json', '.csv', '.html', '.css', '.j2'}
    data = [p for p in (root/'sslnb').rglob('*') if p.suffix in kinds and not made & set(p.parts)]
    assert not {name(p) for p in data} - wheel.keys()
    assert not [n for n in wheel if n.startswith(('nbs', 'tests', 'tools', 'build'))]

def test_wheel_asks_for_what_settings_say(wheel):
    meta = Parser().parsestr(next(v for k, v in wheel.items() if k.endswith('METADATA')))
    asked = meta.get_all('Requires-Dist')
    wanted = lambda names: {(canonicalize_name(r.name), r.specifier) for r in map(Requirement, names)}
    assert wanted(a for a in asked if 'extra' not in a) == wanted(cfg['requirements'].split())
    assert set(meta.get_all('Provides-Extra')) == {'dev', 'onnx'}
    for extra in ('dev', 'onnx'):
        own = wanted(a.split(';')[0] for a in asked if re.search(rf'extra == .{extra}.', a))
        assert own == wanted(cfg[f'{extra}_requirements'].split()), extra
    assert meta['Version'] == cfg['version'] and meta['Requires-Python'] == f'>={cfg["min_python"]}'
    points = next(v for k, v in wheel.items() if k.endswith('entry_points.txt'))
    assert 'sslnb = sslnb.app.cli:main' in points and 'sslnb = sslnb._modidx:d' in points

def test_one_version_everywhere():
    import sslnb
    cff = re.search(r'^version: (\S+)', read('CITATION.cff'), re.M)[1]
    assert sslnb.__version__ == cfg['version'] == cff and f'## {cff}' in read('CHANGELOG.md')

def test_constraints_pin_every_requirement():
    lines = [l for l in read('constraints.txt').split('\n') if l and not l.startswith('#')]
    pins = {canonicalize_name(k): v for k, v in (l.split('==') for l in lines)}
    kinds = ('requirements', 'dev_requirements', 'onnx_requirements')
    for r in map(Requirement, ' '.join(cfg[k] for k in kinds).split()):
        pin = pins.get(canonicalize_name(r.name))
        assert pin, f'constraints.txt does not pin {r.name}'
        assert r.specifier.contains(pin), f'{r} does not allow {pin}'

def test_import_touches_no_device_and_needs_no_nbdev():
    code = ('import sys, torch, sslnb.all; '
            "print({'nbdev', 'fastai.vision.all'} & set(sys.modules), torch.cuda.is_initialized())")
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().split('\n')[-1] == 'set() False', done.stdout

# what is published

def test_no_trace_of_one_machine():
    local = re.compile(r'(?<![\w.:/-])/(?:home|root|work|Users|mnt|opt)/\w|'
                       r'(?:extra-)?index-url\s*[=:]|--find-links|file:///\w', re.I)
    for p in tracked():
        if p.suffix in {'.npz', '.png', '.jpg', '.safetensors'} or p.name == Path(__file__).name: continue
        text = p.read_text(encoding='utf-8', errors='ignore')
        m = local.search(text)
        assert not m, f'{name(p)} has {text[max(0, m.start() - 30):m.end() + 30]!r}'

def test_nothing_big_is_tracked():
    assert not [f'{name(p)}: {p.stat().st_size//1000} KB' for p in tracked() if p.stat().st_size > 1_500_000]

def test_readme_is_the_home_page():
    import readme
    assert readme.readme(json.loads(read('nbs/index.ipynb'))) == read('README.md'), 'run python tools/readme.py'

def test_readme_opens_with_the_two_commands():
    text = read('README.md')
    first, second = re.findall(r'```bash\n(.+?)\n```', text, re.S)[:2]
    assert first.endswith('sslnb pretrain') and 'pytest' in second
    assert text.index(second) < text.index('\n## ')
    assert 'README.md' in read('.ci/run') and 'pytest' not in read('.ci/run')
