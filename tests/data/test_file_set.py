"""Folders as people have them: every kind of picture read right, everything that is none named and passed over, and no file takes the process down."""
import os, socket
import numpy as np, pytest, torch
from PIL import Image
from helpers import quiet
from sslnb.data.file_set import FileSet
from sslnb.data.folders import from_folder
from sslnb.data.images import to_8bit
from sslnb.data.loader import FileLoader, ssl_dls
from sslnb.data.image_set import ImageSet, from_array
from sslnb.augment.views import multi_crop

pytestmark = pytest.mark.quick

g = np.random.RandomState(0)
H, W = 24, 20
rgb, grey = (g.rand(H, W, 3)*255).astype(np.uint8), (g.rand(H, W)*255).astype(np.uint8)
three = np.repeat(grey[..., None], 3, 2)

def kinds(folder):
    "One file of every kind, and the pixels that it must give as colour."
    want = {}
    def put(name, im, pixels, **kw):
        (im if isinstance(im, Image.Image) else Image.fromarray(im)).save(folder/name, **kw)
        want[name] = pixels
    put('one_bit.png', Image.fromarray(grey > 128), np.where(three > 128, 255, 0))
    put('one_bit.bmp', Image.fromarray(grey > 128), np.where(three > 128, 255, 0))
    put('grey.png', grey, three); put('grey.pgm', grey, three); put('colour.ppm', rgb, rgb)
    put('grey_alpha.png', Image.fromarray(np.dstack([grey, np.where(grey > 128, 255, 0).astype(np.uint8)]), 'LA'), np.where(three > 128, three, 255))
    put('colour_alpha.png', np.dstack([rgb, np.where(grey > 128, 255, 0).astype(np.uint8)]), np.where(three > 128, rgb, 255))
    palette = Image.fromarray(rgb).quantize(64)
    put('palette.png', palette, np.asarray(palette.convert('RGB')))
    put('palette_transparent.png', palette, np.where(np.asarray(palette)[..., None] == 3, 255, np.asarray(palette.convert('RGB'))), transparency=3)
    put('palette_grey.gif', grey, three)
    put('sixteen.png', grey.astype(np.uint16)*257, three); put('sixteen.tif', grey.astype(np.uint16)*257, three)
    put('thirty_two.tif', grey.astype(np.int32), three)
    put('float_unit.tif', (grey/255).astype(np.float32), three); put('float_255.tif', grey.astype(np.float32), three)
    wide = grey.astype(np.float32)*40-300
    put('float_wide.tif', wide, np.repeat(to_8bit(wide)[..., None], 3, 2))
    put('colour.bmp', rgb, rgb); put('colour.tiff', rgb, rgb); put('colour.webp', rgb, rgb, lossless=True); put('UPPER.PNG', rgb, rgb)
    put('animated.gif', grey, three, save_all=True, append_images=[Image.fromarray(255-grey)])
    put('animated.webp', rgb, rgb, lossless=True, save_all=True, append_images=[Image.fromarray(255-rgb)])
    put('pages.tif', rgb, rgb, save_all=True, append_images=[Image.fromarray(255-rgb)])
    for turn, back in ((3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, -1)), (8, lambda a: np.rot90(a, 1)), (2, lambda a: a[:, ::-1])):
        ex = Image.Exif(); ex[0x0112] = turn
        put(f'exif_{turn}.png', rgb, back(rgb), exif=ex)
    ex = Image.Exif(); ex[0x0112] = 6
    Image.fromarray(rgb).save(folder/'exif.jpg', exif=ex, quality=100); want['exif.jpg'] = np.rot90(np.asarray(Image.open(folder/'exif.jpg')), -1)
    Image.fromarray(rgb).save(folder/'jpeg.jfif', 'JPEG'); want['jpeg.jfif'] = np.asarray(Image.open(folder/'jpeg.jfif'))
    for n in ('cmyk.jpg', 'cmyk.tif'): Image.fromarray(rgb).convert('CMYK').save(folder/n); want[n] = np.asarray(Image.open(folder/n).convert('RGB'))
    Image.fromarray(rgb).save(folder/'png_called.jpg', 'PNG'); want['png_called.jpg'] = rgb
    return want

def broken(folder):
    "One file of every kind that holds no picture; their names."
    whole = folder/'whole.tmp'
    Image.fromarray(rgb).save(whole, 'PNG'); png = whole.read_bytes()
    Image.fromarray(rgb).save(whole, 'JPEG'); jpg = whole.read_bytes(); whole.unlink()
    for name, data in {'empty.png': b'', 'text.jpg': b'no picture', 'page.jpg': b'<!DOCTYPE html><html>', 'cut.png': png[:200], 'cut.jpg': jpg[:-100], 'header.png': png[:30]}.items():
        (folder/name).write_bytes(data)
    Image.new('1', (20000, 20000)).save(folder/'bomb.png')
    Image.fromarray(np.full((H, W), np.nan, np.float32)).save(folder/'nan.tif')
    os.mkfifo(folder/'pipe.png'); os.symlink('loop.png', folder/'loop.png'); os.symlink('nowhere.jpg', folder/'gone.jpg'); os.symlink('.', folder/'around')
    sock = socket.socket(socket.AF_UNIX); here = os.getcwd(); os.chdir(folder)
    try: sock.bind('socket.png')
    finally: os.chdir(here); sock.close()
    Image.new('RGB', (9, 9)).save(folder/'x.eps'); os.rename(folder/'x.eps', folder/'postscript.jpg')
    return {'empty.png', 'text.jpg', 'page.jpg', 'cut.png', 'cut.jpg', 'header.png', 'bomb.png', 'nan.tif', 'pipe.png', 'loop.png', 'gone.jpg', 'socket.png', 'postscript.jpg'}

@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tree')
    want = kinds(folder)
    for i in range(120): Image.fromarray((g.rand(H, W+i % 3, 3)*255).astype(np.uint8)).save(folder/f'plain{i:03}.png')      # so that the broken ones are few
    return folder, want, broken(folder)

def named(notes): return ' '.join(notes)

def test_every_kind_is_read_right_and_the_rest_is_named(tree):
    folder, want, bad = tree
    sets = from_folder(folder)
    assert all(isinstance(s, FileSet) and s.channels == 3 and not s.labelled for s in sets)
    images, lost = {}, {}
    for s in sets:
        for i, n in enumerate(s.names):
            im = s.image_or_reason(i)
            (lost if isinstance(im, str) else images)[n] = im
    for n, pixels in want.items():
        got = images[n].permute(1, 2, 0).numpy().astype(int)
        assert got.shape == pixels.shape and abs(got-pixels.astype(int)).max() <= 1, n
    seen = {n for n in bad if n in named(sets[0].notes)} | set(lost)
    assert len(images) == len(want)+120 and not set(images) & bad
    assert set(lost) | {n for n in bad if n not in images} == bad and len(seen) >= 5
    assert f'skipped {len(bad)-len(lost)} unreadable files' in named(sets[0].notes)

def test_in_memory_too(tree):
    folder, want, bad = tree
    a, b = from_folder(folder, size=16)
    assert isinstance(a, ImageSet) and not {*a.names, *b.names} & bad and {*want} <= {*a.names, *b.names}
    assert f'skipped {len(bad)} unreadable files' in named(a.notes)

def test_training_batches_pass_over_what_shows_late(tree):
    folder, want, bad = tree
    a, _ = from_folder(folder)
    dl = FileLoader(a, 32); dl.views = multi_crop(16, n_local=1)
    seen = torch.cat([i for *_, i in dl])
    assert len(seen) == len(dl)*32 and {a.names[i] for i in a.bad} <= bad and not {a.names[i] for i in seen.tolist()} & bad

def test_mostly_broken_is_an_error(tmp_path):
    for i in range(20): (tmp_path/f'{i}.png').write_bytes(b'x')
    for i in range(20): Image.fromarray(rgb).save(tmp_path/f'ok{i}.png')
    for size in (None, 8):
        with pytest.raises(ValueError, match='of 40 images of .* cannot be read, e.g. 0.png'): from_folder(tmp_path, size=size)

def test_damaged_bytes_never_take_the_process_down(tmp_path):
    "Random bytes changed in files of every format: each gives pixels or a reason."
    formats = dict(png={}, jpg={}, webp={}, gif={}, bmp={}, tif=dict(compression='tiff_lzw'), jp2={}, avif={})
    names = []
    for ext, kw in formats.items():
        Image.fromarray(rgb).save(tmp_path/f'whole.{ext}', **kw); data = (tmp_path/f'whole.{ext}').read_bytes()
        for k in range(25):
            hurt = bytearray(data)
            for _ in range(1+k % 6): hurt[g.randint(len(hurt))] = g.randint(256)
            names.append(f'{k}.{ext}'); (tmp_path/names[-1]).write_bytes(hurt)
    from sslnb.data.folders import FolderReader
    s = FileSet(FolderReader(str(tmp_path), names), len(names), names=names, max_bad=1.)
    x = torch.cat(list(s.at(16).batches(64)))
    assert len(x) == len(names) and 0 < len(s.bad) < len(names)

@pytest.mark.parametrize('a, says', [
    (np.zeros((0, 8, 8)), 'no images'), (np.zeros((4, 8)), 'expected \\(N,H,W\\)'), (np.full((4, 9, 9), np.nan), 'NaN'), (np.full((4, 9, 9), 1e3), 'expected 0..1'),
    (np.full((4, 9, 9), -1), 'expected 0..1'), ([rgb, grey], 'different shapes'), (np.zeros((4, 9, 9), complex), 'expected uint8'), (np.zeros((4, 12, 12, 12)), 'cannot tell')])
def test_arrays_that_cannot_be_told(a, says):
    with pytest.raises(ValueError, match=says): from_array(a)

@pytest.mark.parametrize('c', [1, 3, 5])
@pytest.mark.parametrize('kind', [np.uint8, np.uint16, 'unit', 'float'])
def test_arrays_of_every_kind(c, kind):
    x = (g.rand(6, c, 12, 10)*255).round()
    a = x.astype(np.uint8) if kind is np.uint8 else x.astype(np.uint16)*257 if kind is np.uint16 else (x/255).astype(np.float32) if kind == 'unit' else x.astype(np.float32)
    for shown in (a, a.transpose(0, 2, 3, 1), torch.from_numpy(a.astype(np.float32) if a.dtype == np.uint16 else a)):
        if a.dtype == np.uint16 and torch.is_tensor(shown): continue
        assert np.array_equal(from_array(shown).images.numpy(), x.astype(np.uint8))

def test_errors_of_size(tmp_path):
    with pytest.raises(ValueError, match='no images in'): from_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match='not a folder'): from_folder(tmp_path/'nowhere')
    for i in range(8): Image.fromarray(rgb).save(tmp_path/f'{i}.png')
    with pytest.raises(ValueError, match='use bs=6 or less'): ssl_dls(tmp_path, bs=64, device='cpu')
    (tmp_path/'cat').mkdir(); Image.fromarray(rgb).save(tmp_path/'cat'/'a.png')
    with pytest.raises(ValueError, match='one folder per class'): from_folder(tmp_path, labels=True)

def test_killed_inside_an_epoch_it_ends_as_if_nothing_had_happened(tmp_path):
    "Views are cut ahead of their time by workers; a run that stops and goes on still sees the same ones, bit by bit."
    from fastai.callback.core import Callback
    from sslnb.all import SelfClassifier, bare, ssl_learner
    class Stop(Callback):
        order = 91
        def after_batch(self):
            if bare(self.learn.model).step == 4: raise KeyboardInterrupt
    folder = tmp_path/'photos'; folder.mkdir()
    for i in range(50): Image.fromarray((g.rand(30+i % 9, 40-i % 7, 3)*255).astype(np.uint8)).save(folder/f'{i}.jpg')
    def learner():
        dls = ssl_dls(folder, bs=12, device='cpu', mean=[.5]*3, std=[.25]*3)
        method = SelfClassifier(classes=[5], hidden=16, queue=24)
        return quiet(ssl_learner(dls, 'conv4', method, size=16, views=dict(n_local=1)))
    recipe = dict(opt='adamw', lr=1e-3)
    whole = learner().fit_ssl(2, run=tmp_path/'whole', **recipe)
    with pytest.raises(KeyboardInterrupt): learner().fit_ssl(2, run=tmp_path/'run', every_steps=1, cbs=Stop(), **recipe)
    again = learner().fit_ssl(2, run=tmp_path/'run', resume=True, **recipe)
    assert len(again.recorder.losses) == 6 and again.recorder.losses == whole.recorder.losses
    assert all(torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values()) if torch.is_tensor(a))
