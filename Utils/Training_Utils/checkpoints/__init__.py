"""The checkpoints of a run: a file each, or, where the classes are split over processes, a folder.

run_checkpoints.py  reads a checkpoint, checks that it fits the run, and writes those of a run
checks.py           what a checkpoint must hold for a run to resume from it
sharded.py          the class tables of a checkpoint folder, split over processes
table_files.py      the files of those tables, with check sums
"""
