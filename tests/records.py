"""Records as runs write them, made up: for tests of what reads records."""
from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

RECORD = dict(
    version=2, task='train', status='completed', command='python tools/train.py ...',
    started='2026-11-20T10:00:00+00:00', resumed=False, config_hash='0' * 16,
    settings_hash='a' * 16, family='Swin', backbone='swin_tiny', reconstruction=False,
    pretraining='ImageNet-1K', protocol='maskrcnn_coco', mini=False,
    schedule='12 epochs, batch 16', seed=0, effective_batch=16, precision='bfloat16 autocast',
    world_size=8, parameters=47_800_000, backbone_parameters=27_520_000,
    macs=dict(size=[800, 1280], backbone=90_000_000_000, model=267_000_000_000),
    images_per_second=60.0, commit='0123456789abcdef0123456789abcdef01234567',
    device='NVIDIA H200', versions=dict(torch='2.12.1'),
    metrics={'coco/bbox_mAP': 0.437, 'coco/segm_mAP': 0.398}, history=[], wall_seconds=3600.0,
    peak_memory=dict(kind='cuda allocated', mib=7600.0))


def write(folder: Path, /, **changes) -> Path:
    """Write a record with some facts changed (None: the fact is absent) into a work dir."""
    content = {key: value for key, value in (RECORD | changes).items()
               if value is not None or key in ('macs', 'images_per_second')}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'record.json').write_text(json.dumps(content, indent=1))
    return folder / 'record.json'


# Family, backbone, parameters in M, MACs in G at 800 x 1280.
SYSTEMS = [
    ('CETNet', 'cetnet_tiny', 23, 91), ('CMT', 'cmt_ti', 8, 23),
    ('CoAtNet', 'coatnet_nano_rw', 15, 82), ('ConvNeXt', 'convnext_tiny', 28, 91),
    ('CvT', 'cvt_13', 20, 97), ('DeiT', 'deit_tiny', 6, 39),
    ('DilateFormer', 'dilateformer_tiny', 17, 64), ('EdgeNeXt', 'edgenext_xx_small', 1.2, 5),
    ('FCViT', 'fcvit_tiny', 4.5, 22), ('GrafT', 'graft_mobilevit_xxs', 1.2, 8),
    ('HaloNet', 'halonet_h0', 5.3, 36), ('HorNet', 'hornet_tiny_7x7', 22, 81),
    ('LeViT', 'levit_128s', 7, 9), ('MaxViT', 'maxvit_tiny', 30, 128),
    ('MobileViT', 'mobilevit_xxs', 1, 7), ('MogaNet', 'moganet_xtiny', 2.8, 16),
    ('MRL', 'mrl_tiny', 19, 72), ('MViT', 'mvitv2_tiny', 23, 106),
    ('NextViT', 'nextvit_small', 31, 119), ('QnA', 'qna_tiny', 15, 52),
    ('ResNet', 'resnet18', 11, 37), ('SPACH', 'spach_ms_trans_xxs', 2, 10),
    ('STT', 'stt_tiny', 4.7, 20), ('Swin', 'swin_tiny', 28, 93), ('UniNet', 'uninet_b0', 10, 22),
    ('Visformer', 'visformer_swin_tiny_v2', 9, 26)]
OURS = ('CETNet', 'GrafT', 'MRL', 'STT')
# Protocol -> heads' parameters in M, MACs in G, metrics of a middling backbone.
PROTOCOLS = {
    'maskrcnn_coco': (20, 175, {'coco/bbox_mAP': 0.40, 'coco/segm_mAP': 0.36}),
    'upernet_ade20k': (32, 850, {'mIoU': 42.0, 'aAcc': 80.0, 'mAcc': 55.0}),
    'upernet_kumar': (33, 210, {'nuclei/dice': 0.81, 'nuclei/aji': 0.58, 'nuclei/pq': 0.57})}


def matrix(root: Path, mini: bool, seeds: int = 1) -> None:
    """Records of all systems under three protocols, the first eight with several seeds; numbers
    are drawn around what such networks reach."""
    draw = random.Random(7)
    for protocol, (heads, work, metrics) in PROTOCOLS.items():
        for place, (family, backbone, size, macs) in enumerate(SYSTEMS):
            quality = 0.75 + 0.11 * (size + 2) ** 0.3 + draw.uniform(-0.05, 0.05)
            for seed in range(seeds if place < 8 else 1):
                scores = {name: value * min(quality, 1.17) * draw.uniform(0.995, 1.005)
                          for name, value in metrics.items()}
                write(root / backbone / f'{protocol}_seed{seed}', family=family,
                      backbone=backbone, reconstruction=family in OURS, protocol=protocol,
                      mini=mini, seed=seed, metrics=scores,
                      settings_hash=hashlib.sha256(f'{backbone}{protocol}'.encode()).hexdigest()[:16],
                      pretraining='none' if mini or family in OURS else 'ImageNet-1K',
                      schedule='300 iterations, batch 4' if mini else '12 epochs, batch 16',
                      device='CPU (2 cores, 1 threads)' if mini else 'NVIDIA H200',
                      world_size=1 if mini else 8, parameters=int((size + heads) * 1e6),
                      backbone_parameters=int(size * 1e6),
                      macs=dict(size=[800, 1280], backbone=int(macs * 1e9),
                                model=int((macs + work) * 1e9)),
                      images_per_second=(90 if mini else 3600) / (20 + macs)
                      * draw.uniform(.8, 1.2),
                      peak_memory=dict(kind='resident' if mini else 'cuda allocated',
                                       mib=1200 + 60 * macs * draw.uniform(.6, 1.4)))
