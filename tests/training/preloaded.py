"""What the process that runs are forked from has loaded; it starts no thread, so forking it is safe."""

import torch
import torch._dynamo

import objectives
import tests.training.toy
import train

torch.set_num_threads(1)
objectives.available()
loaded = train, tests.training.toy
