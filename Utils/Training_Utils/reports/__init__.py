"""What a run reports about itself, on the screen and in its folder.

figures.py   metrics.csv over the iterations; results.json and the printed table at the end
progress.py  the log, the progress bar, and the means that are reported while a run trains
curves.py    the curves of the figures, and their picture
watchers.py  the figures live, sent in threads
places.py    where they are sent: Visdom, TensorBoard, W&B
"""
