"""PAWS on digits with 1, 4 and 10 labels of each: beside supervised training on the same labels, and beside neighbours among raw pixels with the same labels.

    python benchmarks/paws_digits.py results/paws_digits.csv

One row a run: labels of each class, seed, way, accuracy on the 359 held-out scans after the last epoch, seconds. Nothing is chosen by held-out scans. Lines that are there already are kept, and not run again."""
import csv, subprocess, sys, time
from pathlib import Path
import torch
from sslnb.data.loader import ssl_dls
from sslnb.data.named_sets import digits
from sslnb.data.labels import few_labels, labelled_part
from sslnb.evaluate.support_accuracy import support_accuracy
from sslnb.evaluate.linear_protocol import top_accuracy
import sslnb.train.fit
from sslnb.train.learner import ssl_learner
from sslnb.evaluate.measures import top_hits
from sslnb.methods.paws import PAWS
from sslnb.methods.supervised import Supervised
from sslnb.losses.soft_neighbours import soft_neighbours

COLUMNS = ('labels', 'seed', 'way', 'accuracy', 'seconds', 'device', 'commit', 'settings')
look = dict(flip=0., jitter=(.4, .4, 0., 0.), grey=0., degrees=15, shear=10)
fit = dict(opt='adamw', lr=3e-3, lr_rule='none', wd=.01, start_lr=0., final_lr=0.)
EPOCHS = 40


def pixels(dls):
    a, b = dls.train.ds, dls.valid.ds
    have = a.labels >= 0
    flat = lambda x: x.flatten(1).float()
    return top_hits(soft_neighbours(flat(b.images), flat(a.images[have]), a.labels[have], .1), b.labels, (1,)).item()/len(b)


def quiet(learn): learn.logger = lambda *a: None; return learn


def paws(dls):
    views = dict(**look, n_local=2, global_scale=(.5, 1.), local_scale=(.25, .6), blur=0.)
    learn = quiet(ssl_learner(dls, 'conv4', PAWS(dim=64, pred=False, support_images=8), views=views))
    learn.fit_ssl(EPOCHS, warmup=4, **{**fit, 'no_decay': True})
    return support_accuracy(learn)['top1']


def supervised(dls): # as many steps as PAWS takes, on batches of labelled images alone
    a, b = labelled_part(dls.train.ds), dls.valid.ds
    small = ssl_dls((a, b), bs=min(len(a), 40), device='cpu', seed=dls.seed, mean=list(dls.mean), std=list(dls.std))
    learn = quiet(ssl_learner(small, 'conv4', Supervised(), views=dict(**look, k=1, scale=(.5, 1.), pad=0)))
    learn.fit_ssl(EPOCHS*len(dls.train)//len(small.train), warmup=1, **fit)
    return top_accuracy(learn, middle=1.)[1]


WAYS = dict(pixels=pixels, supervised=supervised, paws=paws)

if __name__ == '__main__':
    path = Path(sys.argv[1] if len(sys.argv) > 1 else 'results/paws_digits.csv')
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True).stdout.strip()
    for labels in (1, 4, 10):
        for seed in (0, 1, 2):
            for way, f in WAYS.items():
                if any((r['labels'], r['seed'], r['way']) == (str(labels), str(seed), way) for r in rows): continue
                (a, b), t = digits(), time.time()
                dls = ssl_dls((few_labels(a, labels, seed), b), bs=128, seed=seed, device='cpu')             # other labels with every seed
                acc = f(dls)
                rows.append(dict(labels=labels, seed=seed, way=way, accuracy=round(acc, 4), seconds=round(time.time()-t, 1), device='cpu', commit=commit, settings='' if way == 'pixels' else f'conv4; adamw; lr 0.003; {EPOCHS} epochs of PAWS'))
                print(rows[-1], flush=True)
                with path.open('w', newline='') as o: w = csv.DictWriter(o, COLUMNS); w.writeheader(); w.writerows(rows)
