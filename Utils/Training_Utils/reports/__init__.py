"""What a run reports about itself, on the screen and in its folder.

figures.py   metrics.csv over the iterations; results.json and the printed table at the end
means.py     the means of loss and accuracy that are reported while a run trains
progress.py  the log, and the progress bar
curves.py    the curves of the figures, and their picture
watchers.py  the figures live, sent in threads
places.py    where they are sent: Visdom, TensorBoard, W&B
"""
