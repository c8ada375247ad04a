"""Dense nuclei models on images of any size: windows through the network, their maps put
together, and nuclei cut out of the whole image once."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.models import EncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor

from .tiling import Window, progress, windows

_GRID = 32  # px, the coarsest stride of a backbone


@MODELS.register_module()
class NucleiSegmentor(EncoderDecoder):
    """A backbone and a ``NucleiHead``.

    Prediction goes by windows, so that memory does not grow with the image, and extents stay
    near those of training. Of each window only the core is kept, where every pixel has
    ``overlap`` pixels of context (less only at the rim of the image). What a network sees
    within that distance gives the maps of one piece exactly; where it attends to or pools
    over a whole window, they differ a little. The maps of the image are put together on the
    CPU and cut into nuclei once, since HoVer-Net's normalisation depends on the extent.

    Args:
        test_cfg: ``window``, side of the windows; ``overlap``, least distance of a core from
            the rim of its window, half of what neighbours share, both in pixels; ``batch``,
            windows at a time.
        kwargs: of mmseg's ``EncoderDecoder``.
    """

    def extract_feat(self, inputs: Tensor) -> list[Tensor]:
        """The backbone's maps and, last, the image, on which heads draw for detail."""
        return [*super().extract_feat(inputs), inputs]

    def predict(self, inputs: Tensor,
                data_samples: list[SegDataSample] | None = None) -> list[SegDataSample]:
        """Find the nuclei of every image.

        Args:
            inputs: B x 3 x H x W, normalised.

        Returns:
            the samples with ``pred_nuclei``: ``labels`` (1 x H x W int32) and, where types
            are predicted, ``types`` (1 x H x W uint8).
        """
        samples = data_samples or [SegDataSample() for _ in inputs]
        for image, sample in zip(inputs, samples, strict=True):
            labels, types = self.decode_head.nuclei(self.maps(image))
            found = dict(labels=torch.from_numpy(labels.astype(np.int32))[None])
            if types is not None:
                found |= dict(types=torch.from_numpy(types.astype(np.uint8))[None])
            sample.pred_nuclei = PixelData(**found)
        return samples

    def maps(self, image: Tensor) -> np.ndarray:
        """The head's maps of an image of any size.

        The image is mirrored at its lower and right rim, up to a multiple of 32 pixels:
        windows that start at such multiples sample it as one piece would.

        Args:
            image: 3 x H x W, normalised.

        Returns:
            C x H x W float32.
        """
        side, batch = self.test_cfg['window'], self.test_cfg['batch']
        height, width = image.shape[1:]
        image = image[:, _mirrored(height)][:, :, _mirrored(width)]
        todo = windows(*image.shape[1:], side, self.test_cfg['overlap'])
        whole = np.empty((sum(self.decode_head.outputs.values()), *image.shape[1:]), np.float32)
        with progress(len(todo)) as bar:
            for start in range(0, len(todo), batch):
                self._fill(whole, image, todo[start:start + batch])
                bar.update(len(todo[start:start + batch]))
        return whole[:, :height, :width]

    def _fill(self, whole: np.ndarray, image: Tensor, todo: Sequence[Window]) -> None:
        crops = torch.stack([image[:, w.y:w.y + w.height, w.x:w.x + w.width] for w in todo])
        found = self.decode_head.maps(self.extract_feat(crops)).cpu().numpy()
        for window, maps in zip(todo, found):
            y0, x0, y1, x1 = window.core
            whole[:, y0:y1, x0:x1] = maps[:, y0 - window.y:y1 - window.y,
                                          x0 - window.x:x1 - window.x]


def _mirrored(length: int) -> Tensor:
    """Where the pixels of a row come from that goes back and forth in one of ``length``, up to
    a multiple of the grid."""
    period = max(2 * length - 2, 1)
    places = torch.arange(length + -length % _GRID) % period
    return torch.minimum(places, (period - places) % period)
