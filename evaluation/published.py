"""Numbers that the papers state, for the report's table. They are theirs, not ours: other data, encoders, hardware."""

from typing import NamedTuple


class Published(NamedTuple):
    """value: per cent. where: table or section of the method's paper."""

    objective: str
    protocol: str
    data: str
    setting: str
    value: float
    where: str


PUBLISHED = (
    Published("tcp", "linear", "UCF101", "flow, pretrained on UCF101, mean of splits", 77.9, "Table 1"),
    Published("tcp", "linear", "UCF101", "flow, random weights", 22.4, "Table 1"),
    Published("tcp", "finetune", "UCF101", "flow, pretrained on UCF101, mean of splits", 87.0, "Table 1"),
    Published("tcp", "finetune", "UCF101", "flow, random weights", 82.2, "Table 1"),
    Published("dpc", "finetune", "UCF101", "RGB 128², pretrained on UCF101, split 1", 60.6, "Table 1"),
    Published("dpc", "finetune", "UCF101", "RGB 128², random weights, split 1", 46.5, "Table 1"),
    Published(
        "memdpc",
        "linear",
        "UCF101",
        "RGB + flow, R34 224², pretrained on K400",
        54.1,
        "Table 2",
    ),
    Published(
        "memdpc",
        "nonlinear",
        "UCF101",
        "RGB + flow, R34 224², pretrained on K400",
        58.5,
        "Table 2",
    ),
    Published("memdpc", "finetune", "UCF101", "RGB, R34 224², pretrained on K400", 78.1, "Table 2"),
    Published("memdpc", "retrieval", "UCF101", "RGB, R@1, pretrained on UCF101", 20.2, "Table 3"),
    Published("memdpc", "retrieval", "UCF101", "flow, R@1, pretrained on UCF101", 40.2, "Table 3"),
    Published("pace", "finetune", "UCF101", "R(2+1)D 112², pretrained on UCF101", 75.9, "Table 3"),
    Published("pace", "finetune", "UCF101", "R(2+1)D 112², pretrained on K400", 77.1, "Table 3"),
    Published("vdim", "finetune", "UCF101", "pretrained on UCF101, best ablation, split 1", 74.1, "Table 2"),
    Published("vdim", "finetune", "UCF101", "pretrained on K600, mean of splits", 79.7, "Table 3"),
    Published("memdpc", "oops", "Oops", "R18, pretrained on K400 and Oops, frozen", 53.0, "Table 4"),
    Published("memdpc", "oops", "Oops", "R18, pretrained on K400 and Oops, fine-tuned", 64.4, "Table 4"),
)
