# make train      set up, train with the settings of Config/config.py, which are the demo's until
#                 you edit them, show the results
# make test       set up, run the tests
# make extras     set up, install what is optional: MTCNN's weights, which find faces; timm; and
#                 TensorBoard (55 MB) and W&B (76 MB), which show a run's curves; lmdb (2 MB);
#                 huggingface_hub (22 MB), for weights of the hub; pyarrow (170 MB), which reads
#                 sets of Hugging Face's datasets
# make soak       set up, kill runs, fill disks, damage files for an hour (docs/reliability.md)
# make lint       check style and formatting
# make gpu-check  set up, check on a GPU that training and evaluation are right there
# make clean      remove what these made: .venv, demo faces, caches (not your runs)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: train test extras soak lint gpu-check clean

train: $(INSTALLED)
	$(BIN)/python Train.py $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

# facenet-pytorch asks for older releases of PyTorch than this project has, and runs with these;
# timm (11 MB) asks for the package that downloads its weights, which nothing here does.
extras: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps "facenet-pytorch>=2.6,<3" "timm>=1.0.9,<2"
	$(BIN)/python -m pip install --quiet "tensorboard>=2.18" "wandb>=0.31" "lmdb>=1.4.1" \
		"huggingface_hub>=1.0" "pyarrow>=18"

# atheris (libFuzzer) chooses which damaged files to try; it has wheels for Linux.
soak: $(INSTALLED)
	$(BIN)/python -m pip install --quiet "atheris>=3.0"
	$(BIN)/python -m tests.soak $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

gpu-check: $(INSTALLED)
	$(BIN)/python -m benchmarks.gpu_check $(ARGS)

$(INSTALLED): requirements.txt build-constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, this is {v[0]}.{v[1]}; name one: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.3"
	$(BIN)/python -m pip install --quiet --build-constraint build-constraints.txt -r requirements.txt
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) Datasets/Demo .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
