"""What JPEG does to an image, computed on the device: nothing of an image passes through the CPU.

Baseline JPEG (ITU T.81) as libjpeg has it: colour at half the resolution (4:2:0), the quantisation
tables of annex K scaled by a quality of 1 to 100, and colour interpolated when it is decoded. The
coding of the quantised values loses nothing, and is left out. An image differs from OpenCV's by
about 0.15 of 255 in the mean: libjpeg rounds otherwise between the steps, so that a frequency that
is nearly half-way may be rounded to the other side, which changes its whole block.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from Utils.devices import on_device

_LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
_CHROMINANCE = np.full((8, 8), 99)
_CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

# RGB to Y, Cb and Cr, which are centred at 0 here (ITU T.871).
_TO_YCC = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)
_TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])

_FREQUENCY = np.arange(8)[:, None]
_DCT = np.cos(_FREQUENCY * (2 * np.arange(8) + 1) * np.pi / 16) / 2
_DCT[0] /= np.sqrt(2)


def jpeg(images: Tensor, qualities: np.ndarray) -> Tensor:
    """Images, uint8 n×H×W×3, as they come back from JPEG of their qualities, int n."""
    device, (height, width) = images.device, images.shape[1:3]
    scales = np.where(qualities < 50, 5000 // qualities, 200 - 2 * qualities)[:, None, None]
    luminance, chrominance = (
        on_device(np.clip((table * scales + 50) // 100, 1, 255), device)  # n×8×8
        for table in (_LUMINANCE, _CHROMINANCE)
    )
    pixels = images.permute(0, 3, 1, 2).float()
    pixels = F.pad(pixels, (0, -width % 16, 0, height % 2), mode="replicate")
    ycc = torch.einsum("cd,ndhw->nchw", on_device(_TO_YCC, device), pixels).round_()
    y, colour = ycc.split((1, 2), 1)
    colour = F.avg_pool2d(colour, 2)
    # Quarters are rounded up and down in turns, as libjpeg does.
    turns = torch.arange(colour.shape[3], device=device) % 2
    colour = (colour + (0.25 + 0.25 * turns)).floor_()
    y = _quantised(y - 128, luminance) + 128
    colour = _quantised(colour, chrominance)[..., : -(-width // 2)]
    colour = F.interpolate(colour, scale_factor=2, mode="bilinear").round_()
    ycc = torch.cat((y[:, :, :height, :width], colour[:, :, :height, :width]), 1)
    rgb = torch.einsum("dc,nchw->nhwd", on_device(_TO_RGB, device), ycc)
    return rgb.round_().clamp_(0, 255).to(torch.uint8)


def _quantised(planes: Tensor, table: Tensor) -> Tensor:
    """Planes n×c×H×W of -128..127, with their frequencies in blocks of 8×8 rounded to multiples of
    a table's, n×8×8. W is a multiple of 8; below, rows are repeated to make H one."""
    height = planes.shape[2]
    planes = F.pad(planes, (0, 0, 0, -height % 8), mode="replicate")
    dct, step = on_device(_DCT, planes.device), table[:, None, None, :, None]  # n×1×1×8×1×8
    blocks = planes.unflatten(3, (-1, 8)).unflatten(2, (-1, 8))  # n×c×H/8×8×W/8×8
    frequencies = torch.einsum("fh,ncahbw,gw->ncafbg", dct, blocks, dct)
    # As libjpeg: to eighths, and then halves away from 0. A block's mean is often half-way.
    multiples = ((frequencies * 8).round_().abs_() / (8 * step) + 0.5).floor_()
    frequencies = multiples * frequencies.sign() * step
    blocks = torch.einsum("fh,ncafbg,gw->ncahbw", dct, frequencies, dct)
    return blocks.flatten(4).flatten(2, 3)[:, :, :height].round_().clamp_(-128, 127)
