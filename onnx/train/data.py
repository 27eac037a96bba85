"""Photographs as uint8 crops in memory. Never Kodak, never ../shared/images/eval: those are for measuring."""

import io
import pathlib
import tarfile

import numpy as np
import torch
from PIL import Image


def load_shards(folder, limit=None, shrink=(1.0, 0.6), least=288):
    """Every picture of every shard-*.tar, at each scale of `shrink` whose shorter side is at least `least`."""
    pictures = []
    for shard in sorted(pathlib.Path(folder).glob("shard-*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if not member.isfile():
                    continue
                picture = Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB")
                for factor in shrink:
                    size = (round(picture.width * factor), round(picture.height * factor))
                    if min(size) < least:
                        continue
                    small = picture if factor == 1.0 else picture.resize(size, Image.LANCZOS)
                    pictures.append(torch.from_numpy(np.array(small)))
                if limit and len(pictures) >= limit:
                    return pictures
    if not pictures:
        raise SystemExit(f"no shard-*.tar with pictures in {folder}")
    return pictures


class Crops:
    """An endless source of random crops (N, 3, size, size) in [0, 1], pictures drawn by area. `seed` may be a generator: its state is the source's."""

    def __init__(self, pictures, size, seed):
        self.pictures, self.size = pictures, size
        self.random = np.random.default_rng(seed)
        area = np.array([p.shape[0] * p.shape[1] for p in pictures], dtype=np.float64) ** 0.5
        self.share = area / area.sum()

    def draw(self, n):
        """n crops (size, size, 3) of bytes."""
        crops = []
        for i in self.random.choice(len(self.pictures), n, p=self.share):
            p = self.pictures[i]
            y = self.random.integers(0, p.shape[0] - self.size + 1)
            x = self.random.integers(0, p.shape[1] - self.size + 1)
            crop = p[y : y + self.size, x : x + self.size]
            if self.random.random() < 0.5:
                crop = crop.flip(1)
            crops.append(crop)
        return torch.stack(crops)

    def batch(self, n):
        return self.draw(n).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last).float() / 255


def configured(folder, limit, c, seed):
    """Crops of the pictures of `folder`, as the `[data]` of a configuration has them."""
    return Crops(load_shards(folder, limit, c["shrink"], c["least"]), c["crop"], seed)
