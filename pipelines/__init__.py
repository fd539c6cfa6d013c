"""From a row number to views: the spec, decoding, the DALI graph, the loader."""
