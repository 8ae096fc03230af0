"""Training, from the settings to a trained network.

trainer.py           the loop, in which the order of things is the explanation
start.py             how a run begins or resumes
step.py              one iteration: images in, changed weights out
data.py              the training set and its batches
augmentation/        random changes of the images
distillation/        a trained network as the teacher of the one that is trained
networks.py          how a step calls backbone and head: alone, over GPUs, with DDP, compiled
optimization.py      learning rate, optimiser, loss scaling, clipping
state.py             everything that changes while a run trains, and is saved
evaluation.py        the test sets while training, MegaFace at its end
stopping.py          SIGTERM: all processes agree to save and stop
profiling.py         where the time of a few steps goes
checkpoints/         writing and reading a run's checkpoints
merge_checkpoint.py  the command that makes one file of a sharded checkpoint
reports/             log, figures, curves and results of a run
compare_losses/      the command that compares two trainings step by step
discovery.py         the tables that --list prints
sweep.py             many runs, one for each combination of settings, and their table
"""
