"""Evaluation in several processes, and against files that do not come with the library.

    SSLNB_BREEDS=FOLDER python -m pytest tests/evaluate/test_protocols.py      # FOLDER holds the three files of BREEDS"""
import os, subprocess, sys
import pytest, torch
from helpers import quiet
from sslnb.core import bare
from sslnb.data.loader import ssl_dls
from sslnb.distributed import equal_state, run_ranks
from sslnb.train.learner import ssl_learner
from sslnb.evaluate.class_figures import cluster_logits
from sslnb.evaluate.features import clusters, features
from sslnb.evaluate.finetune import finetune
from sslnb.evaluate.linear_protocol import linear_learner, top_accuracy
from sslnb.evaluate.superclasses import BREEDS, breeds, read_hierarchy

def classifier(frozen):
    "Losses, tensors and accuracy of a classifier on an untrained backbone in float64; every third image has no label."
    torch.manual_seed(0)
    dls = ssl_dls('digits', bs=48, device='cpu')
    dls.train.labels = torch.where(torch.arange(dls.n)%3==0, -1, dls.train.labels)
    learn = linear_learner(ssl_learner(dls, 'conv4', 'SelfClassifier', size=8), frozen=frozen, views=dict(flip=0., scale=(.8,1)))
    make = learn.views
    learn.model.double(); learn.model.head.double()
    one = lambda *a, **k: [v.double() for v in make(*a, **k)]
    learn.views = type('Double', (), dict(__call__=lambda self, *a, **k: one(*a, **k), augs=make.augs, n_views=1))()
    quiet(learn)
    learn.dls.train.start = len(learn.dls.train)-6
    learn.fit_ssl(1, opt='sgd', lr=1., wd=0., momentum=.9)
    state = {k: v.numpy() for k, v in bare(learn.model).state_dict().items() if torch.is_tensor(v)}
    bare(learn.model).float()
    return learn.recorder.losses, state, top_accuracy(learn), equal_state(learn.model)

@pytest.mark.parametrize('frozen', [True, False], ids=['frozen', 'fine-tuned'])
def test_two_processes_train_the_classifier_of_one(frozen):
    "The labelled images fall on the two processes unequally, and the joint loss is that of the joint batch."
    losses, state, acc, _ = classifier(frozen)
    for two in run_ranks(classifier, frozen):
        assert two[0] == pytest.approx(losses, abs=1e-6)                      # the record is float32
        for k, v in state.items(): assert abs(two[1][k].astype('float64')-v).max() < 1e-9*max(1, abs(v).max()), k
        assert two[2] == acc and two[3]

def fine_tuned():
    "Losses and rows of a fine-tuning on four labels of each digit, in batches of 20, batch norm over all processes."
    torch.manual_seed(0)
    learn = ssl_learner(ssl_dls('digits', bs=64, device='cpu'), 'conv4', 'SelfClassifier', size=8)
    res = finetune(learn, labels=4, epochs=3, bs=26, lr=.1, lr_head=.1, views=dict(flip=0., scale=(.8,1)), show=False)
    return [r['loss'] for r in res['history']], res['top1'], res['images']

def test_two_processes_fine_tune_as_one():
    losses, top1, n = fine_tuned()
    assert n == 40 and losses[-1] < losses[0]
    for two in run_ranks(fine_tuned):
        assert two[0] == pytest.approx(losses, abs=1e-4) and two[1] == pytest.approx(top1, abs=.01) and two[2] == n

def test_logits_of_self_classifier_are_those_of_its_clusters():
    learn = ssl_learner(ssl_dls('digits', bs=64, device='cpu'), 'conv4', 'SelfClassifier', size=8)
    logits = cluster_logits(learn)
    assert torch.equal(logits.argmax(1), clusters(learn, learn.dls.valid.ds.images))
    f = features(learn); f.logits = logits
    assert f.show_classes('entropy', n=1, max_classes=2) is not None

@pytest.mark.skipif('SSLNB_BREEDS' not in os.environ, reason='SSLNB_BREEDS names no folder with the files of BREEDS')
def test_breeds():
    "Counts of the published hierarchy, and Living17 class by class."
    h = read_hierarchy(os.environ['SSLNB_BREEDS'])
    depths = list(h.depth.values())
    assert [depths.count(d) for d in range(2, 9)] == [10, 29, 128, 466, 591, 98, 3]
    kept = lambda m: int((m >= 0).sum())
    assert [kept(h.mapping(h.nodes(d))[0]) for d in range(2, 9)] == [890, 890, 890, 887, 616, 98, 3]
    sets = {n: (len(breeds(h, n)[1]), kept(breeds(h, n)[0]), kept(breeds(h, n, balanced=True)[0])) for n in BREEDS}
    assert sets == dict(entity13=(13, 771, 260), entity30=(30, 639, 240), living17=(17, 223, 68), nonliving26=(26, 157, 104))
    m, _ = breeds(h, 'living17', balanced=True)
    assert [(m == k).nonzero().flatten().tolist() for k in (0, 1, 2, 8, 9)] == [[26, 27, 28, 29], [33, 34, 35, 37], [38, 41, 44, 47], [154, 157, 163, 257], [269, 270, 271, 272]]

def test_verbs_are_there_whatever_is_imported():
    "`Features` gets its verbs from many modules, the Learner its `fit_ssl` from train.fit; one import is enough for each."
    code = ("from sslnb.evaluate.features import Features; from sslnb.train.learner import SSLLearner; "
            "verbs = 'knn linear kmeans cluster scores report retrieval show_map show_classes show_prototypes'.split(); "
            "assert all(hasattr(Features, v) for v in verbs) and hasattr(SSLLearner, 'fit_ssl')")
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)
