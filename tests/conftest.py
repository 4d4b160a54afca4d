"""What all tests share. Threads are divided among pytest's processes before torch is imported; a test file stays in one process."""
import os
import pytest

workers = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1))
os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1)//workers)))
os.environ.setdefault('MPLBACKEND', 'agg')

def pytest_configure(config):
    "With `-n`, whole files are handed out, so that what a file prepares once is prepared once. Notebooks and marked groups go one by one."
    if getattr(config.option, 'dist', 'no') == 'load': config.option.dist = 'loadgroup'

def pytest_collection_modifyitems(items):
    for o in items:
        if o.path.name != 'test_notebooks.py' and not o.get_closest_marker('xdist_group'): o.add_marker(pytest.mark.xdist_group(o.path.stem))
