"""Importing this registers every component that a config may name.

The stand-in for mmcv's ops comes first: mmdet cannot be imported without ops.
"""
import contextlib
import io
import warnings

from . import ops

# Their deprecation notices are not addressed to our users.
warnings.filterwarnings('ignore', category=UserWarning, module=r'(mm(engine|cv|det|seg)|torch)\.')
warnings.filterwarnings('ignore', category=FutureWarning, module=r'(mm(engine|cv|det|seg)|torch)\.')
ops.install()

# They print which optional packages they did without.
with contextlib.redirect_stdout(io.StringIO()):
    import mmdet.utils
    import mmseg.utils

    mmdet.utils.register_all_modules(init_default_scope=False)
    mmseg.utils.register_all_modules(init_default_scope=False)

import backbones  # noqa: E402, F401
from histology import (  # noqa: E402, F401
    augment,
    dataset,
    detector,
    evaluator,
    head,
    segmentor,
    transforms,
)
from histology import draw as contours  # noqa: E402, F401

from . import (  # noqa: E402, F401
    averaging,
    budget,
    compilation,
    data,
    draw,
    hooks,
    metrics,
    optim,
    progress,
    tta,
)
