"""The settings of a convolutional head that is trained in seconds."""

from pipeline.params import Backbone, ConvHead

BACKBONE = Backbone(architecture="mobilenet-v2", image_size_px=64)
CONV_HEAD = ConvHead(
    kind="conv_head",
    backbone="small",
    map_layers=("block_2_add", "block_5_add", "block_9_add"),
    tracer_size_px=64,
    n_channels=8,
    n_hidden=8,
    dropout=0.1,
    feature_dropout=0.1,
    batch_size=8,
    learning_rate=0.01,
    weight_decay=0.01,
    label_smoothing=0.02,
    n_epochs=3,
    seed=0,
)
