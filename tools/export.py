"""Export the notebooks, then read the signatures of what they export into sslnb/run/keywords.json.

    python tools/export.py

`nbdev_export` alone writes the modules. The command line reads options, help and defaults from the data file,
so that it need not import torch; tests/run/test_keywords.py proves that the file is in step."""
import subprocess, sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]

if __name__ == '__main__':
    from nbdev.doclinks import nbdev_export
    nbdev_export()
    sys.exit(subprocess.run([sys.executable, '-W', 'ignore', '-c', 'from sslnb.app.collect import write_keywords; write_keywords()'], cwd=root).returncode)
