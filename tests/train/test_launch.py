"One script, started as people start it: alone, by torchrun, by accelerate; stopped by one and resumed by the other."
import os, re, subprocess, sys
import pytest, torch
from helpers import root

accelerate = ('accelerate.commands.accelerate_cli launch --multi_gpu --num_processes 2 --num_machines 1 '
              '--mixed_precision no --dynamo_backend no --main_process_port 0')
two = dict(accelerate=accelerate.split(), torchrun='torch.distributed.run --standalone --nproc_per_node 2'.split())
theirs = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')

def launch(how, folder, *jobs):
    "What the script printed; lines of two processes may run into each other."
    env = {k: v for k, v in os.environ.items() if k not in theirs}
    env.update(PYTHONPATH=str(root), OMP_NUM_THREADS='1', ACCELERATE_USE_CPU='true')
    module = ['-m', *two[how]] if how in two else []
    command = [sys.executable, *module, str(root/'tests/train/train_script.py'), str(folder), *jobs]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "Folder of each, and what was printed. A start costs seconds per process, so one launch of two does several jobs."
    one, both = tmp_path_factory.mktemp('one'), tmp_path_factory.mktemp('two')
    printed = dict(alone=launch('python', one, 'whole'), accelerate=launch('accelerate', both, 'stopped'),
                   torchrun=launch('torchrun', both, 'resumed', 'whole'))
    return one, both, printed

def result(folder, job, rank=0): return torch.load(folder/f'{job}{rank}.pt', weights_only=True)

def differ(a, b):
    "Names of what is not the same, bit by bit."
    a, b = ({**r['model'], 'losses': torch.tensor(r['losses'], dtype=torch.float64)} for r in (a, b))
    assert a.keys() == b.keys()
    return [k for k in a if not (torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k])]

def test_as_many_processes_as_were_asked_for(runs):
    line = r'<(\w+): process (\d) of (\d), (\d+) steps, stopped (\w+)>'
    said = {k: sorted(re.findall(line, v)) for k, v in runs[2].items()}
    assert said['alone'] == [('whole', '0', '1', '44', 'False')]
    both = [('stopped', r, '2', '30', 'True') for r in '01']
    assert said['accelerate'] == both, 'both stop at the same step, the tenth after the signal at most'
    assert said['torchrun'] == [(job, r, '2', '44', 'False') for job in ('resumed', 'whole') for r in '01']

def test_only_the_first_process_prints(runs):
    rows = {k: [int(e) for e in re.findall(r" {3,}(\d+)(?: +\d+\.\d{4})+ +\d+\.\ds", v)] for k, v in runs[2].items()}
    assert rows == dict(alone=[0, 1], accelerate=[0], torchrun=[1, 0, 1]), runs[2]

def test_both_processes_hold_the_same(runs):
    for job in ('stopped', 'resumed', 'whole'): assert not differ(result(runs[1], job, 0), result(runs[1], job, 1)), job

def test_two_processes_train_what_one_trains(runs):
    """In float64 the losses agree to 1e-14 all the way. In float32 rounding (1e-7) grows with every step, up to 2e-3.

    Batch norm over each process's own rows would be 8e-2 off at the end, and 2e-2 in the first loss."""
    a, b = result(runs[0], 'whole'), result(runs[1], 'whole')
    assert a['losses'][:3] == pytest.approx(b['losses'][:3], abs=1e-4)
    for k, v in a['model'].items():
        w = b['model'][k]
        if not torch.is_tensor(v): assert v == w, k
        elif not v.is_floating_point(): assert torch.equal(v, w), k
        else: assert (v - w).abs().max() < 1e-2, k

def test_resumed_is_never_stopped(runs):
    "Stopped inside an epoch under one launcher, resumed under the other: the same bits, losses of every step too."
    assert not differ(result(runs[1], 'resumed'), result(runs[1], 'whole'))
