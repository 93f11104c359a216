"""Change the tensors of a checkpoint that has one shard."""

from safetensors.torch import load_file, save_file


def change_tensors(folder, change):
    """Apply `change` to the dict of all tensors, and write the shard again."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
