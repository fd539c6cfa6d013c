"""What the process that runs are forked from has loaded; it starts no thread, so forking it is safe."""

import torch
import torch._dynamo
import torchvision.models
import torchvision.utils
from sklearn import metrics, model_selection

import objectives
import tests.training.toy
import train

torch.set_num_threads(1)
objectives.available()
loaded = train, tests.training.toy, metrics, model_selection, torchvision
