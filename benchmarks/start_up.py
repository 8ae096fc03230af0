"""Starting Train.py on a list of millions of images, up to its first step."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = 100  # of each class


def big_list(folder: Path, count: int, files: list[str]) -> tuple[Path, Path]:
    """(faces, list) of `count` images, 100 in each class: its folders are links to one of 100
    photos, so that they are read like any, but need not be written."""
    photos, faces = folder / "photos", folder / "faces"
    photos.mkdir()
    faces.mkdir()
    for i in range(PHOTOS):
        shutil.copyfile(files[i % len(files)], photos / f"{i:03d}.jpg")
    with open(folder / "list.txt", "w") as file:
        for number in range(count // PHOTOS):
            os.symlink("../photos", faces / f"{number:07d}")
            file.writelines(f"{number:07d}/{i:03d}.jpg  {number}\n" for i in range(PHOTOS))
    return faces, folder / "list.txt"


def start_training(faces: Path, file_list: Path) -> tuple[float, int]:
    """(seconds from the start of Train.py to the line of its first iteration, peak bytes of its
    main process)."""
    flags = {
        "train_dataset": "Big",
        "train_dataset_path": faces,
        "train_file_list": file_list,
        "log_freq": 1,
        "batch_size": 2,  # the step itself is not measured
        "device": "cpu",
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-u", "Train.py", *words, "--para_adj_mode", "--no-use_visdom"]
    begin = time.perf_counter()
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        for line in run.stdout:
            if re.search(r"iteration +1\b|^ *1/|loss", line):
                seconds = time.perf_counter() - begin
                return seconds, _peak(run.pid)
        raise RuntimeError(f"{' '.join(command)} ended without a step")
    finally:
        run.kill()
        run.wait()


def _peak(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
