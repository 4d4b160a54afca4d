"""Cross entropy, SupCon-S, SupCon and SelfCon on labelled digits, side by side: makes results/selfcon_digits.csv.

    python benchmarks/selfcon_digits.py [--seeds 0 1 2] [--epochs 20] [--device "cpu, 1 thread"]

Everything but method, number of views and exits is alike. Accuracy is on the held-out fifth, after the last epoch: of logistic regression on the frozen features (`linear`; of SelfCon also at its exit and of both together),
and of the classifier that cross entropy trained itself (`own`). Time of a step: that of the fastest epoch, views included. Memory: the bytes that autograd keeps of one batch (on a GPU: the most that was allocated).
"""
import argparse, csv, subprocess
from pathlib import Path
import torch
from sslnb.data.loader import ssl_dls
from sslnb.evaluate.exit_protocol import exit_report, own_classifiers
from sslnb.train.schedule import RECIPE
import sslnb.train.fit
from sslnb.train.learner import ssl_learner
from sslnb.methods.one_stage import OneStage
from sslnb.methods.selfcon import SelfCon
from sslnb.methods.supcon import SupCon
from selfcon import saved

ROWS = {'cross entropy':(lambda: OneStage('ce'),1,None), 'SupCon-S':(SupCon,1,None), 'SupCon':(SupCon,2,None), 'SelfCon':(SelfCon,1,[False,True,False])}
VIEWS = dict(flip=0., scale=(.6,1.), degrees=15, jitter=None, grey=0.)
RECIPE = dict(opt='adamw', lr=.003, lr_rule='none', wd=.01, warmup=2, start_lr=0., final_lr=0., lr_each='step')


def train(name, seed, a):
    method,k,exits = ROWS[name]
    dls = ssl_dls('digits', bs=a.bs, seed=seed)
    learn = ssl_learner(dls, 'conv4', method(), views=dict(k=k, **VIEWS), size=16, exits=exits)
    learn.logger = lambda *_: None
    cuda = dls.device.type=='cuda'
    if cuda: torch.cuda.reset_peak_memory_stats()
    learn.fit_ssl(a.epochs, **RECIPE)
    kept = torch.cuda.max_memory_allocated() if cuda else saved(learn)
    acc = {r['exit']:r['top1'] for r in exit_report(learn)}
    own = exit_report(learn, own=True)[-1]['top1'] if own_classifiers(learn) is not None else None
    ms = 1000*min(h['time'] for h in learn.recorder.history)/len(dls.train)
    return dict(linear=acc['out'], own=own, exit=acc.get('0'), together=acc.get('0+out'), ms_step=ms, memory_mb=kept/1e6, loss=learn.recorder.history[-1]['loss'])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, nargs='+', default=[0,1,2]); p.add_argument('--epochs', type=int, default=20); p.add_argument('--bs', type=int, default=128)
    p.add_argument('--device', default='', help='what it runs on, in words'); p.add_argument('--out', default=str(Path(__file__).parents[1]/'results'/'selfcon_digits.csv'))
    a = p.parse_args()
    commit = subprocess.run(['git','rev-parse','--short','HEAD'], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    rows = []
    for seed in a.seeds:                                                  # methods take turns, so that a busy machine disturbs them alike
        for name in ROWS:
            r = train(name, seed, a)
            rows.append(dict(method=name, data='digits', backbone='conv4', epochs=a.epochs, batch=a.bs, seed=seed, **{k:'' if v is None else round(v, 4) for k,v in r.items()}, device=a.device or f'{"cuda" if torch.cuda.is_available() else "cpu"}, {torch.get_num_threads()} threads', commit=commit))
            print(f'seed {seed}, {name:14s} '+'  '.join(f'{k} {v:.4g}' for k,v in r.items() if v is not None), flush=True)
    with open(a.out, 'w', newline='') as f:
        w = csv.DictWriter(f, rows[0], lineterminator='\n'); w.writeheader(); w.writerows(rows)
    print(f'{len(rows)} rows in {a.out}')


if __name__=='__main__': main()
