"""Convolutional networks: ResNet-50, DenseNet-121, U-Net. [n, c, h, w] throughout."""

from __future__ import annotations

from dataclasses import dataclass

from tensorstow.ir.graph import Graph

from .builder import Builder


@dataclass(frozen=True, slots=True)
class _Convs:
    """Convolution and batch norm, which is part of the convolution's weights where `folded`."""

    b: Builder
    folded: bool

    def __call__(self, x: str, channels: int, size: int, name: str, *, stride: int = 1, relu: bool = True) -> str:
        x = self.b.conv(x, channels, size, name, stride=stride, bias=self.folded)
        if not self.folded:
            x = self.b.batch_norm(x, f"{name}.bn")
        return self.b.same("Relu", (x,)) if relu else x


def resnet50(*, batch: int = 1, size: int = 224, dtype: str = "float32", folded: bool = True) -> Graph:
    """ResNet-50 (He et al. 2015; stride in the 3x3 convolution, as published weights have it): 25.6 M parameters.

    `folded`: batch norms are folded into convolutions, as exporters do for inference. Training needs them.
    """
    b = Builder("resnet50", dtype)
    conv = _Convs(b, folded)
    x = conv(b.input("image", batch, 3, size, size), 64, 7, "stem", stride=2)
    x = b.pool(x, 3, stride=2, pad=1)
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for i in range(blocks):
            name = f"s{stage}.{i}"
            stride = 2 if stage and not i else 1
            y = conv(x, width, 1, f"{name}.a")
            y = conv(y, width, 3, f"{name}.b", stride=stride)
            y = conv(y, 4 * width, 1, f"{name}.c", relu=False)
            if not i:
                x = conv(x, 4 * width, 1, f"{name}.down", stride=stride, relu=False)
            x = b.same("Relu", (b.same("Add", (y, x)),))
    return b.build(_classifier(b, x))


def _classifier(b: Builder, x: str) -> str:
    pooled = b.global_pool(x)
    return b.linear(b.view(pooled, *b.shape(pooled)[:2]), 1000, "classifier")


def densenet121(*, batch: int = 1, size: int = 224, dtype: str = "float32", folded: bool = True) -> Graph:
    """DenseNet-121 (Huang et al. 2016), growth 32: 8.0 M parameters. Every layer concatenates what came before it.

    `folded`: the norms that follow a convolution are folded into it; those that follow a concatenation cannot be.
    """
    b = Builder("densenet121", dtype)
    conv = _Convs(b, folded)

    def activated(x: str, name: str) -> str:
        return b.same("Relu", (b.batch_norm(x, name),))

    x = b.pool(conv(b.input("image", batch, 3, size, size), 64, 7, "stem", stride=2), 3, stride=2, pad=1)
    for block, layers in enumerate((6, 12, 24, 16)):
        features = [x]
        for i in range(layers):
            name = f"b{block}.{i}"
            joined = b.concat(*features) if i else x
            y = conv(activated(joined, f"{name}.norm"), 128, 1, f"{name}.a")
            features.append(b.conv(y, 32, 3, f"{name}.b", bias=False))
        x = b.concat(*features)
        if block < 3:
            y = b.conv(activated(x, f"t{block}.norm"), b.shape(x)[1] // 2, 1, f"t{block}", bias=False)
            x = b.pool(y, 2, stride=2, kind="AveragePool")
    return b.build(_classifier(b, activated(x, "norm")))


def unet(*, batch: int = 1, size: int = 256, dtype: str = "float32", folded: bool = True, classes: int = 2) -> Graph:
    """U-Net (Ronneberger et al. 2015) with batch norm, padding, and transposed convolutions: 31.0 M parameters.

    `size` must be a multiple of 16. Four skips live from the way down to the way up.
    """
    b = Builder("unet", dtype)
    conv = _Convs(b, folded)

    def twice(x: str, channels: int, name: str) -> str:
        return conv(conv(x, channels, 3, f"{name}.a"), channels, 3, f"{name}.b")

    x = twice(b.input("image", batch, 3, size, size), 64, "in")
    skips: list[str] = []
    for i, channels in enumerate((128, 256, 512, 1024)):
        skips.append(x)
        x = twice(b.pool(x, 2, stride=2), channels, f"down{i}")
    for i, channels in enumerate((512, 256, 128, 64)):
        x = b.conv_transpose(x, channels, 2, f"up{i}")
        x = twice(b.concat(skips.pop(), x), channels, f"up{i}.conv")
    return b.build(b.conv(x, classes, 1, "out"))
