"Data sets by name from files of the real layouts, arrays in full, and what users get wrong."
import hashlib, pickle
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image

pytestmark = pytest.mark.quick

@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    "Nothing is downloaded here."
    from torchvision import datasets
    def offline(*args, **kw): raise OSError('no network')
    for m in (datasets.cifar, datasets.stl10): monkeypatch.setattr(m, 'download_and_extract_archive', offline)
    monkeypatch.delenv('SSLNB_DATA', raising=False)

def image_sets(*args, **kw):
    from sslnb.data.image_sets import image_sets
    return image_sets(*args, **kw)

def pictures(root, paths, side=16):
    for i, p in enumerate(paths):
        (root/p).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.random.RandomState(i).rand(side, side, 3)*255).astype(np.uint8)).save(root/p)
    return root

def md5(p): return hashlib.md5(p.read_bytes(), usedforsecurity=False).hexdigest()

# sets that torchvision loads, from small files whose checksums are made known

def write(d, name, o):
    p = d/name
    p.write_bytes(pickle.dumps(o) if isinstance(o, dict) else o)
    return [name, md5(p)]

@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10
    d = tmp_path/CIFAR10.base_folder; d.mkdir()
    rnd = np.random.RandomState(0)
    batch = lambda n: dict(data=(rnd.rand(n, 3072)*255).astype(np.uint8), labels=[i % 10 for i in range(n)])
    parts = {f'data_batch_{i}': batch(20) for i in range(1, 6)} | {'test_batch': batch(10)}
    sums = [write(d, k, v) for k, v in parts.items()]
    meta = write(d, 'batches.meta', dict(label_names=list('abcdefghij')))
    for k, v in dict(train_list=sums[:5], test_list=sums[5:], meta=dict(filename=meta[0], key='label_names', md5=meta[1])).items(): monkeypatch.setattr(CIFAR10, k, v)
    return tmp_path, parts

@pytest.mark.parametrize('below', ['', 'cifar10'])
def test_cifar_pickles(cifar10, below):
    root, parts = cifar10
    if below: (root/below).mkdir(); (root/'cifar-10-batches-py').rename(root/below/'cifar-10-batches-py')
    a, b = image_sets('cifar10', root=root)
    assert (len(a), len(b), a.classes, a.labels[:12].tolist(), a.notes) == (100, 10, list('abcdefghij'), [*range(10), 0, 1], [])
    assert (a.images[21].numpy().ravel() == parts['data_batch_2']['data'][1]).all() and (b.images[3].numpy().ravel() == parts['test_batch']['data'][3]).all()

def test_a_pickle_with_the_wrong_checksum_is_never_opened(cifar10):
    root, _ = cifar10
    class Evil:
        def __reduce__(self): return Path.touch, (root/'opened',)
    (root/'cifar-10-batches-py/data_batch_3').write_bytes(pickle.dumps(Evil()))
    with pytest.raises(FileNotFoundError, match='checksums differ') as e: image_sets('cifar10', root=root)
    assert 'cifar-10-python.tar.gz' in str(e.value) and 'no network' in str(e.value) and not (root/'opened').exists()

def test_supercifar_from_pickles(tmp_path, monkeypatch):
    from sslnb.data.named_sets import CIFAR100_TO_20, CIFAR20
    from torchvision.datasets import CIFAR100
    d = tmp_path/CIFAR100.base_folder; d.mkdir()
    names = [f'{i:02}' for i in range(100)]
    parts = [write(d, k, dict(data=np.zeros((100, 3072), np.uint8), fine_labels=list(range(100)), coarse_labels=list(CIFAR100_TO_20))) for k in ('train', 'test')]
    meta = write(d, 'meta', dict(fine_label_names=names))
    for k, v in dict(train_list=parts[:1], test_list=parts[1:], meta=dict(filename=meta[0], key='fine_label_names', md5=meta[1])).items(): monkeypatch.setattr(CIFAR100, k, v)
    assert image_sets('cifar100', root=tmp_path)[1].labels.tolist() == list(range(100))
    for s in image_sets('supercifar100', root=tmp_path): assert s.labels.tolist() == list(CIFAR100_TO_20) and s.classes == list(CIFAR20) and s.name == 'supercifar100'

def test_stl10_with_its_unlabelled_images(tmp_path, monkeypatch):
    from torchvision.datasets import STL10
    d = tmp_path/STL10.base_folder; d.mkdir()
    rnd = np.random.RandomState(0)
    x = {k: (rnd.rand(n, 3, 96, 96)*255).astype(np.uint8) for k, n in (('train', 6), ('unlabeled', 5), ('test', 4))}
    bins = {f'{k}_X.bin': v.transpose(0, 1, 3, 2).tobytes() for k, v in x.items()} | {'train_y.bin': bytes([1, 2, 10, 4, 5, 6]), 'test_y.bin': bytes([1, 2, 3, 4])}
    sums = {k: write(d, k, v) for k, v in bins.items()}
    (d/'class_names.txt').write_text('\n'.join('abcdefghij'))
    monkeypatch.setattr(STL10, 'train_list', [sums[k] for k in ('train_X.bin', 'train_y.bin', 'unlabeled_X.bin')])
    monkeypatch.setattr(STL10, 'test_list', [sums[k] for k in ('test_X.bin', 'test_y.bin')])
    a, b = image_sets('stl10', root=tmp_path)
    assert a.labels.tolist() == [0, 1, 9, 3, 4, 5]+[-1]*5 and b.labels.tolist() == [0, 1, 2, 3] and a.classes == list('abcdefghij')
    assert (a.images.numpy() == np.concatenate([x['train'], x['unlabeled']])).all() and 'GB of memory' in a.notes[-1]
    a, b = image_sets('stl10_labelled', root=tmp_path)
    assert (len(a), len(b), a.name) == (6, 4, 'stl10_labelled') and (a.labels >= 0).all()
    a, b = image_sets('stl10_unlabelled', root=tmp_path)
    assert (len(a), len(b), a.name, a.labelled, b.labelled) == (5, 4, 'stl10_unlabelled', False, True) and (a.images.numpy() == x['unlabeled']).all()

def test_one_process_downloads_and_the_others_wait(tmp_path):
    from sslnb.data.named_sets import fetch_torchvision
    from sslnb.distributed import rank, run_ranks
    class Slow:
        base_folder, filename, url = 'slow', 'slow.tar.gz', 'https://example.org/slow.tar.gz'
        def __init__(self, root, download=False):
            import time
            if download:
                assert rank() == 0
                time.sleep(.3); (Path(root)/self.base_folder).mkdir()
            self.root = Path(root)
    def fetch(): return [str(fetch_torchvision(Slow, 'slow', tmp_path).root) for _ in range(2)]
    assert run_ranks(fetch, timeout=60) == [[str(tmp_path)]*2]*2
    with pytest.raises(RuntimeError, match='cannot be downloaded'): run_ranks(lambda: fetch_torchvision(Slow, 'slow', tmp_path/'gone'), timeout=60)

# ImageNet and what is cut from it

def test_imagenet100_is_cut_from_imagenet_in_the_order_of_its_list(tmp_path):
    from sslnb.data.class_subsets import class_list
    wnids = class_list('imagenet100')
    more = ['n00000001', 'n99999999']
    pictures(tmp_path, [f'imagenet/{p}/{c}/{c}_1.JPEG' for p in ('train', 'val') for c in sorted(wnids+more)])
    a, b = image_sets('imagenet100', root=tmp_path)
    assert len(wnids) == len(set(wnids)) == len(a) == len(b) == 100 and not a.notes
    for s in (a, b): assert [s.names[i].split('/')[1] for i in s.labels.argsort().tolist()] == wnids
    assert (a.size, b.size, a.at(8)[:3].shape) == ((16, 16), (16, 16), (3, 3, 8, 8))
    assert len(image_sets('imagenet', root=tmp_path/'imagenet')[0].classes) == 102

def test_imagenet100_with_a_list_of_ones_own(tmp_path):
    pictures(tmp_path, [f'imagenet100/{p}/{c}/{i}.JPEG' for p in ('train', 'val') for c in ('n1', 'n2', 'n3') for i in range(2)])
    (tmp_path/'imagenet100/classes.txt').write_text('n3\nn1\n')
    a, b = image_sets('imagenet100', root=tmp_path)
    assert a.classes == ['n3', 'n1'] and a.labels.tolist() == b.labels.tolist() == [0, 0, 1, 1] and 'the whole set has 100' in a.notes[-1]

def test_a_published_list_of_files_gives_the_labels(tmp_path):
    names = [f'n{i}' for i in (1, 2, 3)]
    pictures(tmp_path, [f'imagenet/{p}/{c}/{c}_{i}.JPEG' for p in ('train', 'val') for c in names for i in range(3)])
    (tmp_path/'few.txt').write_text('n1_0.JPEG\nn3_2.JPEG\n')
    a, b = image_sets('imagenet', root=tmp_path, few=str(tmp_path/'few.txt'))
    assert a.labels.tolist() == [0]+[-1]*7+[2] and (b.labels >= 0).all()

@pytest.mark.parametrize('name,words', [('tiny', 'val/val_annotations.txt'), ('slim', 'SlimageNet64/train/<wnid>'), ('imagenet', 'LOC_val_solution.csv'), ('imagenet100', 'all of imagenet'), ('cifar10', 'cifar-10-python.tar.gz'),
                                        ('cifar100', 'cifar100/train/<class>'), ('supercifar100', 'cifar-100-python'), ('stl10', 'stl10_binary'), ('stl10_labelled', 'stl10_binary'), ('stl10_unlabelled', 'stl10_binary')])
def test_a_missing_set_says_where_to_put_it(tmp_path, name, words):
    with pytest.raises(FileNotFoundError) as e: image_sets(name, root=tmp_path)
    assert words in str(e.value) and str(tmp_path) in str(e.value) and 'SSLNB_DATA' in str(e.value)

def test_names_are_known_without_importing():
    from sslnb.data.image_sets import DATASETS
    from sslnb.run.recipes import keys_of
    from sslnb.run.run_folder import known_data
    assert known_data() == list(DATASETS)
    assert {'root', 'few'} < keys_of('SelfClassifier').keys()

# arrays

@pytest.mark.parametrize('channels', [None, 1, 3, 5])
@pytest.mark.parametrize('first', [False, True])
def test_arrays_of_every_kind_give_the_same_images(channels, first):
    u = (np.random.RandomState(0).rand(10, 12, 14, channels or 1)*255).astype(np.uint8)
    want = u.transpose(0, 3, 1, 2)
    for a in (u, u.astype(np.uint16)*257, u.astype(np.float32)/255, u/255, u.astype(np.float16), u.astype(np.float64), u.astype(np.int64)):
        if channels is None: a = a[..., 0]
        elif first: a = a.transpose(0, 3, 1, 2)
        for given in (a, torch.from_numpy(np.ascontiguousarray(a)), list(a)):
            train, test = image_sets((given, given))
            assert (train.images.numpy() == want).all() and train.channels == (channels or 1)

@pytest.mark.parametrize('bad,words', [(np.full((10, 12, 12), np.nan), 'NaN'), (np.full((10, 12, 12), np.inf), 'infinite'), (np.zeros((10, 12, 12))-1, 'expected 0..1'), (np.full((10, 12, 12), 256.), 'expected 0..1'),
    (np.zeros((10, 12, 12, 12)), 'cannot tell'), (np.zeros((12, 12, 3)), 'one picture'), (np.zeros(10), 'expected (N,H,W)'), (np.zeros((0, 12, 12)), 'no images'), (np.zeros((10, 12, 12), complex), 'complex'),
    ([np.zeros((12, 12, 3)), np.zeros((12, 12, 1)), np.zeros((12, 12, 3))], 'different shapes'), ([np.zeros((12, 12)), np.zeros((13, 12)), np.zeros((12, 12))], 'different shapes')])
def test_what_is_no_block_of_images_is_refused(bad, words):
    with pytest.raises(ValueError) as e: image_sets(bad)
    assert words in str(e.value)

@pytest.mark.parametrize('labels,words', [([0]*9, 'one label per image'), ([-2]*10, 'start at -2'), ([.5]*10, 'whole number'), ([float('nan')]*10, 'whole number'), (np.eye(10), 'argmax')])
def test_what_is_no_label_is_refused(labels, words):
    with pytest.raises(ValueError) as e: image_sets((np.zeros((10, 12, 12), np.uint8), labels))
    assert words in str(e.value)

def test_few_labels_are_the_same_in_every_order_of_asking():
    from sslnb.data.labels import few_labels
    s = image_sets('digits')[0]
    known = {k: {*(few_labels(s, k).labels >= 0).nonzero()[:, 0].tolist()} for k in (.1, 1, .01, 20, '1%', .5, 4)}
    assert known[.01] == known['1%'] and known[1] <= known[.01] < known[4] < known[.1] < known[20] < known[.5]
