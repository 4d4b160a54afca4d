"""The lower and the upper bound by command: nothing is trained and yet there is a network, a report and scores; labels are needed, and said to be."""
import json
import numpy as np, pytest, torch
from PIL import Image
from helpers import quiet, sslnb

def folder(root, sides, train=120, test=60, classes='abcdef'):
    "Squares with noise, a brightness for each class, as files; without `classes` all in one folder."
    r = np.random.RandomState(0)
    for part,n in (('train',train),('test',test)):
        for i in range(n):
            p = root/part/(classes[i%len(classes)] if classes else '')/f'{i}.png'; p.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((i%6*20+r.randint(0, 20, (r.choice(sides), r.choice(sides)))).astype('uint8')).save(p)
    return root

@pytest.fixture
def data(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return folder(tmp_path/'squares', [8]).parent

def test_random_weights(data):
    given = ('squares','--method','RandomWeights','--backbone','conv4','--size',8)
    rc,out,err = sslnb('pretrain', *given, '--dry-run')
    assert rc==0 and 'this method leaves the network as it was drawn' in out and 'steps in an epoch' not in out and 'collapsed' not in out
    rc,out,err = sslnb('pretrain', *given, '--out', 'r')
    assert (rc,err)==(0,'') and 'nothing to train' in out
    assert {p.name for p in (data/'r').iterdir()}=={'backbone.safetensors','recipe.yml','report.html','scores.json'}
    assert 'none: the network is as it was drawn' in (data/'r'/'report.html').read_text()
    s = json.loads((data/'r'/'scores.json').read_text())
    assert s['trained']['knn']==s['untrained']['knn']
    rc,out,err = sslnb('pretrain', '--resume', 'r')
    assert rc==0 and 'r is finished' in out
    rc,out,err = sslnb('linear', 'r', '--epochs', 2, '--bs', 60)
    assert rc==0 and 'top-1' in out and sslnb('table', 'r-linear')[1].count('lower bound')==1

def test_supervised_wants_labels(data):
    rc,out,err = sslnb('pretrain', folder(data/'nameless', [8], 20, 10, None), '--method', 'Supervised', '--out', 's')
    assert rc==2 and 'Supervised needs labels' in err and not (data/'s').exists()

def test_images_in_files_of_many_sizes(tmp_path):
    "Crops with a border, clusters and rotations where images are photographs in a folder."
    from sslnb.data.loader import ssl_dls
    from sslnb.train.learner import ssl_learner
    import sslnb.train.fit
    folder(tmp_path/'photos', range(100,160), 24, 8)
    for method in ('RotNet','DeepCluster'):
        learn = quiet(ssl_learner(ssl_dls(tmp_path/'photos', bs=8, device='cpu'), 'conv4', method, size=16))
        learn.fit_ssl(1)
        assert len(learn.recorder.losses)==3 and torch.tensor(learn.recorder.losses).isfinite().all(), method
