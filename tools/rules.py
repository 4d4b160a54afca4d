"""The house rules of CONTRIBUTING.md as numbers: what breaks them, and the list of what breaks them today.

    python tools/rules.py                      # where code and list differ
    python tools/rules.py --all sslnb/app      # every offender whose place begins so
    python tools/rules.py --write              # lower figures in the list, drop entries that are no longer needed
    python tools/rules.py --write --allow-new  # add new offenders and larger figures too

`tests/house/test_rules.py` fails where `python tools/rules.py` prints a difference. Sizes are those of code as
`ruff format` lays it out at 120 columns, so that width cannot hide length."""
import argparse, ast, csv, json, re, subprocess, sys, tempfile
from collections import Counter
from pathlib import Path

root = Path(__file__).resolve().parents[1]
offenders = root/'tests/house/offenders.csv'

WIDTH = 120
LIMITS = {                       # rule: largest figure that is fine
    'wide lines': 0,             # a file's lines of more than 120 characters, in code cells of a notebook too
    'module lines': 250,         # formatted, without blank lines and comments
    'body lines': 25,            # of a function, formatted, without signature and docstring
    'branches': 10,              # of a function: if, for, while, except, assert, ternary, and, or, comprehensions
    'definitions in a cell': 2,  # exported functions and classes
    'long proofs': 0,            # a notebook's test cells of more than 15 lines or 600 characters
    'shared lines': 0,           # a notebook's lines with more than one statement
    'stop watches': 0,           # tests and proofs that assert and read a clock: they fail on a busy machine
    'private imports': 0,        # names with a leading underscore from another module
    'same public name': 1,       # modules that define it
    'digit is not its folder': 0,
    'imports that point up': 0,  # of a module: to a floor that is not lower, or within its folder to a later number
    'proofs that point up': 0,   # imports of later modules in a notebook's test cells
    'imports in functions': 0}   # of sslnb, outside of `core`

DIGITS = dict(augment=1, data=2, models=3, losses=4, train=5, evaluate=6, checkpoints=7, methods=8, run=9, app=9)
AS_THEY_ARE = dict(core=0, distributed=0, testing=6, all=9)
FLOORS = dict(core=1, distributed=1, augment=2, models=2, losses=2, data=3, train=3, evaluate=4, checkpoints=4,
              methods=5, run=5, testing=5, app=6, old_names=6)
TOP = 7                          # `all`, `__main__` and other loose modules that only pass names on

# measuring text

BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert, ast.IfExp, ast.match_case)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

def wide_lines(text):
    "Number of lines of more than 120 characters."
    return sum(len(l) > WIDTH for l in text.split('\n'))

def code_lines(lines):
    "Number of lines that are neither blank nor a comment."
    return sum(bool(l.strip()) and not l.strip().startswith('#') for l in lines)

def functions(tree, above=''):
    "`(name, node)` of every function, nested ones too; names such as `Class.method`."
    for o in ast.iter_child_nodes(tree):
        named = isinstance(o, (*FUNCTIONS, ast.ClassDef))
        if isinstance(o, FUNCTIONS): yield above+o.name, o
        yield from functions(o, f'{above}{o.name}.' if named else above)

def body_lines(text):
    "`{function: lines of its body}`, without its docstring."
    lines, res = text.split('\n'), {}
    for name, f in functions(ast.parse(text)):
        documented = ast.get_docstring(f, clean=False) is not None and len(f.body) > 1
        first = f.body[documented]
        n = code_lines(lines[first.lineno-1:f.end_lineno])
        res[name] = max(n, res.get(name, 0))
    return res

def count_branches(f):
    "Branches of one function."
    n = 0
    for o in ast.walk(f):
        if isinstance(o, BRANCHES): n += 1
        elif isinstance(o, ast.BoolOp): n += len(o.values)-1
        elif isinstance(o, ast.comprehension): n += 1+len(o.ifs)
    return n

def branches(text):
    "`{function: branches}`."
    res = {}
    for name, f in functions(ast.parse(text)): res[name] = max(count_branches(f), res.get(name, 0))
    return res

def definitions(cell):
    "Names of the functions and classes that a cell defines."
    return [o.name for o in ast.parse(cell).body if isinstance(o, (*FUNCTIONS, ast.ClassDef))]

def is_long_proof(cell):
    "Whether a test cell has more than 15 lines or 600 characters, directives left out."
    lines = [l for l in cell.split('\n') if l.strip() and not l.startswith('#|')]
    return len(lines) > 15 or len('\n'.join(lines)) > 600

def shared_lines(text):
    "Number of lines on which one statement follows another after a `;`."
    seen = set()
    for o in ast.walk(ast.parse(text)):
        for block in (getattr(o, k, None) for k in ('body', 'orelse', 'finalbody')):
            if isinstance(block, list): seen |= {b.lineno for a, b in zip(block, block[1:]) if a.end_lineno == b.lineno}
    return len(seen)

def named_in_a_call(o, package):
    "Dotted name that `import_module('...')` or `__import__('...')` says in so many words, in a list."
    if not isinstance(o, ast.Call) or not o.args: return []
    called, first = getattr(o.func, 'attr', getattr(o.func, 'id', '')), getattr(o.args[0], 'value', None)
    if called not in ('import_module', '__import__') or not isinstance(first, str): return []
    return [package+first if first.startswith('.') else first]

def imported(o, package):
    "Dotted names that a statement or call asks for, `[]` if it imports nothing; relative ones start at `package`."
    if isinstance(o, ast.Import): return [a.name for a in o.names]
    if not isinstance(o, ast.ImportFrom): return named_in_a_call(o, package)
    parts = package.split('.')
    base = '.'.join([*parts[:len(parts)-o.level+1], *filter(None, [o.module])]) if o.level else o.module
    return [f'{base}.{a.name}' for a in o.names]

def imports(text, package='sslnb'):
    "Dotted names below `sslnb`, without that, which a piece of code imports, inside functions too."
    names = [n for o in ast.walk(ast.parse(text)) for n in imported(o, package)]
    return [n.removeprefix('sslnb.') for n in names if n.startswith('sslnb.')]

def is_private(name): return name.startswith('_') and not name.endswith('__')

def private_imports(text, package='sslnb', modules=()):
    "Private names of other modules of the package that a piece of code takes: by import, or as `module._name`."
    tree = ast.parse(text)
    found = {n for n in imports(text, package) if any(map(is_private, n.split('.')))}
    bound = {}
    for o in ast.walk(tree):
        names = o.names if isinstance(o, (ast.Import, ast.ImportFrom)) else []
        bound |= {a.asname or a.name: n for a, n in zip(names, imported(o, package))}
    for o in ast.walk(tree):
        if not isinstance(o, ast.Attribute) or not is_private(o.attr): continue
        module = bound.get(ast.unparse(o.value), '').removeprefix('sslnb.')
        if module in modules: found.add(f'{module}.{o.attr}')
    return sorted(found)

def imports_in_functions(text, package='sslnb'):
    "Number of lines inside functions that import modules of this package; slow libraries may be imported anywhere."
    inside = [o for _, f in functions(ast.parse(text)) for o in ast.walk(f)]
    return len({o.lineno for o in inside if any(n.split('.')[0] == 'sslnb' for n in imported(o, package))})

def public_names(text):
    "What a module's `__all__` lists."
    assigned = [o for o in ast.parse(text).body if isinstance(o, ast.Assign) and isinstance(o.value, ast.List)]
    return [name for o in assigned if ast.unparse(o.targets[0]) == '__all__' for name in ast.literal_eval(o.value)]

# floors

def folder(module): return module.split('.')[0]
def floor(module): return FLOORS.get(folder(module), TOP)

def points_up(module, target, number):
    "Whether `module` must not import `target`: by floors, and within a folder by the numbers of their notebooks."
    if folder(module) == folder(target): return number.get(target, 0) > number.get(module, 10_000)
    if {folder(module), folder(target)} == {'methods', 'app'}: return True     # a method is found by its name
    return floor(target) >= floor(module)

def module_of(name, modules):
    "The module that a dotted name lies in: the longest beginning that is one."
    parts = name.split('.')
    return next((m for i in range(len(parts), 0, -1) if (m := '.'.join(parts[:i])) in modules), None)

def is_registered(text):
    "Whether a module of `methods` defines a method that registers itself, not only what methods share."
    classes = [o for o in ast.parse(text).body if isinstance(o, ast.ClassDef)]
    listed = [o for o in classes if 'register' not in [k.arg for k in o.keywords]]
    return any(not ast.unparse(b).endswith(('Head', 'Module')) for o in listed for b in o.bases)

# the repository

class Repo:
    "The files that rules look at: modules by their names without `sslnb.`; notebooks and other scripts by their paths."
    def __init__(self, top=root):
        self.top = Path(top)
        self.paths = {self.module(p): p for p in sorted((self.top/'sslnb').rglob('*.py')) if p.name != '_modidx.py'}
        self.modules = {m: p.read_text(encoding='utf-8') for m, p in self.paths.items()}
        self.formatted = formatted(self.modules)
        hidden = lambda p: any(s[0] in '._' for s in p.relative_to(self.top).parts)
        self.notebooks = {p: code_cells(p) for p in sorted((self.top/'nbs').rglob('*.ipynb')) if not hidden(p)}
        self.made_by = {m: p for p, cells in self.notebooks.items() if (m := exports_to(cells))}
        self.number = {m: int(p.name[:3]) for m, p in self.made_by.items() if re.match(r'\d{3}_', p.name)}
        scripts = [p for d in ('tests', 'tools', 'benchmarks') for p in sorted((self.top/d).rglob('*.py'))]
        self.scripts = {p: p.read_text(encoding='utf-8') for p in scripts}

    def module(self, path):
        "`sslnb/data/loader.py` -> `data.loader`; a folder's `__init__.py` has the name of the folder."
        parts = path.relative_to(self.top/'sslnb').with_suffix('').parts
        return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts) or '__init__'

    def place(self, path): return path.relative_to(self.top).as_posix()

    def package(self, module):
        "Where relative imports of a module start."
        here = self.paths[module]
        return '.'.join(here.parent.relative_to(self.top).parts)

def formatted(texts):
    "Each text as ruff lays it out, all in one run."
    with tempfile.TemporaryDirectory() as d:
        files = {k: Path(d)/f'{i}.py' for i, k in enumerate(texts)}
        for k, f in files.items(): f.write_text(texts[k], encoding='utf-8')
        command = [sys.executable, '-m', 'ruff', 'format', '-q', '--isolated', f'--line-length={WIDTH}', d]
        subprocess.run(command, check=True)
        return {k: f.read_text(encoding='utf-8') for k, f in files.items()}

def code_cells(path):
    "`[(source, whether it is exported)]` of a notebook's code cells that are Python."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    cells = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
    return [(s, bool(re.search(r'^#\|\s*exporti?\b', s, re.M))) for s in cells if not re.search(r'^[%!]', s, re.M)]

def exports_to(cells):
    "The module that a notebook makes, or None."
    return next((m[1] for s, _ in cells if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', s, re.M))), None)

def is_proof(cell): return bool(re.search(r'\b(test_\w+\(|assert )', cell))

# the rules, each a function of the repository that gives {place: figure}

def rule_wide_lines(repo):
    code = {p: '\n'.join(s for s, _ in cells) for p, cells in repo.notebooks.items()} | repo.scripts
    return {repo.place(p): wide_lines(s) for p, s in code.items()}

def rule_module_lines(repo):
    return {repo.place(repo.paths[m]): code_lines(s.split('\n')) for m, s in repo.formatted.items()}

def by_function(repo, measure):
    return {f'{repo.place(repo.paths[m])}:{f}': n for m, s in repo.formatted.items() for f, n in measure(s).items()}

def rule_body_lines(repo): return by_function(repo, body_lines)
def rule_branches(repo): return by_function(repo, branches)

def rule_definitions_in_a_cell(repo):
    found = [(p, definitions(s)) for p, cells in repo.notebooks.items() for s, exported in cells if exported]
    return {f'{repo.place(p)}:{names[0]}': len(names) for p, names in found if names}

def rule_long_proofs(repo):
    proofs = {p: [s for s, exported in cells if not exported and is_proof(s)] for p, cells in repo.notebooks.items()}
    return {repo.place(p): sum(map(is_long_proof, cells)) for p, cells in proofs.items()}

def has_stop_watch(cell):
    "Whether a test looks at a clock of the wall."
    return is_proof(cell) and bool(re.search(r'\b(time\.time|perf_counter|monotonic)(_ns)?\(', cell))

def rule_stop_watches(repo):
    proofs = {p: [s for s, exported in cells if not exported] for p, cells in repo.notebooks.items()}
    tests = {p: [s] for p, s in repo.scripts.items() if p.name.startswith('test_')}
    return {repo.place(p): sum(map(has_stop_watch, cells)) for p, cells in (proofs | tests).items()}

def rule_shared_lines(repo):
    "The last cell of a notebook, which nbdev's users write so, does not count."
    own = lambda cells: [s for s, _ in cells if 'nbdev_export()' not in s]
    return {repo.place(p): sum(map(shared_lines, own(cells))) for p, cells in repo.notebooks.items()}

def rule_private_imports(repo):
    texts = {repo.place(repo.paths[m]): (s, repo.package(m)) for m, s in repo.modules.items()}
    texts |= {repo.place(p): (s, 'sslnb') for p, s in repo.scripts.items()}
    for p, cells in repo.notebooks.items():
        texts[repo.place(p)] = '\n'.join(s for s, exported in cells if not exported), 'sslnb'
    return {place: len(private_imports(s, package, repo.modules)) for place, (s, package) in texts.items()}

def rule_same_public_name(repo):
    return {name: n for name, n in Counter(k for s in repo.modules.values() for k in public_names(s)).items()}

def rule_digit_is_not_its_folder(repo):
    first = {m: AS_THEY_ARE.get(m, DIGITS.get(folder(m), r'\d')) for m in repo.made_by}
    fits = {p: re.fullmatch(rf'{first[m]}\d\d_{re.escape(m)}\.ipynb', p.name) for m, p in repo.made_by.items()}
    return {repo.place(p): not m for p, m in fits.items()}

def upward(repo, module, names):
    "Modules among dotted names that `module` must not import."
    targets = {t for n in names if (t := module_of(n, repo.modules)) and t != module}
    return sorted(t for t in targets if points_up(module, t, repo.number) or between_methods(repo, module, t))

def between_methods(repo, module, target):
    "No method imports a method that registers itself."
    return folder(module) == folder(target) == 'methods' and target != 'methods' and is_registered(repo.modules[target])

def rule_imports_that_point_up(repo):
    found = {m: upward(repo, m, imports(s, repo.package(m))) for m, s in repo.modules.items()}
    return {f'{repo.place(repo.paths[m])} -> {t}': 1 for m, ts in found.items() for t in ts}

def rule_proofs_that_point_up(repo):
    res = {}
    for m, p in repo.made_by.items():
        names = [n for s, exported in repo.notebooks[p] if not exported for n in imports(s)]
        later = {t for n in names if repo.number.get(t := module_of(n, repo.modules), 0) > repo.number.get(m, 1000)}
        res[repo.place(p)] = len(later)
    return res

def rule_imports_in_functions(repo):
    looked_at = {m: s for m, s in repo.modules.items() if folder(m) not in ('core',)}
    return {repo.place(repo.paths[m]): imports_in_functions(s, repo.package(m)) for m, s in looked_at.items()}

def rule(name): return globals()[f'rule_{name.replace(" ", "_")}']

def measured(repo):
    "`{(place, rule): figure}` of everything that breaks a rule."
    found = {name: rule(name)(repo) for name in LIMITS}
    return {(place, name): int(n) for name, limit in LIMITS.items() for place, n in found[name].items() if n > limit}

# the list

def listed(path=offenders):
    "`{(place, rule): (figure, why)}` of the list; `why` is for what is to stay."
    with open(path, encoding='utf-8', newline='') as f: rows = list(csv.DictReader(f))
    return {(r['place'], r['rule']): (int(r['figure']), r['why']) for r in rows}

def differences(now, before):
    "Where code (`now`, from `measured`) and list (`before`, from `listed`) differ, a sentence each."
    res, write = [], 'in the list (python tools/rules.py --write)'
    for (place, name), n in sorted(now.items()):
        old = before.get((place, name), (None,))[0]
        if old is None: res.append(f'{place}: {name} {n}, at most {LIMITS[name]}')
        elif n > old: res.append(f'{place}: {name} {n}, has grown from {old}; at most {LIMITS[name]}')
        elif n < old: res.append(f'{place}: {name} fell from {old} to {n}: lower it {write}')
    return res + [f'{place}: {name} is fine now: strike it {write}' for place, name in sorted(set(before)-set(now))]

def updated(now, before, allow_new=False):
    "The list after `now`: lower figures and fewer entries; new ones and larger figures only with `allow_new`."
    keep = {k: n for k, n in now.items() if allow_new or k in before}
    lower = lambda k, n: n if allow_new else min(n, before[k][0])
    return {k: (lower(k, n), before.get(k, (0, ''))[1]) for k, n in keep.items()}

def write(rows, path=offenders):
    "Write the list, by rule and place."
    rows = sorted((list(LIMITS).index(name), place, name, n, why) for (place, name), (n, why) in rows.items())
    with open(path, 'w', encoding='utf-8', newline='') as f:
        csv.writer(f, lineterminator='\n').writerows([['place', 'rule', 'figure', 'why'], *(r[1:] for r in rows)])

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--all', metavar='PREFIX', nargs='?', const='', help='all offenders whose place begins so')
    p.add_argument('--write', action='store_true', help='lower figures in the list, drop entries that are not needed')
    p.add_argument('--allow-new', action='store_true', help='with --write: add new offenders and larger figures too')
    args = p.parse_args()
    now = measured(Repo())
    if args.all is not None:
        for (place, name), n in now.items():
            if place.startswith(args.all): print(place, name, n, sep='\t')
        return
    before = listed() if offenders.exists() else {}
    if args.write:
        before = updated(now, before, args.allow_new)
        write(before)
    left = differences(now, before)
    print('\n'.join([*left, f'{len(now)} offenders, {len(left)} differences']))
    return bool(left)

if __name__ == '__main__': sys.exit(main())
