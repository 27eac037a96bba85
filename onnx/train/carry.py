"""What an earlier decoder was tuned to, for one that came of the same weights since: the difference that the tuning made (Ilharco et al. 2023,
"Editing models with task arithmetic").

Between generations channels get ranges of their own (`quant.level_channels`, `model.spread_latent`), so that the rows and the columns of a weight
are not in the units that they were in. How far those have moved is read from the weights themselves, which training changes far less than that.
"""

import torch

from quant import convolutions

ROUNDS = 8  # of medians, over rows and over columns in turn


def units(old, new):
    """Weights (rows, columns, taps) of before and after -> how many times as large rows (rows) and columns (columns) have become, together; a factor
    that all rows have and no column may as well be the other way about."""
    ratio = (new / old).abs().clamp(1e-6, 1e6).log2()
    # Small weights say more of training than of units, and so do those that changed their sign.
    telling = (old * new > 0) & (old.abs() >= old.abs().flatten(1).median(1).values[:, None, None])
    ratio = torch.where(telling, ratio, torch.nan)
    median = lambda x: x.nanmedian(1).values.nan_to_num(0.0)
    rows, columns = torch.zeros(old.shape[0]), torch.zeros(old.shape[1])
    for _ in range(ROUNDS):
        rows = median((ratio - columns[None, :, None]).flatten(1))
        if len(columns) > 1:
            columns = median((ratio - rows[:, None, None]).transpose(0, 1).flatten(1))
    return torch.exp2(rows), torch.exp2(columns)


@torch.no_grad()
def carry(to, before, tuned):
    """Adds to the convolutions of `to` what separates those of `tuned` from those of `before`, in the units of `to`."""
    layers = list(zip(*map(convolutions, (to, before, tuned)), strict=True))
    if any(len({layer.weight.shape for layer in alike}) > 1 for alike in layers):
        raise SystemExit("what the earlier decoder has learnt is for one of another shape")
    for layer, old, other in layers:
        rows, columns = units(old.weight.flatten(2), layer.weight.flatten(2))
        layer.weight.add_((other.weight - old.weight) * rows[:, None, None, None] * columns[None, :, None, None])
        # Biases are in the units of the rows alone.
        known = old.bias * layer.bias > 0
        common = ((layer.bias / old.bias)[known] / rows[known]).median() if known.any() else 1.0
        layer.bias.add_((other.bias - old.bias) * rows * common)
