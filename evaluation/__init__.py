"""What pretrained networks are worth downstream: features, probes, retrieval, fine-tuning, and the report."""
