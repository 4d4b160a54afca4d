"What all tests share, set before torch is imported: few threads, for the tensors here are small, and pictures without a window."
import os

os.environ.setdefault('OMP_NUM_THREADS', str(min(4, os.cpu_count() or 1)))
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')      # threads that wait sleep: with busy cores an epoch of a small network took 10-12 s spinning, 1.4 s asleep
os.environ.setdefault('MPLBACKEND', 'agg')
