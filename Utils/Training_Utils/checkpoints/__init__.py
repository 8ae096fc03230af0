"""The checkpoints of a run: a file each, or, where the classes are split over processes, a folder.

reading.py  reads a checkpoint and checks that it fits the run
writer.py   writes the checkpoints of a run, and the names last and best
sharded.py  the class tables of a checkpoint folder, split over processes
"""
