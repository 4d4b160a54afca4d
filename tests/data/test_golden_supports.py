"Parity with the official PAWS code: which supports it draws, which labels it keeps without a list, its label matrix."
from itertools import islice
import pytest, torch
from helpers import T, families, golden
from sslnb.data.labels import coin_labels
from sslnb.data.support_draws import official_supports
from sslnb.data.supports import Supports, joint_label_rows
from sslnb.data.loader import ssl_dls
from sslnb.data.image_set import ImageSet

pytestmark = pytest.mark.quick

d = golden('paws')
each = lambda name: pytest.mark.parametrize('k', families(d, name))

def sampler(k):
    *args, unique, inner, outer = map(int, d[f'sampler/{k}/args'])
    return *args, bool(unique), inner, outer

@each('sampler')
def test_sampler(k):
    C, each_, K, n, W, unique, inner, outer = sampler(k)
    pools = [torch.arange(c, C*each_, C) for c in range(C)]
    for r in range(W):
        want = T(d[f'sampler/{k}/rank{r}'])
        got = torch.stack([*islice(official_supports(pools, K, n, r, W, unique, inner), len(want))])
        assert torch.equal(got, want) and len(want) == outer*int(d[f'sampler/{k}/len_rank{r}'])

@each('sampler')
def test_sampler_beside_a_loader(k):
    C, each_, K, n, W, unique, inner, outer = sampler(k)
    images = ImageSet(torch.zeros(C*each_, 1, 2, 2, dtype=torch.uint8), torch.arange(C*each_)%C, [str(c) for c in range(C)])
    dls = ssl_dls((images, images), bs=C*each_, device='cpu')
    s = Supports(dls.train, K*(W if unique else 1), n if unique else n*W, unique=unique, official=True)
    for r in range(W):      # one batch an epoch: the classes are gone through once in a pass
        want = [*islice(official_supports(s.pools, K, n, r, W, unique, 1), 5)]
        assert [s.rows(t, r, W).tolist() for t in range(5)] == [w.tolist() for w in want]
        assert torch.equal(s.rows(2, r, W), want[2])      # back, and played again

@each('coin')
def test_coin(k):
    N, unlabelled, seed = d[f'coin/{k}/args'].tolist()
    y = coin_labels(torch.arange(int(N))%7, 1-unlabelled, int(seed))
    assert torch.equal(y.ge(0).nonzero()[:, 0], T(d[f'coin/{k}/kept']).long()) and torch.equal(y[y >= 0], T(d[f'coin/{k}/targets']).long())

@each('labels')
def test_labels(k):
    K, n, W, unique, s = d[f'labels/{k}/args'].tolist()
    args, want = (int(K), int(n), int(W), bool(unique), s), T(d[f'labels/{k}/out'])
    torch.testing.assert_close(joint_label_rows(*args), want, atol=1e-7, rtol=0)
    ours = joint_label_rows(*args, official=False)
    torch.testing.assert_close(ours.sum(1), torch.ones(len(want)))
    if unique or W == 1: torch.testing.assert_close(ours, want, atol=1e-7, rtol=0)
