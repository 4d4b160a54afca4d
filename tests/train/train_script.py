"""Training with the public names only: the same file for one process and for several. train/test_launch.py runs it; by hand:

    ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 tests/train/train_script.py FOLDER whole stopped resumed

Each job leaves the tensors of each process in FOLDER. `stopped` gets SIGTERM inside its second epoch, as a cluster sends it, and `resumed` goes on from there."""
import os, signal, sys
from sslnb.all import *

class Stop(Callback):
    def after_batch(self):
        if is_main() and bare(self.learn.model).step==25: os.kill(os.getpid(), signal.SIGTERM)

folder, *jobs = sys.argv[1:]
for job in jobs:
    dls = ssl_dls('digits', bs=64, device='cpu')
    learn = ssl_learner(dls, 'conv4', SelfClassifier(hidden=32, dim=16, queue=256), views=two_views, size=16)
    run = None if job=='whole' else f'{folder}/run'
    learn.fit_ssl(2, opt='sgd', lr=.01, momentum=.9, run=run, resume=job=='resumed', cbs=Stop() if job=='stopped' else None)
    save_file(dict(model=learn.model.state_dict(), losses=learn.recorder.losses), f'{folder}/{job}{rank()}.pt')
    print(f'<{job}: process {rank()} of {world_size()}, {learn.model.step} steps, stopped {learn.stopped}>', flush=True)
