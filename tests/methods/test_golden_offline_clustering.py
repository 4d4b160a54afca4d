"""The offline half of swav.npz: DeepCluster-v2's clustering and training, SeLa's labels, beside the official code.

The official memory bank is positional, one part a process; ours is indexed by image. Both ways are tested: k-means on the rows as the official program holds them, and the method on a bank made from its files.
"""
from types import SimpleNamespace
import numpy as np, pytest, torch
from torch import nn
from helpers import T, golden, meta
from sslnb.models.memory_bank import from_official_banks, to_official_banks
from sslnb.distributed import rank, run_ranks
from sslnb.losses.kmeans import spherical_kmeans
from sslnb.train.model import SSLModel
from sslnb.methods.deepcluster_v2 import DeepClusterV2
from sslnb.methods.sela_v2 import sinkhorn_labels

pytestmark = pytest.mark.quick

D = golden('swav')
M = meta(D)
SETS = [k for k in ('dc_cluster','dc_empty_cluster') if f'{k}/emb' in D]


def bank_files(*prefixes): return [dict(local_memory_embeddings=T(D[f'{p}/emb']), local_memory_index=T(D[f'{p}/idx'])) for p in prefixes]
def once(idx): return len(np.unique(idx))==len(idx)
def equal(labels, want): assert labels.tolist()==np.asarray(want).tolist()


def clusters(p, m, perm):
    "Centroids and labels of every set, from this process's rows."
    emb,out = T(D[f'{p}/emb']),[]
    for h,k in enumerate(m['Ks']):
        c,a = spherical_kmeans(emb[h%len(emb)], k, m['iters'], rows=T(perm))
        out.append((c.numpy(), a.numpy()))
    return out


@pytest.mark.parametrize('p', SETS)
def test_clusters(p):
    m,idx = M[p],D[f'{p}/idx']
    for h,(c,a) in enumerate(clusters(p, m, D[f'{p}/perm'])):
        labels = np.full(m['size'], -100); labels[idx] = a
        np.testing.assert_allclose(c, D[f'{p}/centroids{h}'], atol=2e-6)
        equal(labels, D[f'{p}/assign'][h])


def test_some_clusters_stay_empty():
    m = M['dc_empty_cluster']
    assert any(len(np.unique(D['dc_empty_cluster/assign'][h]))<k for h,k in enumerate(m['Ks']))


def _rank_clusters():                                        # rank 0's rows come first in the joint order, and its are the first centroids
    return clusters(f'dc_cluster_ws2/r{rank()}', M['dc_cluster_ws2'], D['dc_cluster_ws2/r0/perm'])


def test_clusters_of_two_processes():
    m,two = M['dc_cluster_ws2'],run_ranks(_rank_clusters)
    idx = np.concatenate([D[f'dc_cluster_ws2/r{r}/idx'] for r in (0,1)])
    for h in range(len(m['Ks'])):
        labels = np.full(m['size'], -100); labels[idx] = np.concatenate([two[r][h][1] for r in (0,1)])
        for r in (0,1):
            np.testing.assert_allclose(two[r][h][0], D[f'dc_cluster_ws2/r{r}/centroids{h}'], atol=2e-6)
            equal(labels, D[f'dc_cluster_ws2/r{r}/assign'][h])


# the method on a bank from the official files

class Given(DeepClusterV2, register=False):
    "Starts from given images, and has a linear network on plain vectors."
    def __init__(self, images, **kw): super().__init__(**kw); self.images = images
    def starts(self, n, h): return torch.searchsorted(self._head.bank.seen.nonzero()[:,0], self.images)


def with_bank(parts, size, Ks, start, n_in=None, iters=10, **kw):
    "The method, with a model that holds the official banks."
    bank = from_official_banks(parts, size)
    method = Given(T(start), n_prototypes=Ks, dim=bank.rows.shape[2], hidden=0, kmeans_iters=iters, assign_crops=tuple(range(len(bank.rows))), **kw)
    method.setup(SimpleNamespace(n=size, bs=size, train=[0], n_classes=0), None)
    model = SSLModel(nn.Identity(), method.head(n_in or bank.rows.shape[2]))
    model.head.bank.load_state_dict(bank.state_dict())
    method.learn = SimpleNamespace(model=model)
    return method,model


def _method(ps, m, start):
    method,model = with_bank(bank_files(*ps), m['size'], m['Ks'], start, iters=m['iters'])
    method.relabel()
    return model.head.labels.numpy(), [p.weight.detach().numpy() for p in model.head.sets]


def check_method(got, p, Ks):
    equal(got[0], D[f'{p}/assign'])
    for h,c in enumerate(got[1]): np.testing.assert_allclose(c, D[f'{p}/centroids{h}'], atol=2e-6)


@pytest.mark.parametrize('p', SETS)
def test_method_clusters(p):
    if not once(idx:=D[f'{p}/idx']): pytest.skip('images that come twice count twice in the official bank, once in ours')
    check_method(_method([p], M[p], idx[D[f'{p}/perm']]), p, M[p]['Ks'])


def test_method_clusters_in_two_processes():
    ps,m = [f'dc_cluster_ws2/r{r}' for r in (0,1)],M['dc_cluster_ws2']
    idx = [D[f'{p}/idx'] for p in ps]
    if not once(np.concatenate(idx)): pytest.skip('images that come twice count twice in the official bank, once in ours')
    for p,got in zip(ps, run_ranks(_method, ps, m, idx[0][D[f'{ps[0]}/perm']])): check_method(got, p, m['Ks'])


def test_official_files_there_and_back():
    parts,size = bank_files('dc_cluster_ws2/r0', 'dc_cluster_ws2/r1'),M['dc_cluster_ws2']['size']
    bank = from_official_banks(parts, size)
    last = {i:z for p in parts for i,z in zip(p['local_memory_index'].tolist(), p['local_memory_embeddings'].transpose(0,1))}
    for i,z in last.items(): assert torch.equal(bank.rows[:,i], z)
    assert sorted(last)==bank.seen.nonzero()[:,0].tolist()
    again = from_official_banks(to_official_banks(bank, 3), size)
    assert torch.equal(again.rows, bank.rows) and torch.equal(again.seen, bank.seen)


def test_epoch():
    p,m = 'dc_train',M['dc_train']
    idx,order,crops = D[f'{p}/idx'],D[f'{p}/order'],T(D[f'{p}/crops'])
    size = int(max(idx.max(), order.max()))+1
    if not once(idx): pytest.skip('images that come twice count twice in the official bank, once in ours')
    w = T(D[f'{p}/enc_weight'])
    method,model = with_bank(bank_files(p), size, m['Ks'], idx[D[f'{p}/perm']], n_in=w.shape[1], temp=m['temp'])
    model.head.projection_head = nn.Linear(w.shape[1], w.shape[0], bias=False)
    model.head.projection_head.weight.data.copy_(w)
    opt = torch.optim.SGD([q for q in model.parameters() if q.requires_grad], lr=m['lr'])
    assert not any(q.requires_grad for q in model.head.prototypes.parameters())
    method.epoch_start()
    losses = []
    for x,i in zip(crops, T(order)):
        out = model(list(x), dict(idx=i))['out']
        loss = method.loss(out, dict(idx=i)); losses.append(loss.item())
        opt.zero_grad(); loss.backward(); opt.step()
        method.pred,method.yb = dict(out=out),(dict(idx=i),)
        method.after_batch()
    assert abs(np.mean(losses)-float(D[f'{p}/mean_loss']))<1e-5*max(1, abs(np.mean(losses)))
    np.testing.assert_allclose(model.head.projection_head.weight.detach().numpy(), D[f'{p}/enc_after'], atol=1e-5)
    for h,q in enumerate(model.head.sets): np.testing.assert_allclose(q.weight.detach().numpy(), D[f'{p}/proto_after{h}'], atol=1e-5)
    after = D[f'{p}/idx_after']
    last = {int(i):k for k,i in enumerate(after)}
    for i,k in last.items(): np.testing.assert_allclose(model.head.bank.rows[:,i].numpy(), D[f'{p}/emb_after'][:,k], atol=1e-5)


@pytest.mark.parametrize('name', sorted({k.split('/')[1] for k in D if k.startswith('sela/')}))
def test_sela_labels(name):
    p = T(D[f'sela/{name}/softmax'])
    labels = sinkhorn_labels(p.log(), torch.eye(p.shape[1], dtype=p.dtype), eps=1/M[f'sela/{name}']['lamb'], tol=1e-6, max_iters=3000, chunk=17)
    equal(labels, D[f'sela/{name}/labels'])


def _rank_labels(name):
    p = T(D[f'sela/{name}/softmax']).log().tensor_split([7])[rank()]
    return sinkhorn_labels(p, torch.eye(p.shape[1], dtype=p.dtype), eps=1/M[f"sela/{name}"]["lamb"]).numpy()


@pytest.mark.parametrize('name', sorted({k.split('/')[1] for k in D if k.startswith('sela/')}))
def test_sela_labels_in_two_processes(name): equal(np.concatenate(run_ranks(_rank_labels, name)), D[f'sela/{name}/labels'])
