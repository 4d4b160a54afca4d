"Every notebook is a test, run by nbdev's own runner. `NB_FLAGS='slow cuda'` runs the cells so marked as well."
import os, sys
import pytest
from helpers import root

notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if not any(s[0] in '._' for s in p.relative_to(root).parts))

@pytest.fixture(scope='session', autouse=True)
def fastai_first():
    "fastai changes how tensors compare in the whole process; so it is always there, in any order of notebooks."
    import fastai.torch_core

@pytest.fixture(scope='session')
def registries():
    "What classes and functions enter when they are defined; all modules are imported, for a notebook may be the first."
    from sslnb.app.collect import import_app
    from sslnb.checkpoints.layouts import LAYOUTS
    from sslnb.data.image_sets import DATASETS
    from sslnb.models.create import own_backbones
    from sslnb.run.keywords import COMMANDS
    from sslnb.train.method import METHODS, methods
    import_app()
    methods()
    return [LAYOUTS, DATASETS, own_backbones, COMMANDS, METHODS]

@pytest.fixture(autouse=True)
def registries_as_before(registries):
    "A notebook defines the library's classes again, and more; the tests after it in this process need the library's."
    before = [dict(r) for r in registries]
    yield
    for r, b in zip(registries, before):
        r.clear()
        r.update(b)

@pytest.mark.parametrize('path', notebooks, ids=lambda p: str(p.relative_to(root/'nbs').with_suffix('')))
def test_notebook(path, monkeypatch):
    from nbdev.config import get_config
    from nbdev.test import test_nb
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, 'path', sys.path[:])
    skip, force = get_config().tst_flags.split(), os.environ.get('NB_FLAGS', '').split()
    passed, _ = test_nb(path, skip_flags=skip, force_flags=force, basepath=root)
    assert passed, f'{path.name}: see the traceback under "Captured stderr"'
