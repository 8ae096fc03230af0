"""Train a face-recognition network.

    python Train.py                                     the demo, on built-in faces
    python Train.py --recipe casia_webface --webface_dataset_path P --webface_file_list L
    python Train.py --resume last                       continue the newest run
    python Train.py --pretrained FILE ...               start from weights of any known lineage
    torchrun --nproc_per_node G Train.py ...            on G GPUs; without GPUs, in G processes
    python Train.py --sweep "margin=ArcFace,CosFace" --sweep "seed=1,2,3"
                                                        one run each, a table and a picture of all
    python Train.py --list heads                        what there is: backbones, heads, recipes,
                                                        formats, lineages

Settings are in Config/config.py; every one of them is also a flag.
"""

from functools import partial

from Config import Sweep, read_training
from Utils.errors import run_script
from Utils.processes import started_by_torchrun
from Utils.Training_Utils.discovery import TABLES
from Utils.Training_Utils.reports.figures import training_table
from Utils.Training_Utils.start import pretrained_settings, saved_settings
from Utils.Training_Utils.sweep import run_sweep
from Utils.Training_Utils.trainer import Trainer


def main() -> None:
    """Read the settings, train, print the table of results."""
    with started_by_torchrun() as processes:
        config = read_training(
            __doc__,
            saved_settings=partial(saved_settings, processes=processes),
            pretrained_settings=pretrained_settings,
            tables=TABLES,
        )
        if isinstance(config, Sweep):
            run_sweep(config, processes)
            return
        result = Trainer(config, processes).run()
        if processes.is_main:
            print(training_table(result))


if __name__ == "__main__":
    run_script(main)
