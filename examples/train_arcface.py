"""ArcFace on one screen: train a face-recognition network, and test it on pairs of faces.

    python -m examples.train_arcface

Deng et al.: "ArcFace: Additive Angular Margin Loss for Deep Face Recognition" (2019). With this
project's parts, but without its settings, checkpoints, mixed precision or several GPUs.
"""

import numpy as np
import torch
from torch.utils.data import DataLoader

from Backbone import build_backbone
from Head import build_head
from Utils.Datasets_Utils import open_training_set, open_verification_set
from Utils.Datasets_Utils.demo.sets import ensure_demo_sets
from Utils.Evaluation_Utils.embedding import embed
from Utils.Evaluation_Utils.verification import combine_flip, evaluate

EPOCHS, BATCH_SIZE, LEARNING_RATE = 3, 16, 0.1


def collate(samples: list[tuple[np.ndarray, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """N images, uint8 N×112×112×3, and N labels."""
    images, labels = zip(*samples, strict=True)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def train(backbone: torch.nn.Module, head: torch.nn.Module, loader: DataLoader) -> None:
    """Minimise the cross-entropy of s cos(θ + m) for the right class, s cos θ for the others."""
    device = head.weight.device
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=EPOCHS * len(loader)
    )
    for epoch in range(EPOCHS):
        for number, (images, labels) in enumerate(loader):
            images, labels = images.to(device), labels.to(device)
            flip = torch.rand(len(images), device=device) < 0.5
            pixels = backbone.preprocessing(images, flip)  # float N×3×112×112, -1..1
            embeddings = backbone(pixels)  # N×128
            loss = head.loss(embeddings, labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if number % 25 == 0:
                print(f"epoch {epoch + 1}, batch {number:3} of {len(loader)}: loss {loss:.3f}")


def main() -> None:
    """Draw the faces, train, print the accuracy on pairs of people who were not trained on."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    demo = ensure_demo_sets("Datasets/Demo")
    faces = open_training_set(demo.train_images, demo.train_list)
    loader = DataLoader(faces, BATCH_SIZE, shuffle=True, drop_last=True, collate_fn=collate)
    backbone = build_backbone("MobileFaceNet", feature_dim=128).to(device)
    head = build_head("ArcFace", 128, faces.num_classes, scale=16.0, margin=0.3).to(device)
    train(backbone, head, loader)

    pairs = open_verification_set(demo.lfw_images, demo.lfw_pairs)
    features = combine_flip(*embed(backbone.eval(), pairs.images, device))
    result = evaluate(features[pairs.left], features[pairs.right], pairs.same, pairs.folds)
    print(f"LFW: {result.accuracy:.2%} ± {result.std:.2%} of {len(pairs.same)} pairs")


if __name__ == "__main__":
    main()
