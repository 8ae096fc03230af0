"""What a run reports about itself, on the screen and in its folder.

metrics.py   the figures over the iterations, in memory and in metrics.csv
progress.py  the log, the progress bar, and the means that are reported while a run trains
curves.py    the figures as a picture, and live in a Visdom server
results.py   the figures at the end: results.json and the table that is printed
"""
