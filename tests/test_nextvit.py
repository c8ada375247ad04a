"""What is Next-ViT's own: timm's numbers, the authors' two dense settings, both namings."""
import re

import pytest
import torch
from timm.models import nextvit
from torch.nn.modules.batchnorm import _BatchNorm

from backbones import UserError, create
from backbones.checkpoint import load_pretrained

DEPTHS = (1, 2, 5, 2)


@pytest.fixture(scope='module')
def theirs():
    """timm's classifier, short, its norms away from 0 and 1."""
    torch.manual_seed(0)
    net = nextvit.NextViT(3, num_classes=10, depths=DEPTHS).eval()
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.weight, module.running_var):
                torch.nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                torch.nn.init.normal_(tensor, std=0.1)
    return net


def short(**options):
    torch.manual_seed(1)
    return create('nextvit_small', depths=DEPTHS, **options).eval()


def official(state):
    """timm's names -> those of bytedance/Next-ViT."""
    starts = [sum(DEPTHS[:stage]) for stage in range(4)]
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r'^stages\.(\d)\.blocks\.(\d)',
                      lambda block: f'features.{starts[int(block[1])] + int(block[2])}', name)
        name = name.replace('.mlp.fc', '.mlp.conv').replace('head.fc.', 'proj_head.0.')
        renamed[name] = tensor
    return renamed


def saved(state, folder):
    path = folder / 'nextvit.pth'
    torch.save(dict(model=state), path)
    return path


@pytest.mark.parametrize('names', [dict, official], ids=['timm', 'official'])
@torch.no_grad()
def test_equals_timm(theirs, names, tmp_path):
    net = short()
    own = len(net.state_dict())
    report = load_pretrained(net, saved(names(theirs.state_dict()), tmp_path))
    assert report.startswith(f'loaded {own} of {own} tensors, 100.0% of the parameters')
    for size in ((97, 131), (32, 32)):
        x = torch.randn(2, 3, *size)
        expected = theirs.forward_intermediates(x, intermediates_only=True)
        for output, other in zip(net(x), expected, strict=True):
            assert output.shape == other.shape
            assert (output - other).abs().max() / other.std() < 1e-5


@pytest.mark.parametrize('names', [dict, official], ids=['timm', 'official'])
@torch.no_grad()
def test_segmentation_setting(theirs, names, tmp_path):
    """ImageNet's weights fill all but the norms that are new; then stage for stage."""
    net = short(extra_norm=True)
    report = load_pretrained(net, saved(names(theirs.state_dict()), tmp_path))
    assert '100.0% of the parameters' in report and 'not in it: stages.0.norm.weight' in report
    norms = [stage['norm'] for stage in net.stages]
    for norm in norms[:3]:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.running_mean)
    assert torch.equal(norms[3].weight, theirs.norm.weight)
    x = torch.randn(1, 3, 64, 96)
    outputs = net(x)
    x = theirs.stem(x)
    for output, stage, norm in zip(outputs, theirs.stages, norms, strict=True):
        x = norm(stage(x))
        assert (output - x).abs().max() / x.std() < 1e-5


def test_official_segmentation_checkpoint(theirs, tmp_path):
    """It holds the extra norms, among them one that no map depends on."""
    state = official(theirs.state_dict())
    for i, channels in enumerate((96, 256, 512, 1024)):
        for name, tensor in torch.nn.BatchNorm2d(channels).state_dict().items():
            state[f'extra_norm_list.{i}.{name}'] = tensor + i + 5
    state = {name: tensor for name, tensor in state.items() if not name.startswith('proj_head')}
    net = short(extra_norm=True)
    own = len(net.state_dict())
    assert f'loaded {own} of {own} tensors' in load_pretrained(net, saved(state, tmp_path))
    assert [stage['norm'].bias[0].item() for stage in net.stages[:3]] == [5, 6, 7]
    assert torch.equal(net.stages[3]['norm'].bias, theirs.norm.bias)


@torch.no_grad()
def test_fewer_outputs(theirs):
    """The stream passes every norm up to the last map, whichever maps are wanted; weights
    of what is not built find no place."""
    net, some = short(extra_norm=True), short(extra_norm=True, out_indices=(1,))
    names = [name for name, _ in some.named_children()]
    assert names == ['stem', 'stages'] and len(some.stages) == 2
    converted = some.convert(official(theirs.state_dict()), some)
    missing = some.state_dict().keys() - converted.keys()
    assert {name.rpartition('.')[0] for name in missing} == {'stages.0.norm', 'stages.1.norm'}
    some.load_state_dict(net.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(some(x)[0], net(x)[1])


def test_other_variant(theirs, tmp_path):
    path = saved(official(theirs.state_dict()), tmp_path)
    with pytest.raises(UserError, match='does not fit NextViT'):
        load_pretrained(create('nextvit_small', depths=(1, 2, 10, 2)), path)


@torch.no_grad()
def test_attention_is_fused(monkeypatch):
    """In the three blocks that attend; keys are every full run of 16, 4 and 1 tokens."""
    shapes = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def note(q, k, v, **options):
        shapes.append((q.shape[1:3], k.shape[2]))
        return attend(q, k, v, **options)

    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention', note)
    short()(torch.randn(1, 3, 72, 104))
    assert shapes == [((6, 9 * 13), 117 // 16), ((12, 5 * 7), 35 // 4), ((24, 3 * 4), 12)]


def test_drop_path():
    """Linear over the blocks; a transformer block's rate is split by its channels."""
    net = short(drop_path_rate=0.9)
    conv, attend = (net.stages[3]['blocks'][i] for i in (0, 1))
    assert conv.attn_drop_path.drop_prob == pytest.approx(0.8)
    assert conv.mlp_drop_path.drop_prob == pytest.approx(0.8)
    rates = [module.drop_prob for name, module in attend.named_children() if 'drop_path' in name]
    assert rates == pytest.approx([0.9 * 0.75, 0.9 * 0.25, 0.9])


@pytest.mark.parametrize('depths', [(3, 4, 9, 3), (3, 4, 5), (3, 4, 0, 3)])
def test_depths_that_cannot_be(depths):
    with pytest.raises(UserError, match='four positive numbers, the third a multiple of 5'):
        create('nextvit_small', depths=depths, out_indices=(0, 1))
