"""The same part of a data set for everybody who asks for the same share."""
from __future__ import annotations

import numpy as np
from mmengine.dataset import BaseDataset

from .errors import DataError

SEED = 20  # of the order in which entries are taken; no run's own seed changes it


def take_share(entries: list, share: float) -> list:
    """A random share of the entries, in their order. It depends on their number and on the
    share alone, and a smaller share is part of every larger one."""
    order = np.random.default_rng(SEED).permutation(len(entries))
    return [entries[i] for i in sorted(order[:round(share * len(entries))])]


class Shareable(BaseDataset):
    """A data set of which a share can be used, taken after everything was filtered out that
    is not to be used at all.

    Args:
        share: in (0, 1].
        least: fewest entries that must be left, such as a batch.
        kwargs: of the data set.

    Raises:
        DataError: fewer are left.
    """

    def __init__(self, *args, share: float = 1., least: int = 1, **kwargs):
        self.share, self.least = share, least
        super().__init__(*args, **kwargs)

    def filter_data(self) -> list[dict]:
        entries = super().filter_data()
        if self.share == 1:
            return entries
        kept = take_share(entries, self.share)
        if len(kept) < self.least:
            raise DataError(f'a share of {self.share:g} of {len(entries)} images is {len(kept)}, '
                            f'fewer than a batch of {self.least}; take a larger --subset or a '
                            'smaller train_dataloader.batch_size')
        return kept
