"""From a row number to views: the plan, decoding, the DALI graph, the loader."""
