#!/usr/bin/env python3
"""What is a pretrained network worth downstream?

    evaluate.py linear    --checkpoint runs/vdim                             on the demo set
    evaluate.py linear    --checkpoint runs/dpc --data data/ucf101 --split 1    (--split all: mean of the three)
    evaluate.py retrieval --checkpoint runs/pace --layer p4
    evaluate.py linear    --checkpoint random:dpc                            the baseline alone

Protocols: linear, nonlinear, attentive, finetune, retrieval, fraction, oops, oops-finetune, embed; over results: fuse, curve,
table, report. `evaluate.py PROTOCOL --help` shows the flags.
Each looks at videos as the method's paper does, evaluates every test video, short ones padded, and reports random
weights and a classifier of the videos' size and length beside. Features are computed once and kept; several
processes share the work: accelerate launch evaluate.py …
"""

import logging
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import tyro

from evaluation import combine, context, oops, recognition, report, retrieval, settings, table
from shards import InputError
from training.processes import StopSignals, ended

PROTOCOLS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "linear": (settings.Linear, recognition.linear),
    "nonlinear": (settings.Nonlinear, recognition.nonlinear),
    "attentive": (settings.Attentive, recognition.attentive),
    "retrieval": (settings.Retrieval, retrieval.retrieve),
    "fraction": (settings.Fraction, recognition.fraction),
    "finetune": (settings.Finetune, recognition.finetune),
    "oops": (settings.Oops, oops.oops),
    "oops-finetune": (settings.OopsFinetune, oops.oops_finetune),
    "fuse": (settings.Fuse, combine.fuse),
    "curve": (settings.Curve, combine.curve),
    "table": (settings.Table, table.table),
    "report": (settings.Report, report.report),
    "embed": (settings.Embed, context.embed),
}


def main(argv: list[str]) -> None:
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(__doc__)
        return
    if name not in PROTOCOLS:
        raise InputError(f"{name}: there is no such protocol; choose one of {', '.join(PROTOCOLS)}")
    flags, run = PROTOCOLS[name]
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with StopSignals():
        described = textwrap.dedent(flags.__doc__ or "")
        parsed = tyro.cli(flags, args=argv[1:], prog=f"evaluate.py {name}", description=described)
        parsed.check()
        run(parsed)


if __name__ == "__main__":
    sys.exit(ended(main, sys.argv[1:]))
