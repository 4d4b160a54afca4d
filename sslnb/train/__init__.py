"""The training loop. Whatever you import from here, the Learner has its verb `fit_ssl`."""
from . import fit
