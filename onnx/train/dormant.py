"""Dormant units: channels behind a ReLU that no picture opens. They learn nothing and cost their time (Sokar et al. 2023, ReDo).

All feed-forward layers at stride 16 of generation 0 and 1 were dormant, and nobody knew: hence the count in the log.
"""

import torch
import torch.nn as nn

from model import Block


def pairs(block):
    """What makes the units of a block, layer by layer, and what reads them."""
    return ((block.a, block.dw), block.b), ((block.c,), block.d)


@torch.no_grad()
def open_units(model, x, level):
    """For each row of `pairs` of every block: the units (bool) that are open somewhere in the pictures `x`."""
    found, hooks = {}, []

    def watch(layer):
        def note(_, inputs):
            found[layer] = (inputs[0] > 0).any(dim=3).any(dim=2).any(dim=0)
        hooks.append(layer.register_forward_pre_hook(note))

    blocks = [m for m in model.modules() if isinstance(m, Block)]
    for block in blocks:
        for _, reader in pairs(block):
            watch(reader)
    model(x, level)
    for hook in hooks:
        hook.remove()
    return [(makers, reader, found[reader]) for block in blocks for makers, reader in pairs(block)]


@torch.no_grad()
def share_open(model, x, level):
    units = torch.cat([is_open for _, _, is_open in open_units(model, x, level)])
    return units.float().mean().item()


@torch.no_grad()
def recycle(model, x, level):
    """Gives dormant units new weights to begin with; what reads them begins at zero, so that the function stays what it is.
    Returns how many."""
    count = 0
    for makers, reader, is_open in open_units(model, x, level):
        dormant = ~is_open
        count += dormant.sum().item()
        for layer in makers:
            new = torch.empty_like(layer.weight)
            if layer.groups == 1:
                nn.init.kaiming_normal_(new, nonlinearity="relu")
            else:
                # A pixel passes as it is, and a little of what is around it.
                nn.init.normal_(new, std=0.1)
                new[:, :, 1, 1] += 1
            layer.weight[dormant] = new[dormant]
            layer.bias[dormant] = 0
        reader.weight[:, dormant] = 0
    return count
