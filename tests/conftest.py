"What all tests share, set before torch is imported: few threads, for the tensors here are small, and pictures without a window."
import os

os.environ.setdefault('OMP_NUM_THREADS', str(min(4, os.cpu_count() or 1)))
os.environ.setdefault('MPLBACKEND', 'agg')
