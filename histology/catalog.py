"""What is known of Kumar, CoNSeP and CPM-17: names, splits, sizes, licences, layouts.

Counts of nuclei, sizes of CPM-17 and Kumar's licence are as commonly given; we could not
check them at the source.
"""
from __future__ import annotations

from typing import NamedTuple

# Kumar's splits: two public lists agree on them.
KUMAR_TRAIN = tuple(f'TCGA-{name}-01Z-00-DX1' for name in (
    'A7-A13E', 'A7-A13F', 'AR-A1AK', 'AR-A1AS',  # breast
    'B0-5711', 'HE-7128', 'HE-7129', 'HE-7130',  # kidney
    '18-5592', '38-6178', '49-4488', '50-5931',  # liver
    'G9-6336', 'G9-6348', 'G9-6356', 'G9-6363'))  # prostate
KUMAR_SAME = tuple(f'TCGA-{name}-01Z-00-DX1' for name in (
    'E2-A1B5', 'E2-A14V', 'B0-5698', 'B0-5710', '21-5784', '21-5786', 'CH-5767', 'G9-6362'))
KUMAR_DIFFERENT = (
    'TCGA-DK-A2I6-01A-01-TS1', 'TCGA-G2-A2EK-01A-02-TSB',  # bladder
    'TCGA-AY-A8YK-01A-01-TS1', 'TCGA-NH-A8F7-01A-01-TS1',  # colon
    'TCGA-KB-A93J-01A-01-TS1', 'TCGA-RD-A8N9-01A-01-TS1')  # stomach
# One per organ: the public split of the training images into 12 + 4.
KUMAR_HOLDOUT = tuple(f'TCGA-{name}-01Z-00-DX1' for name in (
    'AR-A1AS', 'HE-7130', '50-5931', 'G9-6363'))

CONSEP_TYPES = ('miscellaneous', 'inflammatory', 'epithelial', 'spindle-shaped')
# 1 miscellaneous, 2 inflammatory, 3 normal and 4 malignant epithelium, 5 fibroblast, 6 muscle,
# 7 endothelial; merged as HoVer-Net's paper does.
CONSEP_MERGED = (0, 1, 2, 3, 3, 4, 4, 4)


class Part(NamedTuple):
    """A folder of images and labels.

    Attributes:
        folder: as distributed; upper and lower case do not matter.
        split: 'train' or 'test'.
        group: what a result may be reported for apart, or None.
        count: number of images.
        names: of the images, without suffix; empty where they are not known for certain.
    """

    folder: str
    split: str
    group: str | None
    count: int
    names: tuple[str, ...] = ()


class DataSet(NamedTuple):
    """One data set.

    Attributes:
        folder: that it comes in.
        sizes: least and greatest height and width of an image, in pixels.
        nuclei: annotated nuclei of all images.
        merged: type in the files -> type, 0 for none; empty where nuclei have no types.
        types: names of the types from 1 on.
        holdout: training images for choosing thresholds; where none of them is there, and
            of other data sets, every sixth.
        layout: what to put where.
    """

    title: str
    folder: str
    paper: str
    where: str
    licence: str
    layout: str
    parts: tuple[Part, ...]
    sizes: tuple[int, int]
    nuclei: int
    types: tuple[str, ...] = ()
    merged: tuple[int, ...] = ()
    holdout: tuple[str, ...] = ()


_HOVER_NET = 'the Google Drive folder that the README of github.com/vqdang/hover_net links'

DATASETS = {
    'kumar': DataSet(
        title='Kumar',
        folder='Kumar',
        paper='Kumar et al., IEEE TMI 36(7), 2017',
        where=f'{_HOVER_NET} (labels as .mat); or the training data of MoNuSeg 2018, '
              'monuseg.grand-challenge.org (outlines as .xml)',
        licence='CC BY-NC-SA 4.0, as that of MoNuSeg is commonly given (not checked)',
        layout='Kumar/{train,test_same,test_diff}/{Images/*.tif,Labels/*.mat}, or {Tissue '
               'Images/*.tif,Annotations/*.xml}',
        parts=(Part('train', 'train', None, 16, KUMAR_TRAIN),
               Part('test_same', 'test', 'same organ', 8, KUMAR_SAME),
               Part('test_diff', 'test', 'different organ', 6, KUMAR_DIFFERENT)),
        sizes=(1000, 1000),
        nuclei=21623,
        holdout=KUMAR_HOLDOUT),
    'consep': DataSet(
        title='CoNSeP',
        folder='CoNSeP',
        paper='Graham et al. (HoVer-Net), Medical Image Analysis 58, 2019',
        where="the TIA Centre's page on HoVer-Net (warwick.ac.uk), which did not give it away in "
              '2024 (hover_net issue 267)',
        licence='Apache-2.0 according to the documentation of kaiko-ai/eva',
        layout='CoNSeP/{Train,Test}/{Images/*.png,Labels/*.mat}',
        parts=(Part('train', 'train', None, 27, tuple(f'train_{i}' for i in range(1, 28))),
               Part('test', 'test', None, 14, tuple(f'test_{i}' for i in range(1, 15)))),
        sizes=(1000, 1000),
        nuclei=24319,
        types=CONSEP_TYPES,
        merged=CONSEP_MERGED),
    'cpm17': DataSet(
        title='CPM-17',
        folder='cpm17',
        paper='Vu et al., Frontiers in Bioengineering and Biotechnology 7, 2019',
        where=_HOVER_NET,
        licence='none found; ask its authors',
        layout='cpm17/{train,test}/{Images/*.png,Labels/*.mat}',
        parts=(Part('train', 'train', None, 32), Part('test', 'test', None, 32)),
        sizes=(500, 600),
        nuclei=7570),
}


def explain(name: str) -> str:
    """What the data set is, where it comes from, its licence, and what to put where."""
    data = DATASETS[name]
    images = {split: sum(part.count for part in data.parts if part.split == split)
              for split in ('train', 'test')}
    return '\n'.join((
        f'{data.title}: {sum(images.values())} H&E images ({images["train"]} to train on, '
        f'{images["test"]} to test on) with {data.nuclei:,} nuclei; {data.paper}',
        f'  where from  {data.where}',
        f'  licence     {data.licence}',
        f'  layout      DIR/{data.layout}',
        f'  then        python tools/prepare_nuclei.py {name} --source DIR'))
