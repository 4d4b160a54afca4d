"""What all tests share: few threads, for tensors are small and several tests run at once; pictures without a window.

`TEST_CPU=FILE python -m pytest tests` writes a table: CPU seconds of each test, of its children, and its name."""
import os
from functools import cache
import pytest

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # waiting threads sleep: spinning, an epoch took 10 s, not 1.4 s
os.environ.setdefault('MPLBACKEND', 'agg')

def pytest_configure(config):
    "Before torch is imported: the cores are divided among pytest-xdist's workers."
    workers = getattr(config, 'workerinput', {}).get('workercount') or config.getoption('numprocesses', None) or 1
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, min(4, (os.cpu_count() or 1)//workers))))

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(): return min(8, len(os.sched_getaffinity(0)))  # a worker takes about 1 GB

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "Files with fixtures for the whole module go to one worker, so that these are made once; other tests go to any."
    from xdist.scheduler import LoadScopeScheduling
    @cache
    def shares_fixtures(file): return "scope='module'" in (config.rootpath/file).read_text(encoding='utf-8')
    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split('::')[0]
            return file if shares_fixtures(file) else nodeid
    return Scheduler(config, log)

@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    before = os.times()
    result = yield
    if path := os.environ.get('TEST_CPU'):
        user, system, child_user, child_system, _ = (b - a for a, b in zip(before, os.times()))
        row = f'{user + system:.2f}\t{child_user + child_system:.2f}\t{item.nodeid}\n'
        with open(path, 'a', encoding='utf-8') as f: f.write(row)
    return result
