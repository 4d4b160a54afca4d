"""Views beside the official code: the family `rot` of README-relational.md."""
import numpy as np, pytest, torch
from helpers import T, golden
from sslnb.augment.views import rotations

pytestmark = pytest.mark.quick
D = golden('relational')

def test_rotations():
    x = T(D['rot/images'])
    views = rotations(x.shape[-1], scale=(1.,1.), ratio=(1.,1.), flip=0.)
    np.testing.assert_allclose(torch.cat(views(x)).numpy(), D['rot/out'], atol=1e-6)
    np.testing.assert_array_equal(views.labels(len(x)).numpy(), D['rot/targets'])
