"""Make resnets.npz and the files beside it with PyTorch 2.13: ``PYTHONPATH=. python tests/.../data/make_resnets.py``.

resnets.npz has, for every case, the names and shapes of the state dict as JSON, whose numbers tests make again
(:mod:`tests.checkpoints.seeded`), and the float32 NHWC outputs (every 3rd row and column) for images of some sizes
under the statistics of the image (training mode, dropout off) and stored ones (evaluation mode). The files show what
the containers of such state dicts look like.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.checkpoints.data.make_pytorch import UNet
from tests.checkpoints.data.torch_resnets import GanUnet, LocalEnhancer, Resnet, TransformerNet
from tests.checkpoints.seeded import input_image, numbers

HERE = Path(__file__).parent
SIZES = ((20, 28), (36, 44))
DEEP = ((48, 80),)  # for networks that halve the image four times
CASES = {
    "cyclegan": (Resnet(4, 9), SIZES),
    "cyclegan_6_dropout": (Resnet(4, 6, dropout=True), SIZES),
    "cyclegan_4_zero": (Resnet(4, 4, padding="zero"), SIZES),
    "cyclegan_zero_dropout": (Resnet(4, 2, "batch", padding="zero", dropout=True), SIZES),
    "cyclegan_replicate": (Resnet(4, 2, padding="replicate"), SIZES),
    "cyclegan_batch": (Resnet(4, 2, "batch", (1, 2)), SIZES),
    "cyclegan_none": (Resnet(4, 1, "none"), SIZES),
    "cyclegan_stale": (Resnet(4, 2), SIZES),
    "affine": (Resnet(4, 2, "affine"), SIZES),
    "affine_zero_dropout": (Resnet(4, 2, "affine", padding="zero", dropout=True), SIZES),
    "block_affine": (Resnet(4, 2, "affine", container="block"), SIZES),
    "block_batch": (Resnet(4, 2, "batch", container="block", bias=True), SIZES),
    "resize": (Resnet(4, 2, up="bilinear"), SIZES),
    "resize_corners": (Resnet(4, 2, up="corners"), SIZES),
    "resize_batch": (Resnet(4, 2, "batch", up="bilinear"), SIZES),
    "cut": (Resnet(4, 9, blur=True, up="filter"), SIZES),
    "cut_4": (Resnet(4, 4, blur=True, up="filter", dropout=True), SIZES),
    "cut_blur": (Resnet(4, 2, "batch", blur=True), SIZES),
    "cut_filter": (Resnet(4, 2, up="filter", padding="zero"), SIZES),
    "hd_global": (Resnet(2, 2, "instance", (36, 3), levels=4), DEEP),
    "hd_batch": (Resnet(2, 3, "batch", levels=4, bias=True), DEEP),
    "hd_local": (LocalEnhancer(2, "instance", (3, 3), 1, 3, 2), DEEP),
    "hd_local_2": (LocalEnhancer(2, "batch", (36, 3), 2, 2, 3), DEEP),
    "gan_cyclegan": (Resnet(4, 3, up="nearest", container="block"), SIZES),
    "gan_unet": (GanUnet([2, 4, 8, 16, 16]), ((32, 64), (96, 32))),
    "transformer": (TransformerNet(4), SIZES),
    "transformer_stale": (TransformerNet(4, 2), SIZES),
}


def set_weights(net: nn.Module, seed: int = 0) -> None:
    """Give a network the numbers that its tensors' names tell."""
    own = net.state_dict()
    filters = {name for name in own if name.endswith("filt")}
    state = {name: torch.from_numpy(numbers(name, tuple(own[name].shape), seed)) for name in own.keys() - filters}
    net.load_state_dict(state | {name: own[name] for name in filters})


def shapes(net: nn.Module, stale: bool) -> dict[str, list[int]]:
    """The state dict's; with the statistics that PyTorch before 0.4 stored for InstanceNorm and never used."""
    found = {name: list(tensor.shape) for name, tensor in net.state_dict().items()}
    for name, module in net.named_modules() if stale else ():
        if isinstance(module, nn.InstanceNorm2d):
            found |= {f"{name}.{part}": [module.num_features] for part in ("running_mean", "running_var")}
    return found


def output(net: nn.Module, size: tuple[int, int], mode: str) -> np.ndarray:
    """What a network makes of an image from -1 to 1, as an image from -1 to 1."""
    half = 127.5 if isinstance(net, TransformerNet) else None
    channels = next(module.in_channels for module in net.modules() if isinstance(module, nn.Conv2d))
    x = torch.from_numpy(input_image(*size, channels).astype(np.float32) / 255 * 2 - 1).permute(2, 0, 1)[None]
    net.train(mode == "image")
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    with torch.no_grad():
        y = net((x + 1) * half) / half - 1 if half else net(x)
    return y[0].permute(1, 2, 0).numpy()[::3, ::3]


def compute(case: str, net: nn.Module, sizes: tuple[tuple[int, int], ...]) -> dict[str, np.ndarray]:
    """The outputs by their names in resnets.npz."""
    modes = ["running", "image"] if any(isinstance(m, nn.BatchNorm2d) for m in net.modules()) else ["image"]
    return {f"{case}/{h}x{w}/{mode}": output(net, (h, w), mode) for mode in modes for h, w in sizes}


def save_program(program: torch.jit.ScriptModule, path: Path) -> None:
    """Write a program as torch.jit.save does, but leave out where its code came from, which takes the most space."""
    torch.jit.save(program, path)
    with zipfile.ZipFile(path) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist() if "debug_pkl" not in info.filename]
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in members:
            plain = zipfile.ZipInfo(info.filename)
            archive.writestr(plain, content, info.compress_type)


def save_containers() -> dict[str, np.ndarray]:
    """Write the files, and give the outputs of the networks in them."""
    nets = {side: Resnet(2, 1, "batch") for side in "AB"}
    for seed, net in enumerate(nets.values()):
        set_weights(net, seed)
    content = {f"G_{side}": nn.DataParallel(net).state_dict() for side, net in nets.items()}
    optimizer = torch.optim.Adam(nets["A"].parameters()).state_dict()
    torch.save({"epoch": 3, "state": content, "optimizer": optimizer, "opt": {"netG": "x"}}, HERE / "resnet_two.pth")
    results = {}
    for side, net in nets.items():
        results |= compute(f"resnet_two.pth:G_{side}", net, SIZES[:1])

    net = Resnet(4, 1)
    set_weights(net)
    half = net.half().state_dict()
    torch.save({"model": {"netG": half}}, HERE / "resnet_half.pth", _use_new_zipfile_serialization=False)
    results |= compute("resnet_half.pth", net.float(), SIZES[:1])

    programs = {
        "script_resnet.pt": (Resnet(2, 1, "batch").eval(), (20, 28)),
        "script_cut.pt": (Resnet(2, 1, "batch", blur=True, up="filter").train(), (20, 28)),
        "script_local.pt": (LocalEnhancer(1, "instance", (3, 3), 1, 2, 1).eval(), (32, 48)),
        "script_style.pt": (TransformerNet(2, 1).eval(), (20, 28)),
        "script_unet.pt": (UNet(1, 5, "batch").eval(), (32, 64)),
    }
    for name, (net, size) in programs.items():
        set_weights(net)
        example = torch.zeros(1, 3, *size)
        compiled = torch.jit.script(net) if "unet" in name else torch.jit.trace(net, example, check_trace=False)
        set_weights(net)  # running the example has changed the statistics
        save_program(compiled, HERE / name)
        results |= compute(name, net, (size,))
    save_program(torch.jit.freeze(torch.jit.script(UNet(1, 2, "batch").eval())), HERE / "script_frozen.pt")
    return results


def main() -> None:
    """Write everything."""
    torch.manual_seed(1)
    torch.set_num_threads(1)
    results = save_containers()
    for case, (net, sizes) in CASES.items():
        set_weights(net)
        results[f"shapes/{case}"] = np.array(json.dumps(shapes(net, case.endswith("stale"))))
        results |= compute(case, net, sizes)
    np.savez_compressed(HERE / "resnets.npz", **results)


if __name__ == "__main__":
    main()
