"""How a network is run: eagerly or compiled, in which memory layout, in which precision."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backbones.errors import UserError, closest

PARTS = ('compile', 'channels-last', 'bfloat16')


@dataclass(frozen=True)
class Mode:
    """Everything off is eager, contiguous, float32.

    Args:
        compiled: by torch.compile, in its default mode, for the size that comes.
        channels_last: weights and images.
        bfloat16: under autocast; weights stay in float32.
    """

    compiled: bool = False
    channels_last: bool = False
    bfloat16: bool = False

    @classmethod
    def parse(cls, text: str) -> Mode:
        """'eager', or one or several of PARTS joined by '+', such as 'compile+bfloat16'."""
        parts = text.split('+')
        if parts == ['eager']:
            return cls()
        for part in parts:
            if part not in PARTS:
                raise UserError(f'no mode {part!r}{closest(part, ("eager", *PARTS))}; joined '
                                'by +, such as compile+bfloat16')
        return cls(*(part in parts for part in PARTS))

    def __str__(self) -> str:
        values = self.compiled, self.channels_last, self.bfloat16
        return '+'.join(part for part, on in zip(PARTS, values) if on) or 'eager'

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products and convolutions compute in."""
        return torch.bfloat16 if self.bfloat16 else torch.float32

    @property
    def precision(self) -> str:
        """As records name it."""
        return 'bfloat16 autocast' if self.bfloat16 else 'float32'

    def prepare(self, net: nn.Module) -> None:
        """Give a network, in place, this layout and compile it; the names of its parameters
        stay what they were, unlike in torch.compile's wrapper."""
        if self.channels_last:
            net.to(memory_format=torch.channels_last)
            net.register_forward_pre_hook(_channels_last)
        if self.compiled:
            # Beyond its limit dynamo would go on eagerly, with no more than a warning.
            torch._dynamo.config.fail_on_recompile_limit_hit = True
            torch._dynamo.config.recompile_limit = 64
            net.compile()

    def autocast(self, device: str) -> torch.autocast:
        """The context of this precision for forward passes."""
        return torch.autocast(device, torch.bfloat16, enabled=self.bfloat16)


def _channels_last(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:]


EAGER = Mode()
