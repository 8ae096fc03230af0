"""What the scores of a verification tell beyond its figures, without network or photos.

kept_scores.py   the file of scores beside the results, and who is on the images
bootstrap.py     accuracy and TAR under resampling of pairs or subjects, on arrays alone
intervals.py     95 % intervals, and two results on the same pairs compared
thresholds.py    a set at the thresholds that were found on another
quality.py       error-versus-discard curves, by feature norm or by a file of qualities
pictures.py      DET curves and error-versus-discard curves
further.py       all of these, as the settings ask for them
__main__.py      the command that makes the figures again from a file of scores
"""
