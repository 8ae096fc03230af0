"""The library behind the scripts. The packages, in the order in which data pass through them:

Datasets_Utils      training and verification sets of every format, and their commands
Pretrained_Utils    backbones from weights files of this project and of other lineages
Evaluation_Utils    a checkpoint's figures on verification sets and on MegaFace
Training_Utils      the training loop

The files that all of them use:

errors.py          exceptions for the user's mistakes; `run_script`
file_kinds.py      what a file is that is not what its user took it for
files.py           writing files completely or not at all; errors of reading that name the file
pickle_checks.py   what would crash Python in reading a pickle, found beforehand
pickled_arrays.py  NumPy's values in a pickle, read without running anything
matlab_files.py    variables of MATLAB's files, checked
tables.py          aligns text in columns
devices.py         device, dtype and precision from the settings; copies that nothing waits for
cpu.py             memory and threads on the CPU
processes.py       the processes that torchrun started
heartbeat.py       notices processes that are frozen, or behind a network that is cut
workers.py         loaders whose workers survive SIGTERM, and whose end is told with its cause
run_folder.py      a run's folder and the names in it
"""
