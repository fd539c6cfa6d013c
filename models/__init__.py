"""Networks: plain torch modules that know nothing of data, losses or training."""
