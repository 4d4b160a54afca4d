"Every notebook is a test, run by nbdev's own runner. `NB_FLAGS='slow cuda'` runs the cells so marked as well."
import os, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parents[1]
notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if not any(s[0] in '._' for s in p.relative_to(root).parts))

@pytest.fixture(scope='module', autouse=True)
def fastai_first():
    "fastai changes how tensors compare, for all that share the process; so it is always there, and the order of notebooks makes no difference."
    import fastai.torch_core

@pytest.mark.parametrize('path', notebooks, ids=lambda p: str(p.relative_to(root/'nbs').with_suffix('')))
def test_notebook(path, monkeypatch):
    from nbdev.config import get_config
    from nbdev.test import test_nb
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, 'path', sys.path[:])
    passed, _ = test_nb(path, skip_flags=get_config().tst_flags.split(), force_flags=os.environ.get('NB_FLAGS', '').split(), basepath=root)
    assert passed, f'{path.name}: see the traceback under "Captured stderr"'
