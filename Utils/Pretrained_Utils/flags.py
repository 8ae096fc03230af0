"""The flags that say how a weights file is to be read; for the commands of this folder."""

import argparse
from pathlib import Path

from Config.validation import CHANNEL_ORDERS, WEIGHTS
from Utils.Pretrained_Utils.lineages import LINEAGES


def reading_flags(description: str) -> argparse.ArgumentParser:
    """A parser with SOURCE and what `load_backbone` can be told besides."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="weights of any known lineage: a file or name in Pretrained")
    parser.add_argument(
        "--lineage",
        choices=[lineage.key for lineage in LINEAGES],
        help="whose weights these are, where two lineages look alike",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default=WEIGHTS[0],
        help="which, of a checkpoint of a run with ema_decay",
    )
    parser.add_argument(
        "--channel_order",
        default="",
        choices=[order for order in CHANNEL_ORDERS if order],
        help="instead of the lineage's",
    )
    parser.add_argument(
        "--input_mean", type=float, help="in pixel values 0..255, instead of the lineage's"
    )
    parser.add_argument(
        "--input_scale", type=float, help="in pixel values 0..255, instead of the lineage's"
    )
    return parser


def writable_target(path: Path, suffixes: tuple[str, ...]) -> Path:
    """The path, checked. Raises ValueError for another suffix, OSError for a folder or in none."""
    if path.suffix not in suffixes:
        raise ValueError(f"{path} must end in {' or '.join(suffixes)}, which says its format.")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file to write.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} is not there; make it first.")
    return path
