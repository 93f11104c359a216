"""Mark parameters whose values are in the files of a checkpoint, and are in memory only while their layer runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_MARK = "_qwenlab_in_files"


@dataclass(eq=False)
class InFiles:
    """Where the values of a parameter are stored, and how to see that the parameter is unchanged.

    where    files and byte ranges; two parameters with the same values there have the same text
    address  of the parameter's memory, which is that of the mapped file or of a placeholder
    version  torch's count of in-place changes of the parameter
    """

    where: str
    address: int
    version: int


def mark(parameter: torch.Tensor, where: str) -> None:
    """Mark a parameter as it is now as that of the files."""
    setattr(parameter, _MARK, InFiles(where, parameter.data_ptr(), parameter._version))


def moved(parameter: torch.Tensor) -> None:
    """Accept the parameter's new memory, after its values were read or dropped."""
    getattr(parameter, _MARK).address = parameter.data_ptr()


def where_stored(tensor: torch.Tensor) -> str | None:
    """Where the values of a parameter are stored; None if they are in memory, or were changed there."""
    stored: InFiles | None = getattr(tensor, _MARK, None)
    if stored is None or stored.version != tensor._version or stored.address != tensor.data_ptr():
        return None
    return stored.where
