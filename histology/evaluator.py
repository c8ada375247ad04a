"""Scores of a data set of nuclei, in mmengine's evaluator."""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS

from .errors import DataError
from .labels import read_map
from .metrics import SCORES, f1_scores, nuclei_scores, type_counts

_HEADINGS = dict(zip(SCORES, ('Dice', 'AJI', 'AJI+', 'DQ', 'SQ', 'PQ')))


@METRICS.register_module()
class NucleiMetric(BaseMetric):
    """Means over images, unweighted, of Dice, AJI, AJI+, DQ, SQ and PQ, all in [0, 1].

    An image without a nucleus in truth and prediction has no score and is left out
    (``nuclei/left_out`` counts them; ours, HoVer-Net's code stops there). Images that have
    a ``group`` also give the means of each group, ``nuclei/GROUP/pq`` and so on. Where truth
    and prediction have types: ``nuclei/detection_f1``, and per type ``nuclei/TYPE/f1`` and
    ``nuclei/TYPE/pq``; see ``metrics.f1_scores`` for what is pooled and what averaged.

    A sample has ``label_path``, ``type_path`` (or None), ``group`` (or None) and
    ``pred_nuclei`` with ``labels`` and perhaps ``types``, 1 x H x W each; types are named by
    ``classes`` of the data set.

    Raises:
        DataError: an image was not seen, or twice; or truth and prediction do not fit.
    """

    default_prefix = 'nuclei'

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        self.results += [self._scores(sample) for sample in data_samples]

    def _scores(self, sample: dict) -> dict:
        found = sample['pred_nuclei']
        true, pred = read_map(sample['label_path']), found['labels'][0].numpy(force=True)
        types = None
        try:
            scores = nuclei_scores(true, pred)
            if sample['type_path'] and 'types' in found:
                types = type_counts(true, read_map(sample['type_path']), pred,
                                    found['types'][0].numpy(force=True),
                                    self.dataset_meta['classes'])
        except DataError as error:
            raise DataError(f'{sample["label_path"]}: {error}') from error
        return dict(image=sample['label_path'], group=sample['group'], scores=scores,
                    types=types)

    def evaluate(self, size: int) -> dict[str, float]:
        self.size = size
        return super().evaluate(size)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        self._check(results)
        groups = {'all': results}
        for one in results:
            if one['group']:
                groups.setdefault(one['group'], []).append(one)
        means = {name: _means(members) for name, members in groups.items()}
        counts = [one['types'] for one in results if one['types']]
        types = f1_scores(counts, self.dataset_meta['classes']) if counts else {}
        print_log('\n'.join(['', *_table(means), *_type_lines(types)]), logger='current')

        metrics = means.pop('all')
        del metrics['images']
        for name, scores in means.items():
            metrics |= {f'{name.replace(" ", "_")}/{key}': scores[key] for key in SCORES}
        # JSON has no nan, and a type that nobody has no score.
        return {name: value for name, value in (metrics | types).items() if not np.isnan(value)}

    def _check(self, results: list[dict]) -> None:
        """Every image once: a mean over others is the score of another data set."""
        seen = Counter(one['image'] for one in results)
        if len(seen) != self.size or len(results) != self.size:
            twice = [image for image, times in seen.items() if times > 1]
            raise DataError(f'{len(seen)} of {self.size} images were scored'
                            + (f', {twice[0]} more than once' if twice else '')
                            + '; the metric wants every image of the data set once')


def _means(results: Sequence[dict]) -> dict[str, float]:
    """Mean scores, how many images they are of and how many were left out."""
    scores = np.array([[one['scores'][key] for key in SCORES] for one in results])
    defined = scores[~np.isnan(scores[:, 0])]
    means = defined.mean(0) if len(defined) else np.full(len(SCORES), np.nan)
    return dict(zip(SCORES, means.tolist()), images=len(defined),
                left_out=len(scores) - len(defined))


def _table(means: dict[str, dict[str, float]]) -> list[str]:
    width = max(16, *map(len, means))
    lines = [' ' * width + '  images  left out' + ''.join(f'{_HEADINGS[key]:>8}'
                                                          for key in SCORES)]
    for name, row in means.items():
        lines.append(f'{name:<{width}}{row["images"]:8}{row["left_out"]:10}'
                     + ''.join(f'{row[key]:8.4f}' for key in SCORES))
    return lines


def _type_lines(types: dict[str, float]) -> list[str]:
    """F1 of detection, then F1 and PQ of each type."""
    return [f'{name.replace("/", " ").replace("_", " "):<32}{score:8.4f}'
            for name, score in types.items()]
