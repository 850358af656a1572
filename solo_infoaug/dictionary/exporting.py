"""Patches as an image folder, for whatever reads the layout of torchvision's `ImageFolder`."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from PIL import Image

from solo_infoaug._files import check_output_folder, mark_as_made
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.errors import DictionaryError


def export_patches(dictionary: TwinDictionary, folder: str | os.PathLike[str]) -> int:
    """Write every patch, at each of its moments, as PNG; one sub-folder for each video.

    The layout is that of torchvision's `ImageFolder`, so solo-learn can train on it with
    `data.dataset: custom`. Returns the number of images.

    Raises:
        DictionaryError: `folder` has something in it already, or the dictionary is damaged.
        OutputError: `folder` cannot be written.

    Examples:
        From a dictionary of 24 patches:

        >>> export_patches(TwinDictionary.load("twins/"), "patches/")
        24
    """
    out = check_output_folder(folder, "out")
    if out.exists() and any(out.iterdir()):
        raise DictionaryError(f"{out} is not an empty folder; choose another")
    mark_as_made(out)
    names = _unique([Path(name).stem for name in dictionary.videos])
    written = 0
    for row in range(len(dictionary)):
        target = out / names[dictionary.patches["video"][row]]
        target.mkdir(parents=True, exist_ok=True)
        frames = dictionary.moment_frames[row].tolist()
        for moment, frame in enumerate(frames):
            if frame in frames[:moment]:
                continue
            pixels = dictionary.crops(torch.tensor([row]), moment)[0]
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            image.save(target / f"{row:07d}-{moment}.png")
            written += 1
    return written


def _unique(names: list[str]) -> list[str]:
    """Unique names: repeated ones get a number."""
    taken: set[str] = set()
    for index, name in enumerate(names):
        candidate, number = name, 2
        while candidate in taken:
            candidate, number = f"{name}-{number}", number + 1
        taken.add(candidate)
        names[index] = candidate
    return names
