"""SelfCon, SupCon and one-stage training on batches at the edge, with bad settings, and from the command line."""
import pytest, torch
from sslnb.models.exits import n_exits
from sslnb.app.cli import main
from sslnb.data.loader import ssl_dls
import sslnb.train.fit
from sslnb.train.learner import ssl_learner
from sslnb.methods.one_stage import OneStage
from sslnb.methods.selfcon import SelfCon
from sslnb.methods.supcon import Con, SupCon

LABELS = dict(one_of_a_class=[0, 0, 1, 2, 2, 3], each_alone=[0, 1, 2, 3, 4, 5], one_class=[3]*6, some_without=[0, -1, 0, -1, 1, 1], none=[-1]*6)
METHODS = dict(con=(Con, {}, 2), supcon=(SupCon, {}, 2), supcon_s=(SupCon, {}, 1), selfcon=(SelfCon, {}, 1), selfcon_m=(SelfCon, {}, 2), star=(SelfCon, dict(alpha=.5), 1), one_stage=(OneStage, {}, 1), kd=(OneStage, dict(kind='kd'), 1))


@pytest.fixture(scope='module')
def learners():
    dls = ssl_dls('digits', bs=6, device='cpu')
    made = {n: ssl_learner(dls, 'conv4', cls(**kw), views=dict(k=k, flip=0., jitter=None, grey=0.)) for n, (cls, kw, k) in METHODS.items()}
    return made


@pytest.mark.parametrize('labels', LABELS)
@pytest.mark.parametrize('name', METHODS)
def test_batches_at_the_edge(learners, name, labels):
    "Defined and finite, loss and gradient, whatever the labels of a batch are."
    learn = learners[name]
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = dict(y=torch.tensor(LABELS[labels]), idx=torch.arange(6))
    learn.model.train().zero_grad()
    loss = learn.ssl_loss(learn.model([x+.1*v for v in range(METHODS[name][2])], batch), batch)
    assert torch.isfinite(loss)
    loss.backward()
    grads = [p.grad for p in learn.model.parameters() if p.grad is not None]
    assert grads and all(torch.isfinite(g).all() for g in grads)
    if name == 'supcon_s' and labels in ('each_alone', 'none'): assert loss == 0 and not any(g.any() for g in grads), 'with no positive anywhere there is nothing to learn'
    elif not (name == 'one_stage' and labels == 'none'): assert loss > 0


def test_unlabelled_data_needs_the_form_without_labels():
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    dls = ssl_dls(images, bs=8, device='cpu')
    with pytest.raises(ValueError, match='SelfCon needs labels'): ssl_learner(dls, 'conv4', SelfCon())
    assert n_exits(ssl_learner(dls, 'conv4', SelfCon(labels=False)).model.backbone) == 1


def test_bad_settings():
    dls = ssl_dls('digits', bs=32, device='cpu')
    with pytest.raises(ValueError, match='3: after layer1, layer2, layer3'): ssl_learner(dls, 'conv4', SelfCon(), exits=[True, False])
    with pytest.raises(ValueError, match='views=dict\\(k=2\\)'): ssl_learner(dls, 'conv4', Con(), views=dict(k=1)).fit_ssl(1)
    with pytest.raises(ValueError, match='one view, got 2'): ssl_learner(dls, 'conv4', OneStage(), views=dict(k=2)).fit_ssl(1)


def test_from_the_command_line(tmp_path, capsys):
    "A network without exits gets one; the exported file is the backbone's."
    main(f'pretrain digits --method SelfCon --backbone resnet8 --size 8 --epochs 1 --bs 128 --k 1 --randaug 2 9 --out {tmp_path/"run"}'.split())
    main(f'export {tmp_path/"run"} --out {tmp_path/"net.safetensors"}'.split())
    assert (tmp_path/'net.safetensors').stat().st_size > 0 and 'SelfCon' in capsys.readouterr().out
