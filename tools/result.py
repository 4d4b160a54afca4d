"""Add a finished run to the record: one row for the raw pixels, one for the network before training, one for it after the last epoch.

    python tools/result.py runs/cifar10-selfclassifier-seed0 results/cifar10.csv --data "CIFAR-10, 5,000 images" --device "cpu, 2 cores"

Everything else is read from the run's own files; the commit is that of the working tree, which must be clean, unless --commit says what made the run."""
import argparse, csv, json, subprocess
from pathlib import Path
import yaml

COLUMNS = 'method data backbone epochs batch seed knn linear nmi ami ari acc acc_test minutes gb device commit settings'.split()
SCORES = COLUMNS[6:13]
PLACE = ('data','backbone','method','seed','epochs','bs')         # keys that have a column of their own

def commit():
    "The commit of a clean working tree."
    git = lambda *a: subprocess.run(['git', *a], capture_output=True, text=True, check=True).stdout.strip()
    if git('status', '--porcelain', '--untracked-files=no'): raise SystemExit('the working tree has changes: commit them first, so that the row says what made it')
    return git('rev-parse', '--short', 'HEAD')

def settings(recipe):
    "What the run sets otherwise than its method and views do by themselves."
    from sslnb.run.recipes import keys_of
    keys = keys_of(recipe['method'], recipe.get('views') or '')
    plain = lambda d: list(d) if isinstance(d, tuple) else d
    same = lambda k,v: k in keys and plain(keys[k].default)==v
    return '; '.join(f'{k} {v}' for k,v in recipe.items() if k not in PLACE and v is not None and not same(k, v))

def rows(run, data, device, gb, made):
    "Rows of one run."
    recipe,scores = yaml.safe_load((run/'recipe.yml').read_text()), json.loads((run/'scores.json').read_text())
    history = list(csv.DictReader(open(run/'history.csv')))
    minutes = sum(float(h['time']) for h in history)/60
    common = dict(data=data, seed=recipe['seed'], device=device, commit=made)
    own = dict(backbone=recipe['backbone'])
    what = dict(raw={'method':'raw pixels + k-means', 'epochs':0}, untrained={'method':'untrained', 'epochs':0, **own},
                trained={'method':recipe['method'], **own, 'epochs':len(history), 'batch':recipe['bs'], 'minutes':round(minutes, 2), 'gb':gb, 'settings':settings(recipe)})
    for name,head in what.items():
        yield {**dict.fromkeys(COLUMNS, ''), **common, **head, **{k:round(scores[name][k], 4) for k in SCORES if scores[name].get(k) is not None}}

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('run', type=Path); p.add_argument('table', type=Path)
    p.add_argument('--data', required=True, help='the images, in words'); p.add_argument('--device', required=True, help='what it ran on, in words'); p.add_argument('--gb', default='', help='peak memory, where it was measured'); p.add_argument('--commit', help='what the run was made with, by default the commit of the working tree')
    a = p.parse_args()
    new = list(rows(a.run, a.data, a.device, a.gb, a.commit or commit()))
    old = list(csv.DictReader(open(a.table))) if a.table.exists() else []
    same = lambda r,o: all(str(r[k])==o.get(k,'') for k in ('method','data','backbone','epochs','seed','settings'))
    with open(a.table, 'w', newline='') as f:
        w = csv.DictWriter(f, COLUMNS, restval='', lineterminator='\n'); w.writeheader()
        w.writerows([o for o in old if not any(same(r, o) for r in new)]+new)
    print(f'{len(new)} rows in {a.table}')
