"""The defaults of evaluation give the same numbers as on the day they were fixed, so that scores of different months can be compared.

Features: the pixels of scikit-learn's digits, divided by 16; image i is a test image if i % 5 == 4 (1438 train, 359 test)."""
import pytest, torch
from sklearn.datasets import load_digits
from sslnb.evaluate.cluster_scores import cluster_scores
from sslnb.evaluate.knn import knn_table
from sslnb.evaluate.report import Features

pytestmark = pytest.mark.quick

FROZEN = dict(knn=0.9833, linear=0.9610, nmi=0.8056, ami=0.7942, ari=0.7054, acc=0.8245, rankme=28.5437, uniformity=-1.1428, std=0.4659)
KNN = {10: (0.9889, 0.9972), 20: (0.9833, 1.), 100: (0.9499, 1.), 200: (0.9359, 0.9972)}             # top-1, top-5
SPLIT = dict(nmi=0.8453, ami=0.8354, ari=0.7911, acc=0.9192)

@pytest.fixture(scope='module')
def feats():
    d = load_digits()
    x,y,test = torch.tensor(d.data/16).float(), torch.tensor(d.target), torch.arange(len(d.data))%5==4
    f = Features(x[~test], y[~test], x[test], y[test])
    assert (len(f.train), len(f.test)) == (1438, 359)
    return f

@pytest.fixture(scope='module')
def scores(feats): return feats.scores()

def test_no_score_is_missing(scores): assert list(scores) == list(FROZEN)

@pytest.mark.parametrize('name', FROZEN)
def test_scores(scores, name): assert scores[name] == pytest.approx(FROZEN[name], abs=5.1e-5)

def test_knn_table(feats):
    table = knn_table(feats.train, feats.train_y, feats.test, feats.test_y)
    assert {k: (v[1],v[5]) for k,v in table.items()} == {k: pytest.approx(v, abs=5.1e-5) for k,v in KNN.items()}

def test_cluster_scores_alone(feats):
    "The same clusters on every machine: the digit whose mean image is nearest, with one digit split in two."
    mean = torch.stack([feats.train[feats.train_y==c].mean(0) for c in range(10)])
    a = torch.cdist(feats.test, mean).argmin(1)
    a[(a==3)&(torch.arange(len(a))%2==0)] = 10
    s = cluster_scores(feats.test_y, a)
    assert s == {k: pytest.approx(v, abs=5.1e-5) for k,v in SPLIT.items()}
