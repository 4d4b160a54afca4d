"""Run notebooks in a Jupyter kernel, keep what they print and draw, and clean them.

    python tools/run.py nbs/105_augment.views.ipynb nbs/608_evaluate.knn.ipynb
    python tools/run.py              # all of them, in reading order

Tests do not store outputs; this does, and the pages of the site show what it stored."""
import os, sys, time
from pathlib import Path

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')      # for the kernels: threads that wait sleep, which on busy cores is several times faster

root = Path(__file__).resolve().parents[1]

def run(path, timeout=600):
    "Execute one notebook in its own folder, write it back with its outputs, cleaned. Returns seconds and kilobytes."
    import nbformat
    from nbclient import NotebookClient
    from nbdev.clean import nbdev_clean
    t, nb = time.time(), nbformat.read(path, 4)
    NotebookClient(nb, timeout=timeout, kernel_name='python3', resources={'metadata': {'path': str(path.parent)}}).execute()
    for c in nb.cells:                                   # warnings name folders of this machine, and are nobody's reading
        if c.cell_type == 'code': c.outputs = [o for o in c.outputs if o.get('name') != 'stderr']
    nbformat.write(nb, path)
    nbdev_clean(str(path))
    return time.time() - t, path.stat().st_size/1000

if __name__ == '__main__':
    paths = [Path(p).resolve() for p in sys.argv[1:]] or sorted((root/'nbs').rglob('[0-9]*.ipynb'))
    failed = []
    for p in paths:
        try: print('{}: {:.1f} s, {:.0f} KB'.format(p.name, *run(p)), flush=True)
        except Exception as e:
            failed.append(p.name)
            print(f'{p.name}: {e}', flush=True)
    sys.exit(f'failed, left as they were: {", ".join(failed)}' if failed else 0)
