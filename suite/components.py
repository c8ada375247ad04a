"""Importing this registers every component that a config may name.

The stand-in for mmcv's ops comes first: mmdet cannot be imported without ops.
"""
import warnings

from . import ops

# Their deprecation notices are not addressed to our users.
warnings.filterwarnings('ignore', category=UserWarning, module=r'(mm(engine|cv|det|seg)|torch)\.')
warnings.filterwarnings('ignore', category=FutureWarning, module=r'(mm(engine|cv|det|seg)|torch)\.')
ops.install()

import mmdet.utils  # noqa: E402
import mmseg.utils  # noqa: E402

mmdet.utils.register_all_modules(init_default_scope=False)
mmseg.utils.register_all_modules(init_default_scope=False)

import backbones  # noqa: E402, F401

from . import data, draw, hooks, metrics, optim, progress, tta  # noqa: E402, F401
