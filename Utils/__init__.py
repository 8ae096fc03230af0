"""The library behind the scripts: data, training, judging, weights."""
