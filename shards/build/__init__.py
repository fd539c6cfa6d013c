"""From a folder of videos to a data set: tools/make_shards.py and tools/merge_shards.py."""
