"""Proves that a change changes nothing, or shows where it begins to: two trainings, step by step.

Files, in the order to read them:

__main__.py    the command
sides.py       what a side is: settings, a commit, a clone
comparison.py  both trainings side by side, to the first tensor that differs
recorder.py    runs in a process of its own, in the tree of files of one side
"""
