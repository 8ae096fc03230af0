"""Folders of the Hugging Face hub: written for it, read from it or from the disk.

A folder has `model.safetensors`, `config.json` and `README.md`, the model card. No code in one is
ever run, and files that could hold some, such as pickles, are not downloaded.

Files, in the order to read them:

download.py  `hf:USER/NAME`: which file that means, fetched with the package huggingface_hub
config.py    what a folder's config.json says of its network: ours, and timm's
results.py   figures of a network from the files that evaluation scripts write
card.py      the model card
write.py     a network as such a folder
"""
