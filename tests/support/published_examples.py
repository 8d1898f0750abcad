"""Networks whose attributions captum publishes: BasicModel and BasicModel_MultiLayer of its tests (captum 0.9).

Factories for `python:support.published_examples:NAME`. The layer `inputs` is what captum calls the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

DESCRIPTION = {"height": 8, "width": 8, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


class _Basic(nn.Module):
    """Two outputs: relu(relu(a) - 1 - relu(b)), and zero."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.inputs(x.mean((2, 3))).split(1, 1)
        result = torch.relu(torch.relu(a) - 1 - torch.relu(b))
        return torch.cat([result, 0 * result], 1)


class _MultiLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.linear1, self.linear2 = nn.Linear(3, 3), nn.Linear(3, 4), nn.Linear(4, 2)
        with torch.no_grad():
            self.linear1.weight.fill_(1)
            self.linear1.bias.copy_(torch.tensor([-10.0, 1, 1, 1]))
            self.linear2.weight.fill_(1)
            self.linear2.bias.copy_(torch.tensor([-1.0, 1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(torch.relu(self.linear1(self.inputs(x.mean((2, 3))))))


def basic() -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    return _Basic(), DESCRIPTION


def multilayer() -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    return _MultiLayer(), DESCRIPTION
