"The house rules: modules made from notebooks, clean and small notebooks, imports that point down, a wheel that holds everything."
import ast, json, os, re, shutil, subprocess, sys, zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

root = Path(__file__).resolve().parents[1]
ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
made = {'__pycache__', '.venv', '.git', '_proc', '_docs', '_site', 'build', 'dist', 'runs', '.pytest_cache', 'sslnb.egg-info', '.ipynb_checkpoints'}

def tracked():
    "Files under version control; where there is none (an unpacked archive), all that are not made by a tool."
    done = subprocess.run(['git', 'ls-files', '-z'], cwd=root, capture_output=True, text=True)
    names = done.stdout.split('\0') if done.returncode == 0 and done.stdout else [str(p.relative_to(root)) for p in root.rglob('*')]
    return [root/n for n in names if n and not made & set(Path(n).parts) and (root/n).is_file()]

notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if not made & set(p.parts))
modules = sorted(p for p in (root/'sslnb').rglob('*.py') if not made & set(p.parts))
name = lambda p: str(p.relative_to(root))
each_notebook = pytest.mark.parametrize('path', notebooks, ids=name)
each_module = pytest.mark.parametrize('path', modules, ids=name)

def source(c): return ''.join(c['source'])
def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']
def exported(path): return [source(c) for c in cells(path) if c['cell_type'] == 'code' and re.search(r'^#\|\s*export', source(c), re.M)]

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
    shutil.copytree(root/'sslnb', tmp_path/'sslnb', ignore=lambda d, fs: [f for f in fs if f in made or f.endswith('.py') and f != '__init__.py'])
    subprocess.run([sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()'], cwd=tmp_path, check=True,
                   env={k: v for k, v in os.environ.items() if k != 'IN_TEST'})      # nbdev sets it when it runs a notebook, and exports nothing while it is set
    fresh = {str(p.relative_to(tmp_path)): p.read_text(encoding='utf-8') for p in (tmp_path/'sslnb').rglob('*.py')}
    here = {name(p): p.read_text(encoding='utf-8') for p in modules}
    wrong = sorted(k for k in fresh.keys() | here.keys() if fresh.get(k) != here.get(k))
    assert not wrong, f'not what the notebooks export: {", ".join(wrong)}; run nbdev_export (a module without a notebook has no place here)'

@each_notebook
def test_notebook_is_clean(path):
    from execnb.nbio import nb2str, read_nb
    from nbdev.clean import clean_nb
    text, nb = path.read_text(encoding='utf-8'), json.loads(path.read_text(encoding='utf-8'))
    clean_nb(nb)
    assert nb2str(nb) == text, f'run nbdev_clean --fname {name(path)}'

@each_notebook
def test_notebook_is_small(path):
    size = path.stat().st_size
    assert size < 300_000, f'{size//1000} KB: lighten its outputs'
    lines = [l for s in exported(path) for l in s.split('\n') if l.strip() and not l.strip().startswith('#')]
    assert len(lines) <= 250, f'exports {len(lines)} lines, more than 250: two ideas in one notebook?'

@each_notebook
def test_notebook_opens_and_closes_as_agreed(path):
    first, last = source(cells(path)[0]), source(cells(path)[-1])
    assert re.match(r'# \S', first) and re.search(r'^> \S', first, re.M) and '$' not in first, 'first cell: "# Title", "> one line", no LaTeX'
    if exported(path): assert 'nbdev_export()' in last and '#| hide' in last, 'last cell: #| hide and nbdev.nbdev_export()'

@each_notebook
def test_notebook_proves_what_it_exports(path):
    rest = [source(c) for c in cells(path) if c['cell_type'] == 'code' and source(c) not in exported(path)]
    assert not exported(path) or any(re.search(r'\b(test_\w+\(|assert )', s) for s in rest), 'exports code and tests nothing'

def bound(nodes):
    "Names that a cell gives a meaning to."
    imported = {a.asname or a.name.split('.')[0] for o in nodes if isinstance(o, (ast.Import, ast.ImportFrom)) for a in o.names}
    defined = {o.name for o in nodes if isinstance(o, (ast.FunctionDef, ast.ClassDef))} | {o.arg for o in nodes if isinstance(o, ast.arg)}
    return imported | defined | {o.id for o in nodes if isinstance(o, ast.Name) and not isinstance(o.ctx, ast.Load)}

@each_notebook
def test_imports_have_cells_of_their_own(path):
    "nbdev runs exports and every cell that holds an import when it makes the page, and runs them without the other cells."
    not_run = set()
    for c in cells(path):
        s = source(c)
        if c['cell_type'] != 'code' or s in exported(path) or 'nbdev_export()' in s or re.search(r'^#\|\s*eval: *false|^[%!]', s, re.M): continue
        nodes = list(ast.walk(ast.parse(s)))
        if not any(isinstance(o, (ast.Import, ast.ImportFrom)) for o in nodes): not_run |= bound(nodes)
        else:
            missing = {o.id for o in nodes if isinstance(o, ast.Name)} & not_run - bound(nodes)
            assert not missing, f'a cell that imports needs {", ".join(sorted(missing))} from cells that do not; move its imports to a cell of their own:\n{s[:300]}'

@each_module
def test_functions_are_short(path):
    for o in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef)):
            n = o.end_lineno - o.lineno + 1
            assert n <= 40, f'{o.name}, line {o.lineno}: {n} lines, more than 40'

@each_module
def test_folder_is_a_package(path):
    assert (path.parent/'__init__.py').exists(), f'{name(path.parent)} has no __init__.py, so a wheel leaves it out'

# imports

def imports(path):
    "`(line, module)` of every import of sslnb in a module, those inside functions included, without `sslnb.`."
    package = ['sslnb', *path.relative_to(root/'sslnb').parent.parts]
    for o in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(o, ast.Import): found = [a.name for a in o.names]
        elif isinstance(o, ast.ImportFrom):
            base = '.'.join([*package[:len(package) - o.level + 1], *filter(None, [o.module])]) if o.level else o.module
            found = [base, *(f'{base}.{a.name}' for a in o.names)]
        else: continue
        yield from ((o.lineno, f.removeprefix('sslnb.')) for f in found if f.startswith('sslnb.'))

def place(path):
    "A notebook's number with its letter, for comparing."
    m = re.match(r'(\d+)([a-z]?)_', path.name)
    return (int(m[1]), m[2]) if m else None

shared = ('methods.offline_clustering', 'methods.pseudo_labels')     # registered methods may build on these

@each_module
def test_imports_point_down(path):
    order = {module_of(p): (place(p), p.name) for p in notebooks if module_of(p) and place(p)}
    mod = '.'.join(path.relative_to(root/'sslnb').with_suffix('').parts)
    if mod not in order: return
    for line, target in imports(path):
        if target in order: assert order[target][0] <= order[mod][0], f'line {line}: {order[mod][1]} imports {order[target][1]}, which comes later'
        both = mod.startswith('methods.') and target.startswith('methods.') and target != mod and not target.startswith(shared)
        assert not both, f'line {line}: a method imports a method; what they share needs a notebook of its own'

def test_every_place_is_taken_once():
    seen = {}
    for p in notebooks:
        if place(p): seen.setdefault((p.parent, place(p)), []).append(p.name)
    assert not [v for v in seen.values() if len(v) > 1]

def test_all_has_every_method():
    import sslnb.all as everything
    files = [p for p in (root/'sslnb/methods').glob('*.py') if p.name != '__init__.py']
    public = {o.name for p in files for o in ast.parse(p.read_text(encoding='utf-8')).body if isinstance(o, ast.ClassDef) and not o.name.startswith('_')}
    assert public and not public - set(dir(everything)), f'sslnb.all lacks {public - set(dir(everything))}'

# what is installed

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "A wheel built from a copy, offline."
    top = copy(tmp_path_factory.mktemp('wheel'), 'sslnb', 'setup.py', 'settings.ini', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE')
    code = 'from setuptools import build_meta; print(build_meta.build_wheel("out"))'
    done = subprocess.run([sys.executable, '-c', code], cwd=top, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next((top/'out').glob('*.whl'))) as z: return {n: z.read(n).decode('utf-8', 'replace') for n in z.namelist()}

def test_wheel_holds_every_module_and_data_file(wheel):
    data = [p for p in (root/'sslnb').rglob('*') if p.suffix in {'.py', '.yml', '.yaml', '.json', '.csv', '.html', '.css'} and not made & set(p.parts)]
    assert not {name(p) for p in data} - wheel.keys()
    assert not [n for n in wheel if n.startswith(('nbs', 'tests', 'tools', 'build'))]

def test_wheel_asks_for_what_settings_say(wheel):
    meta = Parser().parsestr(next(v for k, v in wheel.items() if k.endswith('METADATA')))
    asked = meta.get_all('Requires-Dist')
    wanted = lambda names: {(canonicalize_name(r.name), r.specifier) for r in map(Requirement, names)}
    assert wanted(a for a in asked if 'extra' not in a) == wanted(cfg['requirements'].split())
    assert set(meta.get_all('Provides-Extra')) == {'dev', 'onnx'}
    for extra in ('dev', 'onnx'):
        assert wanted(a.split(';')[0] for a in asked if re.search(rf"extra == .{extra}.", a)) == wanted(cfg[f'{extra}_requirements'].split()), extra
    assert meta['Version'] == cfg['version'] and meta['Requires-Python'] == f'>={cfg["min_python"]}'
    points = next(v for k, v in wheel.items() if k.endswith('entry_points.txt'))
    assert 'sslnb = sslnb.app.cli:main' in points and 'sslnb = sslnb._modidx:d' in points

def test_one_version_everywhere():
    import sslnb
    cff = re.search(r'^version: (\S+)', (root/'CITATION.cff').read_text(encoding='utf-8'), re.M)[1]
    assert sslnb.__version__ == cfg['version'] == cff and f'## {cff}' in (root/'CHANGELOG.md').read_text(encoding='utf-8')

def test_constraints_pin_every_requirement():
    pins = dict(l.split('==') for l in (root/'constraints.txt').read_text(encoding='utf-8').split('\n') if l and not l.startswith('#'))
    pins = {canonicalize_name(k): v for k, v in pins.items()}
    for r in map(Requirement, (cfg['requirements'] + ' ' + cfg['dev_requirements'] + ' ' + cfg['onnx_requirements']).split()):
        assert canonicalize_name(r.name) in pins, f'constraints.txt does not pin {r.name}'
        assert r.specifier.contains(pins[canonicalize_name(r.name)]), f'{r} does not allow {pins[canonicalize_name(r.name)]}'

def test_import_touches_no_device_and_needs_no_nbdev():
    code = "import sys, torch, sslnb.all; print({'nbdev', 'fastai.vision.all'} & set(sys.modules), torch.cuda.is_initialized())"
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().split('\n')[-1] == 'set() False', done.stdout

# what is published

def test_no_trace_of_one_machine():
    local = re.compile(r'(?<![\w.:/-])/(?:home|root|work|Users|mnt|opt)/\w|(?:extra-)?index-url\s*[=:]|--find-links|file:///\w', re.I)
    for p in tracked():
        if p.suffix in {'.npz', '.png', '.jpg', '.safetensors'} or p.name == Path(__file__).name: continue
        text = p.read_text(encoding='utf-8', errors='ignore')
        m = local.search(text)
        assert not m, f'{name(p)} has {text[max(0, m.start() - 30):m.end() + 30]!r}'

def test_nothing_big_is_tracked():
    assert not [f'{name(p)}: {p.stat().st_size//1000} KB' for p in tracked() if p.stat().st_size > 1_500_000]

def test_readme_is_the_home_page():
    sys.path.insert(0, str(root/'tools'))
    try: import readme
    finally: sys.path.pop(0)
    assert readme.readme(json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8'))) == (root/'README.md').read_text(encoding='utf-8'), 'run python tools/readme.py'

def test_readme_opens_with_the_two_commands():
    text = (root/'README.md').read_text(encoding='utf-8')
    first, second = re.findall(r'```bash\n(.+?)\n```', text, re.S)[:2]
    assert first.endswith('sslnb pretrain') and 'pytest' in second
    assert text.index(second) < text.index('\n## ')
    assert 'README.md' in (root/'.ci/run').read_text(encoding='utf-8') and 'pytest' not in (root/'.ci/run').read_text(encoding='utf-8')
