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
    Published("memdpc", "oops", "Oops", "R18, pretrained on K400 and Oops, frozen", 53.0, "Table 4"),
    Published("memdpc", "oops", "Oops", "R18, pretrained on K400 and Oops, fine-tuned", 64.4, "Table 4"),
)
