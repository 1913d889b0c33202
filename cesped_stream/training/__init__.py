"""Fine-tuning one Image2Sphere per half-set on aligned particles: deterministic, resumable, one job for both halves."""
